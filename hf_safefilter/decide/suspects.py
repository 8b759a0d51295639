"""Which rows a person should look at first."""

from __future__ import annotations

import numpy as np

TOP, ABOVE, BELOW = "highest scores", "dropped, nearest to the threshold", "kept, nearest to the threshold"


def suspects(scores: np.ndarray, threshold: float, near: int, top: int) -> dict[str, list[int]]:
    """Indices of rows by why they are worth a look; a row stands in one group alone.

    Args:
        scores: Scores (n,); rows without a finite one are in no group.
        threshold: Rows that score this or more are dropped.
        near: Rows on each side of the threshold.
        top: Rows with the highest scores, whichever side they are on.
    """
    scored = np.flatnonzero(np.isfinite(scores))
    falling = scored[np.argsort(-scores[scored], kind="stable")]
    highest = falling[:top]
    rest = falling[top:]
    above, below = rest[scores[rest] >= threshold], rest[scores[rest] < threshold]
    groups = {TOP: highest, ABOVE: above[len(above) - min(near, len(above)) :], BELOW: below[:near]}
    return {name: [int(row) for row in rows] for name, rows in groups.items()}
