"""Models that are read block by block: the same vectors, bounded memory, and killed passes that go on."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from small_models import ARCHITECTURES, WITHOUT_FINAL_NORM, save_small_model
from token_rows import token_rows

from hf_safefilter import EmbedLayers
from hf_safefilter.errors import IntegrityError, ModelError
from hf_safefilter.model import block_by_block, fits, forward, left_out, load, waiting_states
from hf_safefilter.model.forward import read_layers
from hf_safefilter.model.load import ModelKey, resolve_revision, trunk
from hf_safefilter.model.one_block import next_states
from hf_safefilter.model.waiting_states import HeldStates
from hf_safefilter.storage import kept_folder

CPU = torch.device("cpu")
LAYERS = (0, 1, 3, 4)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    load._trunks.clear()
    load.placement.cache_clear()
    yield tmp_path / "store"
    load._trunks.clear()
    load.placement.cache_clear()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("llama"))


def opened(folder, stream_blocks="always", depth=4):
    key = ModelKey(str(folder), resolve_revision(str(folder), None), "float32")
    return trunk(key, depth, CPU, stream_blocks=stream_blocks)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_the_states_that_transformers_computes(name, tmp_path, monkeypatch):
    folder = save_small_model(tmp_path, name)
    rows = token_rows()
    layers = LAYERS if name in WITHOUT_FINAL_NORM else (*LAYERS, "norm")
    monkeypatch.setattr(block_by_block, "MOST", 2 * 60 * 32 * 4)  # 60 tokens a pass
    streamed = opened(folder)
    assert all(weight.device.type == "meta" for weight in streamed.stack.blocks.parameters())
    found = read_layers(streamed, rows, layers, token_budget=45)
    whole = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    whole = getattr(whole, "language_model", whole)
    normed = []
    for row in rows:
        with torch.inference_mode():
            output = whole(input_ids=torch.from_numpy(row.ids)[None].long(), output_hidden_states=True)
        normed.append(output.last_hidden_state[0])
        for layer in (0, 1, 3):
            exact = output.hidden_states[layer][0]
            at = sum(len(one.reads) for one in rows[: len(normed) - 1])
            for place, (start, stop) in enumerate(row.reads):
                np.testing.assert_allclose(found[layer][at + place], exact[start:stop].mean(0), rtol=2e-5, atol=2e-5)
    if "norm" in layers:
        assert len(normed[0][-1]) == len(found["norm"][0])
        np.testing.assert_allclose(found["norm"][0], normed[0][-1], rtol=2e-5, atol=2e-5)
    held = read_layers(opened(folder, "never"), rows, layers, token_budget=45)
    for layer in layers:
        np.testing.assert_allclose(found[layer], held[layer], rtol=1e-5, atol=1e-5)
    assert all(weight.device.type == "meta" for weight in streamed.stack.blocks.parameters()), "blocks are freed"


def test_the_column_is_the_same(llama):
    rows = Dataset.from_list(
        [
            {"prompt": f"Tell me about {word}.", "response": f"{word} is " + "long " * n}
            for n, word in enumerate("abcdefgh")
        ]
    )
    ways = {way: EmbedLayers(str(llama), [1, 3], stream_blocks=way) for way in ("always", "never")}
    found = {way: rows.map(step, batched=True) for way, step in ways.items()}
    for name in ("row_id", "spans", "read_as", "emb_layer_1", "emb_layer_3"):
        assert found["always"][name][:] == found["never"][name][:]


def test_memory_stays_below_two_blocks(llama, tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=768, intermediate_size=2048, num_hidden_layers=16, num_attention_heads=4,
        num_key_value_heads=4, pad_token_id=0,
    )  # fmt: skip
    folder = save_small_model(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    transformers.LlamaModel(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="50MB")
    assert len(list(folder.glob("*.safetensors"))) > 2, "several files, which the index names"
    block = 4 * (4 * 768**2 + 3 * 768 * 2048 + 2 * 768)
    most = {way: _peak_memory(folder, way, llama) for way in ("always", "never")}
    assert most["always"] < 2 * block + _BESIDE < 16 * block < most["never"]


_BESIDE = 80 * 2**20  # bytes: threads, caches, and what the C library keeps after it was freed


def _peak_memory(folder, way, small):
    """Bytes that reading a few rows takes at most, beyond what code takes; pages of files are not counted."""
    program = f"""
