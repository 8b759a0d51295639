"""Every column name this package adds to a data set, and its Feature: written once, here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_safefilter.errors import OptionError

if TYPE_CHECKING:
    from datasets import List, Value

ROW_ID = "row_id"
"""Hash of the canonical messages (string); duplicates share it."""

TRUNCATED = "truncated"
"""True where the middle of the response was cut to fit `max_length` (bool)."""

UNSCORABLE = "unscorable"
"""Why a row could not be read, "" where it could (string). Its embeddings, and so its scores, are NaN."""

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


def layer_of(column: str) -> Layer:
    """The layer an embedding column was read from: the inverse of `embedding_column`."""
    name = column.removeprefix(EMBEDDING_PREFIX)
    return int(name) if name.isdigit() else name


def score_column(method: str) -> str:
    """Name of the column that holds the scores of `method`, e.g. ``larf_score``."""
    return f"{method}{SCORE_SUFFIX}"


def reason_column(method: str) -> str:
    """Name of the column in which a method that reads text itself says why a row has no score (string, "" = scored)."""
    return f"{method}_unscored"


def embedding_feature(dim: int) -> List:
    """Feature of an embedding column: `dim` float16 values a row, fixed size."""
    from datasets import List, Value

    return List(Value("float16"), length=dim)


def score_feature() -> Value:
    """Feature of a score column: float32, because Arrow cannot sort float16."""
    from datasets import Value

    return Value("float32")
