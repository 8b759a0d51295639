"""vLLM as the reader: means that its workers hand back, against transformers; and what becomes of all it cannot read.

vLLM is not installed where these tests run: `vllm_stand_in` has the parts of its interface that are used. The last test
needs vLLM itself.
"""

import os
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from small_models import save_small_model
from vllm_stand_in import BLOCK, Model, install

from hf_safefilter import EmbedLayers
from hf_safefilter.errors import MissingError, ModelError, OptionError
from hf_safefilter.model import load, picks, readers, vllm_engine
from hf_safefilter.model.windows import TokenSequence
from hf_safefilter.toy.corpus import mixed_rows

REAL = find_spec("vllm") is not None
CPU = torch.device("cpu")
LAYERS = [0, 1, 3, 4]


@pytest.fixture(autouse=True)
def vllm(monkeypatch, tmp_path):
    """The stand-in in the place of the package."""
    monkeypatch.setenv("HF_SAFEFILTER_ROW_CACHE", "off")
    monkeypatch.setattr(vllm_engine.tempfile, "tempdir", str(tmp_path))
    install(monkeypatch)
    fresh()
    yield
    fresh()
    sys.modules.pop("hf_safefilter.model.vllm_worker", None)


def fresh():
    """Nothing is loaded, tried or said."""
    vllm_engine.close()
    readers._tried.clear()
    readers._say.cache_clear()
    load._trunks.clear()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(save_small_model(tmp_path_factory.mktemp("llama")))


def rows(count=24):
    return Dataset.from_list(
        [{name: row[name] for name in ("prompt", "response")} for row in mixed_rows(count, 0.3, 4)]
    )


def read(folder, given, layers=LAYERS, **options):
    return (
        EmbedLayers(folder, layers=layers, position="mean,last_prompt", window=6, **options).vectors(given)[0].vectors
    )


def test_it_reads_what_transformers_reads(llama, monkeypatch, tmp_path):
    monkeypatch.setattr(vllm_engine, "AT_ONCE", 5)
    found = read(llama, rows(), backend="vllm")
    assert vllm_engine._held[0].proven
    for name, wanted in read(llama, rows()).items():
        assert found[name].dtype == np.float32 and len(wanted) > 24
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    assert len(Model.made) == 1 and len(Model.made[0].asked) > 24
    assert not list(tmp_path.rglob("*.safetensors*"))  # what was handed back is deleted


def test_nothing_of_a_repository_is_run_or_unpickled_and_nothing_is_reported(llama, monkeypatch):
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)
    read(llama, rows(3), backend="vllm")
    options = Model.made[0].options
    assert options["trust_remote_code"] is False and options["load_format"] == "safetensors"
    assert options["skip_tokenizer_init"] and options["dtype"] == "float32"
    assert vllm_engine.os.environ["VLLM_NO_USAGE_STATS"] == "1"
    monkeypatch.delenv("VLLM_NO_USAGE_STATS")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("start", "FooForCausalLM"),
        ("other numbers", "the two differ by"),
        ("nan", "the two differ by nan"),
        ("beginning", "the two differ by"),
    ],
)
def test_a_model_that_it_does_not_read_alike_is_read_by_transformers(llama, fault, said, caplog):
    Model.fault = fault
    found, wanted = read(llama, rows(5), backend="vllm"), read(llama, rows(5))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert [record.getMessage() for record in caplog.records if said in record.getMessage()]
    assert not vllm_engine._held
    read(llama, rows(6), backend="vllm")
    readers._say.cache_clear()
    assert len([record for record in caplog.records if said in record.getMessage()]) == 1  # tried and said once


def test_the_final_norm_and_one_of_several_processes_are_left_to_transformers(llama, monkeypatch, caplog):
    found = read(llama, rows(4), [2, "norm"], backend="vllm")
    assert all(np.array_equal(values, found[name]) for name, values in read(llama, rows(4), [2, "norm"]).items())
    assert "final norm" in caplog.text and not Model.made
    step = EmbedLayers(llama, layers=[2], backend="vllm", device="cpu")
    step(rows(3)[:], rank=0)
    assert "an engine of their own" in caplog.text and not Model.made


