"""GradientScore: does a row's gradient point in the direction in which harmful answers move the model?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

from hf_safefilter import cache
from hf_safefilter.columns import reason_column
from hf_safefilter.data.batch import Batch, Column
from hf_safefilter.data.conversations import conversations
from hf_safefilter.scores.base import Fitting, Score
from hf_safefilter.scores.controls import Pairs, as_pairs
from hf_safefilter.scores.gradient.anchor import GradientAnchor
from hf_safefilter.scores.gradient.fit import fit_to_references
from hf_safefilter.scores.gradient.recalled import recalled
from hf_safefilter.step import Step


@dataclass(frozen=True, slots=True)
class GradientScore(Score):
    """Dot product of the row's unit gradient with the anchor gradient; within [-2, 2] for one safe set.

    It reads the text, not the embedded vectors: the loss is the mean negative log likelihood of all answers and of the
    tokens that end them, by the anchor's own model. Short responses have large gradients and long ones resemble
    each other: compare with `LengthScore`. `gradient_unscored` says why a row has no score. With an anchor fitted with
    `normalize=False` the row's gradient is not scaled either: see `fit_gradient`.

    Args:
        anchor: The result of `fit_gradient`, or its digest.
        columns: Which columns hold prompt and response, for rows whose shape is not recognised.
        device: "cpu", "cuda", "cuda:1" or "mps"; the best available one if None.

    Raises:
        MissingError: The anchor is not in the store.

    Source: He et al., arXiv 2404.01099, gradient matching; with `normalize=False` GradShield, arXiv 2605.14194.
    """

    METHOD: ClassVar[str] = "gradient"
    MEASURES: ClassVar[str] = "cosine of a row's gradient to the references'"
    REQUIRES: ClassVar[str] = "references, backward"
    SOURCE: ClassVar[str] = "He et al., arXiv 2404.01099"
    FITTING: ClassVar[Fitting | None] = Fitting(
        field="anchor",
        to="references",
        by=fit_to_references,
        options=(
            "anchors",
            "parts",
            "blocks",
            "rank",
            "targets",
            "projection",
            "seed",
            "anchor_tokens",
            "normalize",
            "device",
        ),
    )

    anchor: GradientAnchor | str
    _: KW_ONLY
    columns: Mapping[str, str] | Pairs | None = None
    device: str | None = None
    algorithm: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "anchor", GradientAnchor.of(self.anchor).digest)
        set_field(self, "columns", as_pairs(self.columns))
        Step.__post_init__(self)

    @property
    def references(self) -> str | None:
        """Digest of the references that the anchor was fitted to; None for other rows."""
        digest: str | None = GradientAnchor.of(self.anchor).facts.get("references")
        return digest

    def produces(self) -> tuple[str, ...]:
        """`gradient_score` and `gradient_unscored`."""
        return (*Score.produces(self), reason_column(self.METHOD))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, Column]:
        """float32 (n,) and strings (n,)."""
        from hf_safefilter.model.load import pick_device

        rows = conversations(batch, dict(self.columns) if self.columns else None) if batch.n else []
        anchor, device = GradientAnchor.of(self.anchor), pick_device(self.device, rank)
        facts = {"step": "GradientScore", "anchor": self.anchor, "algorithm": self.algorithm, "device": device.type}
        space = cache.Space.of(facts, f"gradient of {anchor.facts['model']}")
        scored = recalled(self.METHOD, space, rows, lambda new: anchor.score(new, device))
        return dict(zip(self.produces(), scored, strict=True))
