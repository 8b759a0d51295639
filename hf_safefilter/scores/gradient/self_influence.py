"""SelfInfluenceScore: how far would training on this row alone move the model?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from hf_safefilter import cache
from hf_safefilter.checks import is_finite, require_choice, require_number, require_whole
from hf_safefilter.columns import reason_column
from hf_safefilter.data.batch import Batch, Column
from hf_safefilter.data.conversations import Conversation, answered_text, conversations
from hf_safefilter.errors import OptionError
from hf_safefilter.model.source import with_adapter
from hf_safefilter.scores.base import Score
from hf_safefilter.scores.controls import Pairs, as_pairs
from hf_safefilter.scores.gradient.anchor import examples_of, tuned_of
from hf_safefilter.scores.gradient.parts import Parts
from hf_safefilter.scores.gradient.recalled import recalled
from hf_safefilter.step import Step

if TYPE_CHECKING:
    import torch

LENGTH_UNITS = ("tokens", "characters", "none")
"""What the length of a row's answers is counted in; "none": the length does not count."""

_NOT_IN_THE_NORM = {"model", "adapter", "columns", "device", "length_unit", "between"}
"""Options that do not decide the norm of a row's gradient. The model does, and stands in the revision."""


@dataclass(frozen=True, slots=True)
class SelfInfluenceScore(Score):
    """log(|g|^2 + 1) + log(length of the answers + 1), for g the gradient of the mean loss of the answers' tokens.

    It needs no references: a row with a large gradient is an outlier to an aligned model, whether or not it is harmful.
    The norm alone ranks the shortest answers first (see `LengthScore`), which the length is to balance; how well it
    does depends on its unit. `self_influence_unscored` says why a row has no score.

    The rows in the middle may be the ones to keep. Moderate keeps those of which the norm lies between the 40 % and the
    60 % quantile, among rows of a loss above 0.1::

        norm = SelfInfluenceScore(model, length_unit="none", above_loss=0.1)
        between = np.nanquantile(ds.map(norm, batched=True)["self_influence_score"], [0.4, 0.6])
        ds = ds.map(dataclasses.replace(norm, between=between), batched=True)  # no gradient is computed twice
        kept = ds.filter(IsSafe("self_influence_score", threshold=0.0), batched=True)

    Args:
        model: Hub id, local folder, GGUF file, or "toy": the model that is to be fine-tuned.
        length_unit: "tokens" (the paper's; those of which the loss is the mean, with the ends of turns), "characters"
            (as `LengthScore` counts them), or "none" for the norm alone, by which the published code ranks.
        between: Two scores without this option, (low, high): the score is then the distance from the band between
            them, negative within it.
        above_loss: Only rows with a larger mean loss have a score, in nats per token (else ``low_loss``); None: all
            have.
        parts: The parameters whose gradient is taken: "all"; "last_blocks"; or "lora" for fresh adapters, which needs
            the ``train`` extra.
        blocks: Number of last blocks, for "last_blocks".
        rank: Rank of the fresh adapters.
        targets: Names of the linear layers that get adapters.
        seed: Seed of the adapters.
        adapter: Folder or Hub id of a PEFT adapter that is merged into the weights; part of `model` afterwards.
        revision: Branch, tag or commit; the default branch if None.
        dtype: "auto" (float32; on CUDA the checkpoint's own 16-bit format), "float32", "bfloat16" or "float16".
        max_length: Largest number of tokens a row may have; the model's own limit if None. A longer row has no score
            (``too_long``).
        columns: Which columns hold prompt and response, for rows whose shape is not recognised.
        chat_template: For a model without a chat template: a Jinja template, or "plain".
        device: "cpu", "cuda", "cuda:1" or "mps"; the best available one if None.

    Raises:
        OptionError: An option makes no sense.
        ModelError: The model cannot be read.

    Source: Self-Inf-N, arXiv 2505.06843; the middle band: Moderate, arXiv 2604.17215.
    """

    METHOD: ClassVar[str] = "self_influence"
    MEASURES: ClassVar[str] = "norm of a row's gradient, with the length of its answers"
    REQUIRES: ClassVar[str] = "a model, backward"
    SOURCE: ClassVar[str] = "Self-Inf-N, arXiv 2505.06843"

    model: str
    _: KW_ONLY
    length_unit: str = "tokens"
    between: tuple[float, float] | None = None
    above_loss: float | None = None
    parts: str = "all"
    blocks: int = 1
    rank: int = 8
    targets: Sequence[str] = ("q_proj", "v_proj")
    seed: int = 0
    adapter: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    max_length: int | None = None
    columns: Mapping[str, str] | Pairs | None = None
    chat_template: str | None = None
    device: str | None = None
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        from hf_safefilter.model import load
        from hf_safefilter.model.source import ModelKey

        set_field = object.__setattr__
        require_choice("length_unit", self.length_unit, LENGTH_UNITS)
        if self.above_loss is not None:
            require_number("above_loss", self.above_loss, least=0)
        if self.max_length is not None:
            require_whole("max_length", self.max_length, least=2)
        set_field(self, "between", _band(self.between))
        set_field(self, "columns", as_pairs(self.columns))
        set_field(self, "targets", self._parts.targets)
        set_field(self, "model", with_adapter(str(self.model), self.adapter))
        set_field(self, "adapter", None)
        revision = load.resolve_revision(self.model, self.revision)
        set_field(self, "revision", revision)
        config = load.model_config(ModelKey(self.model, revision, "float32")).get_text_config()
        device = load.pick_device(self.device, None)
        set_field(self, "dtype", load.pick_dtype(self.dtype, device, getattr(config, "dtype", None)))
        Step.__post_init__(self)

    def produces(self) -> tuple[str, ...]:
        """`self_influence_score` and `self_influence_unscored`."""
        return (*Score.produces(self), reason_column(self.METHOD))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, Column]:
        """float32 (n,) and strings (n,)."""
        from hf_safefilter.model.load import pick_device

        rows = conversations(batch, dict(self.columns) if self.columns else None) if batch.n else []
        device = pick_device(self.device, rank)
        facts = {name: value for name, value in self.record().items() if name not in _NOT_IN_THE_NORM}
        space = cache.Space.of(facts | {"device": device.type}, f"self-influence on {self.model}")
        log_norms, reasons = recalled(self.METHOD, space, rows, lambda new: self._log_norms(new, device))
        scores = log_norms.astype(np.float64)
        if self.length_unit != "none":
            scores += np.log1p(self._lengths(rows))
        if self.between is not None:
            scores = np.maximum(self.between[0] - scores, scores - self.between[1])
        return dict(zip(self.produces(), (scores.astype(np.float32), reasons), strict=True))

    def _log_norms(self, rows: Sequence[Conversation], device: torch.device) -> tuple[np.ndarray, list[str]]:
        """log(|g|^2 + 1) of each row, float64 (n,), and the reason of each row without a gradient."""
        from hf_safefilter.scores.gradient.meters import Norms
        from hf_safefilter.scores.gradient.row_scores import measure

        tuned, examples = tuned_of(self._reading, device), examples_of(self._reading, rows, None)
        return measure(tuned, examples, lambda count: Norms(count, tuned.device), above_loss=self.above_loss)

    def _lengths(self, rows: Sequence[Conversation]) -> np.ndarray:
        """Length of each row's answers, float64 (n,); of a row that cannot be read it means nothing."""
        if self.length_unit == "tokens":
            sizes = [example.labels.sum() for example in examples_of(self._reading, rows, None)]
        else:
            sizes = [0 if row.reason else len(answered_text(row)) for row in rows]
        return np.array(sizes, dtype=np.float64)

    @property
    def _parts(self) -> Parts:
        return Parts(self.parts, self.blocks, self.rank, tuple(self.targets), self.seed)

    @property
    def _reading(self) -> dict[str, Any]:
        names = ("model", "revision", "dtype", "max_length", "chat_template")
        return {name: getattr(self, name) for name in names} | {"parts": self._parts.to_json()}


def _band(between: Any) -> tuple[float, float] | None:
    if between is None:
        return None
    ends = tuple(between) if isinstance(between, (Sequence, np.ndarray)) else ()
    if len(ends) != 2 or not all(map(is_finite, ends)) or not ends[0] < ends[1]:
        raise OptionError(
            f"`between={between!r}` is not a smaller and a larger score",
            fix="use quantiles of the scores without this option",
        )
    return cast("tuple[float, float]", tuple(map(float, ends)))
