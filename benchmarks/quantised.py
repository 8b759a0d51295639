"""One model in every format of quantised weights that this machine has the packages for, against itself unquantised.

    python -m benchmarks.quantised --model MODEL.gguf --labeled rows.jsonl --layer 15

The model is rounded to each format (to the nearest number, without calibration), read as `embed` reads it, and scored
by LARF. Formats whose package is not installed are left out, each with a line. bitsandbytes, torchao and
compressed-tensors come with pip; gptq and awq are read by gptqmodel and optimum.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from benchmarks.real_reading import labeled_rows
from hf_safefilter import EmbedLayers, LarfScore, ReferenceIndex
from hf_safefilter.errors import ModelError
from hf_safefilter.model.load import fresh_causal_lm, tokenizer
from hf_safefilter.model.source import ModelKey
from hf_safefilter.starter import starter_rows

_BLOCK = 64  # rows and columns that share a scale, or weights along the inputs
_TEXT = ["prompt", "response"]
_PAIRS = 60  # of the starter set

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Format:
    """The packages that read a format, and what writes a model (first folder) in it (second folder)."""

    packages: tuple[str, ...]
    write: Callable[[Path, Path], None]


def _changed(pack: Callable[[torch.Tensor], Weights], stated: dict[str, Any], source: Path, target: Path) -> None:
    """A copy of a model whose projections are what `pack` makes of them."""
    made: Weights = {}
    for name, value in load_file(source / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            made |= {name.removesuffix("weight") + part: packed for part, packed in pack(value.float()).items()}
        else:
            made[name] = value
    save_file(
        {name: value.contiguous() for name, value in made.items()}, target / "model.safetensors", {"format": "pt"}
    )
    config = json.loads((source / "config.json").read_text()) | {"quantization_config": stated}
    (target / "config.json").write_text(json.dumps(config))


def _fp8(weight: torch.Tensor) -> Weights:
    outer, inner = weight.shape
    blocks = weight.reshape(outer // _BLOCK, _BLOCK, inner // _BLOCK, _BLOCK)
    scale = blocks.abs().amax((1, 3)) / 448
    rounded = (blocks / scale[:, None, :, None]).reshape(outer, inner).to(torch.float8_e4m3fn)
    return {"weight": rounded, "weight_scale_inv": scale}


def _levels(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of inputs x outputs: numbers 0..15, and the scale and zero of each group of inputs."""
    groups = weight.T.reshape(-1, _BLOCK, weight.shape[0])
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    numbers = (groups / scale[:, None] + zero[:, None]).round().clamp(0, 15)
    return numbers.reshape(weight.T.shape).long(), scale.half(), zero.long()


def _packed(numbers: torch.Tensor, order: Iterable[int] = range(8)) -> torch.Tensor:
    """Eight numbers of 4 bits along the last axis in one of 32."""
    eights = numbers.unflatten(-1, (-1, 8))
    words = sum(eights[..., at] << 4 * place for place, at in enumerate(order))
    return torch.where(words < 2**31, words, words - 2**32).int()


def _gptq(weight: torch.Tensor) -> Weights:
    numbers, scale, zero = _levels(weight)
    of_group = torch.arange(weight.shape[1], dtype=torch.int32) // _BLOCK
    packed = {"qweight": _packed(numbers.T).T, "qzeros": _packed(zero)}
    return packed | {"scales": scale, "g_idx": of_group}


def _awq(weight: torch.Tensor) -> Weights:
    numbers, scale, zero = _levels(weight)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {"qweight": _packed(numbers, order), "qzeros": _packed(zero, order), "scales": scale}


def _compressed(kind: str, bits: int, source: Path, target: Path) -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    group = {"strategy": "group", "group_size": _BLOCK} if bits == 4 else {"strategy": "channel"}
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "dynamic": False, **group}
    form = "float-quantized" if kind == "float" else "pack-quantized"
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))
    compressor = BaseCompressor.get_value_from_registry(form)
    largest = 448 if kind == "float" else 2 ** (bits - 1) - 1

    def pack(weight: torch.Tensor) -> Weights:
        groups = weight.reshape(weight.shape[0], -1, group.get("group_size", weight.shape[1]))
        scale = (groups.abs().amax(2) / largest).bfloat16()
        return compressor.compress({"weight": weight.bfloat16(), "weight_scale": scale}, scheme)

    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    stated = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed"}
    _changed(pack, stated | {"config_groups": groups, "ignore": ["lm_head"]}, source, target)


def _by_transformers(config: Callable[[], Any], source: Path, target: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config(), dtype=torch.bfloat16)
    model.save_pretrained(target)


def _torchao(name: str) -> Any:
    import torchao.quantization
    from transformers import TorchAoConfig

    return TorchAoConfig(getattr(torchao.quantization, name)())


