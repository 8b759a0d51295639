"""As what a row is to be kept where the score switches or masks rows: what a verifier expects to find."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.columns import EMBEDDING_PREFIX, PAIR_SHIFT, SCORE_SUFFIX, span_scores_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import conversations
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.decide.actions import masked, switched

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.publish.provenance import Decision


def ids_as_kept(
    rows: Dataset,
    scored: Mapping[str, Any],
    selection: Decision,
    *,
    reached: np.ndarray,
    near: np.ndarray,
    tolerance: float,
    columns: Mapping[str, str] | None,
) -> list[str | None]:
    """The id as which each row is to be kept; "" where it goes, None where rounding decides.

    Args:
        rows: Rows of the source on which nobody has decided.
        scored: Their columns, with those of the steps.
        selection: The decision, whose action changes rows.
        reached: Which rows reach the threshold, bool (n,).
        near: Of which rows this is not sure, bool (n,).
        tolerance: By how much a score of a span may differ.
        columns: Where things stand in a row.
    """
    names = [name for name in rows.column_names if not name.startswith(EMBEDDING_PREFIX)]
    table = rows.select_columns(names).with_format("arrow")[:]
    own = [row_id(said) for said in conversations(Batch(table), columns)]
    left, unsure = np.ones(len(own), bool), near.copy()
    if selection.action == "switch":
        changed = switched(table, reached, columns)
    else:
        batch = Batch(scored)
        method = selection.column.removesuffix(PAIR_SHIFT).removesuffix(SCORE_SUFFIX)
        scores, spans = batch.ragged(span_scores_column(method)), batch.spans()
        assert spans is not None  # the score is one of spans
        flagged: list[set[int]] = []
        for row in range(len(own)):
            values, of_row = scores.row(row), spans.row(row)
            dangerous = (values >= selection.threshold) & ~of_row["rejected"]
            flagged.append(set(of_row["turn"][dangerous].tolist()) if reached[row] else set())
            unsure[row] |= bool((np.abs(values - selection.threshold) <= tolerance).any())
        changed, left = masked(table, flagged, columns)
    new = [row_id(said) for said in conversations(Batch(changed), columns)]
    deciding = Batch(scored).numbers(selection.column)
    found: list[str | None] = []
    for row, name in enumerate(own):
        goes = not np.isfinite(deciding[row]) or (reached[row] and not left[row])
        found.append(None if unsure[row] else "" if goes else new[row] if reached[row] else name)
    return found
