"""The rows of one layer that any process of this user has read: looked up in parts, added to, written in parts.

Processes share a folder and nothing else. Each sees the parts that others have finished, a second or so later; where
two read the same rows at the same time, both are right, and one has worked in vain.
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
from hf_safefilter.cache.read_rows import Reading
from hf_safefilter.cache.row_index import UNKNOWN, Index, part_of, row_of
from hf_safefilter.cache.space import Space
from hf_safefilter.columns import Layer
from hf_safefilter.errors import IntegrityError, SafefilterError

logger = logging.getLogger(__name__)

SECONDS = 4.0
"""Work that a killed process may lose, about: pieces take as long, and what took half as long is written after them."""

_WORTH_A_PART = 64  # rows: fewer, from small batches, wait for the next batch or the end of the process
_MAPPED = 2048  # parts held open at once: no file handles, but the system counts mappings
_LOOK_AGAIN = 1.0  # seconds
_TOUCH_AGAIN = 86_400  # seconds
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)

_open: dict[tuple[int, Path], LayerStore] = {}


class LayerStore:
    """Rows of one layer of one space; see `open_layer`."""

    def __init__(self, space: Space, layer: Layer, width: int, dtype: type = np.float16) -> None:
        self._space, self._layer, self._width, self._dtype = space, layer, width, dtype
        self._folder, self._mark = space.home(layer), part.mark_of(space.digest, layer)
        self._index = Index()
        self._names: list[str] = []
        self._seen: set[str] = set()
        self._held: OrderedDict[int, part.Rows] = OrderedDict()
        self._waiting: list[part.Rows] = []
        self._waiting_at: dict[bytes, tuple[int, int]] = {}
        self._since = self._looked = -np.inf
        self._read_only = False

    def fetch(self, ids: np.ndarray, into: Reading, rows: np.ndarray) -> np.ndarray:
        """Set the `rows` of a reading that are known.

        Args:
            ids: packed, uint64 `(n, 2)`.
            into: what is filled.
            rows: where each id belongs in it, int `(n,)`.

        Returns:
            Which ids were known, bool `(n,)`.
        """
        known = np.zeros(len(ids), bool)
        for at, key in enumerate(map(bytes, ids)) if self._waiting else ():
            if key in self._waiting_at:
                block, row = self._waiting_at[key]
                self._copy(self._waiting[block], np.array([row]), into, rows[[at]])
                known[at] = True
        self._fetch_from_parts(ids, into, rows, known)
        if not known.all() and self._look():
            self._fetch_from_parts(ids, into, rows, known)
        return known

    def _fetch_from_parts(self, ids: np.ndarray, into: Reading, rows: np.ndarray, known: np.ndarray) -> None:
        wanted = np.flatnonzero(~known)
        places = self._index.find(ids[wanted])
        wanted, places = wanted[places != UNKNOWN], places[places != UNKNOWN]
        for number in np.unique(part_of(places)).tolist():
            found = self._part(number)
            if found is None:
                continue
            here = part_of(places) == number
            at, row = wanted[here], row_of(places[here])
            right = row < len(found.ids)
            right[right] = (found.ids[row[right]] == ids[at[right]]).all(axis=1)
            self._copy(found, row[right], into, rows[at[right]])
            known[at[right]] = True

    def _copy(self, found: part.Rows, row: np.ndarray, into: Reading, to: np.ndarray) -> None:
        into.put(to, self._layer, found.vectors[row], found.truncated[row], found.reasons[row])

    def _part(self, number: int) -> part.Rows | None:
        """The part, verified, or None where it is gone or damaged and was forgotten."""
        if number not in self._held:
            path = self._folder / self._names[number]
            try:
                self._held[number] = part.open_part(path, self._mark, self._width, self._dtype)
                _touch(path)
            except (OSError, IntegrityError) as error:
                _give_up(path, error)
                self._index.forget(number)
                return None
            if len(self._held) > _MAPPED:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]

    def _look(self) -> bool:
        """Take in the parts that have come since; whether there were any."""
        if time.monotonic() - self._looked < _LOOK_AGAIN:
            return False
        self._looked = time.monotonic()
        try:
            with os.scandir(self._folder) as entries:
                new = [entry.name for entry in entries if entry.name.endswith(part.PART)]
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # the first write will say so
            return False
        return self._take_in([name for name in new if name not in self._seen])

    def _take_in(self, names: list[str]) -> bool:
        found = {}
        for name in names:
            self._seen.add(name)
            try:
                ids = part.ids_of(self._folder / name, self._mark, self._width, self._dtype)
            except (OSError, IntegrityError) as error:
                _give_up(self._folder / name, error)
                continue
            found[len(self._names)] = ids
            self._names.append(name)
        self._index.add(found)
        return bool(found)

    def add(self, rows: part.Rows, began: float) -> None:
        """Keep rows whose reading `began` then (`time.monotonic`); written once enough work has gone into them."""
        if not len(rows.ids) or self._read_only:
            return
        if not self._waiting:
            self._since = began
        self._waiting_at |= {key: (len(self._waiting), row) for row, key in enumerate(map(bytes, rows.ids))}
        self._waiting.append(rows)

    def settle(self, *, call_ends: bool = False) -> None:
        """Write what is waiting if it took seconds, or if a call ends with enough of it."""
        worth = call_ends and len(self._waiting_at) >= _WORTH_A_PART
        if self._waiting and (worth or time.monotonic() - self._since >= SECONDS / 2):
            self.flush()

    def flush(self) -> None:
        """Write what is waiting.

        Raises:
            SafefilterError: the disk is full or broken; what is waiting stays in memory, what was written stays.
        """
        if not self._waiting:
            return
        try:
            self._space.introduce(self._folder.parent)
            self._folder.mkdir(parents=True, exist_ok=True)
            path = part.write(self._folder, self._mark, part.Rows.joined(self._waiting))
        except OSError as error:
            if error.errno not in _NO_RIGHT:
                raise self._no_room(error) from error
            logger.warning("the row cache %s cannot be written (%s): nothing is kept", self._folder, error.strerror)
            self._read_only = True
        else:
            self._take_in([path.name])
        self._waiting.clear()
        self._waiting_at.clear()

    def _no_room(self, error: OSError) -> SafefilterError:
        return SafefilterError(
            f"the row cache {self._folder} cannot be written: {error.strerror}",
            found=f"{len(self._waiting_at)} rows of the last seconds are not kept, all before them are",
            fix="make room (hf-safefilter cache prune --max-size 5GB), or set HF_SAFEFILTER_CACHE to another disk, "
            "then run the same command again: it goes on from here; HF_SAFEFILTER_ROW_CACHE=off does without",
        )


def open_layer(space: Space, layer: Layer, width: int, dtype: type = np.float16) -> LayerStore:
    """This process's store for a layer. A forked child starts with its own, so that nothing is written twice."""
    slot = (os.getpid(), space.home(layer))
    if slot not in _open:
        if not any(process == slot[0] for process, _ in _open):
            _flush_when_this_process_ends()
        _open[slot] = LayerStore(space, layer, width, dtype)
    return _open[slot]


