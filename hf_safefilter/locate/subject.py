"""The model that is searched: named and loaded as needed, or handed over by the caller."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_safefilter.errors import OptionError
from hf_safefilter.model.tokens import Tokens, template_digest, tokenise_prompts

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_safefilter.model.load import ModelKey, Trunk


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and its tokenizer.

    Attributes:
        tokenizer: of the model.
        chat_template: for a model that has none.
        device: where it computes.
        key: where to load it from; None for one that was handed over.
        held: the model handed over.
    """

    tokenizer: PreTrainedTokenizerBase
    chat_template: str | None
    device: torch.device
    key: ModelKey | None = None
    held: PreTrainedModel | None = None

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
        """The subject that `model` names, or is.

        Raises:
            OptionError: a loaded model without its tokenizer, or with options for loading one.
        """
        from hf_safefilter.model.load import ModelKey, model_config, pick_device, pick_dtype, resolve_revision
        from hf_safefilter.model.load import tokenizer as load_tokenizer

        if not isinstance(model, str):
            if tokenizer is None or revision is not None or device is not None or dtype != "auto":
                raise OptionError(
                    "a loaded model comes with tokenizer= and without revision=, dtype= or device=",
                    fix="pass tokenizer=AutoTokenizer.from_pretrained(...), or the model's name",
                )
            return cls(tokenizer, chat_template, model.device, held=model)
        place = pick_device(device, None)
        commit = resolve_revision(model, revision)
        stored = model_config(ModelKey(model, commit, "float32")).get_text_config().dtype
        key = ModelKey(model, commit, pick_dtype(dtype, place, stored))
        return cls(load_tokenizer(key), chat_template, place, key)

    def causal(self) -> PreTrainedModel:
        """The whole model, with its language-model head."""
        from hf_safefilter.model.load import causal_lm

        return self.held if self.held is not None else causal_lm(self.key, self.device)

    def n_blocks(self) -> int:
        """L."""
        from hf_safefilter.model.load import model_config

        config = self.held.config if self.held is not None else model_config(self.key)
        return config.get_text_config().num_hidden_layers

    def prompt_states(self, prompts: tuple[str, ...]) -> np.ndarray:
        """States after every block at the last token of each prompt, float32 `(n, L, d)`, in one pass over each."""
        from hf_safefilter.model.forward import read_layers

        ids = tokenise_prompts(self.tokenizer, prompts, chat_template=self.chat_template)
        rows = [Tokens(one, len(one) - 1, len(one)) for one in ids]
        layers = list(range(1, self.n_blocks() + 1))
        read = read_layers(self._trunk(), rows, layers)
        return np.stack([read[layer] for layer in layers], axis=1)

    def _trunk(self) -> Trunk:
        from hf_safefilter.model.blocks import find_blocks
        from hf_safefilter.model.load import Trunk, trunk

        n_blocks = self.n_blocks()
        if self.held is None:
            return trunk(self.key, n_blocks, self.device)
        base = self.held.base_model
        width = self.held.config.get_text_config().hidden_size
        return Trunk(base, find_blocks(base), n_blocks, n_blocks, width, self.device)

    def record(self) -> dict[str, Any]:
        """Which model this is."""
        if self.key is None:
            config = self.held.config
            said = {"model": config.name_or_path or type(self.held).__name__, "revision": None}
            said["dtype"] = str(self.held.dtype).removeprefix("torch.")
        else:
            said = {"model": self.key.model, "revision": self.key.revision, "dtype": self.key.dtype}
        digest = template_digest(self.tokenizer, self.chat_template)
        return said | {"blocks": self.n_blocks(), "chat_template_digest": digest}


def without_weights(name: str, revision: str | None = None) -> PreTrainedModel:
    """A causal language model built from its configuration alone, on the meta device: for counting, not computing."""
    import torch
    from transformers import AutoModelForCausalLM

    from hf_safefilter.model.load import ModelKey, model_config, resolve_revision

    config = model_config(ModelKey(name, resolve_revision(name, revision), "float32"))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, kinds and bytes of tensors."""
    import torch

    total = hashlib.sha256()
    for name in sorted(tensors):
        plain = tensors[name].detach().contiguous().cpu()
        total.update(f"{name}\0{plain.dtype}\0{tuple(plain.shape)}\0".encode())
        total.update(plain.flatten().view(torch.uint8).numpy())
    return total.hexdigest()
