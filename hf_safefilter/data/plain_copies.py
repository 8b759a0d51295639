"""Files of text as a reader takes them: uncompressed and in UTF-8, copied only where they are not so already.

Copies lie in the cache of `datasets`, named by the content they were made from; a source is never changed.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from hf_safefilter.errors import DataError, IntegrityError, is_disk_full
from hf_safefilter.storage.artifacts import file_sha256
from hf_safefilter.storage.atomic import atomic_file

_OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]  # all open in "rb" by default
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_CHUNK = 1 << 22
_SMALL = 1 << 30  # bytes that may come out of however small a file
_MOST = 200  # times a compressed file's size: text is seldom made smaller by more than 20


def uncompressed(path: Path) -> Path:
    """The file itself, or what it holds compressed.

    Raises:
        DataError: The file is damaged.
    """
    packing = path.suffix.lower()
    if packing == ".zst":
        return _copy(path, path.with_suffix("").suffix, _open_zstd)
    opener = _OPENERS.get(packing)
    return path if opener is None else _copy(path, path.with_suffix("").suffix, opener)


def plainly_named(path: Path) -> Path:
    """The file itself, or a copy of one whose path fsspec would take for a chain of file systems."""
    text = str(path.resolve())
    return _copy(path, path.suffix, lambda source: source.open("rb")) if "::" in text or "://" in text else path


def as_utf8(path: Path) -> Path:
    """The file itself if it begins with no mark of another encoding; else the same text in UTF-8 without a mark.

    Raises:
        DataError: The file is not in the encoding that its mark says, or without a mark not in UTF-8.
    """
    with path.open("rb") as stream:
        begin = stream.read(4)
    encoding = next((name for mark, name in _MARKS if begin.startswith(mark)), None)
    if encoding is None:
        _require_utf8(path)
        return path
    return _copy(path, path.suffix, lambda source: _Recoded(source, encoding))


def _require_utf8(path: Path) -> None:
    decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as stream:
        while True:
            piece = stream.read(_CHUNK)
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path.name} is not UTF-8 text",
                    found=f"{error.reason} near byte {max(0, read + error.start)}",
                    fix="save it as UTF-8",
                ) from error
            read += len(piece)
            if not piece:
                return


def _copy(path: Path, ending: str, opener: Callable[[Path], Any]) -> Path:
    from datasets import config

    digest = file_sha256(path)
    target = Path(config.HF_DATASETS_CACHE) / "safefilter-plain" / f"{digest}{ending.lower()}"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_file(target) as scratch, opener(path) as source, scratch.open("wb") as copy:
            _copy_within(source, copy, max(_SMALL, _MOST * path.stat().st_size), path.name)
            if file_sha256(path) != digest:  # the copy would go by the digest of other bytes from now on
                raise IntegrityError(
                    f"{path.name} was changed while it was read",
                    fix="run the same command again when nothing writes to it",
                )
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        if isinstance(error, (IntegrityError, DataError)) or is_disk_full(error):
            raise
        raise DataError(f"{path.name} cannot be unpacked", found=str(error), fix="make the file again") from error
    return target


def _copy_within(source: IO[bytes], copy: IO[bytes], most: int, name: str) -> None:
    """Copy a stream, unless more comes out than a file of that size can hold in earnest."""
    written = 0
    while piece := source.read(_CHUNK):
        written += len(piece)
        if written > most:
            raise DataError(
                f"{name} unpacks to more than {most / 1e9:.1f} GB", fix="unpack it yourself, if that is right"
            )
        copy.write(piece)


def _open_zstd(path: Path) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(str(path), "zstd")


class _Recoded:
    """The bytes of a text file in UTF-8."""

    def __init__(self, path: Path, encoding: str) -> None:
        self._stream = path.open(encoding=encoding, newline="")

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size).encode("utf-8")

    def __enter__(self) -> _Recoded:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
