"""States of a pass that wait for the next block: in memory, or in files from which an interrupted pass goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from hf_safefilter.columns import Layer
from hf_safefilter.storage.atomic import atomic_file, atomic_text, sync

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_RECORD = "pass.json"


class WaitingStates(Protocol):
    """Where the states of each batch are between two blocks.

    Attributes:
        done: Number of blocks that all batches have gone through.
        width: How many values a block returns, as `one_block.next_states` counts.
        vectors: What has been read so far: float32 `(reads, hidden_size)` for each layer.
    """

    done: int
    width: int
    vectors: dict[Layer, np.ndarray]

    def get(self, batch: int) -> torch.Tensor:
        """The states of a batch after `done` blocks, on the device."""

    def put(self, batch: int, states: torch.Tensor) -> None:
        """Keep those after the block that runs; batches come in their order."""

    def finish(self, width: int, vectors: Mapping[Layer, np.ndarray]) -> None:
        """All batches have gone through a block, in which these vectors were read."""


class HeldStates:
    """In this machine's memory: states of a batch take the place of those before them."""

    def __init__(self, device: torch.device) -> None:
        self.done, self.width = 0, 0
        self.vectors: dict[Layer, np.ndarray] = {}
        self._device = device
        self._held: dict[int, torch.Tensor] = {}

    @property
    def bytes_held(self) -> int:
        """Bytes of all states."""
        return sum(states.nbytes for states in self._held.values())

    def get(self, batch: int) -> torch.Tensor:
        """See `WaitingStates`."""
        return self._held[batch].to(self._device, non_blocking=True)

    def put(self, batch: int, states: torch.Tensor) -> None:
        """See `WaitingStates`."""
        if batch not in self._held:
            pinned = self._device.type == "cuda"
            self._held[batch] = torch.empty(states.shape, dtype=states.dtype, pin_memory=pinned)
        self._held[batch].copy_(states, non_blocking=True)  # in the order of the device's own work

    def finish(self, width: int, vectors: Mapping[Layer, np.ndarray]) -> None:
        """See `WaitingStates`."""
        self.done, self.width = self.done + 1, width
        self.vectors |= vectors


class StoredStates:
    """In two files that take turns: while one is read, the other is written; a killed pass begins its block again."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self._folder, self._device, self._dtype = folder, device, dtype
        record = _recorded(folder, dtype)
        self.done: int = record.get("done", 0)
        self.width: int = record.get("width", 0)
        self._shapes: list[list[int]] = record.get("shapes", [])
        self.vectors: dict[Layer, np.ndarray] = {
            (layer if layer == "norm" else int(layer)): np.load(_vectors(folder, layer), allow_pickle=False)
            for layer in record.get("layers", [])
        }
        self._reading: BufferedReader | None = None
        self._writing: BufferedWriter | None = None

    def get(self, batch: int) -> torch.Tensor:
        """See `WaitingStates`."""
        if self._reading is None:
            self._reading = self._file(self.done).open("rb")
        sizes = [math.prod(shape) * self._dtype.itemsize for shape in self._shapes[: batch + 1]]
        self._reading.seek(sum(sizes[:-1]))
        content = bytearray(sizes[-1])
        if self._reading.readinto(content) < len(content):
            raise OSError(f"{self._file(self.done)} ends early")
        states = torch.frombuffer(content, dtype=self._dtype).view(self._shapes[batch])
        return states.to(self._device)

    def put(self, batch: int, states: torch.Tensor) -> None:
        """See `WaitingStates`."""
        if self._writing is None:
            self._writing = open(self._file(self.done + 1), "wb", opener=_private)  # noqa: PTH123  # Path has no opener
        if batch == len(self._shapes):
            self._shapes.append(list(states.shape))
        self._writing.write(states.contiguous().cpu().view(torch.uint8).numpy().data)

    def finish(self, width: int, vectors: Mapping[Layer, np.ndarray]) -> None:
        """See `WaitingStates`."""
        if self._writing is not None:
            self._writing.close()
        if self._reading is not None:
            self._reading.close()
        self._reading = self._writing = None
        if not _BOOT.is_file():
            sync(self._file(self.done + 1))
        for layer, values in vectors.items():
            with atomic_file(_vectors(self._folder, layer)) as scratch, scratch.open("wb") as stream:
                np.save(stream, values, allow_pickle=False)
        self.done, self.width = self.done + 1, width
        self.vectors |= vectors
        record = {"boot": _boot(), "done": self.done, "width": width, "shapes": self._shapes}
        atomic_text(self._folder / _RECORD, json.dumps(record | {"layers": list(self.vectors)}))

    def close(self) -> None:
        """Close the files."""
        for stream in (self._reading, self._writing):
            if stream is not None:
                stream.close()

    def _file(self, block: int) -> Path:
        return self._folder / f"states-{block % 2}"


@contextmanager
def stored(folder: Path, device: torch.device, dtype: torch.dtype) -> Iterator[StoredStates]:
    """`StoredStates` whose files are closed after the block."""
    states = StoredStates(folder, device, dtype)
    try:
        yield states
    finally:
        states.close()


def _private(path: str, flags: int) -> int:
    """Opens a file of this user alone, and none that a link leads to."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o600)


def _recorded(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """How far a pass in this folder came; nothing if it cannot be known."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        size = (folder / f"states-{record['done'] % 2}").stat().st_size
        whole = size == sum(math.prod(shape) for shape in record["shapes"]) * dtype.itemsize
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    # after a stop of the machine, what was written may be on its disk in part
    return record if whole and record.get("boot") == _boot() else {}


def _boot() -> str:
    """What is the same until the machine starts again; "" where it cannot be known, and files are flushed to disk."""
    return _BOOT.read_text(encoding="utf-8").strip() if _BOOT.is_file() else ""


def _vectors(folder: Path, layer: Layer) -> Path:
    return folder / f"layer-{layer}.npy"
