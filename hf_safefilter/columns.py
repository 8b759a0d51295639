"""The name of every column this package adds to a data set: written once, here."""

from __future__ import annotations

from hf_safefilter.errors import OptionError

ROW_ID = "row_id"
"""Hash of the canonical messages (string); duplicates share it."""

TRUNCATED = "truncated"
"""True where the middle of the response was cut to fit `max_length` (bool)."""

UNSCORABLE = "unscorable"
"""Why a row could not be read (string); "" where it could. The embeddings and scores of such a row are NaN."""

EMBEDDING_PREFIX = "emb_layer_"
SCORE_SUFFIX = "_score"
FLOAT16_MAX = 65504.0

Layer = int | str
"""What is read: `hidden_states[k]` for an int k in 0..L, or "norm" for the state after the final norm."""


def embedding_column(layer: Layer) -> str:
    """Name of the column that holds the vectors of `layer`, e.g. ``emb_layer_12`` or ``emb_layer_norm``."""
    if layer != "norm" and (isinstance(layer, (bool, str)) or layer < 0):
        raise OptionError(f"{layer!r} is not a layer", fix="use an integer from 0 to the number of blocks, or 'norm'")
    return f"{EMBEDDING_PREFIX}{layer}"


def score_column(method: str) -> str:
    """Name of the column that holds the scores of `method`, e.g. ``larf_score``."""
    return f"{method}{SCORE_SUFFIX}"


def reason_column(method: str) -> str:
    """Name of the column in which a method that reads text itself states why it has no score ("" where it has one)."""
    return f"{method}_unscored"
