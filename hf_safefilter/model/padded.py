"""The plain way to read rows, by transformers' own forward: batches padded on the right.

Whether padding leaves a row as it is alone is tried, once a model: some attend to padding whatever the mask says. Rows
of such a model are read in batches of one length.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from hf_safefilter.columns import Layer
from hf_safefilter.errors import ModelError, is_out_of_memory
from hf_safefilter.model.attention import on
from hf_safefilter.model.hooks import Forward, Reads, read
from hf_safefilter.model.quantised import ADVICE, is_kept

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_safefilter.model.load import Trunk
    from hf_safefilter.model.windows import TokenSequence

logger = logging.getLogger(__name__)

_CLOSE, _CLOSE_IN_16_BITS = 1e-3, 0.1
FAULTS = (RuntimeError, AssertionError, AttributeError, ImportError)
"""What packages of quantised weights raise where they lack a kernel."""

TRIED = (40, 23, 7, 2)
"""Tokens of the rows of the trial."""


def read_padded(trunk: Trunk, sequences: Sequence[TokenSequence], layers: Sequence[Layer]) -> dict[Layer, torch.Tensor]:
    """One forward over a padded batch, the plain way: float32 `(reads, hidden_size)` a layer, on the trunk's device."""
    return read(trunk.stack, layers, *lay_padded(trunk, sequences))


def lay_padded(trunk: Trunk, sequences: Sequence[TokenSequence]) -> tuple[Reads, Forward]:
    """A padded batch: where it is read, and how it goes through the model."""
    ids, mask = _pad([one.ids for one in sequences])
    longest = ids.shape[1]
    places = [np.arange(*read) + n * longest for n, one in enumerate(sequences) for read in one.reads]
    reads = Reads(places, trunk.device)
    # What is right of a token is out of sight for causal attention, which is faster without a mask.
    seen = None if trunk.stack.causal else on(trunk.device, mask)
    inputs = on(trunk.device, ids)
    return reads, lambda: trunk.model(input_ids=inputs, attention_mask=seen)


ReadAll = Callable[[Sequence[tuple[Reads, Forward]]], list[torch.Tensor]]
"""Reads batches at the deepest layer of a trial."""


def one_by_one(trunk: Trunk) -> ReadAll:
    """Each batch through all blocks that are loaded."""
    return lambda batches: [read(trunk.stack, [trunk.depth], *batch)[trunk.depth] for batch in batches]


def can_pad(trunk: Trunk, read_all: ReadAll | None = None) -> bool:
    """Whether a row reads the same beside longer ones as alone: tried once a model, then remembered.

    Args:
        trunk: The model.
        read_all: How its batches are read, if not one by one.

    Raises:
        ModelError: The package that computes with its quantised weights fails.
    """
    from hf_safefilter.model.windows import TokenSequence

    if trunk.pads is None:
        words = min(trunk.model.config.get_text_config().vocab_size, words_of(trunk.model))
        drawn = np.random.default_rng(0).integers(0, words, sum(TRIED), np.int32)
        rows = [
            TokenSequence(ids, ((0, 1), (len(ids) - 1, len(ids)))) for ids in np.split(drawn, np.cumsum(TRIED)[:-1])
        ]
        try:
            batches = [lay_padded(trunk, rows), *(lay_padded(trunk, [row]) for row in rows)]
            together, *singly = (read_all or one_by_one(trunk))(batches)
        except FAULTS as error:
            if not is_kept(trunk.model.config) or is_out_of_memory(error):
                raise
            raise ModelError(
                f"the quantised weights of {type(trunk.model).__name__} cannot be computed with on {trunk.device}",
                found=f"{type(error).__name__}: {error}"[:300],
                fix=f"update the package of their format, or {ADVICE}",
            ) from error
        alone = torch.cat(singly)
        difference = float(((together - alone).norm(dim=1) / alone.norm(dim=1)).max())
        trunk.pads = difference <= largest_difference(trunk.model)
        if not trunk.pads:
            logger.info("%s is read unpadded: padded rows differ by %.1e", type(trunk.model).__name__, difference)
    return trunk.pads


def largest_difference(model: PreTrainedModel) -> float:
    """Between rows read together and alone, relative, from rounding; rows that leak into each other differ by far.

    Quantised weights are multiplied in 16 bits, whatever the rest is computed in.
    """
    return _CLOSE if model.dtype == torch.float32 and not is_kept(model.config) else _CLOSE_IN_16_BITS


def words_of(model: PreTrainedModel) -> int:
    """Number of tokens that a model has an embedding for."""
    return int(cast("torch.nn.Embedding", model.get_input_embeddings()).weight.shape[0])


def _pad(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded ids and attention mask, int64 `(n, longest)`, whatever the tokenizer would pad with."""
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.zeros_like(mask)  # any token that exists: none of its states is read, and none sees it
    ids[mask.astype(bool)] = np.concatenate(rows)
    return ids, mask
