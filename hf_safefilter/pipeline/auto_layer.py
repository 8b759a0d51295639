"""``layer: auto``: which method finds the layer of a recipe, and the search where references do not decide."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_safefilter.storage.artifacts import store_root

if TYPE_CHECKING:
    from hf_safefilter.locate.safety_layers import SafetyLayers
    from hf_safefilter.locate.search import Method
    from hf_safefilter.recipe import Recipe

logger = logging.getLogger(__name__)

LayerMethod = Literal["references", "gap", "scaling", "bounds"]

AFFORDABLE = {"cpu": 2e14, "mps": 2e15, "cuda": 3e17}
"""Floating-point operations of a scaling search that take about ten minutes, by kind of device."""

_PROMPT_TOKENS = 32  # length of an over-refusal prompt in its template, about


def layer_method_of(recipe: Recipe, compares: bool) -> LayerMethod:
    """The method that the recipe names; for "auto", the cheapest one that gives enough information.

    If a method of the recipe compares with references, these find the layer best, because the score itself is tried
    out. Otherwise, it is LARF's scaling search if its generations are affordable on this device, else the angular gap.

    Args:
        recipe: A recipe with ``layer: auto``.
        compares: Whether any of its methods compares with references.
    """
    if recipe.locate.method != "auto":
        return recipe.locate.method
    if compares:
        return "references"
    cost, limit = scaling_cost(recipe)
    method: LayerMethod = "scaling" if cost <= limit else "gap"
    logger.warning(
        "layer: auto: a scaling search needs about %.1e floating-point operations (affordable here: %.0e), so %s",
        cost, limit, "LARF's scaling search is used" if method == "scaling" else "the angular gap is used instead",
    )  # fmt: skip
    return method


def scaling_cost(recipe: Recipe) -> tuple[float, float]:
    """Operations of a scaling search (2 for each parameter and token, over half the blocks), and the limit here."""
    from hf_safefilter.locate.scaling import ScalingOptions
    from hf_safefilter.locate.search_prompts import prompts_of_kind
    from hf_safefilter.locate.subject import without_weights
    from hf_safefilter.model.load import pick_device

    model = without_weights(recipe.model.model, recipe.model.revision)
    options = ScalingOptions()
    prompts = _prompts(recipe).get("over_refusal") or prompts_of_kind(None, "over_refusal").texts
    cells = model.config.get_text_config().num_hidden_layers * len(options.scales)
    tokens = cells * len(prompts) * (_PROMPT_TOKENS + options.max_new_tokens)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    return parameters * tokens, AFFORDABLE.get(pick_device(recipe.model.device, None).type, AFFORDABLE["cpu"])


def search_layers(recipe: Recipe, method: Method) -> SafetyLayers:
    """The safety layers of the recipe's model; a search that was killed is resumed.

    Raises:
        DataError: The search gave no signal, and no layer is picked from noise.
    """
    from hf_safefilter.locate.search import locate_safety_layers

    model, prompts = recipe.model, _prompts(recipe)
    return locate_safety_layers(
        model.model,
        prompts,
        method,
        folder=_search_folder(recipe, method, prompts),
        refusals=recipe.locate.refusals,
        revision=model.revision,
        dtype=model.dtype,
        device=model.device,
        chat_template=model.chat_template,
    ).require()


def _search_folder(recipe: Recipe, method: Method, prompts: dict[str, list[str]]) -> Path:
    """The folder of the progress and the result of a search with exactly these options and prompts."""
    from hf_safefilter import __version__
    from hf_safefilter.model.load import pick_device, resolve_revision

    model = recipe.model
    revision = resolve_revision(model.model, model.revision)
    options: list[Any] = [method, model.model, revision, model.dtype, model.chat_template]
    options += [pick_device(model.device, None).type, recipe.locate.refusals, prompts, __version__]
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()
    return store_root() / "searches" / digest[:32]


def _prompts(recipe: Recipe) -> dict[str, list[str]]:
    from hf_safefilter.data.prompts import prompts_at

    files = {kind: getattr(recipe.locate, kind) for kind in ("normal", "malicious", "over_refusal")}
    return {kind: list(prompts_at(file)) for kind, file in files.items() if file is not None}
