"""Labelled rows decide which end of an unsupervised score is the dangerous one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_safefilter.data.labels import same_label
from hf_safefilter.errors import DataError

logger = logging.getLogger(__name__)

FEWEST_LABELS = 20


@dataclass(frozen=True, slots=True)
class Orientation:
    """The sign of a score that labelled rows chose, and how clear the choice is.

    Attributes:
        label, unsafe: The column of labels, and the value in it that means unsafe.
        unsafe_rows, safe_rows: Number of labelled rows that have a score.
        sign: 1, or -1 where unsafe rows score lower.
        auroc: AUROC after the sign is applied, so at least 0.5.
        standard_error: Standard error of the AUROC of a score without signal, for this number of rows.
    """

    label: str
    unsafe: str | int | bool
    unsafe_rows: int
    safe_rows: int
    sign: int
    auroc: float
    standard_error: float

    @property
    def signal(self) -> bool:
        """Whether the AUROC is at least two standard errors above chance."""
        return self.auroc >= 0.5 + 2 * self.standard_error

    def facts(self) -> dict[str, Any]:
        """All attributes as plain JSON values."""
        return asdict(self) | {"signal": self.signal}


def orient(
    scores: np.ndarray, labels: Sequence[Any], label: str, unsafe: str | int | bool, names: Sequence[str] = ()
) -> Orientation:
    """Choose the sign of `scores` (n,) by `labels`; rows without a score do not count.

    `names` are those of the classes, where labels are their numbers.

    Raises:
        DataError: There are fewer than 20 labelled rows, or labels of one kind only.
    """
    from scipy.stats import rankdata

    scored = np.isfinite(scores)
    is_unsafe = np.array([same_label(cell, unsafe, names) for cell in labels], dtype=bool)[scored]
    n_unsafe, n_safe = int(is_unsafe.sum()), int((~is_unsafe).sum())
    if n_unsafe + n_safe < FEWEST_LABELS or not n_unsafe or not n_safe:
        raise DataError(
            f"column {label!r} has too few labels to choose a sign by",
            found=f"{n_unsafe} rows labelled {unsafe!r}, {n_safe} others",
            fix=f"label at least {FEWEST_LABELS} rows of both kinds, state the value that means unsafe (`unsafe=...`), "
            "or leave the labels out",
        )
    ranks = rankdata(scores[scored])
    auroc = float((ranks[is_unsafe].sum() - n_unsafe * (n_unsafe + 1) / 2) / (n_unsafe * n_safe))
    error = float(np.sqrt((n_unsafe + n_safe + 1) / (12 * n_unsafe * n_safe)))
    sign = 1 if auroc >= 0.5 else -1
    orientation = Orientation(label, unsafe, n_unsafe, n_safe, sign, max(auroc, 1 - auroc), error)
    if not orientation.signal:
        auroc = orientation.auroc
        logger.warning("labels in %r show no signal: AUROC %.3f, chance is 0.5 +- %.3f", label, auroc, error)
    return orientation