import threading, time
import numpy as np, torch, transformers
torch.set_num_threads(1)
from hf_safefilter.model import load
from hf_safefilter.model.forward import read_layers
from hf_safefilter.model.windows import TokenSequence
def taken():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
def read(folder, depth):
    key = load.ModelKey(folder, load.resolve_revision(folder, None), "float32")
    opened = load.trunk(key, depth, torch.device("cpu"), stream_blocks={way!r})
    rows = [TokenSequence(np.arange(7, 40, dtype=np.int32) + n, ((3, 30),)) for n in range(6)]
    found = read_layers(opened, rows, [depth // 2 + 1, depth], token_budget=80)
    assert all(np.isfinite(values).all() for values in found.values())
read({str(small)!r}, 4)  # imports take memory, too
before, seen, ended = taken(), [], threading.Event()
def watch():
    while not ended.is_set():
        seen.append(taken())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
read({str(folder)!r}, 16)
ended.set()
watcher.join()
print(max(seen) - before)
"""
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def interrupted(monkeypatch, at):
    """From now on a pass is interrupted in the middle of block `at`; returns the blocks that are loaded."""
    loads, real = [], next_states
    original = load.LeftOut.load

    def counted(self, number, device):
        loads.append(number)
        return original(self, number, device)

    def stopping(stack, number, states, layers, reads, run):
        if number == at[0] and len(reads.places) == 1:
            raise KeyboardInterrupt
        return real(stack, number, states, layers, reads, run)

    monkeypatch.setattr(load.LeftOut, "load", counted)
    monkeypatch.setattr(block_by_block, "next_states", stopping)
    return loads


def test_an_interrupted_pass_goes_on_at_its_block(llama, monkeypatch, own_store, caplog):
    rows = token_rows()
    expected = read_layers(opened(llama, "never"), rows, LAYERS, token_budget=30)
    at = [2]
    loads = interrupted(monkeypatch, at)
    streamed = opened(llama)
    with pytest.raises(KeyboardInterrupt):
        read_layers(streamed, rows, LAYERS, token_budget=30)
    assert loads == [0, 1, 0, 1, 0, 1, 2], "two trials of how rows are read, then the pass"
    assert streamed.state_bytes == 32 * 4, "which the trials measure"
    assert all(weight.device.type == "meta" for weight in streamed.stack.blocks.parameters())
    at[0] = None
    loads.clear()
    with caplog.at_level("INFO", logger="hf_safefilter"):
        found = read_layers(streamed, rows, LAYERS, token_budget=30)
    assert loads == [2, 3] and "resumed: 2 of 4 blocks were done" in caplog.text
    for layer in LAYERS:
        np.testing.assert_array_equal(found[layer], expected[layer])
    assert not list((own_store / "passes").iterdir()), "nothing is left of a pass that is done"


@pytest.mark.parametrize("change", ["rows", "places", "boot", "version", "record", "states"])
def test_another_pass_does_not_go_on_where_one_stopped(change, llama, monkeypatch, own_store):
    rows, at = token_rows(), [2]
    loads = interrupted(monkeypatch, at)
    streamed = opened(llama)
    with pytest.raises(KeyboardInterrupt):
        read_layers(streamed, rows, LAYERS, token_budget=30)
    at[0] = None
    if change == "rows":
        rows[2].ids[-1] += 1
    elif change == "places":
        rows[1].reads = ((5, 17),)
    elif change == "version":
        monkeypatch.setattr(block_by_block, "transformers", SimpleNamespace(__version__="of another day"))
    elif change == "boot":
        monkeypatch.setattr(waiting_states, "_boot", lambda: "the machine has started again")
    else:
        (folder,) = (own_store / "passes").iterdir()
        file = folder / ("pass.json" if change == "record" else "states-0")
        file.write_bytes(file.read_bytes()[:-30])
    expected = read_layers(opened(llama, "never"), rows, LAYERS, token_budget=30)
    loads.clear()
    found = read_layers(streamed, rows, LAYERS, token_budget=30)
    assert loads == [0, 1, 2, 3]
    for layer in LAYERS:
        np.testing.assert_array_equal(found[layer], expected[layer])


def test_rows_are_cut_into_the_same_passes_while_a_killed_one_lies_there(own_store, monkeypatch):
    free = [100_000]
    monkeypatch.setattr(block_by_block.shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    before = list(block_by_block.rows_of_passes([40] * 100, 128.0))
    assert [row for rows in before for row in rows] == list(range(100)) and len(before) > 20
    assert all(2 * len(rows) * 40 * 128 <= 50_000 for rows in before)
    (own_store / "passes" / "killed").mkdir(parents=True)
    (own_store / "passes" / "killed" / "states-0").write_bytes(bytes(40_000))
    free[0] -= 40_000 + 500  # and others have written a little
    assert list(block_by_block.rows_of_passes([40] * 100, 128.0)) == before


def test_a_text_model_that_has_no_name_of_its_own_is_measured(monkeypatch, caplog):
    """That of Mllama, which AutoModel does not know."""
    config = transformers.MllamaConfig().text_config
    config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.vocab_size = 2, 32, 48, 320
    config.pad_token_id = 0
    for free, held in ((10**9, True), (1000, False)):
        monkeypatch.setattr(fits, "memory_available", lambda device, free=free: free)
        assert fits.place("a model", config, "float32", [CPU], None).streamed is not held
    assert "2 blocks of a model take" in caplog.text


def test_passes_that_nobody_continues_are_removed(tmp_path, monkeypatch):
    root = tmp_path / "passes"
    with pytest.raises(KeyboardInterrupt), kept_folder.kept_folder(root, "old") as old:
        (old / "states").write_bytes(b"123")
        raise KeyboardInterrupt
    with kept_folder.kept_folder(root, "old") as again:
        assert (again / "states").read_bytes() == b"123"
        with kept_folder.kept_folder(root, "old") as meanwhile:
            assert meanwhile != again and not list(meanwhile.iterdir()), "two processes do not share one folder"
    assert not list(root.iterdir())
    with pytest.raises(KeyboardInterrupt), kept_folder.kept_folder(root, "old"):
        raise KeyboardInterrupt
    with kept_folder.kept_folder(root, "new"):
        assert (root / "old").is_dir()
    (root / "new").mkdir()
    (root / "new").chmod(0o777)
    with kept_folder.kept_folder(root, "new") as own:
        assert own.name != "new", "what lies in a folder that others may write in is not believed"
    (root / "new").rmdir()
    with pytest.raises(ValueError), kept_folder.kept_folder(root, "new", lost=(ValueError,)):  # noqa: PT011
        raise ValueError
    assert not (root / "new").exists()
    monkeypatch.setattr(kept_folder, "ABANDONED", -1)
    with kept_folder.kept_folder(root, "new"):
        assert not (root / "old").exists()


def test_states_wait_in_memory_as_in_files(llama, monkeypatch):
    rows = token_rows()
    stored = read_layers(opened(llama), rows, LAYERS, token_budget=30)

    @contextmanager
    def held(opened_trunk, facts, size):
        yield HeldStates(opened_trunk.device)

    monkeypatch.setattr(block_by_block, "_waiting", held)
    found = read_layers(opened(llama), rows, LAYERS, token_budget=30)
    for layer in LAYERS:
        np.testing.assert_array_equal(found[layer], stored[layer])


def test_out_of_memory_begins_the_pass_again_in_smaller_batches(llama, monkeypatch, caplog, own_store):
    rows, sizes = token_rows(), []
    expected = read_layers(opened(llama, "never"), rows, [3])
    real = block_by_block.next_states

    def short_of_memory(stack, number, states, layers, reads, run):
        sizes.append(sum(map(len, reads.places)))
        if number == 1 and len(reads.places) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory (as a test has it)")
        return real(stack, number, states, layers, reads, run)

    monkeypatch.setattr(block_by_block, "next_states", short_of_memory)
    found = read_layers(opened(llama), rows, [3])
    np.testing.assert_allclose(found[3], expected[3], rtol=1e-5, atol=1e-5)
    assert "out of memory" in caplog.text and not list((own_store / "passes").iterdir())
    monkeypatch.setattr(block_by_block, "next_states", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(ModelError, match="a single row of 40 tokens"):
        read_layers(opened(llama), rows, [3])


def test_files_that_change_meanwhile_are_noticed(tmp_path):
    folder = save_small_model(tmp_path)
    streamed = opened(folder)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match="is not the model that was recorded"):
        read_layers(streamed, token_rows(), [2])


def test_a_block_without_all_its_weights_is_named(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_small_model(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"(?s)lacks weights of block 2.*mlp.up_proj.weight"):
        read_layers(opened(folder), token_rows(), [3])
    assert read_layers(opened(folder, depth=2), token_rows(), [2])[2].shape == (10, 32)


def test_blocks_that_hand_on_more_than_states_are_refused(llama, monkeypatch):
    streamed = opened(llama)
    kind = type(streamed.stack.blocks[0])
    plain = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, states, **rest: (plain(self, states, **rest), states))
    monkeypatch.setattr(forward, "try_ways", lambda *_: None)
    streamed.packs, streamed.pads = False, True
    with pytest.raises(ModelError, match="hand on more than their states"):
        read_layers(streamed, token_rows(), [3], token_budget=30)


def test_a_model_is_read_so_where_it_does_not_fit(llama, monkeypatch, caplog):
    free = [10**9]
    monkeypatch.setattr(fits, "memory_available", lambda device: free[0])
    assert opened(llama, "auto").left_out is None
    load._trunks.clear()
    load.placement.cache_clear()
    free[0] = 4 * 32 * 320  # the embedding alone
    streamed = opened(llama, "auto")
    assert streamed.left_out is not None and "each is read from disk once for many rows" in caplog.text
    monkeypatch.setattr(block_by_block, "memory_available", lambda device: 1000)
    with pytest.raises(ModelError, match="two blocks of .* take"):
        read_layers(streamed, token_rows(), [3])


def test_blocks_between_which_the_model_computes_are_refused(llama, monkeypatch):
    streamed = opened(llama)
    kind = type(streamed.stack.blocks[0])
    plain = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda self, states, *rest, **named: plain(self, 2 * states, *rest, **named))
    with pytest.raises(ModelError, match="the model computes between its blocks"):
        read_layers(streamed, token_rows(), [3], token_budget=30)


def test_a_block_that_a_model_skips_is_named(llama, monkeypatch):
    """As one that reads images alone."""
    streamed = opened(llama)
    kind, skipped = type(streamed.stack.blocks[0]), streamed.stack.blocks[2]
    plain = kind.__call__

    def call(self, states, *rest, **named):
        return states if self is skipped else plain(self, states, *rest, **named)

    monkeypatch.setattr(kind, "__call__", call)
    with pytest.raises(ModelError, match="block 2 does not run for rows of text"):
        read_layers(streamed, token_rows(), [4], token_budget=30)
    with pytest.raises(ModelError, match="layer 3 is not computed for rows of text"):
        read_layers(streamed, token_rows(), [3], token_budget=30)


def test_every_kind_of_block_is_tried_before_rows_are_packed(tmp_path):
    """Two blocks with attention, which pack, and then blocks that mix a row with the one before it."""
    types = ["full_attention", "full_attention", "conv", "conv"]
    config = transformers.Lfm2Config(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, layer_types=types, pad_token_id=0, block_auto_adjust_ff_dim=False,
    )  # fmt: skip
    folder = save_small_model(tmp_path)
    torch.manual_seed(0)
    model = transformers.Lfm2ForCausalLM(config)
    for name, weight in model.named_parameters():
        weight.data *= 20 if ".conv." in name else 1  # else they hardly matter in a random model
    model.save_pretrained(folder)
    rows, streamed = token_rows(), opened(folder)
    found = read_layers(streamed, rows, [2, 4], token_budget=45)
    expected = read_layers(opened(folder, "never"), rows, [2, 4], token_budget=45)
    assert not streamed.packs
    for layer in (2, 4):
        np.testing.assert_allclose(found[layer], expected[layer], rtol=1e-4, atol=1e-5)


def test_another_thread_loads_its_own_model_whole(llama, tmp_path):
    key = ModelKey(str(llama), resolve_revision(str(llama), None), "float32")
    other = save_small_model(tmp_path, "qwen2")
    with left_out.blocks_left_out(key) as found, ThreadPoolExecutor(1) as pool:
        model = pool.submit(transformers.AutoModel.from_pretrained, other).result()
    assert not found and all(weight.device.type == "cpu" for weight in model.parameters())


def test_blocks_that_share_weights_are_refused(llama, monkeypatch):
    kind = transformers.LlamaModel
    plain = kind.__init__

    def sharing(self, config):
        plain(self, config)
        self.layers[2].mlp = self.layers[1].mlp

    monkeypatch.setattr(kind, "__init__", sharing)
    with pytest.raises(ModelError, match="its blocks share weights"):
        opened(llama)


def test_what_cannot_be_read_so_says_so(llama, tmp_path, monkeypatch):
    key = ModelKey(str(llama), resolve_revision(str(llama), None), "float32")
    monkeypatch.setattr(load, "base_and_adapter", lambda model: (str(llama), "an adapter"))
    with pytest.raises(ModelError, match="an adapter is merged into the whole model"):
        trunk(key, 2, CPU, stream_blocks="always")


def test_more_rows_go_through_at_once(llama):
    assert EmbedLayers(str(llama), [2], stream_blocks="always").rows_per_call == 4096
    assert EmbedLayers(str(llama), [2]).rows_per_call == 1024


def test_the_plain_forward_is_as_it_was(llama):
    streamed = opened(llama)
    read_layers(streamed, token_rows(), [3])
    assert not any("forward" in vars(block) for block in streamed.stack.blocks)
    assert forward.PADDED.lay is not None