def test_it_reads_on_the_device_that_was_asked_for_or_not_at_all(llama, monkeypatch, caplog):
    picked = load.pick_device
    monkeypatch.setattr(
        load, "pick_device", lambda device, rank: picked(device, rank) if device else torch.device("mps")
    )
    read(llama, rows(3), [2], backend="vllm", device="cpu")
    assert "would not read on cpu" in caplog.text and not Model.made


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, "no plain safetensors"),
        ({"get_text_config": lambda: object()}, "part of another"),
    ],
)
def test_weights_that_it_would_read_otherwise_are_not_tried(llama, change, said, monkeypatch):
    key = load.ModelKey(llama, load.resolve_revision(llama, None), "float32")
    config = types.SimpleNamespace(get_text_config=lambda: config)
    vars(config).update(change)
    monkeypatch.setattr(load, "model_config", lambda key: config)
    assert said in readers._unfit(key, (1,), torch.device("cpu"), None)
    for name in ("base + adapter", "folder/model.gguf"):
        other = load.ModelKey(name, key.revision, "float32")
        assert "no plain safetensors" in readers._unfit(other, (1,), torch.device("cpu"), None)


def test_one_engine_is_held_and_it_makes_room_for_other_models(llama, tmp_path):
    read(llama, rows(4), [1, 3], backend="vllm")
    (first,) = vllm_engine._held
    read(llama, rows(5), [3], backend="vllm")
    assert len(Model.made) == 1
    read(llama, rows(4), [2], backend="vllm")
    assert len(Model.made) == 2 and vllm_engine._held[0] is not first and first.llm is None
    assert not first.folder.exists() and vllm_engine._held[0].folder.is_dir()
    load.causal_lm.cache_clear()
    load.causal_lm(load.ModelKey(llama, load.resolve_revision(llama, None), "float32"), torch.device("cpu"))
    assert not vllm_engine._held


def test_a_longer_row_gets_a_longer_engine(llama, monkeypatch):
    monkeypatch.setattr(vllm_engine, "SHORTEST", 8)
    key = load.ModelKey(llama, load.resolve_revision(llama, None), "float32")
    lengths = [vllm_engine.engine(key, [1], tokens).longest for tokens in (3, 9, 40, 12)]
    assert lengths == [8, 16, 64, 64] and len(Model.made) == 3
    assert [model.options["max_model_len"] for model in Model.made] == [9, 17, 65]  # a token is generated after the row
    assert all(model.options["max_num_batched_tokens"] >= model.options["max_model_len"] for model in Model.made)


def test_every_engine_is_compared(llama):
    reader = readers._tried_reader(load.ModelKey(llama, load.resolve_revision(llama, None), "float32"), (1,), CPU)
    Model.fault = "long"
    short = TokenSequence(np.array([5, 6, 7], np.int32), ((0, 3),))
    assert reader.read([short], (1,), None)[1].shape == (1, 32)
    vllm_engine._held[0].longest = 2  # as if longer rows came
    with pytest.raises(ModelError, match="the two differ by"):
        reader.read([short], (1,), None)
    assert not vllm_engine._held


@pytest.mark.parametrize(("given", "said"), [(1, None), (2, "nearer to one beside it")])
def test_where_rounding_is_coarse_a_layer_must_be_nearest_to_its_own(given, said):
    drawn = np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float32)
    states = {layer: 10 + 0.1 * drawn[layer] for layer in range(3)}  # nearer to each other than 16 bits may round
    row = TokenSequence(np.array([5, 6], np.int32), ((0, 1), (1, 2)))
    trial = readers.Trial((row, row), states, (1,), 0.1, 320, 8)
    halves = iter([states[given][:2], states[given][2:]])
    engine = types.SimpleNamespace(read=lambda rows, layers: {1: next(halves) * np.float32(1.001)}, proven=False)
    found = trial.differs(engine)
    assert engine.proven is (said is None) and (found is None if said is None else said in found)


