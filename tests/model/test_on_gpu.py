"""On a GPU: the vectors of a CPU, packed or padded, whole or block by block. Skipped where there is none."""

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, WITHOUT_FINAL_NORM, save_small_model
from token_rows import token_rows

from hf_safefilter import EmbedLayers
from hf_safefilter.model import block_by_block, forward, load
from hf_safefilter.model.forward import read_layers
from hf_safefilter.model.load import ModelKey, resolve_revision, trunk

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_CACHE", str(tmp_path / "store"))
    load._trunks.clear()
    yield
    load._trunks.clear()


def opened(folder, device, dtype="float32", stream_blocks="never"):
    key = ModelKey(str(folder), resolve_revision(str(folder), None), dtype)
    return trunk(key, 4, device, stream_blocks=stream_blocks)


def closeness(found, expected):
    """Smallest cosine between vectors."""
    products = (found * expected).sum(1)
    return float((products / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)).min())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_gpu_reads_what_a_cpu_reads(name, tmp_path):
    folder, rows = save_small_model(tmp_path, name), token_rows()
    layers = [0, 1, 3, 4] if name in WITHOUT_FINAL_NORM else [0, 1, 3, 4, "norm"]
    expected = read_layers(opened(folder, CPU), rows, layers)
    exact = read_layers(opened(folder, GPU), rows, layers, token_budget=60)
    half = read_layers(opened(folder, GPU, "bfloat16"), rows, layers, token_budget=60)
    streamed = read_layers(opened(folder, GPU, "bfloat16", "always"), rows, layers, token_budget=60)
    for layer in layers:
        np.testing.assert_allclose(exact[layer], expected[layer], rtol=1e-3, atol=1e-3)
        assert closeness(half[layer], expected[layer]) > 0.99
        np.testing.assert_allclose(streamed[layer], half[layer], rtol=1e-2, atol=1e-2)


def test_rows_are_packed_in_16_bits_and_read_as_padded_ones(tmp_path, monkeypatch):
    folder, rows = save_small_model(tmp_path), token_rows()
    packed = opened(folder, GPU, "bfloat16")
    found = read_layers(packed, rows, [2, 4])
    assert packed.packs
    monkeypatch.setattr(forward, "can_pack", lambda *_: False)
    expected = read_layers(packed, rows, [2, 4])
    for layer in (2, 4):
        assert closeness(found[layer], expected[layer]) > 0.999


def test_states_wait_in_files_where_memory_is_short(tmp_path, monkeypatch):
    folder, rows = save_small_model(tmp_path), token_rows()
    held = read_layers(opened(folder, GPU, "bfloat16", "always"), rows, [1, 3], token_budget=60)
    monkeypatch.setattr(block_by_block, "_SHARE", 0)
    monkeypatch.setattr(block_by_block, "rows_of_passes", lambda tokens, _: [list(range(len(tokens)))])
    stored = read_layers(opened(folder, GPU, "bfloat16", "always"), rows, [1, 3], token_budget=60)
    for layer in (1, 3):
        np.testing.assert_array_equal(held[layer], stored[layer])


def test_the_step_picks_the_gpu_and_reads_nearly_the_same():
    prompts = [f"How do I plant {count} trees?" for count in range(24)]
    batch = {"prompt": prompts, "response": ["Dig holes, and water them well." for _ in prompts]}
    found, expected = EmbedLayers("toy", [4])(batch), EmbedLayers("toy", [4], device="cpu")(batch)
    for there, here in zip(found["emb_layer_4"], expected["emb_layer_4"], strict=True):
        assert closeness(np.asarray(there, np.float32), np.asarray(here, np.float32)) > 0.99
