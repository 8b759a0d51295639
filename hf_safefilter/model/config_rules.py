"""What a model's configuration may decide: sizes within reason, and never which code runs.

A configuration is data from a stranger. It may name an implementation of attention or of experts that transformers
would fetch from the Hub and run, a format of weights that does so, or sizes that no machine can hold.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hf_safefilter.checks import is_whole
from hf_safefilter.errors import ModelError
from hf_safefilter.model.quantised import carry_to_text, keep_code_out

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_MOST = {
    "num_hidden_layers": 1000,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "vocab_size": 1 << 25,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 16,
    "max_position_embeddings": 1 << 30,
    "num_local_experts": 1 << 14,
    "num_experts": 1 << 14,
    "n_routed_experts": 1 << 14,
}
"""The largest value of a size that is taken for meant; known models stay far below."""

_MAY_BE_ZERO = ("num_local_experts", "num_experts", "n_routed_experts")


def ruled(config: PreTrainedConfig, name: str) -> PreTrainedConfig:
    """`config` itself, in which nothing is left that chooses code, and each part says how its weights are stored.

    Args:
        config: As transformers has read it; changed in place.
        name: The model, for messages.

    Raises:
        ModelError: A size is no whole number within reason, or the weights are in a format that needs code from the
            Hub.
    """
    carry_to_text(config)
    for part in _with_parts(config):
        part._attn_implementation_internal = part._experts_implementation_internal = None
        for attribute in ("auto_map", "transformers_weights"):
            part.__dict__.pop(attribute, None)
        keep_code_out(part, name)
    text = config.get_text_config()
    _require_sizes(text, name)
    if not is_whole(getattr(text, "num_hidden_layers", None)):
        raise ModelError(f"{name} states no number of blocks", found="no num_hidden_layers", fix=_CHECK)
    return config


_CHECK = "download the model again, or correct its config.json"


def _with_parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """The configuration and those inside it: of the text, of images."""
    from transformers import PreTrainedConfig

    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from _with_parts(value)


def _require_sizes(config: PreTrainedConfig, name: str) -> None:
    for attribute, most in _MOST.items():
        try:
            value = getattr(config, attribute, None)
        except RuntimeError:  # some architectures have one for each kind of block, and no one for all
            continue
        values = value if isinstance(value, (list, tuple)) else [value]  # some architectures differ by block
        least = 0 if attribute in _MAY_BE_ZERO else 1
        for number in values:
            if number is not None and (not is_whole(number) or not least <= number <= most):
                raise ModelError(
                    f"{name} has a size that makes no sense",
                    found=f"{attribute} is {str(number)[:40]}, not a whole number from {least} to {most}",
                    fix=_CHECK,
                )


def cut_to(config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
    """A copy of `config` with `depth` blocks; lists with one entry per block, such as `layer_types`, are cut too."""
    n_blocks = config.num_hidden_layers
    cut = copy.deepcopy(config)
    cut.use_cache = False
    if getattr(cut, "pad_token_id", None) is not None and not 0 <= cut.pad_token_id < cut.vocab_size:
        cut.pad_token_id = None  # some files name a token that has no embedding, which torch refuses
    if depth >= n_blocks:
        return cut
    for name, value in vars(config).items():
        if "layer" in name and isinstance(value, (list, tuple)) and len(value) == n_blocks:
            setattr(cut, name, value[:depth])
    cut.num_hidden_layers = depth
    return cut


_patched = threading.RLock()  # two loads at a time would take each other's changes for the original


@contextmanager
def no_fetched_code() -> Iterator[None]:
    """While a model is built, the package kernels fetches nothing, whatever the architecture asks for."""
    from transformers.integrations import hub_kernels

    def refuse(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("code from the Hub is not run for a model")  # after which transformers uses its own

    with _patched:
        yield from _without_kernels(hub_kernels, refuse)


def _without_kernels(hub_kernels: Any, refuse: Any) -> Iterator[None]:
    names = ("get_kernel_hub", "_kernels_enabled")
    before = {name: getattr(hub_kernels, name) for name in names if hasattr(hub_kernels, name)}
    for name in before:
        setattr(hub_kernels, name, refuse if name == "get_kernel_hub" else False)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(hub_kernels, name, value)