def test_an_interrupted_call_leaves_nothing_for_the_next_one(llama):
    read(llama, rows(4), backend="vllm")
    Model.fault = "stopped"
    with pytest.raises(KeyboardInterrupt):
        read(llama, rows(9), backend="vllm")
    assert not vllm_engine._held
    Model.fault = None
    found, wanted = read(llama, rows(4), backend="vllm"), read(llama, rows(4))
    assert all(np.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)


def test_an_interrupted_trial_is_made_again(llama):
    Model.fault = "stopped"
    with pytest.raises(KeyboardInterrupt):
        read(llama, rows(4), backend="vllm")
    Model.fault = "other numbers"
    found, wanted = read(llama, rows(4), backend="vllm"), read(llama, rows(4))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_answers_to_other_questions_are_refused(llama):
    read(llama, rows(4), backend="vllm")
    (engine,) = vllm_engine._held
    engine.llm.generate([{"prompt_token_ids": [5, 6]}], [asked([(0, 2)])], use_tqdm=False)
    engine.llm.finished = [types.SimpleNamespace(prompt_token_ids=[5, 6], kv_transfer_params={})]
    with pytest.raises(ModelError, match="something else than what"):
        read(llama, rows(5), backend="vllm")
    assert not vllm_engine._held


def asked(reads):
    return types.SimpleNamespace(max_tokens=1, extra_args={"kv_transfer_params": {"reads": reads}})


def test_what_fails_later_ends_in_a_sentence(llama):
    read(llama, rows(4), backend="vllm")
    vllm_engine.close()
    Model.fault = "start"
    with pytest.raises(ModelError, match="it fails with ValueError"):
        read(llama, rows(4), backend="vllm")


def test_a_token_without_an_embedding_is_refused(llama):
    reader = readers._tried_reader(load.ModelKey(llama, load.resolve_revision(llama, None), "float32"), (1,), CPU)
    with pytest.raises(ModelError, match="embeddings for 320 tokens"):
        reader.read([TokenSequence(np.array([5, 320], np.int32), ((0, 2),))], (1,), None)


def test_rows_that_cannot_be_read_start_no_engine(llama):
    empty = Dataset.from_list([{"prompt": "a", "response": ""}] * 2)
    columns = EmbedLayers(llama, layers=[1], backend="vllm")(empty[:])
    assert list(columns["unscorable"]) == ["empty_response"] * 2


def test_layers_in_any_order_and_some_of_them_from_the_store(llama, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_SAFEFILTER_ROW_CACHE", "on")
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    given = rows(4)[:]
    EmbedLayers(llama, layers=[4], backend="vllm")(given)
    found = EmbedLayers(llama, layers=[4, 2], backend="vllm")(given)
    assert vllm_engine._held
    wanted = EmbedLayers(llama, layers=[4, 2])(given)
    for name in ("emb_layer_4", "emb_layer_2"):
        for one, two in zip(found[name], wanted[name], strict=True):
            np.testing.assert_allclose(one, two, rtol=2e-3, atol=2e-3)


def test_a_mean_of_states_in_16_bits_is_taken_in_32(llama):
    read(llama, rows(2), [1], backend="vllm")
    connector = Model.made[0].connector
    states = torch.randn(2, 1, BLOCK, 64, generator=torch.Generator().manual_seed(0)).bfloat16() + 100
    connector._kv_cache, connector._is_tp_rank_zero = states, True
    request = types.SimpleNamespace(
        request_id="wide", prompt_token_ids=list(range(2 * BLOCK)), kv_transfer_params={"reads": [(0, 2 * BLOCK)]}
    )
    _, answer = connector.request_finished(request, [0, 1])
    pending = connector._pending_saves["wide"]
    connector._submit_async_write(pending)
    found = load_file(answer["hidden_states_path"])["states"]
    assert torch.equal(found[0, 0], states.transpose(1, 2).reshape(2 * BLOCK, 64).float().mean(dim=0))
    Path(answer["hidden_states_path"]).unlink()
    connector._is_tp_rank_zero = False  # of several workers, one writes
    connector._submit_async_write(pending)
    assert not Path(answer["hidden_states_path"]).exists()


def test_a_model_that_cannot_be_read_block_by_block_is_left_to_transformers(llama, monkeypatch, caplog):
    def refuse(*_):
        raise ModelError("its blocks share weights")

    monkeypatch.setattr(load, "streamed", refuse)
    found, wanted = read(llama, rows(4), backend="vllm"), read(llama, rows(4))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted) and "share weights" in caplog.text


