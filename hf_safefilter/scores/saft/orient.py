"""Which end of an unsupervised score is the dangerous one, by labelled rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_safefilter.data.labels import same_label
from hf_safefilter.errors import DataError

_log = logging.getLogger(__name__)
FEWEST_LABELS = 20


@dataclass(frozen=True, slots=True)
class Orientation:
    """The sign that labelled rows gave a score, and how clearly.

    Attributes:
        label, unsafe: the column, and the value that means unsafe in it.
        unsafe_rows, safe_rows: labelled rows that were scored.
        sign: 1, or -1 where unsafe rows score lower.
        auroc: after the sign, so 0.5 or more.
        standard_error: of an AUROC without signal, for as many rows.
    """

    label: str
    unsafe: Any
    unsafe_rows: int
    safe_rows: int
    sign: int
    auroc: float
    standard_error: float

    @property
    def signal(self) -> bool:
        """Whether the AUROC is two standard errors or more above chance."""
        return self.auroc >= 0.5 + 2 * self.standard_error

    def facts(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        return asdict(self) | {"signal": self.signal}


def orient(scores: np.ndarray, labels: Sequence[Any], label: str, unsafe: Any) -> Orientation:
    """Choose the sign of `scores` (n,) by `labels`; rows without a score do not count.

    Raises:
        DataError: fewer than 20 labelled rows, or only one kind of them.
    """
    from scipy.stats import rankdata

    scored = np.isfinite(scores)
    positive = np.array([same_label(cell, unsafe) for cell in labels], dtype=bool)[scored]
    up, down = int(positive.sum()), int((~positive).sum())
    if up + down < FEWEST_LABELS or not up or not down:
        raise DataError(
            f"column {label!r} has too few labels to choose a sign by",
            found=f"{up} rows labelled {unsafe!r}, {down} others",
            fix=f"label {FEWEST_LABELS} rows or more of both kinds, name the unsafe value with unsafe=..., or leave "
            "label out",
        )
    ranks = rankdata(scores[scored])
    auroc = float((ranks[positive].sum() - up * (up + 1) / 2) / (up * down))
    error = float(np.sqrt((up + down + 1) / (12 * up * down)))
    found = Orientation(label, unsafe, up, down, 1 if auroc >= 0.5 else -1, max(auroc, 1 - auroc), error)
    if not found.signal:
        _log.warning("labels in %r show no signal: AUROC %.3f, chance is 0.5 +- %.3f", label, found.auroc, error)
    return found