def flush() -> None:
    """Write all that waits in this process."""
    for (process, _), store in list(_open.items()):
        if process == os.getpid():
            store.flush()


def _flush_when_this_process_ends() -> None:
    # workers of Dataset.map (multiprocess) and of a DataLoader (multiprocessing) leave without atexit
    import multiprocessing.util

    import multiprocess.util

    for library in (multiprocess, multiprocessing):
        library.util.Finalize(None, _flush_at_the_end, exitpriority=10)


def _flush_at_the_end() -> None:
    try:
        flush()
    except SafefilterError as error:  # nobody is left to catch it, and no result depends on it
        logger.warning("%s", error)
        _open.clear()  # both libraries call this: it is said once


def _give_up(path: Path, error: OSError | IntegrityError) -> None:
    """Do without a part in this process: for good if it is damaged, in silence if it is gone."""
    if isinstance(error, IntegrityError):
        part.set_aside(path, error)
    elif not isinstance(error, FileNotFoundError):
        logger.warning("a part of the row cache cannot be opened, its rows are read again: %s", error)


def _touch(path: Path) -> None:
    """Note that a part is in use, for `prune`, which takes the longest unused first."""
    try:
        if time.time() - path.stat().st_mtime > _TOUCH_AGAIN:
            os.utime(path)
    except OSError as error:  # somebody else's file, or gone meanwhile: it only ages sooner
        logger.debug("%s was not touched: %s", path, error)
