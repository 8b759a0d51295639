"""The text model inside a multimodal one: its weights are found by their names, whatever they are kept under.

They stand under ``language_model.model.``, ``model.language_model.``, ``model.text_model.``, ``thinker.model.``, ... No
list is kept of these: the right prefix is the one under which the files have what the text model needs.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_safefilter.errors import ModelError
from hf_safefilter.model.config_rules import no_fetched_code
from hf_safefilter.model.stored_weights import StoredWeight, stored_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from hf_safefilter.model.source import ModelKey


def tower_prefix(key: ModelKey, config: PreTrainedConfig) -> str:
    """What stands before the names of the text model's weights in the files, such as ``model.language_model.``.

    Args:
        key: The whole model.
        config: That of its text model.

    Raises:
        ModelError: There are two text models that fit, or none.
    """
    stored = stored_weights(key)
    needed = {name: tuple(weight.shape) for name, weight in empty_model(config).state_dict().items()}
    best, *others = _by_fit(stored, needed) or [("", (0, 0))]
    if best[1][0] == 0 or (others and others[0][1] == best[1]):
        two = f"under {best[0]!r} and {others[0][0]!r}" if best[1][0] else f"no weight is called {next(iter(needed))}"
        raise ModelError(
            f"the text model of {key.model} is not found among its weights",
            found=two,
            fix="use the text model alone, saved with save_pretrained, or a model with one text model",
        )
    return best[0]


def _by_fit(
    stored: Mapping[str, StoredWeight], needed: Mapping[str, tuple[int, ...]]
) -> list[tuple[str, tuple[int, int]]]:
    """Prefixes, each with how many needed weights it has, and how many of these have the right shape; best first."""
    names: Counter[str] = Counter()
    shapes: Counter[str] = Counter()
    for name, weight in stored.items():
        parts = name.split(".")
        for at in range(len(parts)):
            shape = needed.get(".".join(parts[at:]))
            if shape is not None:
                prefix = "".join(f"{part}." for part in parts[:at])
                names[prefix] += 1
                shapes[prefix] += shape == weight.shape
    fits = {prefix: (count, shapes[prefix]) for prefix, count in names.items()}
    return sorted(fits.items(), key=lambda item: (item[1], item[0]), reverse=True)


def renaming(prefix: str) -> dict[str, str]:
    """The names of a text model's weights as regular expressions, and what they are called in a model of its own.

    That of its head goes beside or around it: ``language_model.model.`` has ``language_model.lm_head.``.
    """
    parts = prefix.split(".")[:-1]
    around = [re.escape("".join(f"{part}." for part in parts[:at])) for at in range(len(parts), -1, -1)]
    return {rf"^{re.escape(prefix)}": "", rf"^(?:{'|'.join(around)})lm_head\.": "lm_head."}


def model_class(config: PreTrainedConfig) -> Any:
    """What builds and loads the model of a configuration without a head: AutoModel, or a class that it does not know.

    The text models of some multimodal ones have no name of their own in transformers: they are found by the type of
    their configuration.

    Raises:
        ModelError: There is no such class.
    """
    from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel

    kind = type(config)
    if kind in MODEL_MAPPING:
        return AutoModel
    module = import_module(kind.__module__.replace(".configuration_", ".modeling_"))
    classes = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, PreTrainedModel)]
    found = [one for one in classes if one.config_class is kind and one.__name__.endswith("TextModel")]
    if len(found) != 1:
        raise ModelError(
            f"transformers has no text model for {kind.__name__}", fix="use a decoder-only or encoder-only model"
        )
    return found[0]


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration without a head and without weights, on torch's device "meta"."""
    import torch

    bare, kind = copy.deepcopy(config), model_class(config)
    bare.__dict__.pop("quantization_config", None)
    with torch.device("meta"), no_fetched_code():
        return (kind.from_config if hasattr(kind, "from_config") else kind._from_config)(bare)
