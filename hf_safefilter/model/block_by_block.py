"""A model that is larger than its device: each block is loaded once for all rows of a pass, applied to them, and freed.

A pass holds the states of its rows between two blocks: on a GPU in this machine's memory where they fit, else in files,
from which a pass that was killed goes on at the block that it was in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

from hf_safefilter.columns import Layer
from hf_safefilter.errors import ModelError
from hf_safefilter.model.hooks import Forward, Reads
from hf_safefilter.model.memory_available import memory_available
from hf_safefilter.model.one_block import last_states, next_states, passed_over
from hf_safefilter.model.packed import can_pack
from hf_safefilter.model.padded import TRIED, can_pad
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
    """Find out how rows can be read together, on as many blocks as have one of each kind among them.

    Raises:
        ModelError: The device does not hold two blocks.
    """
    if trunk.state_bytes is not None:
        return
    _require_room(trunk, left_out)
    count = min(max(_last_new_kind(trunk) + 1, 2), trunk.depth)
    trial, held = replace(trunk, depth=count), list[float]()

    def read_all(batches: Sequence[tuple[Reads, Forward]]) -> list[torch.Tensor]:
        states = HeldStates(trunk.device)
        laid = [Laid([], 0, reads, forward) for reads, forward in batches]
        found = _through(trial, left_out, laid, [count], states, count - 1)[count]
        held.append(states.bytes_held)
        return found

    can_pack(trial, 0, read_all)
    can_pad(trial, read_all)
    tokens = max(TRIED) * len(TRIED) + sum(TRIED)  # of the trial of padding, which came last: together and alone
    trunk.state_bytes = max(held[-1] / tokens, trunk.hidden_size * trunk.model.dtype.itemsize)
    trunk.packs, trunk.pads = trial.packs, trial.pads


def _last_new_kind(trunk: Trunk) -> int:
    """The first block after which none is of another kind than those before it."""
    kinds = getattr(trunk.model.config.get_text_config(), "layer_types", None) or []
    seen: set[tuple[object, ...]] = set()
    last = 0
    for number, block in enumerate(list(trunk.stack.blocks)[: trunk.depth]):
        modules = tuple(sorted({type(module).__name__ for module in block.modules()}))
        kind = (kinds[number] if number < len(kinds) else None, modules)
        if kind not in seen:
            seen.add(kind)
            last = number
    return last


def rows_of_passes(tokens: Sequence[int], bytes_each: float) -> Iterator[list[int]]:
    """Positions of the rows of each pass: as many as have room on disk twice, and at least one.

    What a killed pass has left counts as free, and little differences do not: it is continued with the same rows.

    Args:
        tokens: Length of each row.
        bytes_each: Bytes of the state of one token.
    """
    left = sum(path.stat().st_size for path in _root().rglob("states-*"))
    free = shutil.disk_usage(_existing(_root())).free + left
    room = min(MOST, 2 ** math.floor(math.log2(max(2, _SHARE * free)))) / 2
    rows: list[int] = []
    held = 0.0
    for number, count in enumerate(tokens):
        if rows and held + count * bytes_each > room:
            yield rows
            rows, held = [], 0.0
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
    from hf_safefilter import __version__

    versions = [torch.__version__, transformers.__version__, __version__]
    how = [versions, key.revision, key.dtype, trunk.device.type, config._attn_implementation, trunk.packs]
    facts = json.dumps([how, [str(layer) for layer in layers], shape, rows])
    held = sum(batch.tokens for batch in batches) * (trunk.state_bytes or 0)
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
def _waiting(trunk: Trunk, facts: str, held: float) -> Iterator[WaitingStates]:
    free = memory_available(torch.device("cpu"))
    if trunk.device.type == "cuda" and free is not None and held < _SHARE * free:
        yield HeldStates(trunk.device)
        return
    name = hashlib.sha256(facts.encode()).hexdigest()[:32]
    useless = (torch.OutOfMemoryError, ModelError)  # the next try would have other batches, or fail again
    with kept_folder(_root(), name, lost=useless) as folder, stored(folder, trunk.device, trunk.model.dtype) as states:
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
