"""Guard models: the baseline that everybody compares with. P(unsafe) from the logits of the verdict, in one forward.

Blind by construction to benign rows that weaken a model's refusals: it judges what a row says, not what it does.
"""

from hf_safefilter.scores.guard.presets import PRESETS
from hf_safefilter.scores.guard.score import GuardScore

__all__ = ["PRESETS", "GuardScore"]
