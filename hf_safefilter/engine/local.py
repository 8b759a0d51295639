"""Steps carried out in this process: rows with the new columns beside their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_safefilter.columns import EMBEDDING_PREFIX, TRUNCATED, UNSCORABLE
from hf_safefilter.data.arrow_files import materialise
from hf_safefilter.data.splits import each_split, parts_of, require_free
from hf_safefilter.step import ROWS_PER_CALL, Step

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    from hf_safefilter.embed import EmbedLayers


def embed_rows(ds: Dataset | DatasetDict, embed: EmbedLayers, *, processes: int | None = None) -> Dataset | DatasetDict:
    """Add the columns of `embed`, here or in `processes`; raises rather than write over a column of the user's."""
    return _with_columns(ds, embed, "Embed", processes)


def score_rows(ds: Dataset | DatasetDict, step: Step) -> Dataset | DatasetDict:
    """Add the columns of a score."""
    return _with_columns(ds, step, type(step).__name__)


def add_rank_average(scored: Dataset | DatasetDict, columns: Sequence[str]) -> tuple[Dataset | DatasetDict, Step]:
    """Add the mean of the rows' ranks over several scores; returns the step that did it, too."""
    from hf_safefilter.scores.rank_average import RankAverage, fit_rank_average

    step = RankAverage(fit_rank_average(scored, list(columns)))
    return score_rows(scored, step), step


def _with_columns(
    ds: Dataset | DatasetDict, step: Step, desc: str, processes: int | None = None
) -> Dataset | DatasetDict:
    """`ds.map(step)`, but that only the new columns are written: old ones, vectors among them, are not copied."""
    require_free(ds, step.produces())

    def add(part: Dataset) -> Dataset:
        from datasets import concatenate_datasets

        vectors = {name for name in part.column_names if name.startswith(EMBEDDING_PREFIX)}
        read = list(step.needs()) or [name for name in part.column_names if name not in vectors]
        how = {"batched": True, "batch_size": ROWS_PER_CALL, "num_proc": processes, "with_rank": True, "desc": desc}
        # A selection of rows would have to be written out first; a missing column is the step's own to complain about.
        if part._indices is not None or not len(part) or not set(read) <= set(part.column_names):
            return part.map(step, **how)
        added = part.select_columns(read).map(step, remove_columns=read, **how)
        return concatenate_datasets([part, added], axis=1, info=None, split=part.split)

    return each_split(ds, add)


def score_stream_here(
    rows: IterableDataset | IterableDatasetDict, embed: EmbedLayers, scores: Sequence[Step]
) -> Dataset | DatasetDict:
    """Embed and score a stream row group by row group, and write its rows to disk without their vectors.

    The decision needs every score, but no vector: this is what lets a set larger than memory and cache through.
    """
    steps = (embed, *scores)
    require_free(rows, [name for step in steps for name in step.produces()])
    rows = rows.with_format("arrow")  # as Python values, a null does not say what type its column is of
    for step in steps:
        rows = rows.map(step, batched=True, batch_size=ROWS_PER_CALL)
    vectors = [name for name in embed.produces() if name.startswith(EMBEDDING_PREFIX)]
    return materialise(rows.remove_columns(vectors))


def reading_counts(ds: Dataset | DatasetDict) -> dict[str, int]:
    """How many rows were read, cut, and could not be read, by reason."""
    counts = {"rows": 0, "truncated": 0}
    for part in parts_of(ds):
        counts["rows"] += len(part)
        if len(part):
            counts["truncated"] += sum(part.with_format("arrow")[TRUNCATED].to_pylist())
            for reason in part.with_format("arrow")[UNSCORABLE].to_pylist():
                if reason:
                    counts[f"unscorable: {reason}"] = counts.get(f"unscorable: {reason}", 0) + 1
    return counts
