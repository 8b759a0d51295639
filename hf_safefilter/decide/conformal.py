"""A threshold with a guarantee: at most a stated share of known-good rows is lost, at a stated confidence."""

from __future__ import annotations

import math

import numpy as np

from hf_safefilter.checks import require_share
from hf_safefilter.errors import DataError, OptionError


def conformal_threshold(good_scores: np.ndarray, max_loss: float, confidence: float) -> float:
    """The lowest threshold t for which P(share of good rows that score t or more > `max_loss`) <= 1 - `confidence`.

    The probability is over the draw of the known-good rows, which must be drawn from the same population as the rows
    that the threshold is applied to. The share of the population above the r-th smallest of n scores is at most
    Beta(n - r + 1, r) distributed, so t lies just above the smallest r with BetaCDF(max_loss; n - r + 1, r) >=
    confidence. Ties only make the loss smaller. A good row that could not be scored counts as lost.

    Args:
        good_scores: Scores of known-good rows (n,), higher = more dangerous; NaN = could not be scored.
        max_loss: Largest share of good rows that may be lost, in (0, 1).
        confidence: Confidence that the share is not exceeded, in (0, 1).

    Raises:
        OptionError: A share or confidence is outside (0, 1), or there are too few rows for them.
        DataError: Too many rows could not be scored, so that no threshold gives the guarantee.

    Source: the order-statistic tolerance bound (Wilks 1941), as used in conformal risk control.
    """
    from scipy.stats import beta

    require_share("max_loss", max_loss)
    require_share("confidence", confidence, example=0.95)
    scores = np.asarray(good_scores, dtype=np.float64).ravel()
    n = len(scores)
    needed = math.ceil(math.log1p(-confidence) / math.log1p(-max_loss))
    if n < needed:
        raise OptionError(
            f"{n} known-good rows cannot guarantee a loss of at most {max_loss:g} at confidence {confidence:g}",
            fix=f"give at least {needed} rows, or a larger `max_loss` or smaller `confidence`",
        )
    ranks = np.arange(1, n + 1)
    holds = beta.cdf(max_loss, n - ranks + 1, ranks) >= confidence
    index = int(np.argmax(holds)) if holds.any() else n - 1
    score = np.sort(np.where(np.isfinite(scores), scores, np.inf))[index]
    if not np.isfinite(score):
        raise DataError(
            f"{int((~np.isfinite(scores)).sum())} of {n} known-good rows could not be scored, which is too many",
            fix="correct those rows, or give a larger `max_loss` or smaller `confidence`",
        )
    return float(np.nextafter(score, np.inf))
