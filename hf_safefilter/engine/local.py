"""Steps run in this process: the new columns are added to the rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from hf_safefilter import cache
from hf_safefilter.columns import EMBEDDING_PREFIX, READ_AS, SPANS, TRUNCATED
from hf_safefilter.data.arrow_files import materialise, new_file
from hf_safefilter.data.reasons import listed, reasons_in
from hf_safefilter.data.splits import count_rows, each_split, parts_of, require_free
from hf_safefilter.step import Step

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.scores.base import Score

logger = logging.getLogger(__name__)

_FEW = 0.01  # share of rows that may be lost without a word


def embed_rows(ds: Dataset | DatasetDict, embed: EmbedLayers, *, num_proc: int | None = None) -> Dataset | DatasetDict:
    """Add the columns of `embed`, in this process or in `num_proc` others; no existing column is overwritten."""
    with _resumed():
        return _with_columns(ds, embed, "Embed", num_proc)


def score_rows(ds: Dataset | DatasetDict, step: Step) -> Dataset | DatasetDict:
    """Add the columns of a score."""
    return _with_columns(ds, step, type(step).__name__)


def add_ranks(
    scored: Dataset | DatasetDict, columns: Sequence[str], how: str = "rank_average"
) -> tuple[Dataset | DatasetDict, Score]:
    """Add what combines the rows' ranks over several scores, one of `scores.COMBINED`; its step is returned too."""
    from hf_safefilter.scores import make
    from hf_safefilter.scores.ranks import fit_ranks

    step = make(how, ranks=fit_ranks(scored, list(columns)))
    return score_rows(scored, step), step


def _with_columns(
    ds: Dataset | DatasetDict, step: Step, desc: str, num_proc: int | None = None
) -> Dataset | DatasetDict:
    """The same as `ds.map(step)`, except that only the new columns are written: the old ones are not copied."""
    require_free(ds, step.produces())

    def add(part: Dataset) -> Dataset:
        from datasets import concatenate_datasets

        vectors = {name for name in part.column_names if name.startswith(EMBEDDING_PREFIX)}
        # spans tell the sides of a preference pair apart, and a score is for rows that were read as its references
        beside = [name for name in (READ_AS, SPANS) if name in part.column_names]
        read = [*step.needs(), *beside] if step.needs() else [name for name in part.column_names if name not in vectors]
        options = {
            "batched": True, "batch_size": step.rows_per_call, "num_proc": num_proc, "with_rank": True, "desc": desc,
            # not beside the rows, where a file that came with them could stand in for the result
            "cache_file_name": str(new_file("cache")), "load_from_cache_file": False,
        }  # fmt: skip
        # A selection of rows would have to be written out first. Where a column is missing, the step raises.
        if part._indices is not None or not len(part) or not set(read) <= set(part.column_names):
            return part.map(step, **options)
        added = part.select_columns(read).map(step, remove_columns=read, **options)
        return concatenate_datasets([part, added], axis=1, info=None, split=part.split)

    return each_split(ds, add)


def score_stream_locally(
    rows: IterableDataset | IterableDatasetDict, embed: EmbedLayers, scores: Sequence[Step]
) -> Dataset | DatasetDict:
    """Embed and score a stream a few rows at a time, and write its rows to disk without their vectors.

    The decision needs every score, but no vector, so a data set larger than memory and cache can be scored.
    """
    steps = (embed, *scores)
    require_free(rows, [name for step in steps for name in step.produces()])
    rows = rows.with_format("arrow")  # among Python values, a null does not show the type of its column
    for step in steps:
        rows = rows.map(step, batched=True, batch_size=step.rows_per_call)
    vectors = [name for name in embed.produces() if name.startswith(EMBEDDING_PREFIX)]
    with _resumed():
        return materialise(rows.remove_columns(vectors))


@contextmanager
def _resumed() -> Iterator[None]:
    """Say afterwards how many rows were not read again; the rows of other processes are not counted."""
    with cache.tally() as found:
        yield
    if found["recalled"]:
        logger.info("resumed: %d of %d distinct rows from the store", found["recalled"], found["rows"])


def warn_of_unscorable(ds: Dataset | DatasetDict) -> None:
    """Log a warning if more than a hundredth of the rows cannot be scored; `EmbedLayers` says what to do about each."""
    reasons, rows = reasons_in(ds), count_rows(ds)
    lost = sum(reasons.values())
    if lost > _FEW * rows:
        logger.warning("%d of %d rows cannot be scored and are not kept: %s", lost, rows, listed(reasons))


def reading_counts(ds: Dataset | DatasetDict) -> dict[str, int]:
    """Number of rows, of spans read in them, of truncated rows, and of rows that cannot be scored for each reason."""
    counts = {"rows": 0, "spans": 0, "truncated": 0}
    for part in parts_of(ds):
        counts["rows"] += len(part)
        if len(part):
            table = part.select_columns([SPANS, TRUNCATED]).with_format("arrow")[:]
            counts["spans"] += pc.sum(pc.list_value_length(table[SPANS])).as_py() or 0
            counts["truncated"] += pc.sum(table[TRUNCATED]).as_py() or 0
    return counts | {f"unscorable: {reason}": count for reason, count in reasons_in(ds).most_common()}