def test_a_fork_leaves_the_engine_of_its_parent_alone(llama):
    read(llama, rows(2), [1], backend="vllm")
    (engine,) = vllm_engine._held
    child = os.fork()
    if not child:
        wrong = bool(vllm_engine._held)
        engine.close()
        vllm_engine.close()
        os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert engine.folder.is_dir() and vllm_engine._held == [engine]


def test_nothing_is_left_at_the_end_of_a_process(tmp_path):
    program = (
        "import sys, tempfile; from pathlib import Path\n"
        "from hf_safefilter.model import vllm_engine\n"
        "folder = Path(tempfile.mkdtemp(dir=sys.argv[1]))\n"
        "vllm_engine._held.append(vllm_engine.VllmEngine(None, (1,), 9, folder, None))\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True)
    assert not list(tmp_path.iterdir())


def test_without_vllm_it_is_refused_before_anything_is_read(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setattr(picks, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="needs vLLM"):
        EmbedLayers(llama, layers=[1], backend="vllm")


@pytest.mark.parametrize("other", [{"attn": "sdpa"}, {"stream_blocks": "always"}])
def test_what_only_transformers_can_do_is_not_asked_of_vllm(llama, other):
    with pytest.raises(OptionError, match="is for transformers"):
        EmbedLayers(llama, layers=[1], backend="vllm", **other)
    with pytest.raises(OptionError, match="backend"):
        EmbedLayers(llama, layers=[1], backend="sglang")


def test_vectors_of_the_two_are_kept_apart_and_are_of_one_space(llama, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_SAFEFILTER_ROW_CACHE", "on")
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    given = rows(4)
    own, theirs = EmbedLayers(llama, layers=[2]), EmbedLayers(llama, layers=[2], backend="vllm")
    first = own(given[:])
    theirs(given[:])
    count = len(Model.made[0].asked)
    again = theirs(given[:])
    assert len(Model.made[0].asked) == count > 4  # from the store
    assert first["read_as"][0] == again["read_as"][0]


@pytest.mark.skipif(not REAL, reason="vLLM is not installed")
def test_the_real_one_reads_what_transformers_reads(tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}  # its kernels want wide heads
    folder = save_small_model(tmp_path / "model", **sizes)
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "import numpy as np\n"
        "from hf_safefilter import EmbedLayers\n"
        "from hf_safefilter.model import vllm_engine\n"
        "from hf_safefilter.toy.corpus import mixed_rows\n"
        "if __name__ == '__main__':\n"
        "    rows = mixed_rows(24, 0.3, 4)\n"
        "    for row in rows: row.pop('label', None)\n"
        "    one, two = (EmbedLayers(sys.argv[1], [0, 2, 4], backend=name).vectors(rows)[0].vectors\n"
        "        for name in ('transformers', 'vllm'))\n"
        "    assert vllm_engine._held, 'it was not used'\n"
        "    assert all(np.allclose(one[name], two[name], atol=1e-4) for name in one)\n"
        "    vllm_engine.close()\n"
    )
    ended = subprocess.run([sys.executable, program, folder], capture_output=True, text=True, timeout=900, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
