"""The plain way to read rows, which every model can go: batches padded on the right, transformers' own forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_safefilter.columns import Layer
from hf_safefilter.model.attention import on
from hf_safefilter.model.hooks import Reads, read

if TYPE_CHECKING:
    from hf_safefilter.model.load import Trunk
    from hf_safefilter.model.tokens import Tokens


def read_padded(trunk: Trunk, tokens: Sequence[Tokens], layers: Sequence[Layer]) -> dict[Layer, torch.Tensor]:
    """One forward over a padded batch, the plain way: float32 `(n, hidden_size)` a layer, on the trunk's device."""
    ids, mask = _pad([row.ids for row in tokens], trunk.model.config.pad_token_id or 0)
    longest = ids.shape[1]
    reads = Reads([np.arange(row.start, row.stop) + n * longest for n, row in enumerate(tokens)], trunk.device)
    # What is right of a token is out of sight for causal attention, which is faster without a mask.
    seen = None if trunk.stack.causal else on(trunk.device, mask)
    inputs = on(trunk.device, ids)
    return read(trunk.stack, layers, reads, lambda: trunk.model(input_ids=inputs, attention_mask=seen))


def _pad(rows: Sequence[np.ndarray], pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded ids and attention mask, int64 `(n, longest)`, whatever side the tokenizer would pad on."""
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    ids = np.full_like(mask, pad if isinstance(pad, int) else 0)
    ids[mask.astype(bool)] = np.concatenate(rows)
    return ids, mask
