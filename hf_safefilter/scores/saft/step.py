"""SaftScore: how strongly a row is present in the fitted directions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hf_safefilter.batch import Batch
from hf_safefilter.columns import Layer, score_column
from hf_safefilter.errors import OptionError
from hf_safefilter.scores.base import layer_vectors, score
from hf_safefilter.scores.saft.subspace import SaftSubspace
from hf_safefilter.step import Step


@dataclass(frozen=True, slots=True)
class SaftScore(Step):
    """Squared projection on the leading directions of the data set, meaned over them; 0 or more unless the sign is -1.

    A reconstruction of SAFT, not its reference. Rows other than those it was fitted to can be scored too.

    Args:
        subspace: what `fit_saft` returned, or its digest.
        layer: where the rows were read; the subspace's own, and may be left out.

    Raises:
        OptionError: another layer than the subspace's.

    Source: SAFT, arXiv 2410.10014, reconstructed.
    """

    subspace: SaftSubspace | str
    layer: Layer | None = None
    algorithm: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        fitted = SaftSubspace.of(self.subspace)
        if self.layer not in (None, fitted.layer):
            raise OptionError(
                f"the subspace was fitted at layer {fitted.layer!r}, not {self.layer!r}",
                fix=f"use layer={fitted.layer!r}, or fit_saft(ds, {self.layer!r})",
            )
        object.__setattr__(self, "subspace", fitted.digest)
        object.__setattr__(self, "layer", fitted.layer)
        Step.__post_init__(self)

    def produces(self) -> tuple[str, ...]:
        """`saft_score`."""
        return (score_column("saft"),)

    def compute(self, batch: Batch, rank: int | None) -> dict[str, np.ndarray]:
        """float32 (n,)."""
        subspace = SaftSubspace.of(self.subspace)
        rows = layer_vectors(batch, self.layer, len(subspace.directions))
        return {self.produces()[0]: score(rows, subspace.strength)}
