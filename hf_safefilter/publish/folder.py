"""A publishable folder: everything that the commit to the Hub holds, written as a whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_safefilter.errors import OptionError
from hf_safefilter.publish.card import render
from hf_safefilter.publish.croissant import RECORD, croissant
from hf_safefilter.publish.data_files import read_published, write_dropped, write_kept
from hf_safefilter.publish.drop_reasons import by_split
from hf_safefilter.publish.plots import write_plots
from hf_safefilter.publish.review_facts import write_rulings
from hf_safefilter.publish.scoring import write_scoring
from hf_safefilter.publish.source_rows import require_source_rows
from hf_safefilter.storage.atomic import atomic_folder
from hf_safefilter.storage.recorded_files import record_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    from hf_safefilter.decide.additions import Additions
    from hf_safefilter.decide.select import IsSafe
    from hf_safefilter.publish.provenance import Provenance

PROVENANCE = "provenance.json"


def write_folder(
    out: str | Path,
    scored: Dataset | DatasetDict,
    is_safe: IsSafe,
    provenance: Provenance,
    *,
    include_text: bool = False,
    kept: Dataset | DatasetDict | IterableDataset | IterableDatasetDict | None = None,
    additions: Additions | None = None,
    recheck: Callable[[], None] | None = None,
) -> None:
    """Write kept rows, the list of dropped rows, card, provenance, Croissant record and plots to `out`.

    `load_dataset(out)` gives the kept rows. An earlier output is replaced; any other folder is refused.

    Args:
        out: The folder to write.
        scored: The rows with all their columns.
        is_safe: The decision.
        provenance: The result of `gather` for these rows.
        include_text: Whether ``dropped.parquet`` holds the text of the dropped rows.
        additions: Rows that are added to the kept ones, those of `provenance`.
        kept: The kept rows; None: they are selected from `scored`. Necessary where `scored` does not hold the text.
        recheck: Called when the rows are written: raises if their source was changed meanwhile.

    Raises:
        OptionError: `out` holds other files, or the text of the dropped rows is wanted and not available.
        PublishError: No row was kept, the record may not be published, or the rows that were written are not those of
            `scored` that the decision keeps.
    """
    from hf_safefilter.decide.select import split
    from hf_safefilter.decide.thresholds import numbers_of

    provenance.checked()
    if (additions is None) != (provenance.added is None):
        raise OptionError("the rows that are added are not those of the record", fix="pass the ones given to `gather`")
    parts = split(scored, is_safe)
    rows = by_split(parts.kept if kept is None else kept)
    if include_text and not all(hasattr(part, "data") for part in rows.values()):
        raise OptionError("the dropped rows of a stream are not stored", fix="do not include their text")
    if additions is not None and not all(hasattr(part, "data") for part in rows.values()):
        raise OptionError("no rows can be added to a stream", fix="leave out the refusals, or the stream")
    with atomic_folder(Path(out), marker=PROVENANCE) as folder:
        write_kept(folder, rows, provenance, additions)
        for split_name, part in by_split(scored).items():
            if hasattr(rows[split_name], "data"):  # rows of a stream were compared as they were read again
                shards = sorted((folder / "data").glob(f"{split_name}-*.parquet"))
                own = additions.rows if additions is not None and split_name == provenance.added_to else None
                require_source_rows(shards, part, is_safe, provenance.columns_added, own)
        write_dropped(folder, by_split(parts.dropped), is_safe, provenance, include_text)
        write_rulings(folder, is_safe)
        if recheck is not None:
            recheck()
        write_scoring(folder, provenance.steps)
        write_plots(folder, numbers_of(scored, is_safe.column), provenance)
        published = read_published(folder)
        (folder / PROVENANCE).write_text(provenance.to_json(), encoding="utf-8")
        card = render(provenance, published, text_included=include_text)
        (folder / "README.md").write_text(card, encoding="utf-8")
        (folder / RECORD).write_text(croissant(provenance, published, folder), encoding="utf-8")
        record_files(folder, PROVENANCE)
