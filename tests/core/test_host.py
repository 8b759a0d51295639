"""The traps of `datasets` as a host: hashes, caches, processes, streams, dtypes; all of them for each step in STEPS."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, load_from_disk
from datasets.fingerprint import Hasher
from processes import HANG
from small_models import save_small_model

from hf_safefilter.data.batch import Batch
from hf_safefilter.data.spans import SPANS_TYPE
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.model import load
from hf_safefilter.model.source import resolve_revision

ROWS = [
    {"prompt": f"Name flower number {n}.", "completion": "A crocus, " + "early " * (n % 7) + "in spring."}
    for n in range(24)
]
STEPS = {
    "embed": "EmbedLayers({model!r}, layers=[2, 'norm'])",
    "embed_position": "EmbedLayers({model!r}, layers=[1], position='last,last_prompt', chat_template='plain')",
    "embed_all": "EmbedLayers({model!r}, layers=[1], spans='all', window=7, ignore=['name'])",
    "length": "LengthScore()",
    "random": "RandomScore(seed=3)",
}
"""Expressions, so that another process can make the same step."""

PREAMBLE = """
import json, sys
from datasets import load_from_disk
from datasets.fingerprint import Hasher
from hf_safefilter.embed import EmbedLayers
from hf_safefilter.scores.controls import LengthScore, RandomScore
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices run fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    load._trunks.clear()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def saved(tmp_path):
    """Rows on disk, as only such are cached by `map`."""
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "rows")
    return tmp_path / "rows"


def make(name, model):
    made: dict = {}
    exec(f"{PREAMBLE}\nstep = {STEPS[name].format(model=model)}", made)
    return made["step"]


