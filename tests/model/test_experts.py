"""Mixtures of experts: cut to the blocks that are needed, and read packed, as transformers reads the whole model."""

import numpy as np
import pytest
import torch
import transformers
from small_multimodal import EXPERTS, FP8, in_fp8, rewritten, save_experts

from hf_safefilter import EmbedLayers
from hf_safefilter.errors import ModelError
from hf_safefilter.model import load

ROWS = [
    {"prompt": "Name a flower.", "completion": "A crocus blooms early."},
    {"prompt": "Name a flower.", "completion": "A fox."},
    {"prompt": "What runs through Paris?", "completion": "The Seine runs through all of it, from end to end."},
]


@pytest.fixture(autouse=True)
def empty_table(monkeypatch):
    monkeypatch.setenv("HF_SAFEFILTER_ROW_CACHE", "off")
    yield
    load._trunks.clear()


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_read_as_by_transformers_row_by_row(name, tmp_path):
    model = save_experts(tmp_path, name).base_model
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    step = EmbedLayers(str(tmp_path), [1, 3], position="mean,last", window=None)
    found = step.vectors(ROWS)[0].vectors
    trunk = load.trunk(step._key(), 3, torch.device("cpu"))
    assert (trunk.depth, len(trunk.stack.blocks)) == (3, 3)
    assert trunk.packs is (name != "gpt_oss"), "whose attention has sinks, which packed rows cannot give"
    for layer in (1, 3):
        for at, row in enumerate(ROWS):
            turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
            given = {"return_tensors": "pt", "return_dict": True}
            asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, **given)["input_ids"]
            ids = tokenizer.apply_chat_template(turns, **given)["input_ids"]
            with torch.no_grad():
                states = model(input_ids=ids, output_hidden_states=True).hidden_states[layer][0].numpy()
            np.testing.assert_allclose(found[layer][at], states[asked.shape[1] :].mean(0), rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found[f"{layer}_last"][at], states[-1], rtol=1e-5, atol=1e-5)


def cosines(one, other):
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
def test_experts_in_fp8_are_each_read_with_its_scales(name, tmp_path):
    save_experts(tmp_path / "plain", name)
    rewritten(tmp_path / "plain", tmp_path / "stored", in_fp8, quantization_config=FP8)
    one, other = (EmbedLayers(str(tmp_path / kind), [3]).vectors(ROWS)[0].vectors[3] for kind in ("plain", "stored"))
    assert cosines(one, other).min() > 0.98 and np.abs(one - other).max() > 1e-4
    raw = rewritten(tmp_path / "plain", tmp_path / "raw", lambda w: in_fp8(w, scales=False), quantization_config=FP8)
    with pytest.raises(ModelError, match="have no scales"):
        EmbedLayers(str(raw), [3]).vectors(ROWS)


FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def in_mxfp4(weights, scales=True):
    """Experts as MXFP4: groups of 32 numbers of 4 bits along the inputs, each with a power of two, two to a byte."""
    made = {}
    for name, value in weights.items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            made[name] = value
            continue
        groups = value.float().transpose(1, 2).unflatten(2, (-1, 32))
        power = torch.ceil(torch.log2(groups.abs().amax(3) / 6))
        codes = (groups / 2 ** power[..., None])[..., None].sub(FP4).abs().argmin(-1)
        made[f"{name}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        if scales:
            made[f"{name}_scales"] = (power + 127).to(torch.uint8)
    return made


def test_mxfp4_experts_are_read_as_plain_numbers(tmp_path):
    save_experts(tmp_path / "plain", "gpt_oss")
    stated = {"quant_method": "mxfp4"}
    stored = rewritten(tmp_path / "plain", tmp_path / "stored", in_mxfp4, quantization_config=stated)
    steps = [EmbedLayers(str(folder), [3]) for folder in (tmp_path / "plain", stored)]
    one, other = (step.vectors(ROWS)[0].vectors[3] for step in steps)
    assert cosines(one, other).min() > 0.98
    assert np.abs(one - other).max() > 1e-4 and steps[1].describe()["weights"] == "mxfp4, dequantised"
    bare = rewritten(
        tmp_path / "plain", tmp_path / "bare", lambda w: in_mxfp4(w, scales=False), quantization_config=stated
    )
    with pytest.raises(ModelError, match="some of their scales"):
        EmbedLayers(str(bare), [3]).vectors(ROWS)
