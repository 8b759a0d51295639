"""Weights as they are stored: read with their scales or not at all, nothing of a loaded layer left over, and named."""

import numpy as np
import pytest
import torch
from small_models import save_small_model
from small_multimodal import FP8, in_fp8, rewritten
from transformers import BitsAndBytesConfig
from transformers.quantizers.base import HfQuantizer

from hf_safefilter import EmbedLayers
from hf_safefilter.effect.tuning import Tuning, _trainable
from hf_safefilter.errors import ModelError
from hf_safefilter.freeze import freezing_plan
from hf_safefilter.model import load
from hf_safefilter.model.load import ModelKey, model_config, resolve_revision, trunk
from hf_safefilter.model.packed import can_pack
from hf_safefilter.model.padded import can_pad
from hf_safefilter.model.quantised import make_plain, weights_format
from hf_safefilter.scores.gradient.parts import Parts
from hf_safefilter.scores.gradient.tuned import choose

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


# Training


FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def test_quantised_weights_are_not_trained(llama, tmp_path):
    stored = rewritten(llama, tmp_path / "four", dict, quantization_config=FOUR_BITS)
    with pytest.raises(ModelError, match=r"have no gradient\nfix: use `lora=True`, or use the model in float32"):
        freezing_plan(str(stored), 1, 2)
    assert freezing_plan(str(stored), 1, 2, lora=True).frozen == freezing_plan(str(llama), 1, 2).frozen
    fp8 = rewritten(llama, tmp_path / "fp8", in_fp8, quantization_config=FP8)
    assert freezing_plan(str(fp8), 1, 2).trainable, "they are plain numbers once they are read"
    model = load.causal_lm(ModelKey(str(llama), resolve_revision(str(llama), None), "float32"), torch.device("cpu"))
    load.causal_lm.cache_clear()
    choose(model, Parts("last_blocks", blocks=1))
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)  # as transformers leaves it
    with pytest.raises(ModelError, match=r'have no gradient\nfix: use `parts="lora"`'):
        choose(model, Parts("last_blocks", blocks=1))
    with pytest.raises(ModelError, match=r'have no gradient\nfix: use `method="lora"`'):
        _trainable(model, Tuning(method="full"), None)


def test_a_failing_kernel_of_a_format_is_named(llama, monkeypatch):
    opened = read(llama)
    monkeypatch.setattr(type(opened.model.layers[0].mlp), "forward", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        can_pad(opened)
    opened.model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
    assert not can_pack(opened, 8)
    with pytest.raises(
        ModelError, match=r"quantised weights of LlamaModel cannot be computed with on cpu\nfound: .*size"
    ):
        can_pad(opened)


def test_an_adapter_is_not_merged_into_numbers_that_are_rounded_again(llama):
    done = []

    class Quantiser:
        def dequantize(self, model, dtype):
            done.append(dtype)

    model = read(llama).model
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
    model.hf_quantizer = Quantiser()
    make_plain(model, torch.float32, merging=False)
    assert not done, "read alone, it stays as it is"
    make_plain(model, torch.float32, merging=True)
    model.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    make_plain(model, torch.bfloat16, merging=False)
    assert done == [torch.float32, torch.bfloat16]
    del Quantiser.dequantize
    Quantiser.dequantize = HfQuantizer.dequantize
    Quantiser._dequantize = HfQuantizer._dequantize
    model.hf_quantizer.quantization_config = model.config.quantization_config
    with pytest.raises(ModelError, match="cannot be merged into weights in the format bitsandbytes"):
        make_plain(model, torch.float32, merging=True)
    stated = model.config
    stated.quantization_config = FOUR_BITS
    assert weights_format("base", stated) == "bitsandbytes nf4"
    assert weights_format("base + adapter", stated) == "bitsandbytes nf4, dequantised"
