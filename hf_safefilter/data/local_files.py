"""Files of rows on this machine: found by listing, read each and whole, under the names they have and no pattern.

`datasets` takes names for patterns and guesses splits from words in them, and so leaves out files without a word. Here
every file is listed; where all of them name a split, they are splits, else they are one set.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_safefilter.data.card_files import require_relative, sets_in
from hf_safefilter.data.json_depth import require_parsable
from hf_safefilter.data.plain_copies import as_utf8, plainly_named, uncompressed
from hf_safefilter.data.shapes import SPOKEN
from hf_safefilter.data.unpacked_size import require_modest
from hf_safefilter.errors import (
    DataError,
    IntegrityError,
    OptionError,
    SafefilterError,
    is_disk_full,
    is_out_of_memory,
)
from hf_safefilter.storage.artifacts import file_sha256
from hf_safefilter.storage.contained import fault_of

if TYPE_CHECKING:
    from datasets.builder import DatasetBuilder

logger = logging.getLogger(__name__)

KINDS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".arrow": "arrow",
}  # fmt: skip
"""Ending of a file's name -> what reads it."""

PACKINGS = (".gz", ".zst", ".bz2", ".xz")
"""Endings of compressed files; the ending before them says what they hold."""

WHOLE = "train"
"""Name that `datasets` gives to rows without splits."""

_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
_LARGEST_CHUNK = 1 << 29  # bytes of JSON whose rows may have columns that others lack
_SHOWN = 5
_READ_WHOLE = "safefilter.read"


def kind_of(path: Path) -> str | None:
    """What reads a file: "json", "csv", "parquet" or "arrow"; None for a file that holds no rows."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    if endings and endings[-1] in PACKINGS:
        endings.pop()
    return KINDS.get(endings[-1]) if endings else None


def rows_in(path: Path, split: str | None, streaming: bool) -> Any:
    """The rows of a file, or of all files of a folder: a data set or stream for each split.

    Args:
        path: A file or folder that exists.
        split: Only this split.
        streaming: Read rows as they are needed.

    Raises:
        DataError: A file cannot be read, the files are of several kinds, or there are none.
        OptionError: There is no such split.
    """
    from datasets import DatasetDict, IterableDatasetDict

    files = {WHOLE: [path]} if path.is_file() else _by_split(path)
    if split is not None:
        if split not in files:
            raise OptionError(
                f"{path.name} has no split `split={split}`", found=", ".join(files), fix="use one of these"
            )
        files = {split: files[split]}
    found = {name: _read(name, part, streaming) for name, part in files.items()}
    if split is not None:
        return found[split]
    return IterableDatasetDict(found) if streaming else DatasetDict(found)


def _by_split(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by split, all of them in `WHOLE` unless each names one."""
    listed = _named_in_card(folder)
    if listed is not None:
        return listed
    every = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    files = _own(folder, [path for path in every if kind_of(path) is not None])
    others = [path.relative_to(folder).as_posix() for path in every if kind_of(path) is None and path.suffix != ".md"]
    if not files:
        raise DataError(f"folder {folder.name} holds no rows", fix=f"expected files ending in {', '.join(KINDS)}")
    if others:
        logger.warning("%s: %d files hold no rows and are not read: %s", folder.name, len(others), _few(others))
    kinds = {kind_of(path) for path in files}
    if len(kinds) > 1:
        names = [path.relative_to(folder).as_posix() for path in files]
        raise DataError(
            f"folder {folder.name} holds files of several kinds", found=_few(names), fix="name one file, or sort them"
        )
    words = [_split_word(path.relative_to(folder)) for path in files]
    if None in words:
        return {WHOLE: files}
    return {
        word: [f for f, own in zip(files, words, strict=True) if own == word] for word in dict.fromkeys(words) if word
    }


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _split_word(path: Path) -> str | None:
    """The split that a file's name, or that of a folder above it, begins with as a word; else the one it ends with."""
    for part in (path.name, *reversed(path.parts[:-1])):
        words = re.split(r"[^a-zA-Z]+", part.split(".", 1)[0].lower())
        for word in (words[0], words[-1]):
            if word in _SPLITS:
                return _SPLITS[word]
    return None


def _named_in_card(folder: Path) -> dict[str, list[Path]] | None:
    """The files that the folder's README names for its splits, as one that this program wrote does; None without any.

    Raises:
        DataError: It names none, several sets, or files outside the folder.
    """
    card = folder / "README.md"
    sets = sets_in(card) if card.is_file() else {}
    if not sets:
        return None
    if len(sets) > 1:
        raise DataError(
            f"{folder.name} holds several sets", found=_few(list(sets)), fix="name the files of one of them"
        )
    splits = next(iter(sets.values()))
    if not splits:
        return None
    return {
        split: [path for pattern in patterns for path in _inside(folder, pattern)] for split, patterns in splits.items()
    }


