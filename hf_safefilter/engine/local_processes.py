"""One machine with several devices: one process each, spawned, because CUDA and OpenMP do not survive a fork."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hf_safefilter.data.vectors import processors
from hf_safefilter.engine.local import embed_rows
from hf_safefilter.errors import OptionError, SafefilterError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.embed import EmbedLayers

_DIED = "subprocesses has abruptly died"


def embed_in_processes(rows: Dataset | DatasetDict, embed: EmbedLayers, processes: int) -> Dataset | DatasetDict:
    """Add the columns of `embed`, with the rows spread over `processes` processes; process r takes GPU r.

    Must be called from under ``if __name__ == "__main__":``, as spawned processes import the main module.

    Raises:
        OptionError: no processes.
        SafefilterError: one was killed; what all of them had finished is in the row cache.
    """
    if processes < 1:
        raise OptionError(f"{processes} processes cannot read anything", fix="use 1 or more")
    if processes == 1:
        return embed_rows(rows, embed)
    with _spawning(processes):
        try:
            return embed_rows(rows, embed, processes=processes)
        except RuntimeError as error:
            if _DIED not in str(error):
                raise
            raise SafefilterError(
                "a worker process was killed",
                found="most often by the system, for want of memory",
                fix="use fewer processes or a smaller max_length, and run the same command again: it goes on from here",
            ) from error


@contextmanager
def _spawning(processes: int) -> Iterator[None]:
    """Workers are spawned, and share the processors among them, inside the block."""
    import multiprocess

    before, threads = multiprocess.get_start_method(allow_none=True), os.environ.get("OMP_NUM_THREADS")
    multiprocess.set_start_method("spawn", force=True)
    if threads is None:
        os.environ["OMP_NUM_THREADS"] = str(max(1, processors() // processes))
    try:
        yield
    finally:
        multiprocess.set_start_method(before, force=True)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
