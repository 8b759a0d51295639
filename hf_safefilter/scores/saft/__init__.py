"""SAFT: how strong is a row in the leading directions of the data set itself? A reconstruction.

The paper has no official code, and its score formula was not available: this is a reconstruction from its abstract,
summaries by others and the related method HaloScope. Centring, normalisation and weights are therefore options.
"""

from hf_safefilter.scores.saft.score import SaftScore
from hf_safefilter.scores.saft.subspace import SaftSubspace, fit_saft

__all__ = ["SaftScore", "SaftSubspace", "fit_saft"]
