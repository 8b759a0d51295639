"""A fitted selector: one logit for each row, found by row id; stored as safetensors and JSON under its digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from hf_safefilter.checks import require_number
from hf_safefilter.storage.fitted import Fitted

UNKNOWN = "not_fitted"
"""Reason of a row that was not fitted: the weights are a table and say nothing about other rows."""

NAN_LOSS = "nan_loss"
"""Reason of a row whose loss was not finite."""

KEEP_FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_FILE = "selector.safetensors"


class SealSelector(Fitted):
    """The logits that `fit_seal` learned, by row id, and the curves of the fit."""

    KIND = "seal_selector"

    @classmethod
    def of_logits(
        cls,
        logits: Mapping[str, float],
        *,
        unfit: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> SealSelector:
        """Store logits that were learned.

        Args:
            logits: Row id -> logit; rows with a higher logit should rather be kept.
            unfit: Row id -> reason, for rows of the fit that could not be weighed.
            facts: Plain JSON values to store with the logits; "activation" says how logits become weights.
        """
        from safetensors.numpy import save

        ids, unfit = sorted(logits), dict(unfit or {})
        reasons = sorted(set(unfit.values()))
        tensors = {
            "row_ids": _bytes(ids),
            "logits": np.array([logits[row_id] for row_id in ids], dtype=np.float64),
            "unfit_ids": _bytes(sorted(unfit)),
            "unfit_reasons": np.array([reasons.index(unfit[row_id]) for row_id in sorted(unfit)], dtype=np.int32),
        }
        known = {"activation": "softmax"} | dict(facts or {}) | {"reasons": reasons, "fitted": len(ids)}
        return cls.make(known, {_FILE: save(tensors)})

    @property
    def row_ids(self) -> np.ndarray:
        """Ids of the rows that have a weight, ascending, bytes (n,)."""
        return self._ids["row_ids"]

    @property
    def logits(self) -> np.ndarray:
        """The logits of these rows, float64 (n,); only differences between them have a meaning."""
        return self._tensors["logits"]

    @property
    def weights(self) -> np.ndarray:
        """The weights p of these rows, float64 (n,): with mean 1 for the softmax, from 0 to 2 for the sigmoid."""
        if self.facts["activation"] == "sigmoid":
            return 2 / (1 + np.exp(-self.logits))
        shifted = np.exp(self.logits - self.logits.max(initial=-np.inf))
        return len(shifted) * shifted / shifted.sum()

    def look_up(self, row_ids: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Logits (m,) of rows by their id, NaN where there is none, and the reason ("" where there is one)."""
        wanted = np.array([str(row_id).encode() for row_id in row_ids], dtype=bytes).reshape(len(row_ids))
        positions, is_fitted = _find(self.row_ids, wanted)
        unfit_positions, is_unfit = _find(self._ids["unfit_ids"], wanted)
        logits = np.full(len(wanted), np.nan)
        logits[is_fitted] = self.logits[positions[is_fitted]]
        names, codes = self.facts["reasons"], self._tensors["unfit_reasons"]
        reasons = [
            "" if fitted else names[codes[position]] if unfit else UNKNOWN
            for fitted, unfit, position in zip(is_fitted, is_unfit, unfit_positions, strict=True)
        ]
        return logits, reasons

    def epochs(self) -> list[dict[str, Any]]:
        """One line for each epoch: u, mean losses, quantiles of the weights."""
        return [dict(line) for line in self.facts.get("epochs", ())]

    def keep_curve(self, fractions: Sequence[float] = KEEP_FRACTIONS) -> list[dict[str, float]]:
        """Number of rows, score of the last row and share of the weight, for each share of the heaviest rows.

        Args:
            fractions: Shares of the rows, above 0 and up to 1.

        Raises:
            OptionError: A share is outside this range.
        """
        logits = np.sort(self.logits)[::-1]
        weights = np.sort(self.weights)[::-1]
        lines = []
        for fraction in fractions:
            require_number("keep_fraction", fraction, above=0, most=1)
            count = max(1, int(fraction * len(logits)))
            weight = float(weights[:count].sum() / weights.sum())
            lines.append(
                {"keep_fraction": fraction, "rows": count, "border_score": -float(logits[count - 1]), "weight": weight}
            )
        return lines

    def report(self) -> dict[str, Any]:
        """The options of the fit, its rows and its course, as plain JSON values."""
        return {"digest": self.digest} | dict(self.facts) | {"keep": self.keep_curve()}

    @cached_property
    def _tensors(self) -> dict[str, np.ndarray]:
        from safetensors.numpy import load

        return load(self.bytes_of(_FILE))

    @cached_property
    def _ids(self) -> dict[str, np.ndarray]:
        tables = {name: self._tensors[name] for name in ("row_ids", "unfit_ids")}
        return {name: np.ascontiguousarray(ids).view("S32").reshape(len(ids)) for name, ids in tables.items()}


def _bytes(ids: Sequence[str]) -> np.ndarray:
    """Ids of 32 hex digits as uint8 (n, 32)."""
    return np.array([row_id.encode() for row_id in ids], dtype="S32").view(np.uint8).reshape(len(ids), 32)


def _find(table: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position of each wanted id in an ascending table, and whether the id is in the table."""
    if not len(table):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), bool)
    positions = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return positions, table[positions] == wanted
