"""Who computes the states that are read: our own passes through a model of transformers, or vLLM if it reads alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from hf_safefilter.columns import Layer
from hf_safefilter.errors import IntegrityError, ModelError
from hf_safefilter.model import forward, load, vllm_engine
from hf_safefilter.model.padded import TRIED, largest_difference, words_of
from hf_safefilter.model.source import ModelKey, base_and_adapter, gguf_file
from hf_safefilter.model.windows import TokenSequence

if TYPE_CHECKING:
    from hf_safefilter.model.load import Trunk
    from hf_safefilter.model.reading_options import ReadingOptions
    from hf_safefilter.model.vllm_engine import VllmEngine

logger = logging.getLogger(__name__)

_SHARED = 300  # tokens with which two rows of the trial begin: several blocks of vLLM's cache


class Reader(Protocol):
    """Reads token sequences at layers that were chosen before."""

    @property
    def whole_calls(self) -> bool:
        """Whether it is best given all rows of a call at a time."""

    def read(
        self, sequences: Sequence[TokenSequence], layers: Sequence[Layer], advance: Callable[[float], None] | None
    ) -> dict[Layer, np.ndarray]:
        """As `forward.read_layers`."""


@dataclass(frozen=True, slots=True)
class OwnReader:
    """A model of transformers in this process."""

    trunk: Trunk

    @property
    def whole_calls(self) -> bool:
        """Where each block is loaded once a call."""
        return self.trunk.left_out is not None

    def read(
        self, sequences: Sequence[TokenSequence], layers: Sequence[Layer], advance: Callable[[float], None] | None
    ) -> dict[Layer, np.ndarray]:
        """See `Reader`."""
        return forward.read_layers(self.trunk, sequences, layers, None, advance)


@dataclass(frozen=True, slots=True)
class VllmReader:
    """A model in vLLM, each of whose engines is compared with transformers before its vectors are believed.

    Attributes:
        key: The pinned model.
        layers: All layers that are read.
        trial: What transformers reads.
    """

    key: ModelKey
    layers: tuple[int, ...]
    trial: Trial
    whole_calls = True

    def read(
        self, sequences: Sequence[TokenSequence], layers: Sequence[Layer], advance: Callable[[float], None] | None
    ) -> dict[Layer, np.ndarray]:
        """See `Reader`.

        Raises:
            ModelError: vLLM fails, or reads otherwise than transformers since it was started for longer rows.
        """
        if not sequences:
            return {layer: np.empty((0, self.trial.width), np.float32) for layer in layers}
        forward.require_embedded([one.ids for one in sequences], self.trial.words)
        try:
            engine = vllm_engine.engine(self.key, self.layers, max(len(one.ids) for one in sequences))
            difference = None if engine.proven else self.trial.differs(engine)
            if difference is None:
                return engine.read(sequences, layers, advance)
        except (ModelError, IntegrityError):
            raise
        except Exception as error:  # of a program of many thousand files, which fails in its own ways
            difference = f"it fails with {type(error).__name__}: {str(error).strip()[:200]}"
        vllm_engine.close()
        raise ModelError(f"vLLM does not read {self.key.model}: {difference}", fix="leave out `backend`")


@dataclass(frozen=True, slots=True)
class Trial:
    """A few rows as transformers reads them, block by block.

    Attributes:
        rows: The rows.
        states: For each layer that vLLM is to read, and those beside it, float32 `(reads, hidden_size)`.
        layers: Those that vLLM is to read.
        allowed: By how much the two may differ, as a share of a state's length.
        words: Number of tokens that the model has an embedding for.
        width: Of a state.
    """

    rows: tuple[TokenSequence, ...]
    states: Mapping[Layer, np.ndarray]
    layers: tuple[int, ...]
    allowed: float
    words: int
    width: int

    @classmethod
    def of(cls, key: ModelKey, layers: Sequence[int], device: torch.device) -> Trial:
        """Have transformers read the rows.

        Raises:
            ModelError: The model cannot be read block by block.
        """
        blocks = load.model_config(key).get_text_config().num_hidden_layers
        near = sorted({k for layer in layers for k in (layer - 1, layer, layer + 1) if 0 <= k <= blocks})
        own = load.streamed(key, load.depth_for(blocks, tuple(near)), device)
        words = words_of(own.model)
        rows = _trial_rows(min(own.model.config.vocab_size, words), load.max_tokens(key))
        states = forward.read_layers(own, rows, near)
        return cls(tuple(rows), states, tuple(layers), largest_difference(own.model), words, own.hidden_size)

    def differs(self, engine: VllmEngine) -> str | None:
        """How an engine reads otherwise; None, and it is proven, if it does not.

        In 16 bits a layer may be as near to the next one as rounding is: then it must be nearest to the right one.
        """
        first, second = (engine.read(part, self.layers) for part in (self.rows[:-1], self.rows[-1:]))
        for layer in self.layers:  # the last row finds its beginning in the engine's cache
            found = np.concatenate([first[layer], second[layer]])
            worst = _apart(found, self.states[layer])
            if not worst <= self.allowed:  # NaN as well
                return f"at layer {layer} the two differ by {worst:.1e} of a state's length"
            beside = [_apart(found, self.states[k]) for k in (layer - 1, layer + 1) if k in self.states]
            if min(beside) <= worst:
                return f"what it calls layer {layer} is nearer to one beside it"
        engine.proven = True
        return None


def _apart(found: np.ndarray, expected: np.ndarray) -> float:
    return float((np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


_tried: dict[tuple[ModelKey, tuple[Layer, ...], str], VllmReader | str] = {}


def reader(key: ModelKey, layers: Sequence[Layer], depth: int, options: ReadingOptions, rank: int | None) -> Reader:
    """What reads `layers` of a model with these options.

    Args:
        key: The pinned model.
        layers: Layers that will be read.
        depth: Number of blocks that those need which are read now.
        options: How the model is loaded and who reads it.
        rank: Number of this worker process, if it is one of several.

    Raises:
        IntegrityError: A local folder has changed since the key was made.
        ModelError: The model cannot be read.
    """
    device = load.pick_device(options.device, rank)
    if options.backend == "vllm":
        unfit = _unfit(key, tuple(layers), device, rank)
        found = unfit if unfit is not None else _tried_reader(key, tuple(layers), device)
        if isinstance(found, VllmReader):
            return found
        _say(key.model, found)
    # masks of flex attention know their device, and are not moved
    beside = () if options.attn == "flex_attention" else load.spare_gpus(options.device, rank)
    trunk = load.trunk(key, depth, device, attn=options.attn, stream_blocks=options.stream_blocks, beside=beside)
    return OwnReader(trunk)


@lru_cache(maxsize=32)
def _say(model: str, reason: str) -> None:
    logger.warning("%s is read by transformers, not by vLLM: %s", model, reason)


def _unfit(key: ModelKey, layers: tuple[Layer, ...], device: torch.device, rank: int | None) -> str | None:
    """Why vLLM is not even tried."""
    base, adapter = base_and_adapter(key.model)
    config = load.model_config(key)
    if adapter is not None or gguf_file(base) or getattr(config, "quantization_config", None) is not None:
        return "its weights are no plain safetensors"
    if config.get_text_config() is not config:
        return "its text model is part of another"
    if "norm" in layers:
        return "it does not hand out states after the final norm"
    if rank is not None:
        return "several processes would each want a GPU's memory for an engine of their own"
    if device != load.pick_device(None, None):
        return f"it would not read on {device}"
    return None


def _tried_reader(key: ModelKey, layers: tuple[Layer, ...], device: torch.device) -> VllmReader | str:
    """A reader whose first engine reads as transformers does, or why there is none; what was found out is kept."""
    slot = (key, layers, str(device))
    if slot in _tried:
        return _tried[slot]
    for (other, more, where), known in _tried.items():
        if (other, where) == (key, str(device)) and set(more) >= set(layers) and isinstance(known, VllmReader):
            return known
    numbers = tuple(int(layer) for layer in layers)
    try:
        found = VllmReader(key, numbers, Trial.of(key, numbers, device))
    except ModelError as error:  # a model that transformers holds whole, or not at all
        return f"it cannot be compared ({error.fact})"
    load.let_go(device)  # vLLM wants nearly all of it
    try:
        engine = vllm_engine.engine(key, numbers, 1)
        reason = None if engine.proven else found.trial.differs(engine)
    except IntegrityError:
        raise
    except Exception as error:  # for want of memory, perhaps: the next call may try again
        vllm_engine.close()
        return f"it fails with {type(error).__name__}: {str(error).strip()[:200]}"
    except BaseException:
        vllm_engine.close()
        raise
    if reason is not None:
        vllm_engine.close()
    _tried[slot] = found if reason is None else reason
    return _tried[slot]


def _trial_rows(words: int, limit: int | None) -> list[TokenSequence]:
    """Rows of several lengths, one as long as an engine is made for; the last begins as the one before it does."""
    most = vllm_engine.SHORTEST if limit is None else min(vllm_engine.SHORTEST, limit)
    lengths = (most, *TRIED, min(_SHARED, most - 1))
    drawn = np.random.default_rng(0).integers(0, words, sum(lengths) + 1, np.int32)
    ids = np.split(drawn, np.cumsum(lengths))
    ids[-1] = np.concatenate([ids[-2], ids[-1]])
    return [TokenSequence(row, ((0, len(row)), (len(row) - 1, len(row)))) for row in ids]
