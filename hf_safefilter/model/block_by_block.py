"""A model that is larger than its device: each block is loaded once for all rows of a pass, applied to them, and freed.

A pass holds the states of its rows between two blocks: on a GPU in this machine's memory where they fit, else in files,
from which a pass that was killed goes on at the block that it was in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hf_safefilter.columns import Layer
from hf_safefilter.errors import ModelError
from hf_safefilter.model.hooks import Forward, Reads
from hf_safefilter.model.memory_available import memory_available
from hf_safefilter.model.one_block import last_states, next_states, passed_over
from hf_safefilter.model.packed import can_pack
from hf_safefilter.model.padded import can_pad
from hf_safefilter.model.waiting_states import HeldStates, WaitingStates, stored
from hf_safefilter.storage.artifacts import store_root
from hf_safefilter.storage.kept_folder import kept_folder

if TYPE_CHECKING:
    from hf_safefilter.model.left_out import LeftOut
    from hf_safefilter.model.load import Trunk

logger = logging.getLogger(__name__)

MOST = 16 * 2**30
"""Bytes of states that wait on disk at most; a pass is as many rows as have them."""

_SHARE = 0.5  # of the space or memory that is free
_ABANDONED = 7 * 24 * 3600  # seconds after which a pass that nobody continued is removed
_TRIED = 2  # blocks on which it is tried how rows can be read together


@dataclass(frozen=True, slots=True)
class Laid:
    """A batch, ready to go through a model.

    Attributes:
        rows: Numbers of its rows.
        tokens: Tokens that it holds at most, padding included.
        reads: Where it is read.
        forward: Its way through the model.
    """

    rows: list[int]
    tokens: int
    reads: Reads
    forward: Forward


def try_ways(trunk: Trunk, left_out: LeftOut) -> None:
    """Find out on the first blocks how rows can be read together.

    Raises:
        ModelError: The device does not hold two blocks.
    """
    if trunk.packs is not None and trunk.pads is not None:
        return
    _require_room(trunk, left_out)
    count = min(_TRIED, trunk.depth)
    with left_out.loaded(range(count), trunk.device):
        trial = replace(trunk, depth=count)
        can_pack(trial, 0)
        can_pad(trial)
    trunk.packs, trunk.pads = trial.packs, trial.pads


def rows_of_passes(tokens: Sequence[int], bytes_each: int) -> Iterator[list[int]]:
    """Positions of the rows of each pass: as many as have room on disk twice, and at least one.

    Args:
        tokens: Length of each row.
        bytes_each: Bytes of the state of one token.
    """
    room = min(MOST, _SHARE * shutil.disk_usage(_existing(_root())).free) / 2
    rows: list[int] = []
    held = 0
    for number, count in enumerate(tokens):
        if rows and held + count * bytes_each > room:
            yield rows
            rows, held = [], 0
        rows.append(number)
        held += count * bytes_each
    if rows:
        yield rows


def through_blocks(
    trunk: Trunk, left_out: LeftOut, batches: Sequence[Laid], layers: Sequence[Layer], depth: int, rows: str
) -> dict[Layer, list[torch.Tensor]]:
    """All batches of a pass through all blocks.

    Args:
        trunk: The model without the weights of its blocks.
        left_out: Those weights.
        batches: In the order in which they are read.
        layers: What is read.
        depth: Number of blocks that it needs.
        rows: Digest of the rows' tokens: under it a pass that was killed is continued.

    Returns:
        For each layer float32 `(reads, hidden_size)` of each batch.
    """
    last = max(depth, 1) - 1
    shape = [(batch.rows, batch.tokens, len(batch.reads.places)) for batch in batches]
    key, config = left_out.key, trunk.model.config
    how = [key.revision, key.dtype, trunk.device.type, config._attn_implementation, trunk.packs]
    facts = json.dumps([how, [str(layer) for layer in layers], shape, rows])
    held = sum(batch.tokens for batch in batches) * trunk.hidden_size * trunk.model.dtype.itemsize
    with _waiting(trunk, facts, held) as states:
        if states.done:
            logger.info("resumed: %d of %d blocks were done", states.done, last + 1)
        return _through(trunk, left_out, batches, layers, states, last)


def _through(
    trunk: Trunk,
    left_out: LeftOut,
    batches: Sequence[Laid],
    layers: Sequence[Layer],
    states: WaitingStates,
    last: int,
) -> dict[Layer, list[torch.Tensor]]:
    from datasets.utils import tqdm

    stack = trunk.stack
    bar = tqdm(total=last + 1, initial=states.done, desc="Blocks", unit=" blocks", leave=False)
    with bar:
        for number in range(states.done, last + 1):
            final = number == last
            here: list[Layer] = [layer for layer in layers if layer == number + 1 or (layer == 0 and number == 0)]
            if final and "norm" in layers:
                here.append("norm")
            found: dict[Layer, list[torch.Tensor]] = {layer: [] for layer in here}
            width = states.width
            with left_out.loaded([number], trunk.device), passed_over(list(stack.blocks)[:number], width):
                for place, batch in enumerate(batches):
                    given = states.get(place) if number else None
                    if final:
                        read = last_states(stack, number, given, here, batch.reads, batch.forward)
                    else:
                        after, width, read = next_states(stack, number, given, here, batch.reads, batch.forward)
                        states.put(place, after)
                    for layer, vectors in read.items():
                        found[layer].append(vectors)
            if not final:
                states.finish(width, {layer: torch.cat(parts).numpy(force=True) for layer, parts in found.items()})
            bar.update()
    counts = [len(batch.reads.places) for batch in batches]
    earlier = {layer: torch.split(torch.from_numpy(values), counts) for layer, values in states.vectors.items()}
    return {layer: list(found[layer] if layer in found else earlier[layer]) for layer in layers}


@contextmanager
def _waiting(trunk: Trunk, facts: str, held: int) -> Iterator[WaitingStates]:
    free = memory_available(torch.device("cpu"))
    if trunk.device.type == "cuda" and free is not None and held < _SHARE * free:
        yield HeldStates(trunk.device)
        return
    name = hashlib.sha256(facts.encode()).hexdigest()[:32]
    with kept_folder(_root(), name) as folder, stored(folder, trunk.device, trunk.model.dtype) as states:
        yield states


def _root() -> Path:
    return store_root() / "passes"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _require_room(trunk: Trunk, left_out: LeftOut) -> None:
    free, needed = memory_available(trunk.device), 2 * left_out.block_bytes
    if free is not None and needed > free:
        raise ModelError(
            f"two blocks of {left_out.key.model} take {needed / 1e9:.1f} GB",
            found=f"{free / 1e9:.1f} GB are free on {trunk.device}",
            fix='use dtype="bfloat16", or a machine with more memory',
        )
