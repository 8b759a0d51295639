"""One contract for every score: what `datasets` and the person who filters may rely on."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from datasets import DatasetDict, Value
from datasets.fingerprint import Hasher
from processes import HANG
from small_models import save_small_model
from stand_in import ROWS, UNREADABLE, OfPrompts, StandIn, safe_rows, unsafe_rows, windows_of
from trained_guard import save_trained_guard
from trained_refuser import save_trained_refuser

from hf_safefilter.embed import EmbedLayers
from hf_safefilter.errors import DataError, MissingError
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.scores import CONTROLS, METHODS, make_score, method
from hf_safefilter.scores.gradient import fit_gradient
from hf_safefilter.scores.ranks import fit_ranks
from hf_safefilter.scores.saft import fit_saft
from hf_safefilter.scores.seal import SealSelector
from hf_safefilter.scores.token_risk import fit_token_risk

ADDED = {"farthest": "scores.added_score:FarthestScore"}
"""A score that is added as `test_adding_a_score` shows: a file and a line bring it under the contract, too."""

READING_VECTORS = ("larf", "anchor", "nearest", "direction", "probe", "saft", "farthest")
READING_TEXT = ("length", "gradient", "self_influence", "guard", "token_risk")


def column_of(name: str) -> str:
    return f"{name}_score"


@pytest.fixture(scope="session")
def anchor(tmp_path_factory):
    model = save_small_model(tmp_path_factory.mktemp("tuned") / "llama")
    return fit_gradient(str(model), unsafe_rows(6), safe_rows(6), device="cpu")


@pytest.fixture(scope="session")
def guard(tmp_path_factory):
    """A guard that has learned to tell the two kinds of rows apart."""
    return str(save_trained_guard(tmp_path_factory.mktemp("guards") / "guard"))


@pytest.fixture(scope="session")
def refuser(tmp_path_factory):
    """A model that has learned to refuse, which rows that comply would move farthest."""
    return str(save_trained_refuser(tmp_path_factory.mktemp("refusers") / "refuser"))


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """Two adapters of a small model, of which one has learned to comply and one to refuse."""
    embed = EmbedLayers(save_small_model(tmp_path_factory.mktemp("base") / "llama"), [1], device="cpu")
    index = ReferenceIndex.build(unsafe_rows(24), safe_rows(24), embed, license="mit", source="the tests")
    # The base is random: steering its attention, as published, hardly changes what it says.
    return fit_token_risk(index, steps=30, learning_rate=3e-2, targets=["up_proj", "down_proj"], device="cpu")


@pytest.fixture(scope="session")
def steps(index, rows, anchor, guard, refuser, adapters):
    """Every score in `METHODS`: those that need more than references and rows by hand, all others by their name."""
    known = [row for row in rows.remove_columns(["emb_layer_2", "emb_layer_2_last_prompt"]) if not row["unscorable"]]
    logits = {row["row_id"]: -row["first_score"] for row in known}
    both = ReferenceIndex.build(
        unsafe_rows(), safe_rows(), StandIn((2, "2_last_prompt")), license="mit", source="the tests"
    )
    of_prompts = ReferenceIndex.build(
        unsafe_rows(40), safe_rows(37), OfPrompts((2, "2_last_prompt")), license="mit", source="the tests"
    )
    options = {
        "shift": {"references": both},
        "ensemble": {"references": of_prompts},
        # Centred, the fewer unsafe rows lie farther from the mean along the direction of most variance.
        "saft": {"subspace": fit_saft(rows, 2, center=True)},
        "rank_average": {"ranks": fit_ranks(rows, ["first_score", "second_score"])},
        "largest_rank": {"ranks": fit_ranks(rows, ["first_score", "second_score"])},
        "largest_deviation": {"ranks": fit_ranks(rows, ["first_score", "second_score"])},
        "seal": {"selector": SealSelector.of_logits(logits)},
        "gradient": {"anchor": anchor, "device": "cpu"},
        "self_influence": {"model": refuser, "device": "cpu"},
        "guard": {"model": guard, "device": "cpu"},
        "token_risk": {"adapters": adapters, "device": "cpu"},
    }
    METHODS.update(ADDED)
    try:
        return {name: make_score(name, options.get(name, {}), references=index, layer=2, rows=rows) for name in METHODS}
    finally:
        for added in ADDED:
            del METHODS[added]


@pytest.fixture(params=sorted({*METHODS, *ADDED}))
def name(request):
    return request.param


@pytest.fixture
def step(name, steps):
    return steps[name]


@pytest.fixture
def scored(step, rows):
    return rows.map(step, batched=True)


def scores_of(ds, name):
    return np.array(ds.with_format("arrow")[:][column_of(name)].to_numpy(zero_copy_only=False))


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_every_method_is_under_contract(steps):
    assert set(steps) == {*METHODS, *ADDED}
    assert all(type(steps[name]) is method(name) for name in METHODS)


def test_one_float32_a_row_and_nan_where_a_row_cannot_be_read(name, step, rows, scored):
    found = scores_of(scored, name)
    assert scored.features[column_of(name)] == Value("float32")
    assert found.dtype == np.float32 and found.shape == (ROWS,)
    # A row that has text but no vector can still be read.
    expected = [7] if name in READING_TEXT else sorted(UNREADABLE)
    assert np.flatnonzero(np.isnan(found)).tolist() == expected
    assert set(step.produces()) == set(scored.column_names) - set(rows.column_names)


@pytest.mark.parametrize("name", READING_VECTORS)
def test_the_span_with_the_score_is_the_one_that_complies(name, scored, planted):
    found = np.array(scored[f"{name}_span"])
    assert scored.features[f"{name}_span"] == Value("int32")
    assert np.flatnonzero(found == -1).tolist() == sorted(UNREADABLE)
    for row in np.flatnonzero(planted):
        assert found[row] == windows_of(row, "Sure").index("Sure")


@pytest.mark.parametrize("name", sorted({*METHODS, *ADDED} - set(CONTROLS)))
def test_danger_scores_higher(name, scored, planted):
    found = scores_of(scored, name)
    readable = ~np.isnan(found)
    assert found[planted & readable].min() > found[~planted & readable].max()


def test_order_is_kept_and_batches_do_not_matter(name, step, rows, scored):
    expected = scores_of(scored, name)
    for size in (1, 7, ROWS):
        same(scores_of(rows.map(step, batched=True, batch_size=size), name), expected)
    turned = rows.select(range(ROWS - 1, -1, -1))
    same(scores_of(turned.map(step, batched=True, batch_size=16), name)[::-1], expected)


def test_row_by_row_is_the_same(name, step, rows, scored):
    by_row = rows.map(step)
    same(scores_of(by_row, name), scores_of(scored, name))
    assert by_row.features == scored.features


def test_every_host_is_served(name, step, rows, scored):
    expected = scores_of(scored, name)
    streamed = rows.to_iterable_dataset(num_shards=3).map(step, batched=True, batch_size=8)
    same(np.array([row[column_of(name)] for row in streamed]), expected)
    same(np.array([row[column_of(name)] for row in rows.to_iterable_dataset().map(step)]), expected)
    split = DatasetDict({"a": rows.select(range(20)), "b": rows.select(range(20, ROWS))}).map(step, batched=True)
    same(np.concatenate([scores_of(split["a"], name), scores_of(split["b"], name)]), expected)
    same(scores_of(rows.with_format("arrow").map(step, batched=True, batch_size=13), name), expected)
    same(step(rows[:])[column_of(name)], expected)
    same(step(rows.with_format("arrow")[:])[column_of(name)].to_numpy(), expected)


def test_input_is_left_alone(step, rows):
    batch = rows[:]
    before = json.dumps(batch, default=str)
    added = step(batch)
    assert json.dumps(batch, default=str) == before
    assert set(added) == set(step.produces())


def test_no_rows(name, step, rows):
    none = rows.with_format("arrow")[:].slice(0, 0)
    assert step(none).num_rows == 0


def test_a_step_is_configuration_only(step):
    for one in dataclasses.fields(step):
        assert isinstance(getattr(step, one.name), (str, int, float, tuple, type(None)))
    assert len(pickle.dumps(step)) < 500
    assert pickle.loads(pickle.dumps(step)) == step  # noqa: S301 - our own bytes
    assert json.loads(json.dumps(step.record()))["step"] == type(step).__name__
    assert not hasattr(step, "__dict__")


def test_another_algorithm_is_another_step(step):
    newer = pickle.loads(pickle.dumps(step))  # noqa: S301 - our own bytes
    assert Hasher.hash(newer) == Hasher.hash(step)
    object.__setattr__(newer, "algorithm", step.algorithm + 1)
    assert Hasher.hash(newer) != Hasher.hash(step)


IN_A_PROCESS = """
import json, sys
from datasets.fingerprint import Hasher
from hf_safefilter.scores import METHODS, method
records, batch, added = json.load(sys.stdin)
METHODS.update(added)
hashes = {}
for name, record in records.items():
    step = method(name)(**{k: v for k, v in record.items() if k not in ("step", "algorithm")})
    before = Hasher.hash(step)
    step(batch)
    hashes[name] = [before, Hasher.hash(step)]
