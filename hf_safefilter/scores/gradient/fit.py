"""Fitting the anchor: which way harmful answers pull the model, less which way safe ones do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_safefilter.data.conversations import Conversation, as_conversations, row_id
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.scores.gradient.anchor import PROJECTED, GradientAnchor, examples_of, keep, tuned_of
from hf_safefilter.scores.gradient.parts import Parts

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.scores.gradient.examples import Example
    from hf_safefilter.scores.gradient.tuned import Tuned

    Rows = Dataset | Iterable[Mapping[str, Any]]
    Gradient = dict[str, torch.Tensor]

_NOTHING = 1e-4  # length below which the difference of the sides is rounding


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
    options = {"projection": projection, "seed": seed, "anchor_tokens": anchor_tokens, "max_length": max_length}
    reading = {"model": str(model), "revision": revision, "dtype": dtype, "chat_template": chat_template}
    where, facts = _settled(Parts(parts, blocks, rank, tuple(targets), seed), reading | options, device)
    return _fitted(facts, [as_conversations(rows, columns) for rows in (unsafe_rows, safe_rows, *more_safe)], where)


def fit_to_references(
    references: ReferenceIndex | str,
    *,
    anchors: int | None = None,
    parts: str = "all",
    blocks: int = 1,
    rank: int = 8,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    projection: int | None = None,
    seed: int = 0,
    anchor_tokens: int = 10,
    device: str | None = None,
) -> GradientAnchor:
    """`fit_gradient` on the rows of a reference index, with the model that read them, and read in the same way.

    Args:
        references: the index, or its digest.
        anchors: so many of the first rows of each side; all if None. The paper takes 10.
        parts: as in `fit_gradient`, like all that follows.

    Raises:
        DataError, OptionError, ModelError: as `fit_gradient`.
    """
    from hf_safefilter.references import ReferenceIndex

    index = ReferenceIndex.of(references)
    if anchors is not None and (type(anchors) is not int or anchors < 1):
        raise OptionError(f"anchors={anchors!r} is not a number of rows", fix="use for example anchors=10")
    reading = {name: index.embed[name] for name in ("model", "revision", "dtype", "chat_template", "max_length")}
    options = {"projection": projection, "seed": seed, "anchor_tokens": anchor_tokens}
    where, facts = _settled(Parts(parts, blocks, rank, tuple(targets), seed), reading | options, device)
    sides = [[Conversation(row.messages) for row in index.rows(side)[:anchors]] for side in ("unsafe", "safe")]
    return _fitted(facts | {"references": index.digest}, sides, where)


def _fitted(facts: dict[str, Any], sides: Sequence[Sequence[Conversation]], where: torch.device) -> GradientAnchor:
    _require_difference(sides)
    tuned = tuned_of(facts, where)
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
    return keep(facts | {"entries": sum(one.numel() for one in tuned.parameters.values())}, total)


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
        self.tuned_of, self._facts, self._side = tuned, facts, side
        self.reasons: list[str] = []

    def __iter__(self) -> Iterator[Gradient]:
        for example in examples_of(self._facts, self._side, self._facts["anchor_tokens"]):
            gradient: Gradient = {}
            reason = example.reason
            if not reason:
                gradient = _gradient(self.tuned_of, example, self._facts["projection"])
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
    return {PROJECTED: meter.sums[0].cpu()}


def _length(gradient: Gradient) -> float:
    return math.sqrt(sum(float(one.double().square().sum()) for one in gradient.values()))


def _require_difference(sides: Sequence[Sequence[Conversation]]) -> None:
    """Raise where the safe side is the unsafe one over again: their difference would be rounding alone."""
    unsafe, *safe = ({row_id(one) for one in side} for side in sides)
    if any(side == unsafe and side for side in safe):
        raise DataError(
            "the unsafe and the safe anchor rows are the same rows", fix="give harmful answers and safe ones"
        )


def _settled(parts: Parts, given: Mapping[str, Any], device: str | None) -> tuple[torch.device, dict[str, Any]]:
    """The device, and the facts of an anchor with all that decides it pinned.

    Raises:
        OptionError: an option that makes no sense.
        ModelError: no such model.
    """
    from hf_safefilter.model import load
    from hf_safefilter.model.source import ModelKey

    width, most, longest = given["projection"], given["anchor_tokens"], given["max_length"]
    if width is not None and (type(width) is not int or width < 64 or width % 64):
        raise OptionError(f"projection={width!r} is not a multiple of 64", fix="use for example projection=8192")
    if type(most) is not int or most < 1:
        raise OptionError(f"anchor_tokens={most!r} leaves no label", fix="use for example anchor_tokens=10")
    if longest is not None and (type(longest) is not int or longest < 2):
        raise OptionError(f"max_length={longest!r} leaves no room for a row", fix="use 2 tokens or more")
    where = load.pick_device(device, None)
    revision = load.resolve_revision(given["model"], given["revision"])
    config = load.model_config(ModelKey(given["model"], revision, "float32")).get_text_config()
    return where, {
        "model": given["model"],
        "revision": revision,
        "dtype": load.pick_dtype(given["dtype"], where, getattr(config, "dtype", None)),
        "parts": parts.to_json(),
        "projection": None if width is None else {"width": width, "seed": given["seed"]},
        "anchor_tokens": most,
        "max_length": longest,
        "chat_template": given["chat_template"],
    }
