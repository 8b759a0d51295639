"""`EmbedLayers`: rows in, the model's own hidden states out, one fixed-size float16 column a layer.

What was read once is not read again: see `hf_safefilter.cache`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hf_safefilter import cache
from hf_safefilter.cache import Reading
from hf_safefilter.checks import require_choice, require_whole
from hf_safefilter.columns import FLOAT16_MAX, ROW_ID, TRUNCATED, UNSCORABLE, Layer, embedding_column
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.conversations import Conversation, as_conversations, conversations, row_id
from hf_safefilter.model.reading_options import POSITIONS, ReadingOptions
from hf_safefilter.step import Step

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.model.tokens import Tokens

logger = logging.getLogger(__name__)

_AT_ONCE = 256  # rows tokenised while those before them are read

Part, Done = TypeVar("Part"), TypeVar("Done")


@dataclass(frozen=True, slots=True)
class EmbedLayers(ReadingOptions, Step):
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
        attn: "auto" packs rows without padding wherever the model reads them right so (on a GPU by torch's own
            variable-length flash attention); else an implementation of transformers' by its name, rows padded: "sdpa",
            "eager", "flash_attention_2", "flash_attention_3" or "flex_attention". It decides speed, not vectors.

    Raises:
        OptionError: a layer, number format, position or length that makes no sense.
        ModelError: the model cannot be found or read.
    """

    layers: tuple[Layer, ...]
    _: KW_ONLY
    columns: tuple[tuple[str, str], ...] | None = None
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        from hf_safefilter.model import load
        from hf_safefilter.model.source import ModelKey

        require_choice("position", self.position, POSITIONS)
        if self.max_length is not None:
            require_whole("max_length", self.max_length, least=2)
        settle = object.__setattr__
        settle(self, "model", str(self.model))
        settle(self, "layers", (self.layers,) if isinstance(self.layers, (int, str)) else tuple(self.layers))
        settle(self, "columns", tuple(sorted(dict(self.columns).items())) if self.columns is not None else None)
        settle(self, "revision", load.resolve_revision(self.model, self.revision))
        device = load.pick_device(self.device, None)
        config = load.model_config(ModelKey(self.model, self.revision, "float32"))
        load.depth_for(config.get_text_config().num_hidden_layers, self.layers)
        settle(self, "dtype", load.pick_dtype(self.dtype, device, getattr(config.get_text_config(), "dtype", None)))
        load.pick_attn(self.attn, self.dtype, device)
        Step.__post_init__(self)

    @classmethod
    def of(
        cls, options: ReadingOptions, layers: Sequence[Layer], columns: Mapping[str, str] | None = None
    ) -> EmbedLayers:
        """The step that reads `layers` as `options` say, for rows with these `columns`."""
        return cls(layers=tuple(layers), columns=columns, **options.values())

    def produces(self) -> tuple[str, ...]:
        """``row_id``, ``truncated``, ``unscorable`` and a column a layer."""
        return (ROW_ID, TRUNCATED, UNSCORABLE, *(embedding_column(layer) for layer in self.layers))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """The new columns: strings, bools, strings, and float16 `(n, hidden_size)` for each layer."""
        found = conversations(batch, self._mapping()) if batch.n else []
        ids = [row_id(conversation) for conversation in found]
        if found and cache.enabled():
            read = self._recall(found, ids, rank)
        else:
            read = self._halved(self._read(found, self.layers, rank))
        read = read.settled()
        columns = {ROW_ID: np.array(ids, dtype=object), TRUNCATED: read.truncated, UNSCORABLE: read.reasons}
        return columns | {embedding_column(layer): read.vectors[layer] for layer in self.layers}

    def vectors(
        self, rows: Dataset | Iterable[Mapping[str, Any]]
    ) -> tuple[dict[Layer, np.ndarray], list[Conversation], list[str]]:
        """The same reading for rows at hand, such as references, without the rounding to float16.

        Returns:
            float32 `(n, hidden_size)` for each layer, the rows as conversations, and a reason for each row ("" where
            it could be read).
        """
        found = as_conversations(rows, self._mapping())
        read = self._read(found, self.layers, None).settled()
        return read.vectors, found, list(read.reasons)

    def all_layers(self) -> list[int]:
        """Layers 1..L of this model: all that a block has worked on."""
        from hf_safefilter.model.load import model_config

        return list(range(1, model_config(self._key()).get_text_config().num_hidden_layers + 1))

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

    def _recall(self, found: list[Conversation], ids: list[str], rank: int | None) -> Reading:
        """Rows that were read before from the cache, the others from the model, piece by piece."""
        from hf_safefilter.model.load import model_config, pick_device

        width = model_config(self._key()).get_text_config().hidden_size
        # An id says nothing of why a row is unreadable (the number 5 and the text "5" share one): such rows stay out.
        reading = Reading.blank([one.reason for one in found], self.layers, width)
        space = _space(self, pick_device(self.device, rank).type)
        sizes = [sum(len(content) for _, content in one.messages) for one in found]
        cache.recall(
            space, reading, ids, sizes,
            lambda rows, layers: self._halved(self._read([found[row] for row in rows], layers, rank)),
        )  # fmt: skip
        return reading

    def _read(self, found: Sequence[Conversation], layers: Sequence[Layer], rank: int | None) -> Reading:
        """Float32 vectors as the model gives them."""
        from hf_safefilter.model import load
        from hf_safefilter.model.forward import read_layers

        key = self._key()
        if not found:
            empty = np.empty((0, load.model_config(key).get_text_config().hidden_size), np.float32)
            return Reading(dict.fromkeys(layers, empty), np.empty(0, bool), np.empty(0, object))
        depth = load.depth_for(load.model_config(key).get_text_config().num_hidden_layers, tuple(layers))
        trunk = load.trunk(key, depth, load.pick_device(self.device, rank), attn=self.attn)
        parts = []
        for tokens in _ahead([found[at : at + _AT_ONCE] for at in range(0, len(found), _AT_ONCE)], self._tokenise):
            parts.append((read_layers(trunk, tokens, tuple(layers)), tokens))
        every = [item for _, tokens in parts for item in tokens]
        return Reading(
            {layer: np.concatenate([vectors[layer] for vectors, _ in parts]) for layer in layers},
            np.array([item.truncated for item in every], dtype=bool),
            np.array([item.reason for item in every], dtype=object),
        )

    def _tokenise(self, found: Sequence[Conversation]) -> list[Tokens]:
        from hf_safefilter.model import load
        from hf_safefilter.model.tokens import tokenise

        key = self._key()
        return tokenise(
            load.tokenizer(key),
            found,
            position=self.position,
            max_length=self.max_length or load.max_tokens(key),
            chat_template=self.chat_template,
        )

    def _halved(self, read: Reading) -> Reading:
        return Reading({layer: _half(layer, v) for layer, v in read.vectors.items()}, read.truncated, read.reasons)


def _ahead(parts: Sequence[Part], work: Callable[[Part], Done]) -> Iterator[Done]:
    """`work` on each part in turn, on the next one while the caller is busy with this one."""
    if len(parts) == 1:
        yield work(parts[0])
        return
    with ThreadPoolExecutor(1, thread_name_prefix="safefilter") as other:
        coming = other.submit(work, parts[0])
        for part in parts[1:]:
            done, coming = coming.result(), other.submit(work, part)
            yield done
        yield coming.result()


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
    """All that decides a row's vectors, but for the layer; kinds of device round differently."""
    from hf_safefilter.model.load import max_tokens

    told = step.describe()
    decides = ("revision", "dtype", "position", "chat_template_digest", "algorithm")
    limit = step.max_length or max_tokens(step._key())
    return cache.Space.of({name: told[name] for name in decides} | {"max_length": limit, "device": device}, step.model)