json.dump(hashes, sys.stdout)
"""


def test_the_hash_is_the_same_in_every_process_and_after_use(steps, rows):
    told = json.dumps([{name: step.record() for name, step in steps.items()}, rows.select(range(3))[:], ADDED])
    here = {name: [Hasher.hash(step)] * 2 for name, step in steps.items()}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", IN_A_PROCESS],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    for process in running:
        out, _ = process.communicate(told, timeout=HANG)
        assert process.returncode == 0 and json.loads(out) == here


def test_forked_workers(name, step, rows, scored):
    same(scores_of(rows.map(step, batched=True, num_proc=2), name), scores_of(scored, name))


@pytest.mark.parametrize("name", READING_VECTORS)
def test_a_fork_after_much_work_does_not_hang(name, step):
    # Enough rows for NumPy, FAISS and OpenMP to have made threads here, for which a forked worker would wait forever.
    batch = {"emb_layer_2": np.random.default_rng(0).normal(size=(5000, 16)).astype(np.float16)}
    here = step(batch)[column_of(name)]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        there = pool.apply_async(step, (batch,)).get(timeout=HANG)[column_of(name)]
    same(there, here)


@pytest.mark.parametrize("name", READING_VECTORS)
def test_missing_and_foreign_vectors_are_named(step, rows):
    with pytest.raises(MissingError, match="emb_layer_2") as missing:
        step({"prompt": ["a"], "response": ["b"]})
    assert "EmbedLayers(" in str(missing.value).splitlines()[-1]
    with pytest.raises(DataError, match=r"length 3, .* 16"):
        step({"emb_layer_2": np.ones((2, 3), np.float32)})


@pytest.mark.parametrize("name", READING_VECTORS)
@pytest.mark.parametrize("bad", [0.0, np.inf, -np.inf, np.nan])
def test_vectors_that_mean_nothing_are_not_scored(step, name, bad):
    vectors = np.ones((3, 16), np.float16)
    vectors[1] = bad
    vectors[2, 5] = bad
    found = step({"emb_layer_2": vectors})[column_of(name)]
    assert np.isnan(found).tolist() == [False, True, bad != 0]


@pytest.mark.parametrize("name", READING_VECTORS)
def test_a_column_of_no_fixed_size_and_null_rows(step, name, rows, scored):
    loose = [None if place in UNREADABLE else cell for place, cell in enumerate(rows["emb_layer_2"])]
    same(step({"emb_layer_2": loose})[column_of(name)], scores_of(scored, name))
    table = pa.table({"emb_layer_2": pa.array(loose, pa.list_(pa.list_(pa.float32())))})
    same(step(table)[column_of(name)].to_numpy(), scores_of(scored, name))
    assert np.isnan(step({"emb_layer_2": [None, None]})[column_of(name)]).all()
