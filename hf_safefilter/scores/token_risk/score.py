"""TokenRiskScore: is there a stretch of a row that a safety-degraded model predicts much better than a useful one?"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import numpy as np

from hf_safefilter import cache
from hf_safefilter.cache import RowVectors
from hf_safefilter.checks import require_whole
from hf_safefilter.columns import reason_column, span_scores_column
from hf_safefilter.data.batch import Batch, Column
from hf_safefilter.data.conversations import Conversation, conversations
from hf_safefilter.data.shapes import ignored_in
from hf_safefilter.model.reading_options import WINDOW
from hf_safefilter.scores.base import Fitting, Score
from hf_safefilter.scores.controls import Pairs, as_pairs
from hf_safefilter.scores.token_risk.fit import fit_token_risk
from hf_safefilter.scores.token_risk.risk_adapters import RiskAdapters
from hf_safefilter.scores.token_risk.risk_windows import aligned, windows_of
from hf_safefilter.step import Step

logger = logging.getLogger(__name__)

START, STOP = "token_risk_start", "token_risk_stop"
"""Columns with the tokens [start:stop] of the window that has the row's score; -1 where there is none."""


@dataclass(frozen=True, slots=True)
class TokenRiskScore(Score):
    """Largest mean token risk over the windows of the answers, in nats a token.

    The risk of a token is its loss under the utility adapter minus its loss under the degraded one. It reads the text,
    not the embedded vectors, with the adapters' own base model. `token_risk_start` and `token_risk_stop` say which
    tokens have the score. `token_risk_span_scores` holds the scores of all windows; where the rows have been embedded,
    those of their ``spans``, which are the same windows if the same model has read them with the same `window`, so that
    `MaskTokens` can mask them (other spans get the row's score). `token_risk_unscored` says why a row has no score.
    For tokens taken out of the loss one by one, see `MaskRiskyTokens` beside it.

    Args:
        adapters: The result of `fit_token_risk`, or its digest.
        window: Tokens of a window at most; None or 0 for whole answers.
        columns: Which columns hold prompt and response, for rows whose shape is not recognised.
        device: "cpu", "cuda", "cuda:1" or "mps"; the best available one if None.

    Raises:
        MissingError: The adapters are not in the store.
        OptionError: `window` is no number of tokens.

    Source: TOSS, arXiv 2603.01185, for the risk of a token; that a row's is its riskiest window's is ours.
    """

    METHOD: ClassVar[str] = "token_risk"
    MEASURES: ClassVar[str] = "loss under a utility adapter minus loss under a safety-degraded one, riskiest window"
    REQUIRES: ClassVar[str] = "references, training"
    SOURCE: ClassVar[str] = "TOSS, arXiv 2603.01185"
    FITTING: ClassVar[Fitting | None] = Fitting(
        field="adapters",
        to="references",
        by=fit_token_risk,
        options=(
            *("benign", "benign_license", "benign_source", "benign_columns"),
            *("steps", "batch", "learning_rate", "rank", "targets", "seed", "device"),
        ),
    )

    adapters: RiskAdapters | str
    _: KW_ONLY
    window: int | None = WINDOW
    columns: Mapping[str, str] | Pairs | None = None
    device: str | None = None
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        if self.window:
            require_whole("window", self.window, least=1)
        set_field(self, "window", self.window or None)
        set_field(self, "adapters", RiskAdapters.of(self.adapters).digest)
        set_field(self, "columns", as_pairs(self.columns))
        Step.__post_init__(self)

    @property
    def references(self) -> str | None:
        """Digest of the references that the adapters were fitted to; None for other rows."""
        digest: str | None = RiskAdapters.of(self.adapters).facts.get("references")
        return digest

    def produces(self) -> tuple[str, ...]:
        """The score column, those of the window that has it, the scores of all windows, and the reason."""
        return (*Score.produces(self), START, STOP, span_scores_column(self.METHOD), reason_column(self.METHOD))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, Column]:
        """float32 (n,), int32 (n,) twice, float32 for each window, and strings (n,)."""
        risks = self.risks(self.conversations(batch), rank)
        for reason, count in Counter(filter(None, risks.reasons)).items():
            logger.warning("%d rows have no token risk: %s", count, reason)
        windows, means = windows_of(risks, self.window)
        scores, at = means.largest()
        places = np.where(at < 0, -1, windows.offsets[:-1] + at)
        bounds = [np.append(windows.values[name], np.int32(-1))[places] for name in ("start", "stop")]
        spans = batch.spans()
        if spans is not None:
            means, others = aligned(windows, means, scores, spans)
            if others:
                logger.warning(
                    "the spans of %d rows are not their windows, so each has the score of its row: embed with %s",
                    others,
                    f"EmbedLayers({self.opened.facts['model']!r}, window={self.window})",
                )
        return dict(zip(self.produces(), (scores, *bounds, means, risks.reasons), strict=True))

    def conversations(self, batch: Batch) -> list[Conversation]:
        """What the rows of a batch say."""
        return conversations(batch, dict(self.columns) if self.columns else None) if batch.n else []

    def risks(self, rows: list[Conversation], rank: int | None = None) -> RowVectors:
        """See `RiskAdapters.risks`; risks that were computed before come from the row cache."""
        from hf_safefilter.model.load import pick_device

        device = pick_device(self.device, rank)
        if not rows or not cache.enabled():
            return self.opened.risks(rows, device, self.ignored)
        facts = {"step": "TokenRiskScore", "adapters": self.adapters, "algorithm": self.algorithm}
        space = cache.Space.of(
            facts | {"ignore": list(self.ignored), "device": device.type}, f"token risk of {self.opened.facts['model']}"
        )
        return cache.recall_scores(space, rows, lambda new: self.opened.risks(new, device, self.ignored))

    @property
    def opened(self) -> RiskAdapters:
        """The adapters, opened once a process."""
        return RiskAdapters.of(self.adapters)

    @property
    def ignored(self) -> tuple[str, ...]:
        """What of a row need not be read."""
        return ignored_in(dict(self.columns) if self.columns else None)
