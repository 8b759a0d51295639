"""Find and remove the rows of a fine-tuning set that would break an aligned model's safety.

embed_layers = EmbedLayers("Qwen/Qwen2.5-0.5B-Instruct", layers=[12])
references   = ReferenceIndex.build(unsafe_rows, safe_rows, embed_layers, license="mit", source="our red team")
ds           = ds.map(embed_layers, batched=True)
ds           = ds.map(LarfScore(references, layer=12), batched=True)
is_safe      = IsSafe("larf_score", threshold=threshold_for(ds, "larf_score", drop_fraction=0.02))
clean        = ds.filter(is_safe, batched=True)
push_filtered(ds, is_safe, "me/alpaca-safe", license="cc-by-4.0", source="tatsu-lab/alpaca")
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AnchorScore": "scores.anchors",
    "BoundsOptions": "locate.bounds",
    "DirectionScore": "scores.direction",
    "EffectReport": "effect",
    "EmbedLayers": "embed",
    "FrozenBlocks": "freeze",
    "GapOptions": "locate.gap",
    "GradientAnchor": "scores.gradient",
    "GradientScore": "scores.gradient",
    "GuardScore": "scores.guard",
    "IsSafe": "select",
    "LarfScore": "scores.larf",
    "LengthScore": "scores.controls",
    "NearestScore": "scores.nearest",
    "Provenance": "publish.provenance",
    "Purified": "pipeline",
    "Questions": "effect",
    "RandomScore": "scores.controls",
    "RankAverage": "scores.rank_average",
    "RayEngine": "engine.ray",
    "Recipe": "recipe",
    "ReferenceIndex": "references",
    "RefusalMatcher": "locate.refusals",
    "SafefilterError": "errors",
    "SafetyLayers": "locate.found",
    "SaftScore": "scores.saft",
    "ScalingOptions": "locate.scaling",
    "SealOptions": "scores.seal",
    "SealScore": "scores.seal",
    "SealSelector": "scores.seal",
    "Tuning": "effect",
    "choose_layer": "choose",
    "compare_methods": "compare",
    "evaluate": "evaluation",
    "fit_gradient": "scores.gradient",
    "fit_rank_average": "scores.rank_average",
    "fit_saft": "scores.saft",
    "fit_seal": "scores.seal",
    "freeze_safety_blocks": "freeze",
    "load_rows": "inputs",
    "locate_safety_layers": "locate.search",
    "lora_config": "freeze",
    "measure_effect": "effect",
    "purify": "pipeline",
    "push_card": "publish.hub",
    "push_filtered": "publish.hub",
    "scaled": "model.scaled",
    "split": "select",
    "threshold_for": "select",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    # Names are imported when first used: `import hf_safefilter` must not pay for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
