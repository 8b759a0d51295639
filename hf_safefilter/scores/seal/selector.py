"""A fitted selector: one logit a row, found by the row's id; kept as safetensors and JSON under its digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from hf_safefilter.errors import OptionError
from hf_safefilter.storage.fitted import Fitted

UNKNOWN = "not_fitted"
"""Reason of a row that the selector has never met: its weights are a table, they say nothing of other rows."""

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
        """Keep logits that were learned.

        Args:
            logits: row id -> logit, higher = rather keep.
            unfit: row id -> reason, for rows that were met and could not be weighed.
            facts: plain JSON values to keep with it; "activation" says how logits become weights.
        """
        from safetensors.numpy import save

        ids, unfit = sorted(logits), dict(unfit or {})
        reasons = sorted(set(unfit.values()))
        tensors = {
            "row_ids": _bytes(ids),
            "logits": np.array([logits[one] for one in ids], dtype=np.float64),
            "unfit_ids": _bytes(sorted(unfit)),
            "unfit_reasons": np.array([reasons.index(unfit[one]) for one in sorted(unfit)], dtype=np.int32),
        }
        said = {"activation": "softmax"} | dict(facts or {}) | {"reasons": reasons, "fitted": len(ids)}
        return cls.make(said, {_FILE: save(tensors)})

    @property
    def row_ids(self) -> np.ndarray:
        """Ids of the rows that have a weight, ascending, bytes (n,)."""
        return self._ids["row_ids"]

    @property
    def logits(self) -> np.ndarray:
        """Their logits, float64 (n,). Levels mean nothing, differences do."""
        return self._tensors["logits"]

    @property
    def weights(self) -> np.ndarray:
        """Their weights p, float64 (n,): of mean 1 for the softmax, 0 to 2 for the sigmoid."""
        if self.facts["activation"] == "sigmoid":
            return 2 / (1 + np.exp(-self.logits))
        shifted = np.exp(self.logits - self.logits.max(initial=-np.inf))
        return len(shifted) * shifted / shifted.sum()

    def look_up(self, row_ids: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Logits (m,) of rows by their id, NaN where there is none, and the reason ("" where there is one)."""
        wanted = np.array([str(one).encode() for one in row_ids], dtype=bytes).reshape(len(row_ids))
        at, known = _find(self.row_ids, wanted)
        bad, unfit = _find(self._ids["unfit_ids"], wanted)
        logits = np.full(len(wanted), np.nan)
        logits[known] = self.logits[at[known]]
        named, codes = self.facts["reasons"], self._tensors["unfit_reasons"]
        reasons = [
            "" if here else named[codes[place]] if met else UNKNOWN
            for here, met, place in zip(known, unfit, bad, strict=True)
        ]
        return logits, reasons

    def epochs(self) -> list[dict[str, Any]]:
        """A line an epoch: u, mean losses, quantiles of the weights."""
        return [dict(line) for line in self.facts.get("epochs", ())]

    def keep_curve(self, fractions: Sequence[float] = KEEP_FRACTIONS) -> list[dict[str, float]]:
        """What keeping the heaviest share of the rows means: rows kept, the border's score, the weight kept.

        Raises:
            OptionError: a share outside 0..1.
        """
        order = np.sort(self.logits)[::-1]
        weight = np.sort(self.weights)[::-1]
        lines = []
        for fraction in fractions:
            if not 0 < fraction <= 1:
                raise OptionError(f"{fraction!r} is not a share of the rows", fix="use fractions above 0, up to 1")
            count = max(1, int(fraction * len(order)))
            share = float(weight[:count].sum() / weight.sum())
            lines.append(
                {"keep_fraction": fraction, "rows": count, "border_score": -float(order[count - 1]), "weight": share}
            )
        return lines

    def report(self) -> dict[str, Any]:
        """What the fit was, what it met and how it went, as plain JSON values."""
        return {"digest": self.digest} | dict(self.facts) | {"keep": self.keep_curve()}

    @cached_property
    def _tensors(self) -> dict[str, np.ndarray]:
        from safetensors.numpy import load

        return load(self.bytes_of(_FILE))

    @cached_property
    def _ids(self) -> dict[str, np.ndarray]:
        tables = {name: self._tensors[name] for name in ("row_ids", "unfit_ids")}
        return {name: np.ascontiguousarray(one).view("S32").reshape(len(one)) for name, one in tables.items()}


def _bytes(ids: Sequence[str]) -> np.ndarray:
    """Ids of 32 hex digits as uint8 (n, 32)."""
    return np.array([one.encode() for one in ids], dtype="S32").view(np.uint8).reshape(len(ids), 32)


def _find(table: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of each wanted id in an ascending table, and whether it is there."""
    if not len(table):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return at, table[at] == wanted
