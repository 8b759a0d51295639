"""Rows read without padding, their common beginnings computed once: whatever model attends through transformers.

Whether a model can be read so is not guessed from its name. It is tried, once a model, on a few short rows that are
read alone as well: where the answers differ, rows are padded instead.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_safefilter.columns import Layer
from hf_safefilter.model import attention
from hf_safefilter.model.attention import Packed, Unfit, attending, on
from hf_safefilter.model.hooks import Forward, Reads, read
from hf_safefilter.model.padded import FAULTS, ReadAll, largest_difference, lay_padded, one_by_one, words_of
from hf_safefilter.model.prefix_tree import Layout

if TYPE_CHECKING:
    from hf_safefilter.model.load import Trunk
    from hf_safefilter.model.windows import TokenSequence

logger = logging.getLogger(__name__)

_TRIED = 48  # tokens of the longest row of the trial
_AMPERE = (8, 0)  # flash attention's first generation of GPUs


def can_pack(trunk: Trunk, longest: int, read_all: ReadAll | None = None) -> bool:
    """Whether rows of up to `longest` tokens can be read by `read_packed`: tried once a model, then remembered.

    `read_all` reads the batches of the trial, if not one by one.
    """
    if trunk.packs is None:
        trunk.packs = _possible(trunk) and _agrees(trunk, read_all or one_by_one(trunk))
    window = _window(trunk)
    return trunk.packs and (window is None or longest <= window)


def read_packed(trunk: Trunk, sequences: Sequence[TokenSequence], layers: Sequence[Layer]) -> dict[Layer, torch.Tensor]:
    """Mean state over each read of each sequence: float32 `(reads, hidden_size)` a layer, on the trunk's device.

    Args:
        trunk: One that `can_pack` says yes to, deep enough.
        sequences: In the order of `tree.order`.
        layers: What to read.

    Raises:
        Unfit: Its attention asks for what packed rows cannot give.
    """
    return read(trunk.stack, layers, *lay_packed(trunk, sequences))


def lay_packed(trunk: Trunk, sequences: Sequence[TokenSequence]) -> tuple[Reads, Forward]:
    """A packed batch: where it is read, and how it goes through the model."""
    layout = Layout.of([one.ids for one in sequences])
    rows = Packed(layout)
    paths = [layout.paths[end] for end in layout.ends]
    places = [path[start:stop] for path, one in zip(paths, sequences, strict=True) for start, stop in one.reads]
    ids, positions = (on(trunk.device, values)[None] for values in (layout.ids, layout.positions))

    def forward() -> object:
        with attending(trunk.model, rows):
            return trunk.model(input_ids=ids, position_ids=positions)

    return Reads(places, trunk.device, rows), forward


def _possible(trunk: Trunk) -> bool:
    model, device = trunk.model, trunk.device
    if not (trunk.stack.causal and getattr(model, "_supports_attention_backend", False)):
        return False
    if device.type == "cuda":
        return model.dtype != torch.float32 and torch.cuda.get_device_capability(device) >= _AMPERE
    return device.type == "cpu"


def _agrees(trunk: Trunk, read_all: ReadAll) -> bool:
    """Whether rows, some with one beginning, are read alike together and alone.

    Some are so short that whatever leaks into their beginning is most of what they are.
    """
    from hf_safefilter.model.windows import TokenSequence

    attention.register()
    window = _window(trunk)
    if window is not None and window < _TRIED:
        return False
    words = min(trunk.model.config.get_text_config().vocab_size, words_of(trunk.model))
    drawn = np.random.default_rng(0).integers(0, words, 3 * _TRIED, np.int32)
    common, *tails = np.split(drawn, np.cumsum([_TRIED // 2, 15, 2, _TRIED // 2, 2]))
    ids = [*(np.concatenate([common, tail]) for tail in tails[:3]), tails[3]]
    ids.sort(key=lambda row: row.tobytes())
    rows = [TokenSequence(row, ((len(row) - 1, len(row)),)) for row in ids]
    batches = [lay_packed(trunk, rows), *(lay_padded(trunk, [row]) for row in rows)]
    try:
        together, *singly = read_all(batches)
    except torch.OutOfMemoryError:
        raise
    except (Unfit, *FAULTS) as reason:  # a kernel that was not made for this model or GPU says so in its own way
        logger.info("%s is read padded: %s", type(trunk.model).__name__, reason)
        return False
    alone = torch.cat(singly)
    difference = float(((together - alone).norm(dim=1) / alone.norm(dim=1)).max())
    close = difference <= largest_difference(trunk.model)
    if not close:
        logger.info("%s is read padded: packed rows differ by %.1e", type(trunk.model).__name__, difference)
    return close


def _window(trunk: Trunk) -> int | None:
    """How far back the nearest-sighted block sees; None: to the beginning."""
    config = trunk.model.config.get_text_config()
    sizes = [getattr(config, "attention_chunk_size", None)]
    if getattr(config, "use_sliding_window", True):
        sizes.append(getattr(config, "sliding_window", None))
    return min((size for size in sizes if size), default=None)
