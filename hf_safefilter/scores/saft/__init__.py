"""SAFT: how strongly is a row present in the leading directions of the data set itself? A reconstruction.

The paper has no official code, and its score formula could not be read: what follows is rebuilt from its abstract,
others' digests and the sister method HaloScope. Centring, normalisation and weights are therefore options.
"""

from hf_safefilter.scores.saft.score import SaftScore
from hf_safefilter.scores.saft.subspace import SaftSubspace, fit_saft

__all__ = ["SaftScore", "SaftSubspace", "fit_saft"]
