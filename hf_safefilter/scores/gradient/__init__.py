"""Gradient matching: would training on a row move the model as harmful answers do, or as safe ones do?

`fit_gradient` stores one combined anchor gradient G; `GradientScore` gives each row the dot product of G with the row's
own gradient, scaled to length one. `SelfInfluenceScore` has no anchor and scores by the length of the gradient alone.
None of them ever builds the flat vector of all parameters.
"""

from hf_safefilter.scores.gradient.anchor import GradientAnchor
from hf_safefilter.scores.gradient.fit import fit_gradient, fit_to_references
from hf_safefilter.scores.gradient.score import GradientScore
from hf_safefilter.scores.gradient.self_influence import SelfInfluenceScore

__all__ = ["GradientAnchor", "GradientScore", "SelfInfluenceScore", "fit_gradient", "fit_to_references"]
