"""The combined anchor gradient: which way harmful answers pull the model, less which way safe ones do."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter import artifacts
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.kept import Kept
from hf_safefilter.rows import Conversation, as_conversations, row_id

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.scores.gradient.examples import Example
    from hf_safefilter.scores.gradient.meters import Meter
    from hf_safefilter.scores.gradient.tuned import Tuned

    Rows = Dataset | Iterable[Mapping[str, Any]]
    Gradient = dict[str, torch.Tensor]

_SHARD = 1 << 30  # bytes of a file of tensors
_PROJECTED = "projected"
_NOTHING = 1e-4  # length below which the difference of the sides is rounding


class GradientAnchor(Kept):
    """One combined anchor gradient, a float32 tensor a parameter (or its random projection); made by `fit_gradient`.

    `facts` has the model, the parameters that count, how rows were read, and the ids of the anchor rows.
    """

    KIND = "gradient_anchor"

    def tensors(self) -> dict[str, torch.Tensor]:
        """G by parameter name, float32 on the CPU; for the projected form one tensor ``projected`` (width,)."""
        from safetensors.torch import load

        found: dict[str, torch.Tensor] = {}
        for name in self.files[:-1]:
            found |= load(self.bytes_of(name))
        return found

    def score(self, conversations: Sequence[Conversation], device: torch.device) -> tuple[np.ndarray, list[str]]:
        """<g, G> / |g| of each row, float64 (n,), and why a row has none ("" where it has).

        Raises:
            ModelError, IntegrityError: the model cannot be loaded, or has changed.
        """
        from hf_safefilter.scores.gradient.measure import measure

        tuned, tensors = _tuned(self.facts, device), _opened(self, device)
        examples = _examples(self.facts, conversations, None)
        return measure(tuned, examples, lambda rows: self._meter(tuned, tensors, rows))

    def _meter(self, tuned: Tuned, tensors: Mapping[str, torch.Tensor], rows: int) -> Meter:
        from hf_safefilter.scores.gradient.meters import Exact, Projected

        drawn = self.facts["projection"]
        if drawn is None:
            return Exact(tensors, rows)
        return Projected(drawn["seed"], drawn["width"], rows, tensors[_PROJECTED], tuned.device)


def fit_gradient(
    model: str,
    unsafe_rows: Rows,
    safe_rows: Rows,
    *,
    more_safe: Sequence[Rows] = (),
    parts: str = "all",
    blocks: int = 1,
    rank: int = 8,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    projection: int | None = None,
    seed: int = 0,
    anchor_tokens: int = 10,
    revision: str | None = None,
    dtype: str = "auto",
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    chat_template: str | None = None,
    device: str | None = None,
) -> GradientAnchor:
    """Mean unit gradient of the unsafe rows minus mean unit gradient of the safe rows, in one pass over them.

    Args:
        model: Hub id, local folder, or "toy": the model that is to be fine-tuned.
        unsafe_rows: harmful requests answered; the paper takes 10.
        safe_rows: safe rows, as many.
        more_safe: further safe sets, each subtracted in full; the paper subtracts two.
        parts: which parameters count: "all"; "last_blocks"; "lora" for fresh adapters (needs the ``train`` extra).
        blocks: how many of the last blocks.
        rank: of the adapters.
        targets: linear layers that get adapters.
        projection: keep a random projection of this width instead (a multiple of 64; LESS takes 8192): an anchor of
            kilobytes and an estimate, off by about 1 / sqrt(projection), for the price of drawing the signs.
        seed: of the adapters and the projection.
        anchor_tokens: an anchor's loss is taken over its response's first tokens, so many; a row's over all of it.
        revision: branch, tag or commit; the default branch if None.
        dtype: "auto" (float32; on CUDA the checkpoint's own 16-bit format), "float32", "bfloat16" or "float16".
        max_length: tokens a row may have; the model's own limit if None. The middle of a longer response is cut.
        columns: where prompt and response are, for anchor rows of no known shape.
        chat_template: for a model that has none: a Jinja template, or "plain".
        device: "cpu", "cuda", "cuda:1" or "mps"; the best there is if None.

    Raises:
        DataError: a side without a readable row, or sides that are alike, so that nothing is left of their difference.
        OptionError: an option that makes no sense, or LoRA targets that do not exist.
        ModelError: the model cannot be read.

    Source: He et al., arXiv 2404.01099, gradient matching; Xia et al., arXiv 2402.04333 (LESS), for the projection.
    """
    from hf_safefilter.model import load
    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.scores.gradient.tuned import Parts

    _check(projection, anchor_tokens, max_length)
    chosen = Parts(parts, blocks, rank, tuple(targets), seed)
    where = load.pick_device(device, None)
    revision = load.resolve_revision(str(model), revision)
    config = load.model_config(ModelKey(str(model), revision, "float32")).get_text_config()
    facts = {
        "model": str(model),
        "revision": revision,
        "dtype": load.pick_dtype(dtype, where, getattr(config, "dtype", None)),
        "parts": chosen.to_json(),
        "projection": None if projection is None else {"width": projection, "seed": seed},
        "anchor_tokens": anchor_tokens,
        "max_length": max_length,
        "chat_template": chat_template,
    }
    sides = [as_conversations(rows, columns) for rows in (unsafe_rows, safe_rows, *more_safe)]
    _require_difference(sides)
    tuned = _tuned(facts, where)
    readings = [_Reading(tuned, facts, side) for side in sides]
    total = combined(readings)
    length = _length(total)
    if length < _NOTHING:
        raise DataError(
            "the unsafe and the safe anchor rows have the same mean gradient, so nothing tells rows apart",
            fix="give other rows on one of the sides",
        )
    unsafe, *safe = (reading.told() for reading in readings)
    facts |= {"unsafe": unsafe, "safe": safe, "length": length}
    return _keep(facts | {"entries": sum(one.numel() for one in tuned.parameters.values())}, total)


def combined(sides: Sequence[Iterable[Gradient]]) -> Gradient:
    """Mean unit gradient of the first side minus that of each further one; the means are not scaled to length one.

    Raises:
        DataError: a side without a gradient.
    """
    total: Gradient = {}
    for place, side in enumerate(sides):
        units: Gradient = {}
        count = 0
        for gradient in side:
            count += 1
            size = _length(gradient)
            for name, one in gradient.items():
                units[name] = units[name].add_(one, alpha=1 / size) if name in units else one / size
        if not count:
            reasons = getattr(side, "reasons", [])
            raise DataError(
                f"no {'safe' if place else 'unsafe'} anchor row has a gradient",
                found=", ".join(sorted(set(reasons))) or "no rows",
                fix="give rows with a prompt and a response",
            )
        for name, one in units.items():
            share = one / count if place == 0 else -one / count
            total[name] = total[name].add_(share) if name in total else share
    return total


class _Reading:
    """The gradients of one side's rows, one after the other; afterwards `reasons` says why some have none."""

    def __init__(self, tuned: Tuned, facts: Mapping[str, Any], side: Sequence[Conversation]) -> None:
        self._tuned, self._facts, self._side = tuned, facts, side
        self.reasons: list[str] = []

    def __iter__(self) -> Iterator[Gradient]:
        for example in _examples(self._facts, self._side, self._facts["anchor_tokens"]):
            gradient: Gradient = {}
            reason = example.reason
            if not reason:
                gradient = _gradient(self._tuned, example, self._facts["projection"])
                reason = "" if 0 < _length(gradient) < math.inf else "no_gradient"
            self.reasons.append(reason)
            if not reason:
                yield gradient

    def told(self) -> dict[str, list[str]]:
        """Ids of the rows that were used, and the reasons of the others."""
        used = [row_id(one) for one, reason in zip(self._side, self.reasons, strict=True) if not reason]
        return {"rows": used, "skipped": sorted(filter(None, self.reasons))}


def _gradient(tuned: Tuned, example: Example, projection: Mapping[str, int] | None) -> Gradient:
    """The gradient of one row, or its projection: float32 on the CPU."""
    from hf_safefilter.scores.gradient.meters import Projected
    from hf_safefilter.scores.gradient.plain import measure_row, streamed

    if projection is None:
        return streamed(tuned, example)
    meter = Projected(projection["seed"], projection["width"], 1, None, tuned.device)
    measure_row(tuned, example, meter)
    return {_PROJECTED: meter.sums[0].cpu()}


def _length(gradient: Gradient) -> float:
    return math.sqrt(sum(float(one.double().square().sum()) for one in gradient.values()))


def _examples(facts: Mapping[str, Any], conversations: Sequence[Conversation], most: int | None) -> list[Example]:
    from hf_safefilter.model import load
    from hf_safefilter.scores.gradient.examples import read_examples

    key = _key(facts)
    return read_examples(
        load.tokenizer(key),
        conversations,
        max_length=facts["max_length"] or load.max_tokens(key),
        chat_template=facts["chat_template"],
        most=most,
    )


def _key(facts: Mapping[str, Any]) -> ModelKey:
    from hf_safefilter.model.source import ModelKey

    return ModelKey(facts["model"], facts["revision"], facts["dtype"])


def _tuned(facts: Mapping[str, Any], device: torch.device) -> Tuned:
    from hf_safefilter.model import load
    from hf_safefilter.scores.gradient.tuned import Parts, tuned

    load.settle_threads()
    return tuned(_key(facts), device, Parts(**facts["parts"]))


@lru_cache(maxsize=2)
def _opened(anchor: GradientAnchor, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: one.to(device) for name, one in anchor.tensors().items()}


def _keep(facts: Mapping[str, Any], total: Gradient) -> GradientAnchor:
    """Write the anchor a shard at a time: as a whole it may be as large as the model."""
    from safetensors.torch import save_file

    def fill(folder: Path) -> None:
        shards: list[Gradient] = [{}]
        for name, one in total.items():
            if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + one.nbytes > _SHARD:
                shards.append({})
            shards[-1][name] = one.contiguous()
        for number, shard in enumerate(shards):
            save_file(shard, folder / f"anchor-{number:05d}.safetensors")

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "artefact")
        artifacts.write(folder, GradientAnchor.KIND, GradientAnchor.VERSION, facts, fill)
        return GradientAnchor.load(folder)


def _require_difference(sides: Sequence[Sequence[Conversation]]) -> None:
    """Raise where the safe side is the unsafe one over again: their difference would be rounding alone."""
    unsafe, *safe = ({row_id(one) for one in side} for side in sides)
    if any(side == unsafe and side for side in safe):
        raise DataError(
            "the unsafe and the safe anchor rows are the same rows", fix="give harmful answers and safe ones"
        )


def _check(projection: int | None, anchor_tokens: int, max_length: int | None) -> None:
    if projection is not None and (type(projection) is not int or projection < 64 or projection % 64):
        raise OptionError(f"projection={projection!r} is not a multiple of 64", fix="use for example projection=8192")
    if type(anchor_tokens) is not int or anchor_tokens < 1:
        raise OptionError(
            f"anchor_tokens={anchor_tokens!r} leaves no label", fix="use 1 token or more; the paper has 10"
        )
    if max_length is not None and (type(max_length) is not int or max_length < 2):
        raise OptionError(f"max_length={max_length!r} leaves no room for a row", fix="use 2 tokens or more")
