"""`EmbedLayers`: rows in, the model's own hidden states out, one column of vectors a layer.

Rows that were read once are not read again: see `hf_safefilter.cache`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hf_safefilter import cache
from hf_safefilter.cache import Gathering, RowVectors
from hf_safefilter.columns import (
    READ_AS,
    ROW_ID,
    SPANS,
    TRUNCATED,
    UNSCORABLE,
    Layer,
    embedding_column,
    reading_key,
)
from hf_safefilter.data.batch import Batch, Column
from hf_safefilter.data.conversations import Conversation, as_conversations, conversations
from hf_safefilter.data.ragged import Ragged, offsets_of
from hf_safefilter.data.reasons import advice
from hf_safefilter.data.row_ids import row_id
from hf_safefilter.data.shapes import with_ignored
from hf_safefilter.data.spans import SPAN
from hf_safefilter.errors import OptionError
from hf_safefilter.model.reading_digest import reading_digest
from hf_safefilter.model.reading_options import WINDOW, ReadingOptions, checked_reading
from hf_safefilter.step import ROWS_BY_BLOCKS, ROWS_PER_CALL, Step, fields_of

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset

    from hf_safefilter.model.reading_options import Attention, Backend, Dtype, Spans, StreamBlocks, TooLong
    from hf_safefilter.model.source import ModelKey
    from hf_safefilter.model.tokens import Tokens
    from hf_safefilter.model.windows import RowReads

logger = logging.getLogger(__name__)

_warned: set[str] = set()


@dataclass(frozen=True, slots=True)
class EmbedLayers(ReadingOptions, Step):
    """Reads chosen layers of the model that is to be fine-tuned.

    Each answer that a trainer would learn (its text, reasoning and tool calls) is a span; a long one is read in
    windows. Adds ``row_id``, ``truncated``, ``unscorable``, ``read_as`` (a digest of model, position, windows and
    template, which scores compare with that of their references), ``spans`` (what was read of the row), and for each
    layer ``emb_layer_<k>``: a list with one vector for each span, computed in float32 and stored as float16 (values
    beyond 65504 are clamped and counted in the log). Further positions have columns of their own, such as
    ``emb_layer_12_last_prompt``. A row that cannot be read whole has no spans, and the reason in ``unscorable``.

    Construction pins what decides the vectors: the revision becomes a commit, or a digest of a local folder's files,
    and "auto" becomes a number format. Weights are loaded at the first call and never held by the step.

    Args:
        model: Hub id, local folder, GGUF file, or "toy" for the tiny model that ships with the package.
        layers: Layers to read: k in 0..L is ``hidden_states[k]`` (0 is the embedding, L the raw output of the last
            block); "norm" is the state after the final norm.
        adapter: Folder or Hub id of a PEFT adapter, which is merged into the weights in memory; then `model` becomes
            "base + adapter", and `revision` that of both.
        revision: Branch, tag or commit of the model; the default branch if None.
        dtype: "auto" (float32; on CUDA the checkpoint's own 16-bit format), "float32", "bfloat16" or "float16".
        position: Where a span is read: "mean", "last", "last_content", "last_prompt" or "first_<n>"; several are comma
            separated, and the first is the one that scores read by default.
        spans: "trained" reads the answers that a trainer learns, "all" the turns of system, user and tools as well.
        window: Tokens that a mean is taken over at most; None for whole spans.
        max_length: Largest number of tokens the model reads at once; the model's own limit if None.
        too_long: What becomes of longer rows: "windows" reads all of them, piece by piece, "drop" leaves them
            unscorable, "cut" leaves their end away, as trainers do.
        ignore: What may go unread: columns, keys of a message, "trailing_turn" for turns after the last answer.
        columns: ``{"prompt": ..., "response": ...}`` for rows of no known shape.
        device: "cpu", "cuda", "cuda:1" or "mps"; the best available device if None. With ``with_rank=True`` each
            worker process uses its own GPU.
        chat_template: Jinja template, name of one of the model's own, "plain" or "raw".
        attn: "auto" packs rows without padding where the model supports it (on a GPU with torch's own variable-length
            flash attention). The name of an implementation of transformers pads rows: "sdpa", "eager",
            "flash_attention_2", "flash_attention_3" or "flex_attention". It decides the speed, not the vectors.
        stream_blocks: "auto" loads one block of the model at a time, for all rows of a call, where not all of them fit
            in memory; "always" does so in any case, "never" not. It decides speed and memory, not the vectors.
        backend: "transformers", or "vllm", which reads plain decoders on GPUs; what it does not read alike is read by
            transformers, with a warning.

    Raises:
        OptionError: A layer, number format, position or length that makes no sense.
        ModelError: The model cannot be found or read.
    """

    layers: tuple[Layer, ...]
    _: KW_ONLY
    columns: tuple[tuple[str, str], ...] | None = None
    algorithm: int = field(default=2, init=False)

    if TYPE_CHECKING:  # the types that may be passed are wider than those that are stored

        def __init__(
            self,
            model: str | Path,
            layers: Layer | Sequence[Layer],
            *,
            adapter: str | None = None,
            revision: str | None = None,
            dtype: Dtype = "auto",
            device: str | None = None,
            chat_template: str | None = None,
            position: str = "mean",
            spans: Spans = "trained",
            window: int | None = WINDOW,
            max_length: int | None = None,
            too_long: TooLong = "windows",
            ignore: Sequence[str] = (),
            attn: Attention = "auto",
            stream_blocks: StreamBlocks = "auto",
            backend: Backend = "transformers",
            columns: Mapping[str, str] | Sequence[tuple[str, str]] | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        from hf_safefilter.model import load
        from hf_safefilter.model.source import ModelKey

        set_field = object.__setattr__
        self._settle()
        revision = load.resolve_revision(self.model, self.revision)
        set_field(self, "revision", revision)
        device = load.pick_device(self.device, None)
        config = load.model_config(ModelKey(self.model, revision, "float32"))
        load.depth_for(config.get_text_config().num_hidden_layers, self.layers)
        set_field(self, "dtype", load.pick_dtype(self.dtype, device, getattr(config.get_text_config(), "dtype", None)))
        load.pick_attn(self.attn, self.dtype, device)
        load.pick_backend(self.backend)
        Step.__post_init__(self)

    def _settle(self) -> None:
        """Bring the options into the form in which they are stored, after the checks that need no model."""
        set_field = object.__setattr__
        for name, value in checked_reading(self).items():
            set_field(self, name, value)
        ReadingOptions.__post_init__(self)
        layers = cast("Layer | Sequence[Layer]", self.layers)  # as passed
        set_field(self, "layers", (layers,) if isinstance(layers, (int, str)) else tuple(layers))
        set_field(self, "columns", tuple(sorted(dict(self.columns).items())) if self.columns is not None else None)

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> EmbedLayers:
        """The step of a `record()`, as it was when it read the rows.

        Everything that depends on the model is in the record. So the model, which may be large, far or gone, is looked
        at when it is read again; only then are its files compared with the recorded revision.

        Raises:
            OptionError: A value makes no sense, or the model is not pinned.
        """
        step = object.__new__(cls)
        for option in fields_of(cls):
            default = record.get(option.name, option.default) if option.init else option.default
            object.__setattr__(step, option.name, default)
        step._settle()
        if not isinstance(step.revision, str):
            raise OptionError("the record of an EmbedLayers pins no revision", fix="embed the rows again")
        Step.__post_init__(step)
        return step

    @classmethod
    def of(
        cls, options: ReadingOptions, layers: Sequence[Layer], columns: Mapping[str, str] | None = None
    ) -> EmbedLayers:
        """The step that reads `layers` with these `options`, for rows with these `columns`."""
        return cls(layers=tuple(layers), columns=columns, **options.values())

    @property
    def keys(self) -> tuple[Layer, ...]:
        """What the vectors of each layer and position are called (see `columns.Layer`)."""
        main = self.positions[0]
        return tuple(reading_key(layer, position, main) for layer in self.layers for position in self.positions)

    @property
    def mapping(self) -> dict[str, str] | None:
        """Where things stand in a row, and what may go unread, as `data.conversations` takes it."""
        return with_ignored(dict(self.columns) if self.columns is not None else None, self.ignored)

    def produces(self) -> tuple[str, ...]:
        """``row_id``, ``truncated``, ``unscorable``, ``read_as``, ``spans``, and one column a layer and position."""
        return (ROW_ID, TRUNCATED, UNSCORABLE, READ_AS, SPANS, *map(embedding_column, self.keys))

    def compute(self, batch: Batch, rank: int | None) -> dict[str, Column]:
        """The new columns: strings, bools, two of strings, `SPAN` and float16 `(hidden_size,)` for each span."""
        rows = conversations(batch, self.mapping) if batch.n else []
        ids = [row_id(row) for row in rows]
        if rows and cache.enabled():
            read = self._recall(rows, ids, rank)
        else:
            read = self._read(rows, self.layers, rank).halved()
        _warn_once((read := read.finite()).reasons)
        columns: dict[str, Column] = {
            ROW_ID: np.array(ids, dtype=object),
            TRUNCATED: read.truncated,
            UNSCORABLE: read.reasons,
            READ_AS: np.full(len(rows), _read_as(self), dtype=object),
            SPANS: Ragged(read.spans, read.offsets),
        }
        return columns | {embedding_column(key): read.of(key) for key in self.keys}

    @property
    def rows_per_call(self) -> int:
        """More rows where each block of the model is loaded once a call, or vLLM orders them itself."""
        whole = any(self._takes_whole_calls(self.layers, rank) for rank in (None, 0))  # a process may have one GPU
        return ROWS_BY_BLOCKS if whole else ROWS_PER_CALL

    def vectors(
        self, rows: Dataset | Iterable[Mapping[str, Any]], *, fresh: bool = False
    ) -> tuple[RowVectors, list[Conversation]]:
        """The same vectors for rows in memory, such as references, in float32, and the rows as conversations.

        They are kept in the row cache, in a space of their own; with `fresh` it is not used.
        """
        parsed = as_conversations(rows, self.mapping)
        if fresh or not parsed or not cache.enabled():
            return self._read(parsed, self.layers, None).finite(), parsed
        return self._recall(parsed, [row_id(row) for row in parsed], None, together=True).finite(), parsed

    def token_vectors(self, rows: Dataset | Iterable[Mapping[str, Any]]) -> RowVectors:
        """The same where each token is a span of its own, of which a mean is the token's state."""
        parsed, each = as_conversations(rows, self.mapping), replace(ReadingOptions(**self.values()), window=1)
        return self._read(parsed, self.layers, None, each).finite()

    def reads(self, rows: Sequence[Conversation], options: ReadingOptions | None = None) -> list[RowReads]:
        """Where each row is read, by other options than these if they are given."""
        from hf_safefilter.model import load
        from hf_safefilter.model.windows import plan_reads

        return plan_reads(rows, load.tokenizer(self._key()), options or self, load.max_tokens(self._key()))

    def tokens(self, rows: Sequence[Conversation]) -> list[Tokens]:
        """The tokens of each row that are read, of a preference pair those of its chosen side."""
        from hf_safefilter.model import load
        from hf_safefilter.model.tokens import tokenise

        rows_read = tokenise(load.tokenizer(self._key()), rows, chat_template=self.chat_template, ignore=self.ignored)
        limit = self.max_length or load.max_tokens(self._key())
        return [row.cut(limit) for row in rows_read] if self.too_long == "cut" and limit else rows_read

    def all_layers(self) -> list[int]:
        """Layers 1..L of this model: the outputs of its blocks."""
        from hf_safefilter.model.load import model_config

        return list(range(1, model_config(self._key()).get_text_config().num_hidden_layers + 1))

    def describe(self) -> dict[str, Any]:
        """`record()` and what else a reader must know: digest of the chat template, hidden size, number of blocks.

        "weights" says in which format quantised weights are stored and how they are read; plain ones have no such key.
        """
        from hf_safefilter.model.chat_template import template_digest
        from hf_safefilter.model.load import model_config, tokenizer
        from hf_safefilter.model.quantised import weights_format

        config = model_config(self._key()).get_text_config()
        weights = weights_format(self.model, config)
        return self.record() | {
            "chat_template_digest": template_digest(tokenizer(self._key()), self.chat_template),
            "hidden_size": config.hidden_size,
            "blocks": config.num_hidden_layers,
            **({"weights": weights} if weights else {}),
        }

    def _key(self) -> ModelKey:
        from hf_safefilter.model.source import ModelKey

        return ModelKey(self.model, cast("str", self.revision), self.dtype)  # pinned at construction

    def _width(self) -> int:
        from hf_safefilter.model.load import model_config

        return cast("int", model_config(self._key()).get_text_config().hidden_size)

    def _recall(self, rows: list[Conversation], ids: list[str], rank: int | None, together: bool = False) -> RowVectors:
        """Vectors from the cache for rows that were read before, from the model for the others, piece by piece.

        Those of rows that are read `together` are float32. Their last digit, which the digest of references shows,
        depends on what is read in one call: they are recalled for the same call alone, and else all read.
        """
        from hf_safefilter.model.load import pick_device

        # In the cache a position has the same name whether or not it is the main one.
        stored = {f"{layer}-{position}": (layer, position) for layer in self.layers for position in self.positions}

        def read(missing: list[int], names: list[Layer]) -> RowVectors:
            if together:
                found = self._read(rows, self.layers, rank).take(np.array(missing))
            else:
                layers = list(dict.fromkeys(stored[str(name)][0] for name in names))
                found = self._read([rows[index] for index in missing], layers, rank).halved()
            main = self.positions[0]
            found.vectors = {name: found.vectors[reading_key(*stored[str(name)], main)] for name in names}
            return found

        # Unreadable rows are not cached: their ids do not tell the reasons (the number 5 and the text "5" share an id).
        dtype = np.float32 if together else np.float16
        target = Gathering([row.reason for row in rows], dict.fromkeys(stored, self._width()), dtype)
        space = _space(self, pick_device(self.device, rank).type, self._call(ids) if together else "")
        at_once = len(rows) if together or self._takes_whole_calls(self.layers, rank) else 0
        found = cache.recall(space, target, ids, [row.size for row in rows], read, at_once=at_once)
        found.vectors = {key: found.vectors[name] for key, name in zip(self.keys, stored, strict=True)}
        return found

    def _call(self, ids: list[str]) -> str:
        """Digest of what is read in one call, and how, as far as the last digits depend on it."""
        how = [ids, self.layers, self.positions, self.attn, self.stream_blocks]
        return hashlib.sha256(json.dumps(how).encode()).hexdigest()

    def _read(
        self,
        rows: Sequence[Conversation],
        layers: Sequence[Layer],
        rank: int | None,
        options: ReadingOptions | None = None,
    ) -> RowVectors:
        """Float32 vectors as the model gives them."""
        from hf_safefilter.model.readers import reader
        from hf_safefilter.model.row_parts import read_in_parts
        from hf_safefilter.model.windows import joined_picks

        key, main = self._key(), self.positions[0]
        names = [(reading_key(k, name, main), k, at) for k in layers for at, name in enumerate(self.positions)]
        found: dict[Layer, list[np.ndarray]] = {name: [np.empty((0, self._width()), np.float32)] for name, *_ in names}
        reads: list[RowReads] = []
        if rows:
            chosen = reader(key, self.layers, self._depth(layers), self, rank)
            planned = partial(self.reads, options=options)
            for part, vectors in read_in_parts(chosen, rows, planned, tuple(layers), bar=rank is None):
                picks = joined_picks(part)
                for name, layer, at in names:
                    found[name].append(vectors[layer][picks[:, at]])
                reads += part
        return RowVectors(
            offsets_of(np.array([len(row.spans) for row in reads], dtype=np.int64)),
            np.concatenate([np.empty(0, SPAN), *(row.spans for row in reads)]),
            {name: np.concatenate(parts) for name, parts in found.items()},
            np.array([row.truncated for row in reads], dtype=bool),
            np.array([row.reason for row in reads], dtype=object),
        )

    def _depth(self, layers: Sequence[Layer]) -> int:
        from hf_safefilter.model import load

        return load.depth_for(load.model_config(self._key()).get_text_config().num_hidden_layers, tuple(layers))

    def _takes_whole_calls(self, layers: Sequence[Layer], rank: int | None) -> bool:
        from hf_safefilter.model import load

        devices = (load.pick_device(self.device, rank), *load.spare_gpus(self.device, rank))
        key, depth = self._key(), self._depth(layers)
        return self.backend == "vllm" or load.placement(key, depth, devices, self.stream_blocks).streamed


def _warn_once(reasons: np.ndarray) -> None:
    """Say why rows cannot be scored, each reason once a process: they are never kept."""
    for reason, count in Counter(filter(None, reasons)).items():
        if reason not in _warned:
            _warned.add(reason)
            logger.warning("%d of %d rows cannot be scored: %s (%s)", count, len(reasons), reason, advice(reason))


@lru_cache(maxsize=32)
def _read_as(step: EmbedLayers) -> str:
    return reading_digest(step.describe())


@lru_cache(maxsize=32)
def _space(step: EmbedLayers, device: str, call: str) -> cache.Space:
    """Everything that decides a row's vectors, except layer and position; kinds of device differ in rounding."""
    from hf_safefilter.model.load import max_tokens

    description = step.describe()
    names = ("revision", "dtype", "spans", "window", "too_long", "ignore", "chat_template_digest", "algorithm")
    limit = step.max_length or max_tokens(step._key())
    facts = {name: description[name] for name in names} | {"max_length": limit, "device": device}
    facts |= {name: description[name] for name in ("weights",) if name in description}
    facts |= {"backend": step.backend} if step.backend != "transformers" else {}
    facts |= {"call": call} if call else {}
    return cache.Space.of(facts, step.model)
