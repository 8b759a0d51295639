"""SaftScore: how strong a row is in the fitted directions."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

import numpy as np

from hf_safefilter.columns import Layer
from hf_safefilter.data.batch import Batch
from hf_safefilter.data.ragged import Ragged
from hf_safefilter.errors import OptionError
from hf_safefilter.scores.base import Fitting, SpanScore, layer_vectors
from hf_safefilter.scores.saft.subspace import SaftSubspace, fit_saft
from hf_safefilter.step import Step


@dataclass(frozen=True, slots=True)
class SaftScore(SpanScore):
    """Mean squared projection on the leading directions of the data set, or with references the signed projection.

    Without labels or references it has found nothing that the controls do not. A reconstruction of SAFT, not its
    reference code. Rows other than those it was fitted to can be scored too.

    Args:
        subspace: What `fit_saft` returned, or its digest.
        layer: The layer at which the rows were read; it must be that of the subspace, and may be left out.
        pairs: Whether the rejected side of preference pairs has columns of its own.

    Raises:
        OptionError: `layer` is not the layer of the subspace.

    Source: SAFT, arXiv 2410.10014, reconstructed.
    """

    METHOD: ClassVar[str] = "saft"
    MEASURES: ClassVar[str] = "energy in the leading singular subspace, a reconstruction; ranks with the controls"
    REQUIRES: ClassVar[str] = "the rows alone"
    SOURCE: ClassVar[str] = "SAFT, arXiv 2410.10014"
    FITTING: ClassVar[Fitting | None] = Fitting(
        field="subspace",
        to="rows",
        by=fit_saft,
        options=("layer", "k", "center", "normalize_rows", "weight", "references", "label", "unsafe"),
        required=("layer",),
    )

    subspace: SaftSubspace | str
    layer: Layer | None = None
    _: KW_ONLY
    pairs: bool = False
    algorithm: int = field(default=2, init=False)

    def __post_init__(self) -> None:
        fitted = SaftSubspace.of(self.subspace)
        if self.layer not in (None, fitted.layer):
            raise OptionError(
                f"the subspace was fitted at layer {fitted.layer!r}, not {self.layer!r}",
                fix=f"use `layer={fitted.layer!r}`, or fit_saft(ds, {self.layer!r})",
            )
        set_field = object.__setattr__
        set_field(self, "subspace", fitted.digest)
        set_field(self, "layer", fitted.layer)
        Step.__post_init__(self)

    @property
    def references(self) -> str | None:
        """Digest of the references that oriented the directions; None where there were none."""
        digest: str | None = SaftSubspace.of(self.subspace).facts["references"]
        return digest

    def vectors(self, batch: Batch) -> Ragged:
        """The batch's vectors at the layer of the subspace."""
        subspace = SaftSubspace.of(self.subspace)
        return layer_vectors(batch, subspace.layer, len(subspace.directions))

    def span_scores(self, vectors: np.ndarray) -> np.ndarray:
        """See `SaftSubspace.strength`."""
        return SaftSubspace.of(self.subspace).strength(vectors)
