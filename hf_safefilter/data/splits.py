"""All parts of a data set, whether it has splits or not: only this file knows both forms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hf_safefilter.checks import suggesting
from hf_safefilter.columns import score_column
from hf_safefilter.errors import DataError, MissingError

ALL = ""
"""The name of the one part of a data set without splits."""


def splits_of(ds: Any) -> dict[str, Any]:
    """Name -> part; a data set or stream without splits is one part under the name `ALL`."""
    return dict(ds) if isinstance(ds, Mapping) else {ALL: ds}


def parts_of(ds: Any) -> list[Any]:
    """The data set or stream, or all its splits, in order."""
    return list(splits_of(ds).values())


def joined(splits: Mapping[str, Any]) -> Any:
    """The reverse of `splits_of` for data sets: a `DatasetDict`, or the one part under `ALL`."""
    from datasets import DatasetDict

    return splits[ALL] if ALL in splits else DatasetDict(splits)


def each_split(ds: Any, work: Callable[[Any], Any]) -> Any:
    """The result of `work` on the data set, or on each of its splits."""
    return joined({name: work(part) for name, part in splits_of(ds).items()})


def count_rows(ds: Any) -> int:
    """Number of rows of all parts together."""
    return sum(len(part) for part in parts_of(ds))


def column_names(part: Any) -> list[str]:
    """Columns of a data set or stream; if a stream does not state them, its first row is read."""
    names = part.column_names
    return list(names) if names is not None else list(next(iter(part), {}))


def require_free(ds: Any, columns: Iterable[str]) -> None:
    """Raise if one of `columns` exists already: a step never overwrites a column of the user.

    Raises:
        DataError: One of the columns exists.
    """
    existing = sorted({name for part in parts_of(ds) for name in column_names(part)} & set(columns))
    if existing:
        raise DataError(
            f"the rows already have a column {existing[0]!r}", fix="rename or remove it: it would be overwritten"
        )


def missing_column(name: str, names: Sequence[str], fix: str) -> MissingError:
    """The error of a column that is not among `names`: the one that is most like it is suggested, and then `fix`."""
    found = ", ".join(names) or "no columns"
    near = score_column(name) if score_column(name) in names else name  # a method, for its scores
    return MissingError(f"column {name!r} is missing", found=found, fix=suggesting(near, names, fix))


def require_rows(ds: Any) -> None:
    """Raise if a split has no rows: `map` would add no column to it, and its scores would be missing later.

    Raises:
        DataError: A split has no rows, or the rows are no data set.
    """
    for name, part in splits_of(ds).items():
        if not hasattr(part, "column_names"):
            raise DataError(f"the rows are no data set but a {type(part).__name__}", fix="pass Dataset.from_list(rows)")
        if hasattr(part, "__len__") and not len(part):
            fact = f"split {name!r} has no rows" if name != ALL else "there are no rows"
            raise DataError(fact, fix=f"leave it out: ds.pop({name!r})" if name != ALL else "check the source")
