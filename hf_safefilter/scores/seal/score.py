"""SealScore: how little a row was worth to a model that must stay safe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from hf_safefilter.columns import ROW_ID, UNSCORABLE, reason_column, score_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import conversations, row_id
from hf_safefilter.errors import MissingError, OptionError
from hf_safefilter.scores.base import Score
from hf_safefilter.scores.controls import Pairs, as_pairs
from hf_safefilter.scores.seal.selector import SealSelector
from hf_safefilter.step import Step

COLUMNS = (score_column("seal"), reason_column("seal"))
"""The score, and why there is none."""


@dataclass(frozen=True, slots=True)
class SealScore(Score):
    """Minus the row's logit. Only differences count, and only the rows that the selector was fitted to have one.

    A row is found by its ``row_id``, from that column or from its text, never by its place. Adds ``seal_score`` and
    ``seal_unscored``: "" or why the score is NaN (``not_fitted``, ``nan_loss``, or why the row could not be read).

    Args:
        selector: what `fit_seal` returned, its digest, or the folder it was saved in.
        columns: where prompt and response are, for rows of no known shape that have no `row_id` column.

    Raises:
        OptionError: no selector.
        MissingError: none there.

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
                "seal scores with a selector that was fitted before",
                fix="hf-safefilter seal ROWS SAFE --model MODEL --output DIR, then selector: DIR/selector",
            )
        given = self.selector
        if isinstance(given, (str, Path)) and Path(given).is_dir():
            given = SealSelector.load(given)
        elif isinstance(given, (str, Path)) and not str(given).startswith("sha256:"):
            raise MissingError(
                f"there is no selector at {str(given)!r}",
                fix="name the folder that hf-safefilter seal wrote: DIR/selector",
            )
        object.__setattr__(self, "selector", SealSelector.of(given).digest)
        object.__setattr__(self, "columns", as_pairs(self.columns))
        Step.__post_init__(self)

    def produces(self) -> tuple[str, ...]:
        """`seal_score` and `seal_unscored`."""
        return COLUMNS

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """float32 (n,), and a string a row."""
        ids, unread = self._row_ids(batch)
        logits, reasons = SealSelector.of(self.selector).look_up(ids)
        reasons = [before or after for before, after in zip(unread, reasons, strict=True)]
        scores = np.where([bool(reason) for reason in reasons], np.nan, -logits) if reasons else -logits
        score, why = COLUMNS
        return {score: scores.astype(np.float32), why: np.array(reasons, dtype=object)}

    def _row_ids(self, batch: Batch) -> tuple[list[str], list[str]]:
        if ROW_ID in batch.names:
            unread = batch.cells(UNSCORABLE) if UNSCORABLE in batch.names else [""] * batch.n
            return batch.cells(ROW_ID), unread
        read = conversations(batch, dict(self.columns) if self.columns else None) if batch.n else []
        return [row_id(one) for one in read], [one.reason for one in read]
