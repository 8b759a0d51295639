"""Find and remove the rows of a fine-tuning set that would break an aligned model's safety.

embed_layers = EmbedLayers("Qwen/Qwen2.5-0.5B-Instruct", layers=[12])
references   = ReferenceIndex.build(unsafe_rows, safe_rows, embed_layers, license="mit", source="our red team")
ds           = ds.map(embed_layers, batched=True)
ds           = ds.map(LarfScore(references, layer=12), batched=True)
is_safe      = IsSafe("larf_score", threshold=threshold_for(ds, "larf_score", drop_fraction=0.02))
clean        = ds.filter(is_safe, batched=True)
push_filtered(ds, is_safe, "me/alpaca-safe", license="cc-by-4.0", source="tatsu-lab/alpaca")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_safefilter.compare.compare_methods import compare_methods
    from hf_safefilter.data.load_rows import load_rows
    from hf_safefilter.decide.evaluate import evaluate
    from hf_safefilter.decide.mask_tokens import MaskTokens
    from hf_safefilter.decide.select import IsSafe, split
    from hf_safefilter.decide.thresholds import threshold_for
    from hf_safefilter.effect import EffectReport, Questions, Study, Tuning, measure_effect
    from hf_safefilter.embed import EmbedLayers
    from hf_safefilter.engine.ray import RayEngine
    from hf_safefilter.errors import SafefilterError
    from hf_safefilter.freeze import FrozenBlocks, freeze_safety_blocks, lora_config
    from hf_safefilter.labeling import LabelRounds
    from hf_safefilter.locate.bounds import BoundsOptions
    from hf_safefilter.locate.choose_reading import choose_reading
    from hf_safefilter.locate.cross_validation import choose_layer
    from hf_safefilter.locate.gap import GapOptions
    from hf_safefilter.locate.refusals import RefusalMatcher
    from hf_safefilter.locate.safety_layers import SafetyLayers
    from hf_safefilter.locate.scaling import ScalingOptions
    from hf_safefilter.locate.search import locate_safety_layers
    from hf_safefilter.model.reading_options import ReadingOptions
    from hf_safefilter.model.scaled import scaled
    from hf_safefilter.pipeline.purify import Purified, purify
    from hf_safefilter.publish.provenance import Provenance
    from hf_safefilter.publish.push import push_card, push_filtered
    from hf_safefilter.recipe import Recipe
    from hf_safefilter.references import ReferenceIndex
    from hf_safefilter.references.audit import audit_references
    from hf_safefilter.scores.anchors import AnchorScore
    from hf_safefilter.scores.controls import LengthScore, RandomScore
    from hf_safefilter.scores.direction import DirectionScore
    from hf_safefilter.scores.gradient import GradientAnchor, GradientScore, SelfInfluenceScore, fit_gradient
    from hf_safefilter.scores.guard import GuardScore
    from hf_safefilter.scores.larf import LarfScore
    from hf_safefilter.scores.nearest import NearestScore
    from hf_safefilter.scores.probe import EnsembleScore, Probe, ProbeScore, fit_ensemble, fit_probe
    from hf_safefilter.scores.rank_average import RankAverage
    from hf_safefilter.scores.ranks import fit_ranks
    from hf_safefilter.scores.saft import SaftScore, fit_saft
    from hf_safefilter.scores.seal import SealOptions, SealScore, SealSelector, fit_seal
    from hf_safefilter.scores.shift import ShiftScore
    from hf_safefilter.scores.token_risk import TokenRiskScore, fit_token_risk

__version__ = "0.1.0"

_HOMES = {
    "AnchorScore": "scores.anchors",
    "BoundsOptions": "locate.bounds",
    "DirectionScore": "scores.direction",
    "EffectReport": "effect",
    "EmbedLayers": "embed",
    "EnsembleScore": "scores.probe",
    "FrozenBlocks": "freeze",
    "GapOptions": "locate.gap",
    "GradientAnchor": "scores.gradient",
    "GradientScore": "scores.gradient",
    "GuardScore": "scores.guard",
    "IsSafe": "decide.select",
    "LabelRounds": "labeling",
    "LarfScore": "scores.larf",
    "LengthScore": "scores.controls",
    "MaskTokens": "decide.mask_tokens",
    "NearestScore": "scores.nearest",
    "Probe": "scores.probe",
    "ProbeScore": "scores.probe",
    "Provenance": "publish.provenance",
    "Purified": "pipeline.purify",
    "Questions": "effect",
    "RandomScore": "scores.controls",
    "RankAverage": "scores.rank_average",
    "RayEngine": "engine.ray",
    "ReadingOptions": "model.reading_options",
    "Recipe": "recipe",
    "ReferenceIndex": "references",
    "RefusalMatcher": "locate.refusals",
    "SafefilterError": "errors",
    "SafetyLayers": "locate.safety_layers",
    "SaftScore": "scores.saft",
    "ScalingOptions": "locate.scaling",
    "SealOptions": "scores.seal",
    "SealScore": "scores.seal",
    "SealSelector": "scores.seal",
    "SelfInfluenceScore": "scores.gradient",
    "ShiftScore": "scores.shift",
    "Study": "effect",
    "TokenRiskScore": "scores.token_risk",
    "Tuning": "effect",
    "audit_references": "references.audit",
    "choose_layer": "locate.cross_validation",
    "choose_reading": "locate.choose_reading",
    "compare_methods": "compare.compare_methods",
    "evaluate": "decide.evaluate",
    "fit_ensemble": "scores.probe",
    "fit_gradient": "scores.gradient",
    "fit_probe": "scores.probe",
    "fit_ranks": "scores.ranks",
    "fit_saft": "scores.saft",
    "fit_seal": "scores.seal",
    "fit_token_risk": "scores.token_risk",
    "freeze_safety_blocks": "freeze",
    "load_rows": "data.load_rows",
    "locate_safety_layers": "locate.search",
    "lora_config": "freeze",
    "measure_effect": "effect",
    "purify": "pipeline.purify",
    "push_card": "publish.push",
    "push_filtered": "publish.push",
    "scaled": "model.scaled",
    "split": "decide.select",
    "threshold_for": "decide.thresholds",
}
"""Public name -> the module it is imported from when it is first used."""

__all__ = [
    "AnchorScore",
    "BoundsOptions",
    "DirectionScore",
    "EffectReport",
    "EmbedLayers",
    "EnsembleScore",
    "FrozenBlocks",
    "GapOptions",
    "GradientAnchor",
    "GradientScore",
    "GuardScore",
    "IsSafe",
    "LabelRounds",
    "LarfScore",
    "LengthScore",
    "MaskTokens",
    "NearestScore",
    "Probe",
    "ProbeScore",
    "Provenance",
    "Purified",
    "Questions",
    "RandomScore",
    "RankAverage",
    "RayEngine",
    "ReadingOptions",
    "Recipe",
    "ReferenceIndex",
    "RefusalMatcher",
    "SafefilterError",
    "SafetyLayers",
    "SaftScore",
    "ScalingOptions",
    "SealOptions",
    "SealScore",
    "SealSelector",
    "SelfInfluenceScore",
    "ShiftScore",
    "Study",
    "TokenRiskScore",
    "Tuning",
    "__version__",
    "audit_references",
    "choose_layer",
    "choose_reading",
    "compare_methods",
    "evaluate",
    "fit_ensemble",
    "fit_gradient",
    "fit_probe",
    "fit_ranks",
    "fit_saft",
    "fit_seal",
    "fit_token_risk",
    "freeze_safety_blocks",
    "load_rows",
    "locate_safety_layers",
    "lora_config",
    "measure_effect",
    "purify",
    "push_card",
    "push_filtered",
    "scaled",
    "split",
    "threshold_for",
]


def __getattr__(name: str) -> Any:
    # `import hf_safefilter` must not pay for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
