"""Pictures, sounds and documents among the columns: never opened, as a cell may name any file or address."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    AnyRows = TypeVar("AnyRows", Dataset, DatasetDict, IterableDataset, IterableDatasetDict)


def undecoded(rows: AnyRows) -> AnyRows:
    """The same rows, whose media stay what is stored of them: bytes, or the name of a file that is not opened."""
    from datasets import DatasetDict, IterableDatasetDict

    if isinstance(rows, (DatasetDict, IterableDatasetDict)):
        return type(rows)({name: undecoded(part) for name, part in rows.items()})
    features = rows.features
    plain = {name: _plain(feature) for name, feature in (features or {}).items()}
    if features is None or plain == dict(features):
        return rows
    from datasets import Dataset, Features

    if not isinstance(rows, Dataset):
        return rows.cast(Features(plain))
    # `cast` would write a copy beside the rows, or read one that lies there; what is stored stays the same
    info = rows.info.copy()
    info.features = Features(plain)
    return Dataset(rows.data, info=info, split=rows.split, indices_table=rows._indices)


def _plain(feature: Any) -> Any:
    if isinstance(feature, dict):
        return {name: _plain(inner) for name, inner in feature.items()}
    if isinstance(feature, list):
        return [_plain(inner) for inner in feature]
    if getattr(feature, "decode", False):
        plain = copy.copy(feature)
        plain.decode = False
        return plain
    inner = getattr(feature, "feature", None)
    if inner is not None and _plain(inner) != inner:
        plain = copy.copy(feature)
        plain.feature = _plain(inner)
        return plain
    return feature
