"""Who computes the states that are read: our own passes through a model of transformers, or vLLM if it reads alike."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
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
    """A model in vLLM, whose engine starts with the first rows."""

    key: ModelKey
    whole_calls = True

    def read(
        self, sequences: Sequence[TokenSequence], layers: Sequence[Layer], advance: Callable[[float], None] | None
    ) -> dict[Layer, np.ndarray]:
        """See `Reader`."""
        longest = max((len(one.ids) for one in sequences), default=1)
        engine = vllm_engine.engine(self.key, [int(layer) for layer in layers], longest)
        return engine.read(sequences, layers, advance)


def reader(key: ModelKey, layers: Sequence[Layer], depth: int, options: ReadingOptions, rank: int | None) -> Reader:
    """What reads `layers` of a model with these options.

    Args:
        key: The pinned model.
        layers: Layers that will be read.
        depth: Number of blocks that they need.
        options: How the model is loaded and who reads it.
        rank: Number of this worker process, if it is one of several.
    """
    device = load.pick_device(options.device, rank)
    if options.backend == "vllm":
        reason = _unfit(key, tuple(layers), depth, device, rank)
        if reason is None:
            return VllmReader(key)
        _say(key.model, reason)
    beside = load.spare_gpus(options.device, rank)
    trunk = load.trunk(key, depth, device, attn=options.attn, stream_blocks=options.stream_blocks, beside=beside)
    return OwnReader(trunk)


@lru_cache(maxsize=32)
def _say(model: str, reason: str) -> None:
    logger.warning("%s is read by transformers, not by vLLM: %s", model, reason)


@lru_cache(maxsize=32)
def _unfit(key: ModelKey, layers: tuple[Layer, ...], depth: int, device: torch.device, rank: int | None) -> str | None:
    """Why vLLM does not read these layers as transformers does; None if it does. Tried once a process."""
    base, adapter = base_and_adapter(key.model)
    config = load.model_config(key)
    if adapter is not None or gguf_file(base) or getattr(config, "quantization_config", None) is not None:
        return "its weights are no plain safetensors"
    if config.get_text_config() is not config:
        return "its text model is part of another"
    if "norm" in layers:
        return "it does not hand out states after the final norm"
    if rank is not None and torch.cuda.device_count() > 1:
        return "one of several processes would take the GPU of another"
    if vllm_engine.serves(key, [int(layer) for layer in layers]):
        return None
    try:
        return _differs(key, layers, depth, device)
    except (IntegrityError, ModelError):
        raise
    except Exception as error:  # of a program of many thousand files, which fails in its own ways
        vllm_engine.close()
        return f"it fails with {type(error).__name__}: {str(error).strip()[:200]}"


def _differs(key: ModelKey, layers: tuple[Layer, ...], depth: int, device: torch.device) -> str | None:
    """Both read a few rows: first transformers, block by block, since vLLM takes the device's memory."""
    own = load.streamed(key, depth, device)
    rows = _trial(min(own.model.config.vocab_size, words_of(own.model)), load.max_tokens(key))
    wanted, allowed = forward.read_layers(own, rows, layers), largest_difference(own.model)
    del own
    vllm = VllmReader(key)
    first, second = (vllm.read(part, layers, None) for part in (rows[:-1], rows[-1:]))  # the last finds its beginning
    for layer in layers:
        found, expected = np.concatenate([first[layer], second[layer]]), wanted[layer]
        apart = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        if not (worst := float(apart.max())) <= allowed:  # NaN as well
            vllm_engine.close()
            return f"at layer {layer} the two differ by {worst:.1e} of a state's length"
    return None


def _trial(words: int, limit: int | None) -> list[TokenSequence]:
    """Rows of several lengths, of which the last begins as the one before it does."""
    shared = min(_SHARED, (limit or _SHARED) - 1)
    lengths = (*TRIED, shared)
    drawn = np.random.default_rng(0).integers(0, words, sum(lengths) + 1, np.int32)
    ids = np.split(drawn, np.cumsum(lengths))
    ids[-1] = np.concatenate([ids[-2], ids[-1]])
    return [TokenSequence(row, ((0, len(row)), (len(row) - 1, len(row)))) for row in ids]
