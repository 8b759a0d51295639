"""One process for each device of this machine, spawned because CUDA and OpenMP do not survive a fork."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hf_safefilter.checks import require_whole
from hf_safefilter.data.vectors import processors
from hf_safefilter.engine.local import embed_rows
from hf_safefilter.errors import SafefilterError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from hf_safefilter.embed import EmbedLayers

_DIED = "subprocesses has abruptly died"


def embed_in_processes(rows: Dataset | DatasetDict, embed: EmbedLayers, num_proc: int) -> Dataset | DatasetDict:
    """Add the columns of `embed`, with the rows divided among `num_proc` processes; process r uses GPU r.

    Must be called inside ``if __name__ == "__main__":``, as spawned processes import the main module.

    Raises:
        OptionError: `num_proc` is below 1.
        SafefilterError: A process was killed; the rows that were finished before are in the row cache.
    """
    require_whole("num_proc", num_proc, least=1)
    if num_proc == 1:
        return embed_rows(rows, embed)
    with _spawning(num_proc):
        try:
            return embed_rows(rows, embed, num_proc=num_proc)
        except RuntimeError as error:
            if _DIED not in str(error):
                raise
            raise SafefilterError(
                "a worker process was killed",
                found="usually the system does this when memory is short",
                fix="use fewer processes or a smaller `max_length=...`, and run the same command again: it continues "
                "from here",
            ) from error


@contextmanager
def _spawning(num_proc: int) -> Iterator[None]:
    """Inside the block, workers are spawned, and each gets an equal share of the processors."""
    import multiprocess

    before, threads = multiprocess.get_start_method(allow_none=True), os.environ.get("OMP_NUM_THREADS")
    multiprocess.set_start_method("spawn", force=True)
    if threads is None:
        os.environ["OMP_NUM_THREADS"] = str(max(1, processors() // num_proc))
    try:
        yield
    finally:
        multiprocess.set_start_method(before, force=True)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
