"""``layer: auto``: which way of finding a layer suits a recipe, and the search where references do not decide."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hf_safefilter.data.load_rows import load_rows
from hf_safefilter.storage.artifacts import store_root

if TYPE_CHECKING:
    from hf_safefilter.locate.safety_layers import SafetyLayers
    from hf_safefilter.recipe import Recipe

logger = logging.getLogger(__name__)

Way = Literal["references", "gap", "scaling", "bounds"]

AFFORDABLE = {"cpu": 2e14, "mps": 2e15, "cuda": 3e17}
"""Floating-point operations of a scaling search that take some ten minutes, by kind of device."""

_PROMPT_TOKENS = 32  # of an over-refusal prompt in its template, about


def way_of(recipe: Recipe, compares: bool) -> Way:
    """The way that the recipe names; for "auto" the cheapest that says enough.

    References tell the layer best, where the methods compare with some anyway: what is scored is what is tried out.
    Without them, LARF's scaling search where its generations are affordable on this device, else the angular gap.

    Args:
        recipe: with ``layer: auto``.
        compares: whether any of its methods compares with references.
    """
    if recipe.locate.method != "auto":
        return recipe.locate.method
    if compares:
        return "references"
    cost, most = scaling_cost(recipe)
    way: Way = "scaling" if cost <= most else "gap"
    logger.warning(
        "layer: auto: a scaling search would take about %.1e floating-point operations (affordable here: %.0e), so %s",
        cost, most, "LARF's scaling search is made" if way == "scaling" else "the angular gap is read instead",
    )  # fmt: skip
    return way


def scaling_cost(recipe: Recipe) -> tuple[float, float]:
    """Operations of a scaling search (2 a parameter and token, half the blocks), and what this device affords."""
    from hf_safefilter.locate.scaling import ScalingOptions
    from hf_safefilter.locate.search_prompts import prompts_of
    from hf_safefilter.locate.subject import without_weights
    from hf_safefilter.model.load import pick_device

    model = without_weights(recipe.model.model, recipe.model.revision)
    options = ScalingOptions()
    asked = _prompts(recipe).get("over_refusal") or prompts_of(None, "over_refusal", "over_refusal").texts
    cells = model.config.get_text_config().num_hidden_layers * len(options.scales)
    tokens = cells * len(asked) * (_PROMPT_TOKENS + options.max_new_tokens)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    return parameters * tokens, AFFORDABLE.get(pick_device(recipe.model.device, None).type, AFFORDABLE["cpu"])


def searched(recipe: Recipe, way: Way) -> SafetyLayers:
    """The safety layers of the recipe's model; a search that was killed goes on where it was.

    Raises:
        DataError: the search gave no signal: no layer is picked from noise.
    """
    from hf_safefilter.locate.search import locate_safety_layers

    model, prompts = recipe.model, _prompts(recipe)
    return locate_safety_layers(
        model.model,
        prompts,
        way,
        folder=_place(recipe, way, prompts),
        refusals=recipe.locate.refusals,
        revision=model.revision,
        dtype=model.dtype,
        device=model.device,
        chat_template=model.chat_template,
    ).require()


def _place(recipe: Recipe, way: Way, prompts: dict[str, list[str]]) -> Path:
    """Where this very search keeps what it has found."""
    from hf_safefilter import __version__
    from hf_safefilter.model.load import pick_device, resolve_revision

    model = recipe.model
    asked = [way, model.model, resolve_revision(model.model, model.revision), model.dtype, model.chat_template]
    asked += [pick_device(model.device, None).type, recipe.locate.refusals, prompts, __version__]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return store_root() / "searches" / digest[:32]


def _prompts(recipe: Recipe) -> dict[str, list[str]]:
    from hf_safefilter.data.prompts import prompts_in

    files = {kind: getattr(recipe.locate, kind) for kind in ("normal", "malicious", "over_refusal")}
    return {kind: list(prompts_in(load_rows(place).rows)) for kind, place in files.items() if place is not None}
