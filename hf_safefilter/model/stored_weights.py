"""The weights in the files of a model, by name: read from the files' headers, so that no weight is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hf_safefilter.model.model_files import INDEX, WEIGHTS, names_in_index
from hf_safefilter.model.source import base_and_adapter, explained, file_on_hub, gguf_file, local_folder

if TYPE_CHECKING:
    from hf_safefilter.model.source import ModelKey


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """What a header says of a weight.

    Attributes:
        dtype: In the words of safetensors: "F32", "BF16", "F8_E4M3", "U8", ...
        shape: As stored: packed weights have another one than the layer.
    """

    dtype: str
    shape: tuple[int, ...]


def stored_weights(key: ModelKey) -> dict[str, StoredWeight]:
    """Every weight in the safetensors that transformers would read, by its name there; none for a GGUF file.

    Files of the Hub are fetched, as they are before they are loaded.

    Raises:
        ModelError: A file is damaged, or names of an index are not those of files.
    """
    from safetensors import safe_open

    found = {}
    with explained(key.model, key.revision):
        for path in _files(key):
            with safe_open(str(path), framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118  # the file itself cannot be iterated
                    part = file.get_slice(name)
                    found[name] = StoredWeight(part.get_dtype(), tuple(part.get_shape()))
    return found


def _files(key: ModelKey) -> list[Path]:
    base = base_and_adapter(key.model)[0]
    if gguf_file(base):
        return []
    single = _file(key, f"model{WEIGHTS}")
    if single is not None:
        return [single]
    index = _file(key, INDEX)
    names = names_in_index(index) if index is not None else []
    return [path for name in names if (path := _file(key, name)) is not None]


def _file(key: ModelKey, name: str) -> Path | None:
    folder = local_folder(base_and_adapter(key.model)[0])
    if folder is None:
        return file_on_hub(key, name)
    return folder / name if (folder / name).is_file() else None