def elsewhere(code, tmp_path, seed="0", threads="2", timeout=HANG):
    """Run `code` in a process of its own; returns what it printed as JSON on its last line."""
    script = tmp_path / f"script{seed}.py"
    script.write_text(PREAMBLE + code)
    environment = os.environ | {
        "PYTHONHASHSEED": seed,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": threads,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# Hashes


def test_hashes_are_equal_in_every_process_and_before_and_after_use(model, tmp_path):
    code = f"""
hashes = {{}}
for name, text in {STEPS!r}.items():
    step = eval(text.format(model={model!r}))
    before = Hasher.hash(step)
    step({{"prompt": ["Hello there."], "completion": ["Good day."]}})
    hashes[name] = [before, Hasher.hash(step)]
print(json.dumps(hashes))
"""
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda seed: elsewhere(code, tmp_path, seed), ("1", "2"))
    assert first == second
    for name, (before, after) in first.items():
        assert before == after == Hasher.hash(make(name, model)), name
    assert len({before for before, _ in first.values()}) == len(STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_another_algorithm_number_is_another_fingerprint(name, model, saved):
    step, raised = make(name, model), make(name, model)
    object.__setattr__(raised, "algorithm", step.algorithm + 1)
    assert Hasher.hash(step) != Hasher.hash(raised)
    rows = load_from_disk(saved)
    assert rows.map(step, batched=True)._fingerprint != rows.map(raised, batched=True)._fingerprint


def test_every_option_is_in_the_hash(model):
    options = [{}, {"position": "last_prompt"}, {"max_length": 99}, {"dtype": "bfloat16"}, {"chat_template": "plain"}]
    options += [{"position": "mean,last_prompt"}, {"position": "last_prompt,mean"}, {"spans": "all"}, {"window": None}]
    options += [{"window": 9}, {"too_long": "cut"}, {"too_long": "drop"}, {"ignore": ["name"]}]
    options += [{"columns": {"prompt": "completion", "response": "prompt"}}]
    steps = [EmbedLayers(model, layers=[1], **given) for given in options] + [EmbedLayers(model, layers=[2])]
    assert len({Hasher.hash(step) for step in steps}) == len(steps)


def test_a_model_changed_in_place_is_another_fingerprint(tmp_path):
    before = EmbedLayers(str(save_small_model(tmp_path / "model")), layers=[1])
    after = EmbedLayers(str(save_small_model(tmp_path / "model", seed=1)), layers=[1])
    assert before.revision != after.revision and Hasher.hash(before) != Hasher.hash(after)


# Caches


def test_a_second_run_loads_no_model_and_hits_the_cache(model, saved, tmp_path):
    run = f"""
from hf_safefilter.model import load
rows = load_from_disk({str(saved)!r}).map(EmbedLayers({model!r}, layers=[2]), batched=True)
print(json.dumps([rows._fingerprint, rows.cache_files[0]["filename"], len(load._trunks), "torch.nn" in sys.modules]))
"""
    first, second = elsewhere(run, tmp_path, seed="1"), elsewhere(run, tmp_path, seed="2")
    assert first[:2] == second[:2]
    assert (first[2], second[2]) == (1, 0)


# Processes

WORKERS = """
import multiprocess
from datasets import disable_progress_bars

def main():
    multiprocess.set_start_method("{method}", force=True)
    disable_progress_bars()
    rows = load_from_disk({saved!r})
    {before}
    step = EmbedLayers({model!r}, layers=[2])
    found = rows.map(step, batched=True, batch_size=6, num_proc=2, with_rank=True)
    print(json.dumps([found["row_id"][:], found["spans"][:], found["emb_layer_2"][:]]))

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    ("method", "before"),
    [
        ("spawn", "EmbedLayers({model!r}, layers=[1])(rows[:4])"),
        ("fork", "import torch; torch.set_num_threads(4); torch.ones(1500, 1500) @ torch.ones(1500, 1500)"),
        ("fork", "EmbedLayers({model!r}, layers=[2])(rows[:4])"),
    ],
    ids=["spawned after a model ran", "forked after torch ran", "forked after a model ran"],
)
def test_two_processes_give_what_one_gives(method, before, model, saved, tmp_path):
    code = WORKERS.format(method=method, saved=str(saved), model=model, before=before.format(model=model))
    ids, spans, vectors = elsewhere(code, tmp_path, threads="4")
    alone = load_from_disk(saved).map(EmbedLayers(model, layers=[2]), batched=True, with_rank=True)
    assert ids == alone["row_id"][:] and spans == alone["spans"][:]
    same(vectors, alone["emb_layer_2"][:])


def test_rank_reaches_the_choice_of_device(model, monkeypatch):
    ranks = []
    pick = load.pick_device
    monkeypatch.setattr(load, "pick_device", lambda device, rank: ranks.append(rank) or pick(device, rank))
    step = EmbedLayers(model, layers=[1])
    step({"prompt": ["Hello."], "completion": ["Good day."]}, 3)
    assert ranks == [None, 3]


# Hosts


@pytest.mark.parametrize("name", STEPS)
def test_an_empty_set_stays_empty(name, model):
    empty = Dataset.from_dict({"prompt": [], "completion": []})
    assert len(empty.map(make(name, model), batched=True)) == 0
    assert len(DatasetDict(train=empty).map(make(name, model), batched=True)["train"]) == 0
    found = make(name, model)({"prompt": [], "completion": []})
    assert all(len(values) == 0 for values in found.values())
    assert set(found) == set(make(name, model).produces())


def same(found, expected):
    """Numbers alike, all else equal, at any depth."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, (list, np.ndarray)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, (str, bool)):
        assert found == expected
    else:
        assert abs(found - expected) <= 2e-3 * (1 + abs(expected))


@pytest.mark.parametrize("name", STEPS)
def test_every_host_gives_the_same_rows(name, model):
    step, table = make(name, model), Dataset.from_list(ROWS[:6])
    expected = list(table.map(step, batched=True))
    hosts = {
        "row by row": table.map(step),
        "small batches": table.map(step, batched=True, batch_size=4),
        "DatasetDict": DatasetDict(train=table, test=table).map(step, batched=True)["test"],
        "stream": table.to_iterable_dataset().map(step, batched=True, batch_size=4),
        "stream of a generator, row by row": IterableDataset.from_generator(lambda: iter(ROWS[:6])).map(step),
        "Arrow": table.with_format("arrow").map(step, batched=True).with_format(None),
        "NumPy": table.with_format("numpy").map(step, batched=True).with_format(None),
    }
    for host, rows in hosts.items():
        found = list(rows)
        assert len(found) == 6, host
        for one, other in zip(found, expected, strict=True):
            assert list(one) == list(other), host
            for column in step.produces():
                same(one[column], other[column])


@pytest.mark.parametrize("batched", [True, False])
def test_vectors_are_fixed_size_float16_and_scores_float32_without_being_told(batched, model):
    table = Dataset.from_list(ROWS[:3])
    embedded = table.map(make("embed", model), batched=batched)
    schema = embedded.data.schema
    assert schema.field("emb_layer_2").type == pa.list_(pa.list_(pa.float16(), 32))
    assert schema.field("spans").type == SPANS_TYPE
    assert table.map(make("length", model), batched=batched).features["length_score"].dtype == "float32"


def test_embeddings_are_read_where_they_lie(model, saved):
    step = EmbedLayers(model, layers=[2])
    embedded = load_from_disk(saved).map(step, batched=True)
    chunk = embedded.data.column("emb_layer_2").chunk(0)
    stored = chunk.values.values.buffers()[1]
    seen = []

    def look(batch):
        vectors = Batch(batch).vectors("emb_layer_2").values
        address = vectors.__array_interface__["data"][0]
        seen.append((vectors.dtype, vectors.shape, stored.address <= address < stored.address + stored.size))

    look(embedded.data.table)
    embedded.map(look, batched=True, batch_size=len(embedded), load_from_cache_file=False, new_fingerprint="look")
    embedded.with_format("arrow").map(look, batched=True, batch_size=len(embedded), new_fingerprint="look again")
    count = sum(map(len, embedded["spans"][:]))
    assert seen == [(np.float16, (count, 32), True)] * 3 and count > 24


def test_infinity_and_nan_in_a_model_are_rows_without_vectors(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_small_model(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight"][3, :] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    found = Dataset.from_list(ROWS[:3]).map(EmbedLayers(str(folder), layers=[1]), batched=True)
    assert found["unscorable"][:] == ["non_finite"] * 3
    assert found["spans"][:] == [[]] * 3 and found["emb_layer_1"][:] == [[]] * 3
    assert resolve_revision(str(folder), None) == EmbedLayers(str(folder), layers=[1]).revision
