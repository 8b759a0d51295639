"""The rows of one layer that any process of this user has read: looked up in parts, added to, written in parts.

Processes share a folder and nothing else. Each sees the parts that others have finished about a second later. Two
processes that read the same rows at the same time both get the right vectors; only the work of one is wasted.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np

from hf_safefilter.cache import part
from hf_safefilter.cache.row_index import UNKNOWN, RowIndex, part_of, row_of
from hf_safefilter.cache.row_vectors import Gathering
from hf_safefilter.cache.space import Space
from hf_safefilter.columns import Layer
from hf_safefilter.errors import IntegrityError, SafefilterError
from hf_safefilter.storage.scratch import sweep

logger = logging.getLogger(__name__)

SECONDS = 4.0
"""About how much work a killed process may lose: a piece takes this long, and half of it is enough for a write."""

_WORTH_A_PART = 64  # rows: fewer, from small batches, wait for the next batch or the end of the process
_MAPPED = 2048  # parts open at once: they need no file handles, but the system limits memory mappings
_RESCAN_AFTER = 1.0  # seconds
_TOUCH_AFTER = 86_400  # seconds
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)

_open: dict[tuple[int, Path], LayerStore] = {}


class LayerStore:
    """Rows of one layer of one space; see `open_layer`."""

    def __init__(self, space: Space, layer: Layer, width: int, dtype: type = np.float16) -> None:
        self._space, self._layer, self._width, self._dtype = space, layer, width, dtype
        self._folder, self._mark = space.layer_folder(layer), part.mark_of(space.digest, layer)
        self._index = RowIndex()
        self._names: list[str] = []
        self._seen: set[str] = set()
        self._mapped: OrderedDict[int, part.StoredRows] = OrderedDict()
        self._pending: list[part.StoredRows] = []
        self._pending_at: dict[bytes, tuple[int, int]] = {}
        self._pending_since = self._scanned_at = -np.inf
        self._read_only = self._swept = False

    def fetch(self, ids: np.ndarray, target: Gathering, rows: np.ndarray) -> np.ndarray:
        """Put the rows that are cached.

        Args:
            ids: Packed row ids, uint64 `(n, 2)`.
            target: Where they are put.
            rows: Row of `target` that belongs to each id, int `(n,)`.

        Returns:
            bool `(n,)`: which ids are cached.
        """
        known = np.zeros(len(ids), bool)
        for at, key in enumerate(map(bytes, ids)) if self._pending else ():
            if key in self._pending_at:
                block, row = self._pending_at[key]
                self._copy(self._pending[block], np.array([row]), target, rows[[at]])
                known[at] = True
        self._fetch_from_parts(ids, target, rows, known)
        if not known.all() and self._rescan():
            self._fetch_from_parts(ids, target, rows, known)
        return known

    def _fetch_from_parts(self, ids: np.ndarray, target: Gathering, rows: np.ndarray, known: np.ndarray) -> None:
        wanted = np.flatnonzero(~known)
        locations = self._index.find(ids[wanted])
        wanted, locations = wanted[locations != UNKNOWN], locations[locations != UNKNOWN]
        for number in np.unique(part_of(locations)).tolist():
            stored = self._part(number)
            if stored is None:
                continue
            in_part = part_of(locations) == number
            at, row = wanted[in_part], row_of(locations[in_part])
            match = row < len(stored.ids)
            match[match] = (stored.ids[row[match]] == ids[at[match]]).all(axis=1)
            self._copy(stored, row[match], target, rows[at[match]])
            known[at[match]] = True

    def _copy(self, stored: part.StoredRows, row: np.ndarray, target: Gathering, to: np.ndarray) -> None:
        vectors, spans = stored.vectors.take(row), stored.spans.take(row)
        target.put(to, self._layer, vectors, spans, stored.truncated[row], stored.reasons[row])

    def _part(self, number: int) -> part.StoredRows | None:
        """The verified part, or None where it is missing or damaged and was removed from the index."""
        if number not in self._mapped:
            path = self._folder / self._names[number]
            try:
                self._mapped[number] = part.open_part(path, self._mark, self._width, self._dtype)
                _touch(path)
            except (OSError, IntegrityError) as error:
                _skip(path, error)
                self._index.forget(number)
                return None
            if len(self._mapped) > _MAPPED:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(number)
        return self._mapped[number]

    def _rescan(self) -> bool:
        """Index the parts that were added since the last scan; returns whether there were any."""
        if time.monotonic() - self._scanned_at < _RESCAN_AFTER:
            return False
        self._scanned_at = time.monotonic()
        try:
            with os.scandir(self._folder) as entries:
                names = [entry.name for entry in entries if entry.name.endswith(part.PART)]
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # the first write reports it
            return False
        return self._index_parts([name for name in names if name not in self._seen])

    def _index_parts(self, names: list[str]) -> bool:
        ids_by_part = {}
        for name in names:
            self._seen.add(name)
            try:
                ids = part.ids_of(self._folder / name, self._mark, self._width, self._dtype)
            except (OSError, IntegrityError) as error:
                _skip(self._folder / name, error)
                continue
            ids_by_part[len(self._names)] = ids
            self._names.append(name)
        self._index.add(ids_by_part)
        return bool(ids_by_part)

    def add(self, rows: part.StoredRows, began: float) -> None:
        """Add rows, to be written later.

        Args:
            rows: The rows.
            began: When reading them began (`time.monotonic`): they are written once enough work has gone into them.
        """
        if not len(rows.ids) or self._read_only:
            return
        if not self._pending:
            self._pending_since = began
        self._pending_at |= {key: (len(self._pending), row) for row, key in enumerate(map(bytes, rows.ids))}
        self._pending.append(rows)

    def write_if_due(self, *, call_ends: bool = False) -> None:
        """Write the pending rows if they took seconds to read, or if a call ends and they are enough for a part."""
        worth = call_ends and len(self._pending_at) >= _WORTH_A_PART
        if self._pending and (worth or time.monotonic() - self._pending_since >= SECONDS / 2):
            self.flush()

    def flush(self) -> None:
        """Write the pending rows.

        Raises:
            SafefilterError: The disk is full or broken; pending rows stay in memory, written parts stay on disk.
        """
        if not self._pending:
            return
        try:
            self._space.describe_in(self._folder.parent)
            self._folder.mkdir(parents=True, exist_ok=True)
            if not self._swept:
                sweep(self._folder)
                self._swept = True
            path = part.write(self._folder, self._mark, part.StoredRows.joined(self._pending))
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise self._write_error(error) from error
            logger.warning("the row cache %s cannot be written (%s): no row is cached", self._folder, error.strerror)
            self._read_only = True
        else:
            self._index_parts([path.name])
        self._pending.clear()
        self._pending_at.clear()

    def _write_error(self, error: OSError) -> SafefilterError:
        return SafefilterError(
            f"the row cache {self._folder} cannot be written: {error.strerror}",
            found=f"{len(self._pending_at)} rows of the last seconds are not cached; all rows before them are",
            fix="make room (hf-safefilter cache prune --max-size 5GB), or set HF_SAFEFILTER_CACHE to another disk, and "
            "run the same command again: it resumes from here. HF_SAFEFILTER_ROW_CACHE=off turns the cache off",
        )


def open_layer(space: Space, layer: Layer, width: int, dtype: type = np.float16) -> LayerStore:
    """This process's store for a layer. A forked child opens its own, so that no row is written twice."""
    key = (os.getpid(), space.layer_folder(layer))
    if key not in _open:
        if not any(process == key[0] for process, _ in _open):
            _flush_when_this_process_ends()
        _open[key] = LayerStore(space, layer, width, dtype)
    return _open[key]


