"""All parts of a data set, whether it has splits or not: one place that knows both forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hf_safefilter.errors import DataError

ALL = ""
"""In place of a split's name, where there are no splits."""


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
    """`work` on the data set, or on each of its splits."""
    return joined({name: work(part) for name, part in splits_of(ds).items()})


def count_rows(ds: Any) -> int:
    """Rows of all parts together."""
    return sum(len(part) for part in parts_of(ds))


def column_names(part: Any) -> list[str]:
    """Columns of a data set or stream; a stream that does not say is asked for its first row."""
    names = part.column_names
    return list(names) if names is not None else list(next(iter(part), {}))


def require_free(ds: Any, columns: Any) -> None:
    """Raise unless none of `columns` is there yet: a step never writes over a column of the user's.

    Raises:
        DataError: one of them is.
    """
    taken = sorted({name for part in parts_of(ds) for name in column_names(part)} & set(columns))
    if taken:
        raise DataError(
            f"the rows already have a column {taken[0]!r}", fix="rename or remove it: it would be written over"
        )


def require_rows(ds: Any) -> None:
    """Raise for a split without rows, to which `map` adds no column: a decision would miss its score in the end.

    Raises:
        DataError: there is one.
    """
    for name, part in splits_of(ds).items():
        if hasattr(part, "__len__") and not len(part):
            where = f"split {name!r} has no rows" if name != ALL else "there are no rows"
            raise DataError(where, fix=f"leave it out: ds.pop({name!r})" if name != ALL else "check the source")
