"""Fitting the anchor: the direction in which harmful answers move the model, minus that of safe ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_safefilter.checks import require_whole
from hf_safefilter.data.conversations import Conversation, as_conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.errors import DataError, OptionError
from hf_safefilter.scores.gradient.anchor import PROJECTED, GradientAnchor, examples_of, stored, tuned_of
from hf_safefilter.scores.gradient.parts import Parts

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.scores.gradient.examples import Example
    from hf_safefilter.scores.gradient.tuned import Tuned

    Rows: TypeAlias = Dataset | Iterable[Mapping[str, Any]]
    Gradient: TypeAlias = dict[str, torch.Tensor]

_NEGLIGIBLE = 1e-4  # a difference of the sides shorter than this is only rounding


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
    normalize: bool = True,
    revision: str | None = None,
    dtype: str = "auto",
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    chat_template: str | None = None,
    device: str | None = None,
) -> GradientAnchor:
    """Mean unit gradient of the unsafe rows minus mean unit gradient of the safe rows, in one pass over them.

    With `normalize=False` no gradient is scaled, neither of anchor rows nor of scored ones. The mean loss of the unsafe
    rows minus that of the safe rows is then a differentiable proxy of safety and the anchor its gradient; the score of
    a row is, to first order, how far the proxy falls per unit of learning rate when SGD takes one step on this row.
    Rows with large gradients, often short ones, then count for more.

    Args:
        model: Hub id, local folder, or "toy": the model that is to be fine-tuned.
        unsafe_rows: Harmful requests with answers that comply; the paper uses 10.
        safe_rows: Safe rows, about as many.
        more_safe: Further safe sets, each subtracted in full; the paper subtracts two in total.
        parts: The parameters whose gradient is taken: "all"; "last_blocks"; or "lora" for fresh adapters, which needs
            the ``train`` extra.
        blocks: Number of last blocks, for "last_blocks".
        rank: Rank of the adapters.
        targets: Names of the linear layers that get adapters.
        projection: Width of a random projection that is stored instead of the gradient, a multiple of 64 (LESS uses
            8192). The anchor then takes kilobytes, and scores are estimates with an error of about
            1 / sqrt(projection); drawing the signs takes time.
        seed: Seed of the adapters and of the projection.
        anchor_tokens: Number of tokens at the start of an anchor row's response that its loss is computed over; the
            loss of a scored row covers its whole response.
        normalize: Whether gradients are scaled to length one.
        revision: Branch, tag or commit; the default branch if None.
        dtype: "auto" (float32; on CUDA the checkpoint's own 16-bit format), "float32", "bfloat16" or "float16".
        max_length: Largest number of tokens a row may have; the model's own limit if None. The middle of a longer
            response is cut.
        columns: Which columns hold prompt and response, for anchor rows whose shape is not recognised.
        chat_template: For a model without a chat template: a Jinja template, or "plain".
        device: "cpu", "cuda", "cuda:1" or "mps"; the best available one if None.

    Raises:
        DataError: A side has no readable row, or the sides are so similar that their difference is only rounding.
        OptionError: An option makes no sense, or LoRA targets do not exist.
        ModelError: The model cannot be read.

    Source: He et al., arXiv 2404.01099, gradient matching; Xia et al., arXiv 2402.04333 (LESS), for the projection;
    GradShield, arXiv 2605.14194, for the form without scaling, with a proxy of ours.
    """
    options = {"projection": projection, "anchor_tokens": anchor_tokens, "max_length": max_length}
    options |= {"normalize": normalize}
    reading = {"model": str(model), "revision": revision, "dtype": dtype, "chat_template": chat_template}
    chosen, facts = _pinned(Parts(parts, blocks, rank, tuple(targets), seed), reading | options, device)
    return _fitted(facts, [as_conversations(rows, columns) for rows in (unsafe_rows, safe_rows, *more_safe)], chosen)


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
    normalize: bool = True,
    device: str | None = None,
) -> GradientAnchor:
    """`fit_gradient` on the rows of a reference index, with the model and the options with which they were read.

    Args:
        references: The index, or its digest.
        anchors: Number of rows at the start of each side that are used; all if None. The paper uses 10.
        parts: As in `fit_gradient`.
        blocks: As in `fit_gradient`.
        rank: As in `fit_gradient`.
        targets: As in `fit_gradient`.
        projection: As in `fit_gradient`.
        seed: As in `fit_gradient`.
        anchor_tokens: As in `fit_gradient`.
        normalize: As in `fit_gradient`.
        device: As in `fit_gradient`.

    Raises:
        DataError, OptionError, ModelError: As `fit_gradient`.
    """
    from hf_safefilter.references import ReferenceIndex

    index = ReferenceIndex.of(references)
    if anchors is not None:
        require_whole("anchors", anchors, least=1)
    reading = {name: index.embed[name] for name in ("model", "revision", "dtype", "chat_template", "max_length")}
    options = {"projection": projection, "anchor_tokens": anchor_tokens, "normalize": normalize}
    chosen, facts = _pinned(Parts(parts, blocks, rank, tuple(targets), seed), reading | options, device)
    sides = [[row.conversation for row in index.rows(side)[:anchors]] for side in ("unsafe", "safe")]
    return _fitted(facts | {"references": index.digest}, sides, chosen)


def _fitted(facts: dict[str, Any], sides: Sequence[Sequence[Conversation]], device: torch.device) -> GradientAnchor:
    _require_difference(sides)
    tuned = tuned_of(facts, device)
    gradients = [_SideGradients(tuned, facts, side) for side in sides]
    normalize = facts.get("normalize", True)
    total = combined(gradients, normalize)
    length = _length(total)
    if length < _NEGLIGIBLE * (1 if normalize else max(side.longest for side in gradients)):
        raise DataError(
            "the unsafe and the safe anchor rows have the same mean gradient, so nothing distinguishes them",
            fix="use other rows on one of the sides",
        )
    unsafe, *safe = (side.summary() for side in gradients)
    facts |= {"unsafe": unsafe, "safe": safe, "length": length}
    return stored(facts | {"entries": sum(parameter.numel() for parameter in tuned.parameters.values())}, total)


def combined(sides: Sequence[Iterable[Gradient]], normalize: bool = True) -> Gradient:
    """Mean unit gradient of the first side minus that of each further one; the means are not scaled to length one.

    Without `normalize`, the gradients are not scaled either.

    Raises:
        DataError: A side has no gradient.
    """
    total: Gradient = {}
    for number, side in enumerate(sides):
        units: Gradient = {}
        count = 0
        for gradient in side:
            count += 1
            size = _length(gradient) if normalize else 1.0
            for name, tensor in gradient.items():
                units[name] = units[name].add_(tensor, alpha=1 / size) if name in units else tensor / size
        if not count:
            reasons = getattr(side, "reasons", [])
            raise DataError(
                f"no {'safe' if number else 'unsafe'} anchor row has a gradient",
                found=", ".join(sorted(set(reasons))) or "no rows",
                fix="use rows with a prompt and a response",
            )
        for name, tensor in units.items():
            mean = tensor / count if number == 0 else -tensor / count
            total[name] = total[name].add_(mean) if name in total else mean
    return total


class _SideGradients:
    """The gradients of one side's rows, one after another; then `reasons` says why some have none, `longest` how long
    the longest is."""

    def __init__(self, tuned: Tuned, facts: Mapping[str, Any], side: Sequence[Conversation]) -> None:
        self._tuned, self._facts, self._side = tuned, facts, side
        self.reasons: list[str] = []
        self.longest = 0.0

    def __iter__(self) -> Iterator[Gradient]:
        for example in examples_of(self._facts, self._side, self._facts["anchor_tokens"]):
            gradient: Gradient = {}
            length, reason = 0.0, example.reason
            if not reason:
                gradient = _gradient(self._tuned, example, self._facts["projection"])
                length = _length(gradient)
                reason = "" if 0 < length < math.inf else "no_gradient"
            self.reasons.append(reason)
            if not reason:
                self.longest = max(self.longest, length)
                yield gradient

    def summary(self) -> dict[str, list[str]]:
        """Ids of the rows that were used, and the reasons of the others."""
        used = [row_id(row) for row, reason in zip(self._side, self.reasons, strict=True) if not reason]
        return {"rows": used, "skipped": sorted(filter(None, self.reasons))}


def _gradient(tuned: Tuned, example: Example, projection: Mapping[str, int] | None) -> Gradient:
    """The gradient of one row, or its projection: float32 on the CPU."""
    from hf_safefilter.scores.gradient.meters import Projected
    from hf_safefilter.scores.gradient.single_row import measure_row, streamed

    if projection is None:
        return streamed(tuned, example)
    meter = Projected(projection["seed"], projection["width"], 1, None, tuned.device)
    measure_row(tuned, example, meter)
    return {PROJECTED: meter.sums[0].cpu()}


def _length(gradient: Gradient) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in gradient.values()))


def _require_difference(sides: Sequence[Sequence[Conversation]]) -> None:
    """Raise if a safe side has the same rows as the unsafe one: their difference would be only rounding."""
    unsafe, *safe = ({row_id(row) for row in side} for side in sides)
    if any(side == unsafe and side for side in safe):
        raise DataError(
            "the unsafe and the safe anchor rows are the same rows",
            fix="use harmful answers on one side and safe ones on the other",
        )


def _pinned(parts: Parts, options: Mapping[str, Any], device: str | None) -> tuple[torch.device, dict[str, Any]]:
    """The device, and the facts of an anchor, in which everything that decides it is pinned.

    Raises:
        OptionError: An option makes no sense.
        ModelError: There is no such model.
    """
    from hf_safefilter.model import load
    from hf_safefilter.model.source import ModelKey

    width, most, longest = options["projection"], options["anchor_tokens"], options["max_length"]
    if width is not None:
        require_whole("projection", width, least=64)
        if width % 64:
            raise OptionError(f"`projection={width}` is not a multiple of 64", fix="use for example `projection=8192`")
    require_whole("anchor_tokens", most, least=1)
    if longest is not None:
        require_whole("max_length", longest, least=2)
    chosen = load.pick_device(device, None)
    revision = load.resolve_revision(options["model"], options["revision"])
    config = load.model_config(ModelKey(options["model"], revision, "float32")).get_text_config()
    facts = {
        "model": options["model"],
        "revision": revision,
        "dtype": load.pick_dtype(options["dtype"], chosen, getattr(config, "dtype", None)),
        "parts": parts.to_json(),
        "projection": None if width is None else {"width": int(width), "seed": parts.seed},
        "anchor_tokens": int(most),
        "max_length": None if longest is None else int(longest),
        "chat_template": options["chat_template"],
    }
    return chosen, facts if options["normalize"] else facts | {"normalize": False}
