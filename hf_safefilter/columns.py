"""The name of every column this package adds to a data set: written once, here."""

from __future__ import annotations

from hf_safefilter.errors import OptionError

ROW_ID = "row_id"
"""Hash of the canonical messages (string); duplicates share it."""

TRUNCATED = "truncated"
"""True where the end of a row was cut to fit `max_length` (bool)."""

SPANS = "spans"
"""What of a row was read: a list of structs with `turn` (index among the messages), `rejected` (of a preference pair,
whether it is in the rejected side), and `start` and `stop` (its tokens)."""

READ_AS = "read_as"
"""Digest of how a row was read (string): model, position, windows, template. A score compares it with that of its
references."""

UNSCORABLE = "unscorable"
"""Why a row could not be read (string); "" where it could. The embeddings and scores of such a row are NaN."""

EMBEDDING_PREFIX = "emb_layer_"
SCORE_SUFFIX = "_score"
PAIR_SHIFT = "_pair_shift"
FLOAT16_MAX = 65504.0

PROMPT = "last_prompt"
"""The position of the token after which the model answers."""

Layer = int | str
"""What is read: `hidden_states[k]` for an int k in 0..L, or "norm" for the state after the final norm. Where a row is
read at several positions, the ones after the first are written behind it: "12_last_prompt", "norm_last". "12_shift" is
what an answer adds to its prompt: the difference of "12" and "12_last_prompt", which is computed and never stored."""

_SHIFT = "_shift"


def embedding_column(layer: Layer) -> str:
    """Name of the column that holds the vectors of `layer`, e.g. ``emb_layer_12`` or ``emb_layer_12_last_prompt``."""
    if not _is_layer(layer):
        raise OptionError(f"{layer!r} is not a layer", fix="use an integer from 0 to the number of blocks, or 'norm'")
    return f"{EMBEDDING_PREFIX}{layer}"


def _is_layer(layer: Layer) -> bool:
    if not isinstance(layer, str):
        return not isinstance(layer, bool) and layer >= 0
    block, _, position = layer.partition("_")
    return layer == "norm" or bool(position and (block == "norm" or block.isdecimal()))


def shift_key(layer: Layer) -> Layer:
    """What the vectors of answers at `layer` minus those of the ends of their prompts are called.

    Raises:
        OptionError: `layer` is a shift itself.
    """
    if is_shift(layer):
        raise OptionError(f"layer {layer!r} is a shift itself", fix=f"name the layer of answers: {answer_key(layer)!r}")
    return f"{layer}{_SHIFT}"


def is_shift(layer: Layer) -> bool:
    """Whether `layer` is a difference of two others."""
    return isinstance(layer, str) and layer.endswith(_SHIFT)


def answer_key(layer: Layer) -> Layer:
    """The layer of the answers that a shift is of; any other layer is returned as it is."""
    if not is_shift(layer):
        return layer
    block = str(layer).removesuffix(_SHIFT)
    return int(block) if block.isdecimal() else block


def prompt_key(layer: Layer) -> Layer:
    """What the vectors of the end of the prompt at `layer` are called, where the answers' mean is read."""
    return reading_key(answer_key(layer), PROMPT, "mean")


def stored_keys(layer: Layer) -> tuple[Layer, ...]:
    """The layers whose stored vectors those of `layer` are made of: itself, or the two that a shift is between.

    Raises:
        OptionError: It is a shift of a shift.
    """
    if is_shift(answer_key(layer)):
        raise OptionError(f"{str(layer)[:40]!r} is a shift of a shift", fix="name the shift of a layer, as in 12_shift")
    return (answer_key(layer), prompt_key(layer)) if is_shift(layer) else (layer,)


def embedding_columns(layer: Layer) -> tuple[str, ...]:
    """Names of the columns that the vectors of `layer` are made of."""
    return tuple(map(embedding_column, stored_keys(layer)))


def reading_key(layer: Layer, position: str, main: str) -> Layer:
    """What the vectors of `layer` at `position` are called, where `main` is the first position that is read."""
    return layer if position == main else f"{layer}_{position}"


def score_column(method: str) -> str:
    """Name of the column that holds the scores of `method`, e.g. ``larf_score``."""
    return f"{method}{SCORE_SUFFIX}"


def span_column(method: str) -> str:
    """Name of the column that holds, for each row, the index in `spans` of the span that has the largest score."""
    return f"{method}_span"


def span_scores_column(method: str) -> str:
    """Name of the column that holds, for each row, the scores of its spans in the order of `spans`."""
    return f"{method}_span_scores"


def rejected_column(method: str) -> str:
    """Name of the column that holds the scores of the rejected side of preference pairs."""
    return f"{method}_rejected{SCORE_SUFFIX}"


def shift_column(method: str) -> str:
    """Name of the column that holds score(chosen) - score(rejected) of preference pairs."""
    return f"{method}{PAIR_SHIFT}"


def reason_column(method: str) -> str:
    """Name of the column in which a method that reads text itself states why it has no score ("" where it has one)."""
    return f"{method}_unscored"


def decided_column(method: str) -> str:
    """Name of the column that names the method by which a score that combines several was decided."""
    return f"{method}_by"
