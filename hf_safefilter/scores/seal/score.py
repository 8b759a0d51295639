"""SealScore: the negative weight of a row that SEAL has learned, higher for more dangerous rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

import numpy as np

from hf_safefilter.columns import ROW_ID, UNSCORABLE, reason_column, score_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.errors import MissingError, OptionError
from hf_safefilter.scores.base import Score
from hf_safefilter.scores.controls import Pairs, as_pairs
from hf_safefilter.scores.seal.selector import SealSelector
from hf_safefilter.step import Step

COLUMNS = (score_column("seal"), reason_column("seal"))
"""The score column, and the column with the reason where there is no score."""


@dataclass(frozen=True, slots=True)
class SealScore(Score):
    """Minus the row's logit; only differences between scores count, and only rows of the fit have a score.

    A row is found by its ``row_id``, from that column or from its text, never by its position. Adds ``seal_score`` and
    ``seal_unscored``: "" or why the score is NaN (``not_fitted``, ``nan_loss``, or why the row could not be read).

    Args:
        selector: What `fit_seal` returned, its digest, or the folder in which it was saved.
        columns: Which columns hold prompt and response, for rows of no known shape that have no `row_id` column.

    Raises:
        OptionError: No selector is given.
        MissingError: The selector does not exist.

    Source: SEAL, arXiv 2410.07471, section 3; the reference's weight is the reverse of this score.
    """

    METHOD: ClassVar[str] = "seal"
    MEASURES: ClassVar[str] = "weight learned on two levels against trusted rows"
    REQUIRES: ClassVar[str] = "trusted rows, training"
    SOURCE: ClassVar[str] = "SEAL, arXiv 2410.07471"

    selector: SealSelector | str | None = None
    columns: Mapping[str, str] | Pairs | None = None
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if self.selector is None:
            raise OptionError(
                "the method seal needs a selector that was fitted before",
                fix='fit one (hf-safefilter seal --help), then name its folder: `selector="DIR/selector"`',
            )
        selector = self.selector
        if isinstance(selector, (str, Path)) and Path(selector).is_dir():
            selector = SealSelector.load(selector)
        elif isinstance(selector, (str, Path)) and not str(selector).startswith("sha256:"):
            raise MissingError(
                f"there is no selector at {str(selector)!r}",
                fix='name the folder that hf-safefilter seal has written: `selector="DIR/selector"`',
            )
        object.__setattr__(self, "selector", SealSelector.of(selector).digest)
        object.__setattr__(self, "columns", as_pairs(self.columns))
        Step.__post_init__(self)

    def produces(self) -> tuple[str, ...]:
        """The columns `seal_score` and `seal_unscored`."""
        return COLUMNS

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """The scores, float32 (n,), and the reasons, one string for each row."""
        ids, unread = self._row_ids(batch)
        digest = cast("str", self.selector)  # set by __post_init__
        logits, unfit = SealSelector.of(digest).look_up(ids)
        reasons = [before or after for before, after in zip(unread, unfit, strict=True)]
        scores = np.where([bool(reason) for reason in reasons], np.nan, -logits) if reasons else -logits
        score, unscored = COLUMNS
        return {score: scores.astype(np.float32), unscored: np.array(reasons, dtype=object)}

    def _row_ids(self, batch: Batch) -> tuple[list[str], list[str]]:
        """The id of each row, and why it could not be read ("" where it could)."""
        if ROW_ID in batch.names:
            unread = batch.cells(UNSCORABLE) if UNSCORABLE in batch.names else [""] * batch.n
            return batch.cells(ROW_ID), unread
        rows = conversations(batch, dict(self.columns) if self.columns else None) if batch.n else []
        return [row_id(conversation) for conversation in rows], [conversation.reason for conversation in rows]
