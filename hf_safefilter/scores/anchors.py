"""Representation matching of He et al.: how similar is a row to harmful answers?"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import numpy as np

from hf_safefilter.data.vectors import mean_of_largest, unit
from hf_safefilter.references import ReferenceIndex
from hf_safefilter.references.flat import search
from hf_safefilter.references.index import check_count
from hf_safefilter.scores.base import ReferenceScore


@dataclass(frozen=True, slots=True)
class AnchorScore(ReferenceScore):
    """Mean of the `top` largest cosines to the unsafe references, in [-1, 1]; the safe references are not used.

    Args:
        references: The index, or its digest.
        layer: The layer at which rows and references were read; the paper uses "norm", the state after the final norm.
        standardize: Compare in coordinates of mean 0 and deviation 1 among the references; False is the paper's form.
        pairs: Whether the rejected side of preference pairs has columns of its own.
        top: Number of largest cosines that are averaged; the paper's default is 1.

    Raises:
        MissingError: The references are not in the store, or were not read at `layer`.
        OptionError: `top` is larger than the number of unsafe references.

    Source: He et al., arXiv 2404.01099, representation matching.
    """

    METHOD: ClassVar[str] = "anchor"
    MEASURES: ClassVar[str] = "mean of the largest cosines to unsafe references"
    SOURCE: ClassVar[str] = "He et al., arXiv 2404.01099"

    _: KW_ONLY
    top: int = 1
    algorithm: int = field(default=2, init=False)

    def check(self, index: ReferenceIndex) -> None:
        """Raise unless there are at least `top` unsafe references."""
        check_count("top", self.top, index.counts["unsafe"], "unsafe references")

    @classmethod
    def against(cls, rows: np.ndarray, unsafe: np.ndarray, safe: np.ndarray) -> np.ndarray:
        """See `anchor`."""
        return anchor(rows, unsafe)

    def score(self, vectors: np.ndarray) -> np.ndarray:
        """See `anchor`."""
        return search(self.neighbours("unsafe"), vectors, self.top)[0].mean(axis=1)


def anchor(rows: np.ndarray, unsafe: np.ndarray, top: int = 1) -> np.ndarray:
    """The score of `rows` (n, d) against `unsafe` (m, d), in the widest dtype passed; (n,)."""
    check_count("top", top, len(unsafe), "unsafe references")
    return mean_of_largest(unit(rows) @ unit(unsafe).T, top)
