"""A threshold with a guarantee: at most a stated share of rows known to be good is lost, at a stated confidence."""

from __future__ import annotations

import math

import numpy as np

from hf_safefilter.errors import DataError, OptionError


def conformal_threshold(good_scores: np.ndarray, max_loss: float, confidence: float) -> float:
    """The lowest threshold t for which P(share of good rows that score t or more > `max_loss`) <= 1 - `confidence`.

    The probability is over the draw of the known-good rows, which must be drawn like the rows they stand for. The
    share of the population above the r-th smallest of n scores is at most Beta(n - r + 1, r) distributed, so t lies
    just above the smallest r with BetaCDF(max_loss; n - r + 1, r) >= confidence. Ties only make it safer. A good row
    that could not be scored counts as lost.

    Args:
        good_scores: (n,), higher = more dangerous; NaN = could not be scored.
        max_loss: share in (0, 1).
        confidence: in (0, 1).

    Raises:
        OptionError: a share or confidence outside (0, 1), or too few rows for them.
        DataError: so many rows could not be scored that no threshold holds the promise.

    Source: the order-statistic tolerance bound (Wilks 1941), as used in conformal risk control.
    """
    from scipy.stats import beta

    for name, value in (("max_loss", max_loss), ("confidence", confidence)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise OptionError(f"{name}={value!r} is not between 0 and 1", fix=f"use e.g. {name}=0.05")
    scores = np.asarray(good_scores, dtype=np.float64).ravel()
    n = len(scores)
    needed = math.ceil(math.log1p(-confidence) / math.log1p(-max_loss))
    if n < needed:
        raise OptionError(
            f"{n} known-good rows cannot promise a loss of at most {max_loss:g} at confidence {confidence:g}",
            fix=f"give at least {needed} rows, or promise less",
        )
    places = np.arange(1, n + 1)
    holds = beta.cdf(max_loss, n - places + 1, places) >= confidence
    place = int(np.argmax(holds)) if holds.any() else n - 1
    score = np.sort(np.where(np.isfinite(scores), scores, np.inf))[place]
    if not np.isfinite(score):
        raise DataError(
            f"{int((~np.isfinite(scores)).sum())} of {n} known-good rows could not be scored: too many",
            fix="mend those rows, or promise less",
        )
    return float(np.nextafter(score, np.inf))
