"""States read by vLLM: its engine runs the whole model, and hands back one mean a read and layer.

Through its hidden-state extraction, a method of speculative decoding that proposes nothing. It numbers layers as we do:
k is the input of block k, and the number of blocks the raw output of the last one.
"""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.errors import ModelError
from hf_safefilter.model.source import ModelKey, location

if TYPE_CHECKING:
    from hf_safefilter.columns import Layer
    from hf_safefilter.model.windows import TokenSequence

STATES = "states"
"""Name of the tensor that a worker writes for a request: float32 `(reads, layers, hidden_size)`."""

AT_ONCE = 256
"""Sequences that are handed to the engine at a time."""

SHORTEST = 4095
"""Tokens that an engine is made for at least; with the one that it generates, no more than many models support."""

_held: list[VllmEngine] = []
_busy = threading.RLock()  # an engine answers one caller at a time: it returns whatever it has finished
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",  # it would report them to its makers
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # the token that it generates comes after the longest row, and is never read
}


@dataclass(slots=True)
class VllmEngine:
    """A model in vLLM.

    Attributes:
        key: The pinned model.
        layers: What it hands back, ascending.
        longest: Tokens of the longest sequence that it takes.
        folder: Where its workers write means, which are deleted as they are read.
        llm: vLLM's own object.
        proven: Whether it was found to read as transformers does.
        process: The process that has started it; a fork of it must leave it alone.
    """

    key: ModelKey
    layers: tuple[int, ...]
    longest: int
    folder: Path
    llm: Any
    proven: bool = False
    process: int = field(default_factory=os.getpid)

    def read(
        self,
        sequences: Sequence[TokenSequence],
        layers: Sequence[Layer],
        advance: Callable[[float], None] | None = None,
    ) -> dict[Layer, np.ndarray]:
        """As `forward.read_layers`: for each layer float32 `(reads, hidden_size)`, in the order of the sequences.

        Whatever stops it ends the engine: what it had begun would come with the answers to the next call.

        Raises:
            ModelError: It has not answered what it was asked.
            Exception: Whatever vLLM raises.
        """
        parts: list[np.ndarray] = []
        with _busy:
            try:
                for start in range(0, len(sequences), AT_ONCE):
                    parts += self._means(sequences[start : start + AT_ONCE])
                    if advance is not None:
                        advance(min(1.0, (start + AT_ONCE) / len(sequences)))
            except BaseException:
                close()
                raise
        together = np.concatenate(parts)
        return {layer: np.ascontiguousarray(together[:, self.layers.index(int(layer))]) for layer in layers}

    def _means(self, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        from vllm import SamplingParams
        from vllm.distributed.kv_transfer.kv_connector.v1 import example_hidden_states_connector as extraction

        prompts = [{"prompt_token_ids": one.ids.tolist()} for one in sequences]
        asked = [
            SamplingParams(
                max_tokens=1,
                temperature=0,
                detokenize=False,
                extra_args={"kv_transfer_params": {"reads": [list(map(int, read)) for read in one.reads]}},
            )
            for one in sequences
        ]
        outputs = self.llm.generate(prompts, asked, use_tqdm=False)
        if [list(output.prompt_token_ids) for output in outputs] != [prompt["prompt_token_ids"] for prompt in prompts]:
            raise _unasked(self.key)
        found = []
        for one, output in zip(sequences, outputs, strict=True):
            path = output.kv_transfer_params["hidden_states_path"]
            means = extraction.load_hidden_states(path)[STATES].numpy()  # waits until it is written
            extraction.cleanup_hidden_states(path)
            if means.shape[:2] != (len(one.reads), len(self.layers)):
                raise _unasked(self.key)
            found.append(means)
        return found

    def close(self) -> None:
        """End its processes and give back the memory of its devices."""
        if self.process == os.getpid():
            self.llm = None
            gc.collect()
            shutil.rmtree(self.folder, ignore_errors=True)


def _unasked(key: ModelKey) -> ModelError:
    return ModelError(f"vLLM has answered something else than what {key.model} was asked", fix="leave out `backend`")


def engine(key: ModelKey, layers: Sequence[int], longest: int) -> VllmEngine:
    """The engine of this process that reads these layers of a model; one is held at a time.

    Args:
        key: The pinned model.
        layers: Layers from 0 to the number of blocks.
        longest: Tokens of the longest sequence.

    Raises:
        IntegrityError: A local folder has changed since the key was made.
        Exception: Whatever vLLM raises of a model that it does not read so.
    """
    with _busy:
        for held in _held:
            if held.key == key and held.longest >= longest and set(held.layers) >= set(layers):
                return held
        close()
        _held.append(_started(key, tuple(sorted(set(layers))), max(SHORTEST, 1 << (longest - 1).bit_length())))
        return _held[0]


def close() -> None:
    """End the engine, which holds most of a GPU's memory: another model is to be loaded, or it was interrupted."""
    with _busy:
        while _held:
            _held.pop().close()


def _forget_after_fork() -> None:
    """The engine is the parent's, who talks to it and ends it."""
    global _busy
    _held.clear()
    _busy = threading.RLock()


atexit.register(close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def _started(key: ModelKey, layers: tuple[int, ...], longest: int) -> VllmEngine:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from vllm import LLM
    from vllm.config import KVTransferConfig

    place = location(key)
    folder = Path(tempfile.mkdtemp(prefix="hf-safefilter-vllm-"))
    wanted = {"hf_config": {"eagle_aux_hidden_state_layer_ids": list(layers)}}
    try:
        llm = LLM(
            model=place["pretrained_model_name_or_path"],
            revision=place["revision"],
            dtype=key.dtype,
            load_format="safetensors",
            trust_remote_code=False,
            skip_tokenizer_init=True,
            max_model_len=longest + 1,  # less, and vLLM would leave out the states of a longest row, and say nothing
            max_num_batched_tokens=2 * (longest + 1),
            enable_chunked_prefill=False,
            enforce_eager=True,  # graphs make generation faster, and prompts alone are read
            seed=0,
            speculative_config={
                "method": "extract_hidden_states", "num_speculative_tokens": 1, "draft_model_config": wanted
            },
            kv_transfer_config=KVTransferConfig(
                kv_connector="MeanStates",
                kv_connector_module_path="hf_safefilter.model.vllm_worker",
                kv_role="kv_producer",
                kv_connector_extra_config={"shared_storage_path": str(folder)},
            ),
        )  # fmt: skip
        location(key)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return VllmEngine(key, layers, longest, folder, llm)
