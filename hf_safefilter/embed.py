"""`EmbedLayers`: rows in, the model's own hidden states out, one fixed-size float16 column a layer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.batch import Batch
from hf_safefilter.columns import FLOAT16_MAX, ROW_ID, TRUNCATED, UNSCORABLE, Layer, embedding_column
from hf_safefilter.errors import OptionError
from hf_safefilter.rows import Conversation, as_conversations, conversations, row_id
from hf_safefilter.step import Step

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.model.tokens import Tokens

logger = logging.getLogger(__name__)

NON_FINITE = "non_finite"
"""Reason of a row whose states overflowed to infinity or NaN."""


@dataclass(frozen=True, slots=True)
class EmbedLayers(Step):
    """Reads chosen layers of the model that is to be fine-tuned.

    Adds ``row_id``, ``truncated``, ``unscorable`` and, for each layer, ``emb_layer_<k>``: the mean state over the
    positions read, taken in float32 and kept as float16 (values beyond 65504 are clamped and counted in the log). A
    row that cannot be read has NaN vectors, and its reason in ``unscorable``.

    Construction pins what decides the vectors: the revision becomes a commit, or a digest of a local folder's files,
    and the number format is settled. Weights are read at the first call and never held by the step.

    Args:
        model: Hub id, local folder, or "toy" for the tiny model that ships with the package.
        layers: k in 0..L is ``hidden_states[k]`` (0 the embedding, L the raw output of the last block); "norm" is the
            state after the final norm.
        revision: branch, tag or commit; the default branch if None.
        dtype: "auto" (float32; on CUDA the checkpoint's own 16-bit format), "float32", "bfloat16" or "float16".
        position: "last", "last_content", "mean_response" or "last_prompt".
        max_length: tokens a row may have; the model's own limit if None. The middle of a longer response is cut.
        columns: ``{"prompt": ..., "response": ...}`` for rows of no known shape.
        device: "cpu", "cuda", "cuda:1" or "mps"; the best there is if None. With ``with_rank=True`` each worker
            process takes its own GPU.
        chat_template: for a model that has none: a Jinja template, or "plain".

    Raises:
        OptionError: a layer, number format, position or length that makes no sense.
        ModelError: the model cannot be found or read.
    """

    model: str
    layers: tuple[Layer, ...]
    _: KW_ONLY
    revision: str | None = None
    dtype: str = "auto"
    position: str = "last"
    max_length: int | None = None
    columns: tuple[tuple[str, str], ...] | None = None
    device: str | None = None
    chat_template: str | None = None
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        from hf_safefilter.model.load import depth_for, model_config, pick_device, pick_dtype, resolve_revision
        from hf_safefilter.model.source import ModelKey
        from hf_safefilter.model.tokens import POSITIONS

        if self.position not in POSITIONS:
            raise OptionError(f"position {self.position!r} is not known", fix=f"use one of {', '.join(POSITIONS)}")
        if self.max_length is not None and (type(self.max_length) is not int or self.max_length < 2):
            raise OptionError(f"max_length={self.max_length!r} leaves no room for a row", fix="use 2 tokens or more")
        settle = object.__setattr__
        settle(self, "model", str(self.model))
        settle(self, "layers", (self.layers,) if isinstance(self.layers, (int, str)) else tuple(self.layers))
        settle(self, "columns", tuple(sorted(dict(self.columns).items())) if self.columns is not None else None)
        settle(self, "revision", resolve_revision(self.model, self.revision))
        device = pick_device(self.device, None)
        config = model_config(ModelKey(self.model, self.revision, "float32"))
        depth_for(config.get_text_config().num_hidden_layers, self.layers)
        settle(self, "dtype", pick_dtype(self.dtype, device, getattr(config.get_text_config(), "dtype", None)))
        Step.__post_init__(self)

    def produces(self) -> tuple[str, ...]:
        """``row_id``, ``truncated``, ``unscorable`` and a column a layer."""
        return (ROW_ID, TRUNCATED, UNSCORABLE, *(embedding_column(layer) for layer in self.layers))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """The new columns: strings, bools, strings, and float16 `(n, hidden_size)` for each layer."""
        found = conversations(batch, self._mapping()) if batch.n else []
        vectors, tokens, reasons = self._read(found, rank)
        columns = {
            ROW_ID: np.array([row_id(conversation) for conversation in found], dtype=object),
            TRUNCATED: np.array([item.truncated for item in tokens], dtype=bool),
            UNSCORABLE: np.array(reasons, dtype=object),
        }
        return columns | {embedding_column(layer): self._half(layer, vectors[layer]) for layer in self.layers}

    def vectors(
        self, rows: Dataset | Iterable[Mapping[str, Any]]
    ) -> tuple[dict[Layer, np.ndarray], list[Conversation], list[str]]:
        """The same reading for rows at hand, such as references, without the rounding to float16.

        Returns:
            float32 `(n, hidden_size)` for each layer, the rows as conversations, and a reason for each row ("" where
            it could be read).
        """
        found = as_conversations(rows, self._mapping())
        vectors, _, reasons = self._read(found, None)
        return vectors, found, reasons

    def describe(self) -> dict[str, Any]:
        """`record()` with what else decides the vectors: digest of the chat template, hidden size, number of blocks."""
        from hf_safefilter.model.load import model_config, tokenizer
        from hf_safefilter.model.tokens import template_digest

        config = model_config(self._key()).get_text_config()
        return self.record() | {
            "chat_template_digest": template_digest(tokenizer(self._key()), self.chat_template),
            "hidden_size": config.hidden_size,
            "blocks": config.num_hidden_layers,
        }

    def _key(self) -> ModelKey:
        from hf_safefilter.model.source import ModelKey

        return ModelKey(self.model, self.revision, self.dtype)

    def _mapping(self) -> dict[str, str] | None:
        return dict(self.columns) if self.columns is not None else None

    def _read(
        self, found: list[Conversation], rank: int | None
    ) -> tuple[dict[Layer, np.ndarray], list[Tokens], list[str]]:
        from hf_safefilter.model import load
        from hf_safefilter.model.forward import read_layers
        from hf_safefilter.model.tokens import tokenise

        key = self._key()
        if not found:
            empty = np.empty((0, load.model_config(key).get_text_config().hidden_size), np.float32)
            return dict.fromkeys(self.layers, empty), [], []
        tokens = tokenise(
            load.tokenizer(key),
            found,
            position=self.position,
            max_length=self.max_length or load.max_tokens(key),
            chat_template=self.chat_template,
        )
        depth = load.depth_for(load.model_config(key).get_text_config().num_hidden_layers, self.layers)
        trunk = load.trunk(key, depth, load.pick_device(self.device, rank))
        vectors = read_layers(trunk, tokens, self.layers)
        reasons = [item.reason for item in tokens]
        for row in np.flatnonzero(~np.all([np.isfinite(v).all(axis=1) for v in vectors.values()], axis=0)):
            reasons[row] = reasons[row] or NON_FINITE
            for layer in self.layers:
                vectors[layer][row] = np.nan
        return vectors, tokens, reasons

    def _half(self, layer: Layer, vectors: np.ndarray) -> np.ndarray:
        beyond = int(np.count_nonzero(np.abs(vectors) > FLOAT16_MAX))
        if beyond:
            logger.warning("layer %s: %d values beyond the range of float16 were clamped to 65504", layer, beyond)
        return np.clip(vectors, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)
