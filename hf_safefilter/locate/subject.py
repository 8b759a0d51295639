"""The model that is searched: loaded by its name as needed, or passed in by the caller."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hf_safefilter.errors import OptionError
from hf_safefilter.model.chat_template import template_digest
from hf_safefilter.model.source import ModelKey
from hf_safefilter.model.tokens import tokenise_prompts
from hf_safefilter.model.windows import TokenSequence

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_safefilter.model.load import Trunk


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and its tokenizer.

    Attributes:
        model: Key to load the model by, or the caller's loaded model.
        tokenizer: Tokenizer of the model.
        chat_template: Template for a model that has none.
        device: Device on which the model computes.
    """

    model: ModelKey | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    device: torch.device

    @classmethod
    def of(
        cls,
        model: str | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        chat_template: str | None = None,
    ) -> Subject:
        """The subject for a model's name, or for a loaded model with its tokenizer.

        Raises:
            OptionError: A loaded model without its tokenizer, or with options for loading one.
        """
        from hf_safefilter.model.load import model_config, pick_device, pick_dtype, resolve_revision
        from hf_safefilter.model.load import tokenizer as load_tokenizer

        if not isinstance(model, str):
            if tokenizer is None or revision is not None or device is not None or dtype != "auto":
                raise OptionError(
                    "a loaded model needs `tokenizer=...` and takes no `revision=...`, `dtype=...` or `device=...`",
                    fix="pass `tokenizer=AutoTokenizer.from_pretrained(...)`, or the model's name",
                )
            return cls(model, tokenizer, chat_template, model.device)
        torch_device = pick_device(device, None)
        commit = resolve_revision(model, revision)
        config = model_config(ModelKey(model, commit, "float32")).get_text_config()
        stored = cast("torch.dtype | None", config.dtype)  # a loaded configuration holds a dtype, not its name
        key = ModelKey(model, commit, pick_dtype(dtype, torch_device, stored))
        return cls(key, load_tokenizer(key), chat_template, torch_device)

    @property
    def config(self) -> PreTrainedConfig:
        """Configuration of the model."""
        from hf_safefilter.model.load import model_config

        return model_config(self.model) if isinstance(self.model, ModelKey) else self.model.config

    def causal(self) -> PreTrainedModel:
        """The whole model, with its language-model head."""
        from hf_safefilter.model.load import causal_lm

        return causal_lm(self.model, self.device) if isinstance(self.model, ModelKey) else self.model

    def n_blocks(self) -> int:
        """Number of blocks of the model, L."""
        return cast(int, self.config.get_text_config().num_hidden_layers)  # every text model's own class has it

    def prompt_states(self, prompts: tuple[str, ...]) -> np.ndarray:
        """States after every block at the last token of each prompt, float32 `(n, L, d)`, in one pass over each."""
        from hf_safefilter.model.forward import read_layers

        ids = tokenise_prompts(self.tokenizer, prompts, chat_template=self.chat_template)
        rows = [TokenSequence(row_ids, ((len(row_ids) - 1, len(row_ids)),)) for row_ids in ids]
        layers = list(range(1, self.n_blocks() + 1))
        states = read_layers(self._trunk(), rows, layers)
        return np.stack([states[layer] for layer in layers], axis=1)

    def _trunk(self) -> Trunk:
        from hf_safefilter.model.blocks import find_blocks
        from hf_safefilter.model.load import Trunk, trunk

        n_blocks = self.n_blocks()
        if isinstance(self.model, ModelKey):
            return trunk(self.model, n_blocks, self.device)
        base = cast("PreTrainedModel", self.model.base_model)  # declared as any module
        width = self.config.get_text_config().hidden_size
        return Trunk(base, find_blocks(base), n_blocks, n_blocks, width, self.device)

    def record(self) -> dict[str, Any]:
        """Plain values that identify the model."""
        record: dict[str, Any]
        if isinstance(self.model, ModelKey):
            record = {"model": self.model.model, "revision": self.model.revision, "dtype": self.model.dtype}
        else:
            record = {"model": self.config.name_or_path or type(self.model).__name__, "revision": None}
            record["dtype"] = str(self.model.dtype).removeprefix("torch.")
        digest = template_digest(self.tokenizer, self.chat_template)
        return record | {"blocks": self.n_blocks(), "chat_template_digest": digest}


def without_weights(name: str, revision: str | None = None) -> PreTrainedModel:
    """A causal language model built from its configuration alone, on the meta device, to count its parameters."""
    import torch
    from transformers import AutoModelForCausalLM

    from hf_safefilter.model.load import model_config, resolve_revision

    config = model_config(ModelKey(name, resolve_revision(name, revision), "float32"))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # transformers has no types here


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in hexadecimal digits."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        plain = tensors[name].detach().contiguous().cpu()
        digest.update(f"{name}\0{plain.dtype}\0{tuple(plain.shape)}\0".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
