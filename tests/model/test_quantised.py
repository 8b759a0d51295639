"""Weights as they are stored: read with their scales or not at all, nothing of a loaded layer left over, and named."""

import numpy as np
import pytest
import torch
from small_models import save_small_model
from small_multimodal import FP8, in_fp8, rewritten

from hf_safefilter import EmbedLayers
from hf_safefilter.errors import ModelError
from hf_safefilter.model import load
from hf_safefilter.model.load import ModelKey, model_config, resolve_revision, trunk
from hf_safefilter.model.quantised import weights_format

ROWS = [{"prompt": "Name three flowers.", "response": "Fox, river and bread."}]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def empty_table(monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_ROW_CACHE", "off")
    yield
    load._trunks.clear()


def read(folder, depth=2):
    return trunk(ModelKey(str(folder), resolve_revision(str(folder), None), "float32"), depth, torch.device("cpu"))


def with_one_more(folder, target, name, value=None, **config):
    return rewritten(folder, target, lambda w: w | {name: torch.ones(8) if value is None else value}, **config)


# Nothing left over


@pytest.mark.parametrize("name", ["self_attn.q_proj.bias", "self_attn.o_proj.lora_a", "mlp.up_proj.weight_shift"])
def test_what_belongs_to_a_loaded_layer_is_read_or_it_is_no_model(llama, tmp_path, name):
    folder = with_one_more(llama, tmp_path / "more", f"model.layers.1.{name}")
    assert read(folder, 1).depth == 1
    load._trunks.clear()
    with pytest.raises(
        ModelError, match=rf"has 1 weights that LlamaModel would leave unread\nfound: .*layers\.1\.{name}"
    ):
        read(folder, 2)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.self_attn.bias",
        "model.layers.0.self_attn.k_scale", "model.layers.0.mlp.up_proj.input_scale", "model.layers.3.extra.weight",
        "score.weight", "vision_tower.layers.0.weight", "lm_head.bias", "model.mtp.0.norm.weight",
    ],
)  # fmt: skip
def test_masks_heads_and_other_parts_may_be_left(llama, tmp_path, name):
    assert read(with_one_more(llama, tmp_path / "more", name)).depth == 2


# Formats


def test_fine_grained_fp8_is_read_with_its_scales(llama, tmp_path):
    stored = rewritten(llama, tmp_path / "fp8", in_fp8, quantization_config=FP8)
    one, other = (EmbedLayers(str(folder), [1, 4]).vectors(ROWS)[0].vectors for folder in (llama, stored))
    for layer in (1, 4):
        a, b = one[layer], other[layer]
        assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.99
        assert np.abs(a - b).max() > 1e-4, "its numbers are rounded"
    assert {weight.dtype for weight in read(stored).model.parameters()} == {torch.float32}
    with pytest.raises(ModelError, match="28 of them have no scales"):
        read(rewritten(llama, tmp_path / "raw", lambda w: in_fp8(w, scales=False), quantization_config=FP8))


def test_an_unknown_format_is_not_read_as_plain_numbers(llama, tmp_path):
    homemade = rewritten(llama, tmp_path / "own", dict, quantization_config={"quant_method": "homemade"})
    with pytest.raises(ModelError, match="in a format that transformers does not know"):
        read(homemade)


def test_a_format_without_its_package_says_so(llama, tmp_path):
    pytest.importorskip("accelerate")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        four = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        with pytest.raises(ModelError, match=r"needs another package(.|\n)*bitsandbytes"):
            read(rewritten(llama, tmp_path / "four", dict, quantization_config=four))
    else:
        pytest.skip("bitsandbytes is installed")


GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4}}


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (FP8, "fp8, dequantised"),
        ({"quant_method": "mxfp4"}, "mxfp4, dequantised"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes nf4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes int8, dequantised"),
        ({"quant_method": "gptq", "bits": 4}, "gptq 4-bit"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
         "torchao Int8WeightOnlyConfig, dequantised"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"a": GROUP}},
         "compressed-tensors pack-quantized, dequantised"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized",
          "config_groups": {"a": GROUP, "b": GROUP | {"weights": {"num_bits": 8}}}},
         "compressed-tensors pack-quantized"),
    ],
    ids=str,
)  # fmt: skip
def test_formats_have_names(llama, tmp_path, stated, words):
    folder = rewritten(llama, tmp_path / "stated", dict, quantization_config=stated)
    key = ModelKey(str(folder), resolve_revision(str(folder), None), "float32")
    assert weights_format(key.model, model_config(key)) == words
    assert EmbedLayers(str(folder), [1]).describe()["weights"] == words
    assert (
        weights_format(str(llama), model_config(ModelKey(str(llama), resolve_revision(str(llama), None), "float32")))
        is None
    )
    assert weights_format("folder/model.GGUF", model_config(key)) == "gguf, dequantised"
