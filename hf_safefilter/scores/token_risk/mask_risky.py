"""`MaskRiskyTokens`: rows as token ids and labels for a trainer, without the single tokens that are risky."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.cache import SCORE
from hf_safefilter.checks import require_number, require_share
from hf_safefilter.data.batch import Batch, Column
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.data.splits import parts_of
from hf_safefilter.errors import DataError
from hf_safefilter.scores.token_risk.risk_adapters import read_tokens
from hf_safefilter.scores.token_risk.score import TokenRiskScore
from hf_safefilter.step import ROWS_PER_CALL, Step

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_IGNORED = -100


@dataclass(frozen=True, slots=True)
class MaskRiskyTokens(Step):
    """Adds ``input_ids`` and ``labels``, int32 lists, which TRL's trainers and collators take as they are.

    Labels are the ids of the answers, and -100 for context and for each token whose risk reaches the threshold. A row
    that could not be scored has no labels, as nothing of it is known to be safe.

    Args:
        score: Whose adapters give the risks; its window does not count.
        threshold: Tokens with this risk or more are not learned; see `risk_threshold`.

    Source: TOSS, arXiv 2603.01185.
    """

    score: TokenRiskScore
    threshold: float
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        require_number("threshold", self.threshold)
        object.__setattr__(self, "threshold", float(self.threshold))
        Step.__post_init__(self)

    def produces(self) -> tuple[str, ...]:
        """``input_ids`` and ``labels``."""
        return ("input_ids", "labels")

    def record(self) -> dict[str, Any]:
        """See `Step.record`; the score as plain values too."""
        return {
            "step": "MaskRiskyTokens",
            "score": self.score.record(),
            "threshold": self.threshold,
            "algorithm": self.algorithm,
        }

    def compute(self, batch: Batch, rank: int | None) -> dict[str, Column]:
        """int32 lists of one length a row."""
        rows = self.score.conversations(batch)
        risks = self.score.risks(rows, rank)
        places, values = Ragged(risks.spans["start"], risks.offsets), risks.of(SCORE)
        ids, labels = [], []
        for index, row in enumerate(read_tokens(self.score.opened.facts, rows, self.score.ignored)):
            learned = np.zeros(len(row.ids), bool)
            learned[places.row(index)[values.row(index)[:, 0] < self.threshold]] = True
            ids.append(row.ids)
            labels.append(np.where(learned & row.labelled(), row.ids, _IGNORED).astype(np.int32))
        none = np.empty(0, np.int32)
        return {"input_ids": Ragged.of(ids, none), "labels": Ragged.of(labels, none)}


def risk_threshold(rows: Dataset | DatasetDict, score: TokenRiskScore, *, drop_fraction: float = 0.2) -> float:
    """The risk at and above which lies a share of all tokens of the answers, over all rows and splits together.

    Every row is read by the model, or comes from the row cache, which also serves `MaskRiskyTokens` afterwards.

    Args:
        rows: The rows that are to be masked, all splits together.
        score: Whose adapters give the risks.
        drop_fraction: Share of the tokens to leave out of the loss, in (0, 1); the reference code has 0.2.

    Raises:
        OptionError: The share is not between 0 and 1.
        DataError: No token has a risk.

    Source: TOSS, arXiv 2603.01185: tokens are ranked over the whole data set, not within their rows.
    """
    require_share("drop_fraction", drop_fraction, example=0.2)
    found = [np.empty(0, np.float32)]
    for part in parts_of(rows):
        for batch in part.with_format("arrow").iter(ROWS_PER_CALL):
            risks = score.risks(score.conversations(Batch(batch)))
            found.append(risks.vectors[SCORE][risks.spans["start"] > 0, 0])  # the first of a row is never learned
    risk = np.concatenate(found)
    if not len(risk):
        raise DataError("no token has a risk", found="no row could be read", fix="see the column token_risk_unscored")
    count = max(1, round(drop_fraction * len(risk)))
    return float(np.partition(risk, len(risk) - count)[len(risk) - count])
