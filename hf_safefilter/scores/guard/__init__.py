"""Guard models: the baseline that methods are compared with. P(unsafe) from the logits of the verdict, in one pass.

A guard cannot detect benign rows that weaken a model's refusals: it judges the content of a row, not its effect.
"""

from hf_safefilter.scores.guard.presets import PRESETS
from hf_safefilter.scores.guard.score import GuardScore

__all__ = ["PRESETS", "GuardScore"]
