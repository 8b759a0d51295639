"""`EmbedLayers`: rows in, the model's own hidden states out, one fixed-size float16 column a layer.

Rows that were read once are not read again: see `hf_safefilter.cache`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from hf_safefilter import cache
from hf_safefilter.cache import RowVectors
from hf_safefilter.checks import require_choice, require_whole
from hf_safefilter.columns import FLOAT16_MAX, ROW_ID, TRUNCATED, UNSCORABLE, Layer, embedding_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import Conversation, as_conversations, conversations, row_id
from hf_safefilter.model.reading_options import POSITIONS, ReadingOptions
from hf_safefilter.step import Step

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset

    from hf_safefilter.model.reading_options import Attention, Dtype, Position
    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.model.tokens import Tokens

logger = logging.getLogger(__name__)

_TOKENISED_AT_ONCE = 256  # rows: they are tokenised while the rows before them are read

Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class EmbedLayers(ReadingOptions, Step):
    """Reads chosen layers of the model that is to be fine-tuned.

    Adds ``row_id``, ``truncated``, ``unscorable`` and, for each layer, ``emb_layer_<k>``: the mean state over the
    positions read, computed in float32 and stored as float16 (values beyond 65504 are clamped and counted in the log).
    A row that cannot be read has NaN vectors, and the reason in ``unscorable``.

    Construction pins what decides the vectors: the revision becomes a commit, or a digest of a local folder's files,
    and "auto" becomes a number format. Weights are loaded at the first call and never held by the step.

    Args:
        model: Hub id, local folder, or "toy" for the tiny model that ships with the package.
        layers: Layers to read: k in 0..L is ``hidden_states[k]`` (0 is the embedding, L the raw output of the last
            block); "norm" is the state after the final norm.
        revision: Branch, tag or commit of the model; the default branch if None.
        dtype: "auto" (float32; on CUDA the checkpoint's own 16-bit format), "float32", "bfloat16" or "float16".
        position: "last", "last_content", "mean_response" or "last_prompt".
        max_length: Largest number of tokens a row may have; the model's own limit if None. The middle of a longer
            response is cut.
        columns: ``{"prompt": ..., "response": ...}`` for rows of no known shape.
        device: "cpu", "cuda", "cuda:1" or "mps"; the best available device if None. With ``with_rank=True`` each
            worker process uses its own GPU.
        chat_template: Jinja template, or "plain", for a model that has no template.
        attn: "auto" packs rows without padding where the model supports it (on a GPU with torch's own variable-length
            flash attention). The name of an implementation of transformers pads rows: "sdpa", "eager",
            "flash_attention_2", "flash_attention_3" or "flex_attention". It decides the speed, not the vectors.

    Raises:
        OptionError: A layer, number format, position or length that makes no sense.
        ModelError: The model cannot be found or read.
    """

    layers: tuple[Layer, ...]
    _: KW_ONLY
    columns: tuple[tuple[str, str], ...] | None = None
    algorithm: int = field(default=1, init=False)

    if TYPE_CHECKING:  # the types that may be passed are wider than those that are stored

        def __init__(
            self,
            model: str | Path,
            layers: Layer | Sequence[Layer],
            *,
            revision: str | None = None,
            dtype: Dtype = "auto",
            device: str | None = None,
            chat_template: str | None = None,
            position: Position = "last",
            max_length: int | None = None,
            attn: Attention = "auto",
            columns: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        from hf_safefilter.model import load
        from hf_safefilter.model.source import ModelKey

        require_choice("position", self.position, POSITIONS)
        if self.max_length is not None:
            require_whole("max_length", self.max_length, least=2)
        set_field = object.__setattr__
        set_field(self, "model", str(self.model))
        layers = cast("Layer | Sequence[Layer]", self.layers)  # as passed
        set_field(self, "layers", (layers,) if isinstance(layers, (int, str)) else tuple(layers))
        set_field(self, "columns", tuple(sorted(dict(self.columns).items())) if self.columns is not None else None)
        revision = load.resolve_revision(self.model, self.revision)
        set_field(self, "revision", revision)
        device = load.pick_device(self.device, None)
        config = load.model_config(ModelKey(self.model, revision, "float32"))
        load.depth_for(config.get_text_config().num_hidden_layers, self.layers)
        set_field(self, "dtype", load.pick_dtype(self.dtype, device, getattr(config.get_text_config(), "dtype", None)))
        load.pick_attn(self.attn, self.dtype, device)
        Step.__post_init__(self)

    @classmethod
    def of(
        cls, options: ReadingOptions, layers: Sequence[Layer], columns: Mapping[str, str] | None = None
    ) -> EmbedLayers:
        """The step that reads `layers` with these `options`, for rows with these `columns`."""
        return cls(layers=tuple(layers), columns=columns, **options.values())

    def produces(self) -> tuple[str, ...]:
        """``row_id``, ``truncated``, ``unscorable`` and one column for each layer."""
        return (ROW_ID, TRUNCATED, UNSCORABLE, *(embedding_column(layer) for layer in self.layers))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """The new columns: strings, bools, strings, and float16 `(n, hidden_size)` for each layer."""
        rows = conversations(batch, self._mapping()) if batch.n else []
        ids = [row_id(row) for row in rows]
        if rows and cache.enabled():
            read = self._recall(rows, ids, rank)
        else:
            read = self._halved(self._read(rows, self.layers, rank))
        read.mark_non_finite()
        columns = {ROW_ID: np.array(ids, dtype=object), TRUNCATED: read.truncated, UNSCORABLE: read.reasons}
        return columns | {embedding_column(layer): read.vectors[layer] for layer in self.layers}

    def vectors(
        self, rows: Dataset | Iterable[Mapping[str, Any]]
    ) -> tuple[dict[Layer, np.ndarray], list[Conversation], list[str]]:
        """The same vectors for rows in memory, such as references, without the rounding to float16.

        Returns:
            float32 `(n, hidden_size)` for each layer, the rows as conversations, and a reason for each row ("" where
            it could be read).
        """
        parsed = as_conversations(rows, self._mapping())
        read = self._read(parsed, self.layers, None).mark_non_finite()
        return read.vectors, parsed, list(read.reasons)

    def all_layers(self) -> list[int]:
        """Layers 1..L of this model: the outputs of its blocks."""
        from hf_safefilter.model.load import model_config

        return list(range(1, model_config(self._key()).get_text_config().num_hidden_layers + 1))

    def describe(self) -> dict[str, Any]:
        """`record()` and what else a reader must know: digest of the chat template, hidden size, number of blocks."""
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

        return ModelKey(self.model, cast("str", self.revision), self.dtype)  # pinned at construction

    def _mapping(self) -> dict[str, str] | None:
        return dict(self.columns) if self.columns is not None else None

    def _recall(self, rows: list[Conversation], ids: list[str], rank: int | None) -> RowVectors:
        """Vectors from the cache for rows that were read before, from the model for the others, piece by piece."""
        from hf_safefilter.model.load import model_config, pick_device

        width = model_config(self._key()).get_text_config().hidden_size
        # Unreadable rows are not cached: their ids do not tell the reasons (the number 5 and the text "5" share an id).
        read = RowVectors.blank([row.reason for row in rows], self.layers, width)
        space = _space(self, pick_device(self.device, rank).type)
        sizes = [sum(len(content) for _, content in row.messages) for row in rows]
        cache.recall(
            space, read, ids, sizes,
            lambda missing, layers: self._halved(self._read([rows[index] for index in missing], layers, rank)),
        )  # fmt: skip
        return read

    def _read(self, rows: Sequence[Conversation], layers: Sequence[Layer], rank: int | None) -> RowVectors:
        """Float32 vectors as the model gives them."""
        from hf_safefilter.model import load
        from hf_safefilter.model.forward import read_layers

        key = self._key()
        if not rows:
            empty = np.empty((0, load.model_config(key).get_text_config().hidden_size), np.float32)
            return RowVectors(dict.fromkeys(layers, empty), np.empty(0, bool), np.empty(0, object))
        depth = load.depth_for(load.model_config(key).get_text_config().num_hidden_layers, tuple(layers))
        trunk = load.trunk(key, depth, load.pick_device(self.device, rank), attn=self.attn)
        step = _TOKENISED_AT_ONCE
        parts: list[dict[Layer, np.ndarray]] = []
        tokens: list[Tokens] = []
        for part in _ahead([rows[start : start + step] for start in range(0, len(rows), step)], self._tokenise):
            parts.append(read_layers(trunk, part, tuple(layers)))
            tokens += part
        return RowVectors(
            {layer: np.concatenate([vectors[layer] for vectors in parts]) for layer in layers},
            np.array([row.truncated for row in tokens], dtype=bool),
            np.array([row.reason for row in tokens], dtype=object),
        )

    def _tokenise(self, rows: Sequence[Conversation]) -> list[Tokens]:
        from hf_safefilter.model import load
        from hf_safefilter.model.tokens import tokenise

        key = self._key()
        return tokenise(
            load.tokenizer(key),
            rows,
            position=self.position,
            max_length=self.max_length or load.max_tokens(key),
            chat_template=self.chat_template,
        )

    def _halved(self, read: RowVectors) -> RowVectors:
        return RowVectors({layer: _half(layer, v) for layer, v in read.vectors.items()}, read.truncated, read.reasons)


def _ahead(parts: Sequence[Part], work: Callable[[Part], Result]) -> Iterator[Result]:
    """The results of `work` on each part; the next one is computed in a thread while the caller uses this one."""
    if len(parts) == 1:
        yield work(parts[0])
        return
    with ThreadPoolExecutor(1, thread_name_prefix="safefilter") as executor:
        following = executor.submit(work, parts[0])
        for part in parts[1:]:
            result, following = following.result(), executor.submit(work, part)
            yield result
        yield following.result()


def _half(layer: Layer, vectors: np.ndarray) -> np.ndarray:
    """Float16, clamped to its range; a vector that is not finite becomes NaN."""
    finite = np.isfinite(vectors).all(axis=1)
    beyond = int(np.count_nonzero(np.abs(vectors[finite]) > FLOAT16_MAX))
    if beyond:
        logger.warning("layer %s: %d values beyond the range of float16 were clamped to 65504", layer, beyond)
    half = np.clip(vectors, -FLOAT16_MAX, FLOAT16_MAX).astype(np.float16)
    half[~finite] = np.nan
    return half


@lru_cache(maxsize=32)
def _space(step: EmbedLayers, device: str) -> cache.Space:
    """Everything that decides a row's vectors, except the layer; kinds of device differ in rounding."""
    from hf_safefilter.model.load import max_tokens

    description = step.describe()
    names = ("revision", "dtype", "position", "chat_template_digest", "algorithm")
    limit = step.max_length or max_tokens(step._key())
    facts = {name: description[name] for name in names} | {"max_length": limit, "device": device}
    return cache.Space.of(facts, step.model)
