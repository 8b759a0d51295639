"""Rows read and scored again from their text: do the steps that a card states give the scores that decided?

Rows that are read again differ by rounding. That moves a rank by whole rows, so of a combination of ranks the scores
that it combines are compared, and the ranks themselves must follow from these exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import ROW_ID
from hf_safefilter.data.batch import Batch
from hf_safefilter.decide.thresholds import numbers_of
from hf_safefilter.errors import PublishError
from hf_safefilter.publish.drop_reasons import by_split
from hf_safefilter.publish.provenance import Check
from hf_safefilter.scores.base import record_batches
from hf_safefilter.scores.ranks import RankScore

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.step import Step

_LEAST, _SHARE = 1e-3, 0.02
_STEPS = "pass `steps=...`: the steps that really ran, in order"


def tolerance_of(scores: np.ndarray) -> float:
    """By how much a score of these (n,) may differ when its row is read again: 0.02 deviations, at least 0.001."""
    finite = scores[np.isfinite(scores)].astype(np.float64)
    return max(_LEAST, _SHARE * float(finite.std())) if len(finite) else _LEAST


def step_of(column: str, steps: Sequence[Step]) -> Step:
    """The last of `steps` that fills a column.

    Raises:
        PublishError: None does.
    """
    step = next((step for step in reversed(steps) if column in step.produces()), None)
    if step is None:
        raise PublishError(f"none of the given steps fills the column {column!r}", fix=_STEPS)
    return step


def read_columns(column: str, steps: Sequence[Step]) -> tuple[str, ...]:
    """The score columns that are computed from the rows themselves, from which `column` follows."""
    step = step_of(column, steps)
    if not isinstance(step, RankScore):
        return (column,)
    return tuple(dict.fromkeys(name for need in step.needs() for name in read_columns(need, steps)))


def rescored(rows: Dataset, steps: Sequence[Step]) -> dict[str, Any]:
    """The columns of `rows`, those of `steps` computed from the text alone; all rows at once."""
    added = {name for step in steps for name in step.produces()}
    columns: dict[str, Any] = rows.remove_columns([n for n in rows.column_names if n in added]).with_format(None)[:]
    for step in steps:
        columns = columns | step(columns)
    return columns


def random_samples(scored: Dataset | DatasetDict, rows: int) -> list[tuple[Dataset, list[int]]]:
    """Some rows of each split, drawn now from all, so that nobody knows beforehand which; with their indices."""
    parts = by_split(scored).values()
    total = sum(map(len, parts))
    indices = np.sort(np.random.default_rng().choice(total, min(rows, total), replace=False)).tolist()
    start, samples = 0, []
    for part in parts:
        own = [index for index in indices if start <= index < start + len(part)]
        samples.append((part.select([index - start for index in own]), own))
        start += len(part)
    return samples


def check_steps(
    scored: Dataset | DatasetDict,
    samples: Sequence[tuple[Dataset, Sequence[int]]],
    steps: Sequence[Step],
    column: str,
    rows: int,
) -> Check:
    """Read and score about `rows` rows of `samples` again, by the steps that the card will state.

    Args:
        scored: The rows with their score columns.
        samples: Rows with their text, and their indices among all of `scored`.
        steps: The steps.
        column: The score column that decided.
        rows: Number of rows that are read again.

    Raises:
        PublishError: The steps do not give these scores, or the rows have other ids than they say.
    """
    read = read_columns(column, steps)
    stored = {name: numbers_of(scored, name) for name in read}
    if read != (column,):
        require_ranks(scored, steps, column)
    worst, checked = dict.fromkeys(read, 0.0), 0
    stride = max(1, -(-sum(len(indices) for _, indices in samples) // rows))
    for part, indices in samples:
        chosen = list(range(0, len(indices), stride))
        if not chosen:
            continue
        sample = part.select(chosen)
        again = rescored(sample, steps)
        if ROW_ID in sample.column_names and any(ROW_ID in step.produces() for step in steps):
            _require_ids(list(again[ROW_ID]), sample)
        for name in read:
            before = stored[name][[indices[position] for position in chosen]]
            worst[name] = max(worst[name], _difference(np.asarray(again[name], dtype=np.float64), before))
        checked += len(chosen)
    tolerances = {name: tolerance_of(stored[name]) for name in read}
    most = max(read, key=lambda name: worst[name] / tolerances[name])
    if worst[most] > tolerances[most]:
        raise PublishError(
            f"the given steps do not give the scores in column {most!r}",
            found=f"rows scored again differ by up to {worst[most]:.3g} (tolerance {tolerances[most]:.3g})",
            fix=_STEPS,
        )
    return Check(rows=checked, largest_difference=worst[most], tolerance=tolerances[most])


def require_ranks(scored: Dataset | DatasetDict, steps: Sequence[Step], column: str) -> None:
    """Raise unless a combination of ranks is, in every row, what follows from the scores that stand beside it.

    Raises:
        PublishError: It is something else in some row.
    """
    step = step_of(column, steps)
    if not isinstance(step, RankScore):
        return
    for need in step.needs():
        require_ranks(scored, steps, need)
    for table in record_batches(scored, [*step.needs(), column], fix="score the rows again"):
        batch = Batch(table)
        follows = np.asarray(step.compute(batch, None)[column], dtype=np.float32)
        if not np.array_equal(follows, batch.numbers(column).astype(np.float32), equal_nan=True):
            raise PublishError(
                f"the column {column!r} does not follow from {', '.join(step.needs())}", fix="score the rows again"
            )


def _difference(again: np.ndarray, before: np.ndarray) -> float:
    """The largest difference of scores (n,); infinite where only one of two is a number."""
    if not np.array_equal(np.isfinite(again), np.isfinite(before)):
        return float("inf")
    both = np.isfinite(again)
    return float(np.abs(again - before)[both].max(initial=0.0))


def _require_ids(ids: list[str], sample: Dataset) -> None:
    if ids != list(sample.with_format(None)[ROW_ID]):
        raise PublishError(
            f"the column {ROW_ID!r} does not hold the ids of these rows",
            fix="remove it, and embed and score the rows again",
        )
