"""A model whose blocks have no weights in memory, and those of one block at a time from its safetensors files.

transformers builds and loads everything else as always. A block is loaded by the same code of transformers, so names,
number formats and merged experts come out as in a model that is loaded whole.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hf_safefilter.errors import ModelError
from hf_safefilter.model.blocks import Stack, find_blocks
from hf_safefilter.model.freed_memory import return_freed_memory
from hf_safefilter.model.linears import prepack_if_faster
from hf_safefilter.model.loaded_weights import require_all
from hf_safefilter.model.source import ModelKey, location

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_ALONE = "HF_DEACTIVATE_ASYNC_LOAD"
_patched = threading.RLock()  # two loads at a time would take each other's changes for the original


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The weights that a model was loaded without.

    Attributes:
        key: The pinned model.
        model: It.
        stack: Its blocks, whose parameters are on torch's "meta" device, where tensors have no memory.
        places: For each block, the file of each of its weights by their name in the file.
        config: How transformers turns them into parameters.
    """

    key: ModelKey
    model: PreTrainedModel
    stack: Stack
    places: tuple[dict[str, Path], ...]
    config: Any

    @property
    def block_bytes(self) -> int:
        """Memory of the largest block."""
        sizes = [sum(weight.nbytes for weight in block.parameters()) for block in self.stack.blocks]
        return max(sizes, default=0)

    @contextmanager
    def loaded(self, numbers: Sequence[int], device: torch.device) -> Iterator[None]:
        """Inside the block, these blocks have their weights, on `device`.

        Raises:
            ModelError: The files lack some of them.
            IntegrityError: The files of a local folder are others by now.
        """
        with ExitStack() as stack:
            for number in numbers:
                stack.enter_context(self._loaded(number, device))
            location(self.key)
            self._expect(max(numbers) + 1)
            yield

    @contextmanager
    def _loaded(self, number: int, device: torch.device) -> Iterator[None]:
        block = self.stack.blocks[number]
        linears = [
            (module, name, child)
            for module in block.modules()
            for name, child in module.named_children()
            if type(child) is nn.Linear
        ]
        try:
            self.load(number, device)
            if prepack_if_faster(block):
                for _, _, child in linears:  # its weight lives on in the new layout
                    _forget(child)
            yield
        finally:
            for module, name, child in linears:
                setattr(module, name, child)
            _forget(block)
            return_freed_memory()

    def load(self, number: int, device: torch.device) -> None:
        """Give a block its weights, on `device`.

        Raises:
            ModelError: The files lack some of them.
        """
        from transformers.core_model_loading import convert_and_load_state_dict_in_model

        config = replace(self.config, device_map={"": device})
        with _opened(self.places[number]) as slices, torch.no_grad(), _quietly(alone=device.type == "cpu"):
            info, _ = convert_and_load_state_dict_in_model(self.model, slices, config)
        block = self.stack.blocks[number]
        missing = [name for name, weight in block.named_parameters() if weight.device.type == "meta"]
        if missing or info.conversion_errors:
            raise ModelError(
                f"{self.key.model} lacks weights of block {number}",
                found=f"no {missing[0]} in its files" if missing else str([*info.conversion_errors])[:200],
                fix="download the model again: its files are incomplete or of another architecture",
            )
        report = {"missing_keys": (), "unexpected_keys": info.unexpected_keys}
        require_all(self.key.model, self.model, report, {}, "")
        for module in block.modules():
            for key, weight in module._parameters.items():
                if weight is not None and weight.device.type == "cpu":  # mapped from a file that may be replaced
                    module._parameters[key] = nn.Parameter(weight.detach().clone(), requires_grad=False)
        block.to(device).eval()  # its buffers

    def _expect(self, number: int) -> None:
        """Tell the system that the files of a block are needed soon, so that it reads them ahead."""
        if number >= len(self.places) or not hasattr(os, "posix_fadvise"):
            return
        for file in set(self.places[number].values()):
            wanted = [key for key, place in self.places[number].items() if place == file]
            first, last = _range(file, wanted)
            handle = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(handle, first, last - first, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(handle)


@contextmanager
def blocks_left_out(key: ModelKey) -> Iterator[list[LeftOut]]:
    """A model that is loaded inside the block is loaded without the weights of its blocks; they are in the list.

    Raises:
        ModelError: Its weights are quantised, not in safetensors files, or shared between blocks.
    """
    from transformers import PreTrainedModel

    original = PreTrainedModel._load_pretrained_model
    found: list[LeftOut] = []
    here = threading.get_ident()

    def load(model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, expected_keys: Any = None) -> Any:
        if threading.get_ident() != here:  # another thread loads a model of its own
            return original(model, state_dict, checkpoint_files, load_config, expected_keys)
        if state_dict is not None or not checkpoint_files or load_config.hf_quantizer is not None:
            raise ModelError(
                f"{key.model} cannot be read block by block: its weights are quantised, or in no safetensors file",
                fix="use the model's plain safetensors, or a machine that holds it",
            )
        _require_apart(key.model, model)
        places, others = _places(model, find_blocks(model), [Path(file) for file in checkpoint_files], load_config)
        left_out = LeftOut(key, model, find_blocks(model), places, load_config)
        with _opened(others) as slices:
            info, index = original(model, slices, checkpoint_files, load_config, expected_keys)
        inside = f"{left_out.stack.name}."
        info.missing_keys -= {key for key in info.missing_keys if key.startswith(inside)}
        found.append(left_out)
        return info, index

    with _patched:
        PreTrainedModel._load_pretrained_model = staticmethod(load)  # type: ignore[method-assign]
        try:
            yield found
        finally:
            PreTrainedModel._load_pretrained_model = staticmethod(original)  # type: ignore[method-assign]


def _require_apart(name: str, model: PreTrainedModel) -> None:
    """Raise if a block needs what another one holds: its weights, or its keys and values.

    Raises:
        ModelError: It does.
    """
    stack = find_blocks(model)
    tied = [*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()]
    shared = [path for path in tied if str(path).startswith(f"{stack.name}.")]
    owners: dict[int, nn.Module] = {}
    for block in stack.blocks:
        for module in block.modules():
            if getattr(module, "is_kv_shared_layer", False) is True:
                shared.append(type(module).__name__)
        for path, weight in block.named_parameters():
            if owners.setdefault(id(weight), block) is not block:
                shared.append(path)
    if shared:
        raise ModelError(
            f"{name} cannot be read block by block: its blocks share weights, or keys and values",
            found=str(shared[0]),
            fix="use a machine that holds the model",
        )


def _places(
    model: PreTrainedModel, stack: Stack, files: Sequence[Path], config: Any
) -> tuple[tuple[dict[str, Path], ...], dict[str, Path]]:
    """The file of each weight by its name there: those of each block, and all others."""
    from safetensors import safe_open
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = config.weight_mapping or []
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    parameters = model.state_dict()
    of_blocks: tuple[dict[str, Path], ...] = tuple({} for _ in stack.blocks)
    others: dict[str, Path] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            keys = list(opened.keys())
        for key in keys:
            name, _ = rename_source_key(key, renamings, converters, model.base_model_prefix, parameters)
            if name not in parameters and key in parameters:
                name = key
            number = name.removeprefix(f"{stack.name}.").partition(".")[0]
            inside = name.startswith(f"{stack.name}.") and number.isdecimal() and int(number) < len(of_blocks)
            (of_blocks[int(number)] if inside else others)[key] = file
    return of_blocks, others


@contextmanager
def _opened(places: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """Slices of the weights, which are read when they are used."""
    from safetensors import safe_open

    with ExitStack() as stack:
        files = {file: stack.enter_context(safe_open(file, framework="pt")) for file in sorted(set(places.values()))}
        yield {key: files[file].get_slice(key) for key, file in places.items()}


def _range(file: Path, keys: Sequence[str]) -> tuple[int, int]:
    """The bytes of a safetensors file that hold these weights, from the first to one past the last."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    offsets = [header[key]["data_offsets"] for key in keys]
    return 8 + length + min(first for first, _ in offsets), 8 + length + max(last for _, last in offsets)


def _forget(block: nn.Module) -> None:
    """Give back the memory of parameters."""
    for module in block.modules():
        for key, weight in module._parameters.items():
            if weight is not None and weight.device.type != "meta":
                module._parameters[key] = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)


@contextmanager
def _quietly(alone: bool) -> Iterator[None]:
    """transformers draws a progress bar for each block; `alone` keeps it from loading in threads of its own.

    What such threads have freed stays with them, and so a block would take the memory of several.
    """
    from transformers.utils import logging as their_logging

    with _patched:
        shown, before = their_logging.is_progress_bar_enabled(), os.environ.get(_ALONE)
        their_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        if alone:
            os.environ[_ALONE] = "1"
        try:
            yield
        finally:
            if alone and before is None:
                os.environ.pop(_ALONE, None)
            elif before is not None:
                os.environ[_ALONE] = before
            if shown:
                their_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