def _inside(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder that a pattern names, none outside it."""
    require_relative(pattern, folder.name)
    try:
        paths = sorted(path for path in folder.glob(pattern) if not path.is_dir())
    except (ValueError, NotImplementedError, IndexError):  # no pattern
        paths = []
    if not paths:
        raise DataError(
            f"the README of {folder.name} names files that are not in it", found=pattern, fix="name the files yourself"
        )
    return _own(folder, paths)


def _own(folder: Path, paths: list[Path]) -> list[Path]:
    """Files of a folder, if they are regular files in it.

    Raises:
        DataError: One is a link to elsewhere, or no regular file, or holds no rows.
    """
    for path in paths:
        fault = "is not a file of rows" if kind_of(path) is None else fault_of(folder, path)
        if fault is not None:
            raise DataError(
                f"{path.relative_to(folder)} in the folder {folder.name} {fault}", fix="name the files yourself"
            )
    return paths


def _read(split: str, files: Sequence[Path], streaming: bool) -> Any:
    """One data set or stream of all files, in order."""
    from datasets import concatenate_datasets

    for path in files:
        if path.stat().st_size == 0:
            raise DataError(f"{path.name} is empty", fix="check how it was written")
    if streaming:
        return concatenate_datasets([_opened(split, path, True) for path in files], split=split)
    parts = [_opened(split, path, False) for path in files]
    try:
        return concatenate_datasets(parts, split=split) if len(parts) > 1 else parts[0]
    except ValueError as error:
        raise DataError(
            "the files do not fit together: a column is of another kind in one of them",
            found=str(error).splitlines()[0],
            fix="name one file, or make them alike",
        ) from error


def _opened(split: str, path: Path, streaming: bool) -> Any:
    from datasets import concatenate_datasets

    try:
        plain, digest, builder = _builder(split, path)
        if streaming or not Path(builder.cache_dir).is_dir():
            require_modest(plain, str(kind_of(path)))
        if streaming:
            return concatenate_datasets([builder.as_streaming_dataset(split=split)])  # which looks at its first rows
        _prepare(builder, plain, digest)
        return builder.as_dataset(split=split)
    except Exception as error:  # whatever a damaged or hostile file trips over in the libraries that read it
        elsewhere = isinstance(error, OSError) and error.filename not in (None, str(path))  # e.g. in HF_HOME
        if isinstance(error, SafefilterError) or is_disk_full(error) or is_out_of_memory(error) or elsewhere:
            raise
        raise DataError(
            f"{path.name} cannot be read as rows", found=_bad_line(path) or root_cause(error), fix="correct the file"
        ) from error


def _prepare(builder: DatasetBuilder, plain: Path, digest: str) -> None:
    """Copy the rows of a file into the cache of `datasets`, under its digest, unless they are there already.

    Raises:
        IntegrityError: The file was changed while it was read; nothing is left under its digest.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # exported, but not listed

    folder = Path(builder.cache_dir)
    mark = folder / _READ_WHOLE
    folder.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(f"{folder}.{_READ_WHOLE}.lock"):
        if mark.is_file():
            builder.download_and_prepare(verification_mode="no_checks")
            return
        # without the mark, a process that died may not have found out that the file was changed under it
        builder.download_and_prepare(verification_mode="no_checks", download_mode="force_redownload")
        if file_sha256(plain) != digest:
            shutil.rmtree(folder)
            raise IntegrityError(
                f"{plain.name} was changed while it was read",
                fix="run the same command again when nothing writes to it",
            )
        mark.touch()


def root_cause(error: BaseException) -> str:
    """The first line of the error that the others come from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}"


def _bad_line(path: Path) -> str | None:
    """What is wrong with the first line of a JSON-lines file that is not a JSON object; its text is not repeated."""
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        return None
    with as_utf8(path).open(encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, 1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    return f"line {number} is JSON but not an object"
            except (ValueError, RecursionError):
                return f"line {number} is not JSON"
    return None


def _builder(split: str, path: Path) -> tuple[Path, str, DatasetBuilder]:
    """What reads one file, whose content, and not its name or time, decides whether it was read before.

    Returns:
        The file that is read, its digest, and what reads it.
    """
    from datasets.data_files import DataFilesDict, DataFilesList

    kind = kind_of(path)
    plain = plainly_named(uncompressed(path))
    options: dict[str, Any] = {}
    if kind in ("json", "csv"):
        plain = as_utf8(plain)
    if kind == "json":
        require_parsable(plain)
        # one chunk: columns are those of all its rows, and a column may hold values of several kinds
        options = {"chunksize": min(max(plain.stat().st_size, 1 << 20), _LARGEST_CHUNK), "parse_agent_traces": False}
    elif kind == "csv":
        options = _csv_options(plain, path)
    digest = file_sha256(plain)
    files = DataFilesDict({split: DataFilesList([str(plain.resolve())], [(digest,)])})
    return plain, digest, _reader(str(kind))(data_files=files, **options)


def _reader(kind: str) -> Callable[..., DatasetBuilder]:
    from importlib import import_module

    return getattr(import_module(f"datasets.packaged_modules.{kind}.{kind}"), kind.capitalize())


def _csv_options(plain: Path, named: Path) -> dict[str, Any]:
    """Cells stay what they are: only an empty one is missing, and what may be said is text though it be a number."""
    sep = "\t" if any(ending.lower() == ".tsv" for ending in named.suffixes) else ","
    with plain.open(encoding="utf-8-sig", newline="") as lines:
        header = next(csv.reader(lines, delimiter=sep), [])
    said = {name: str for name in header if name in SPOKEN}
    return {"sep": sep, "keep_default_na": False, "na_values": [""], "converters": said or None}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