_FP8 = {"quant_method": "fp8", "weight_block_size": [_BLOCK, _BLOCK], "activation_scheme": "dynamic"}
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": _BLOCK, "desc_act": False, "sym": False}
# zeros are stored as they are, not less one
_GPTQ |= {"checkpoint_format": "gptq_v2", "lm_head": False, "true_sequential": True}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": _BLOCK, "zero_point": True, "version": "gemm"}

FORMATS = {
    "fp8, 64 x 64 blocks": Format(("accelerate",), partial(_changed, _fp8, _FP8)),
    "compressed-tensors fp8": Format(("compressed_tensors",), partial(_compressed, "float", 8)),
    "compressed-tensors int8": Format(("compressed_tensors",), partial(_compressed, "int", 8)),
    "compressed-tensors int4": Format(("compressed_tensors",), partial(_compressed, "int", 4)),
    "bitsandbytes int8": Format(
        ("bitsandbytes",), partial(_by_transformers, lambda: BitsAndBytesConfig(load_in_8bit=True))
    ),
    "bitsandbytes nf4": Format(
        ("bitsandbytes",),
        partial(_by_transformers, lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    ),
    "torchao int8": Format(("torchao",), partial(_by_transformers, partial(_torchao, "Int8WeightOnlyConfig"))),
    "torchao fp8": Format(("torchao",), partial(_by_transformers, partial(_torchao, "Float8WeightOnlyConfig"))),
    "gptq 4-bit": Format(("gptqmodel", "optimum"), partial(_changed, _gptq, _GPTQ)),
    "awq 4-bit": Format(("gptqmodel", "accelerate"), partial(_changed, _awq, _AWQ)),
}


@dataclass(frozen=True, slots=True)
class Found:
    """What a model gives for the rows: vectors `(rows, width)`, scores, and how it is read."""

    vectors: np.ndarray
    scores: np.ndarray
    words: str


def read(model: str, rows: list[dict[str, str]], layer: int) -> Found:
    """Read and score the rows with a model, and references read with the same one."""
    embed = EmbedLayers(model, [layer], window=None)
    sides = [
        [{name: row[name] for name in _TEXT} for row in starter_rows(side)[:_PAIRS]] for side in ("unsafe", "safe")
    ]
    index = ReferenceIndex.build(*sides, embed, license="cc0-1.0", source="starter set")
    columns = {name: [row[name] for row in rows] for name in _TEXT}
    vectors = embed.vectors(rows)[0].vectors[layer]
    scores = LarfScore(index, layer)({**columns, **embed(columns)})["larf_score"]
    return Found(vectors, np.asarray(scores), embed.describe().get("weights", embed.dtype))


def main() -> None:
    """Print a line a format: size of the file, cosine (mean, least) and rank correlation with the plain model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder, Hub id or GGUF file of a causal language model")
    parser.add_argument("--labeled", required=True, help="rows to read")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--limit", type=int, default=200)
    options = parser.parse_args()
    rows = [{name: row[name] for name in _TEXT} for row in labeled_rows(options.labeled, options.limit)]
    key = ModelKey(options.model, str(EmbedLayers(options.model, [1]).revision), "bfloat16")
    print(f"{'format':26}{'read as':52}{'MB':>6}{'cosine':>9}{'least':>8}{'rank':>8}")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "plain"
        fresh_causal_lm(key, torch.device("cpu")).save_pretrained(source)
        tokenizer(key).save_pretrained(source)
        plain = read(str(source), rows, options.layer)
        _line("none", source, plain, plain)
        for name, form in FORMATS.items():
            if missing := [package for package in form.packages if find_spec(package) is None]:
                print(f"{name:26}not measured: {', '.join(missing)} not installed")
                continue
            target = Path(scratch) / name.replace(" ", "-").replace(",", "")
            target.mkdir()
            tokenizer(key).save_pretrained(target)
            try:
                form.write(source, target)
                _line(name, target, read(str(target), rows, options.layer), plain)
            except (ModelError, RuntimeError, ImportError) as error:
                print(f"{name:26}cannot be read here: {' '.join(str(error).split())[:200]}")


def _line(name: str, folder: Path, found: Found, plain: Found) -> None:
    lengths = np.linalg.norm(found.vectors, axis=1) * np.linalg.norm(plain.vectors, axis=1)
    cosines = (found.vectors * plain.vectors).sum(axis=1) / lengths
    ranks = spearmanr(found.scores, plain.scores).statistic
    size = (folder / "model.safetensors").stat().st_size / 1e6
    print(f"{name:26}{found.words:52}{size:6.0f}{cosines.mean():9.4f}{cosines.min():8.3f}{ranks:8.3f}", flush=True)


if __name__ == "__main__":
    main()