def flush() -> None:
    """Write all pending rows of this process."""
    for (process, _), store in list(_open.items()):
        if process == os.getpid():
            store.flush()


def _flush_when_this_process_ends() -> None:
    # Workers of `Dataset.map` (multiprocess) and of a DataLoader (multiprocessing) end without running atexit.
    import multiprocessing.util

    import multiprocess.util

    for library in (multiprocess, multiprocessing):
        library.util.Finalize(None, _flush_at_the_end, exitpriority=10)


def _flush_at_the_end() -> None:
    try:
        flush()
    except SafefilterError as error:  # no caller is left to catch it, and no result depends on it
        logger.warning("%s", error)
        _open.clear()  # both libraries call this function, and one warning is enough


def _skip(path: Path, error: OSError | IntegrityError) -> None:
    """Do not use a part in this process: a damaged one is set aside for all processes, a missing one is no error."""
    if isinstance(error, IntegrityError):
        part.set_aside(path, error)
    elif not isinstance(error, FileNotFoundError):
        logger.warning("a part of the row cache cannot be opened; its rows are read again: %s", error)


def _touch(path: Path) -> None:
    """Mark a part as used, because `prune` removes the longest unused parts first."""
    try:
        if time.time() - path.stat().st_mtime > _TOUCH_AFTER:
            os.utime(path)
    except OSError as error:  # a file of another user, or removed meanwhile: it is only pruned earlier
        logger.debug("%s was not touched: %s", path, error)
