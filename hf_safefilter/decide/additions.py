"""Rows that are added to the kept ones, marked as such: what, from where, and to which split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hf_safefilter.data.rows_alike import rows_alike
from hf_safefilter.data.splits import ALL, require_free, splits_of
from hf_safefilter.decide.refusals_to_add import diverse_refusals
from hf_safefilter.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

ADDED = "added"
"""Column of the kept rows that says what a row was added as; null for the rows of the source."""

REFUSAL = "refusal"
CATEGORY = "category"


@dataclass(frozen=True, slots=True)
class RefusalsToAdd:
    """Refusals that are to be added.

    Attributes:
        count: Their number.
        rows: Rows with prompt and response to choose from.
        source: Where these come from.
        license: Their licence.
        ours: Whether they ship with this package; rows of others must pass the score before they are added.
    """

    count: int
    rows: tuple[Mapping[str, Any], ...]
    source: str
    license: str
    ours: bool = False

    @classmethod
    def of(cls, count: int, path: str | None = None, license: str | None = None) -> RefusalsToAdd:
        """Those of a file or data set; None: of the starter set.

        Raises:
            DataError: A row is not a prompt and an answer, or the licence is missing.
        """
        from hf_safefilter.data.load_rows import load_rows
        from hf_safefilter.starter import LICENSE, SOURCE, starter_rows

        if path is None:
            return cls(count, tuple(starter_rows("safe")), SOURCE, LICENSE, ours=True)
        if not (license or "").strip():
            raise DataError(f"the licence of the refusals in {path} is missing", fix="name it: `refusals_license=...`")
        loaded = load_rows(path)
        rows = tuple(row for part in splits_of(loaded.rows).values() for row in part)
        if not all(isinstance(row.get(key), str) and row[key] for row in rows for key in ("prompt", "response")):
            raise DataError(f"{path} must hold a prompt and a response in each row", fix="rename its columns")
        return cls(count, rows, loaded.name, str(license).strip())


@dataclass(frozen=True, slots=True)
class Additions:
    """Rows that were added to a split.

    Attributes:
        rows: The rows, with columns of the user and `ADDED`.
        split: Name of the split that they follow; `ALL` for a data set without splits.
        source: Where they come from.
        license: Their licence.
        by_category: Their number by category.
    """

    rows: Dataset
    split: str
    source: str
    license: str
    by_category: Mapping[str, int]

    @classmethod
    def choose(
        cls,
        wanted: RefusalsToAdd,
        kept: Dataset | DatasetDict,
        dropped: Dataset | DatasetDict,
        own: Collection[str],
        columns: Mapping[str, str] | None = None,
    ) -> Additions:
        """Refusals for what was dropped, in the shape of the kept rows; for the split train, or else the largest.

        Args:
            wanted: The refusals to choose from, and how many.
            kept: The kept rows.
            dropped: The dropped ones; their column ``category``, if there is one, says what refusals are for.
            own: The columns of the user: what stands in the others is left empty.
            columns: What stands where, for rows of no known shape.

        Raises:
            DataError: There are fewer refusals, no row is kept, the rows have a column `ADDED`, or a refusal cannot be
                written in their shape.
        """
        from datasets import Features, Value

        require_free(kept, [ADDED])
        parts = splits_of(kept)
        split = max(parts, key=lambda name: (name == "train" and bool(len(parts[name])), len(parts[name])))
        part = parts[split]
        if not len(part):
            raise DataError("no row is kept that refusals could be added to", fix="choose another threshold")
        gone = [str(cell) for lost in splits_of(dropped).values() if CATEGORY in lost.column_names
                for cell in lost.with_format(None)[CATEGORY][:]]  # fmt: skip
        chosen = diverse_refusals(wanted.count, wanted.rows, gone)
        names = [name for name in part.column_names if name in own]
        sample = part.select_columns(names).with_format(None)[0]
        pairs = [(row["prompt"], row["response"]) for row in chosen]
        features = Features({name: part.features[name] for name in names})
        rows = rows_alike(sample, features, pairs, columns)
        rows = rows.add_column(ADDED, [REFUSAL] * len(rows), feature=Value("string"))
        categories = Counter(str(row.get(CATEGORY) or "") for row in chosen)
        return cls(rows, split, wanted.source, wanted.license, dict(sorted(categories.items())))

    def facts(self) -> dict[str, Any]:
        """All but the rows, as plain values; see `of_kept`."""
        own = {"split": self.split, "source": self.source, "license": self.license}
        return own | {"by_category": dict(self.by_category)}

    @classmethod
    def of_kept(cls, kept: Dataset | DatasetDict, facts: Mapping[str, Any], own: Collection[str]) -> Additions:
        """Those that `appended_to` has added to kept rows.

        Raises:
            KeyError, TypeError, ValueError: The facts are not those of these rows.
        """
        part = splits_of(kept)[facts["split"]]
        marks = part.with_format("arrow")[:][ADDED]
        places = [place for place, mark in enumerate(marks.to_pylist()) if mark is not None]
        names = [name for name in part.column_names if name in own or name == ADDED]
        rows = part.select(places).select_columns(names).flatten_indices()
        source, license = str(facts["source"]), str(facts["license"])
        return cls(rows, str(facts["split"]), source, license, dict(facts["by_category"]))

    def appended_to(self, kept: Mapping[str, Dataset]) -> dict[str, Dataset]:
        """Every split with the column `ADDED`, and the one that is meant with the rows at its end."""
        return {name: self._marked(part, self.split in (name, ALL)) for name, part in kept.items()}

    def _marked(self, part: Dataset, here: bool) -> Dataset:
        from datasets import Features, Value, concatenate_datasets

        features = Features({**part.features, ADDED: Value("string")})
        marked = part.add_column(ADDED, [None] * len(part), feature=features[ADDED])
        if not here:
            return marked
        table = self.rows.with_format("arrow")[:]
        for name in part.column_names:
            if name not in table.column_names:
                kind = features.arrow_schema.field(name).type
                table = table.append_column(name, pa.nulls(table.num_rows, kind))
        added = type(part)(table.select(marked.column_names).cast(features.arrow_schema))
        return concatenate_datasets([marked, added.cast(features)])
