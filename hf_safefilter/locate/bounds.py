"""Progressive localisation: the range of blocks whose scaling moves refusals most (Safety Layers, sections 3.2 to 3.4).

First the upper bound is tried out with the lower one fixed, then the lower bound with the upper one found. The counts
are not unimodal, so a whole window is measured and its best taken, never the first peak.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hf_safefilter.errors import OptionError
from hf_safefilter.locate.refusals import Verdict

LEVEL = 0.05
"""Chance up to which a range is taken for found."""

_DEALS = 1999

Count = Callable[[list[tuple[int, int]], float], list[int]]
"""Refusals with each of some ranges of blocks (first, last, both included) scaled by a factor."""

Direction = Literal["amplify", "attenuate"]


@dataclass(frozen=True, slots=True)
class BoundsOptions:
    """How far the bounds are looked for, and how loud.

    Attributes:
        initial: the range to start from, (first, last) block; None: from the angular gap.
        alpha: the factor; None: the first of a sweep away from 1 whose counts spread enough.
        step: of that sweep.
        most_steps: it ends after so many.
        least_spread: standard deviation of the counts, as a share of the prompts, from which a factor is loud enough
            (the paper: 15 to 20 of 721).
        window: ends tried around the initial one.
        max_new_tokens: where replies are cut; the first 4 to 8 decide.
        refusals: preset of the refusal matcher.
        include_o_proj: scale the output projection of attention too; False gives what the published tables were most
            likely made with.
    """

    initial: tuple[int, int] | None = None
    alpha: float | None = None
    step: float = 0.05
    most_steps: int = 8
    least_spread: float = 0.02
    window: int = 5
    max_new_tokens: int = 16
    refusals: str = "safety_layers"
    include_o_proj: bool = True

    def __post_init__(self) -> None:
        if self.alpha is not None and not (0 < self.alpha < math.inf and self.alpha != 1):
            raise OptionError(f"alpha={self.alpha!r} changes nothing, or is no scale", fix="use e.g. 1.2 or 0.8")
        if self.window < 2 or not 0 < self.step < 1 or self.most_steps < 1 or self.max_new_tokens < 1:
            raise OptionError(
                f"window={self.window}, step={self.step}, most_steps={self.most_steps}, "
                f"max_new_tokens={self.max_new_tokens} leave nothing to try",
                fix="use window=5, step=0.05, most_steps=8, max_new_tokens=16",
            )
        if self.initial is not None and [type(block) for block in self.initial] != [int, int]:
            raise OptionError(f"initial={self.initial!r} is no range of blocks", fix="use e.g. (6, 12)")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The range found, and every range tried.

    Attributes:
        first: lowest block.
        last: highest block, included.
        alpha: the factor.
        tried: (first, last, alpha, refusals), in the order of trial.
    """

    first: int
    last: int
    alpha: float
    tried: list[tuple[int, int, float, int]] = field(default_factory=list)

    def at_edge(self, uppers: Sequence[int], lowers: Sequence[int]) -> bool:
        """Whether a bound lies at the rim of what was tried, so that a better one may lie beyond."""
        return self.last in (min(uppers), max(uppers)) or self.first in (min(lowers), max(lowers))


def find_bounds(
    count: Count, first: int, uppers: Sequence[int], lowers: Sequence[int], alpha: float,
    direction: Direction | None = None,
) -> Bounds:  # fmt: skip
    """Upper bound over `uppers` with `first` fixed, then lower bound over `lowers` with that upper bound fixed.

    Args:
        count: measures refusals.
        first: the initial lower bound.
        uppers: last blocks tried.
        lowers: first blocks tried.
        alpha: the factor; above 1 the most refusals are best, below 1 the fewest.
        direction: overrides that.

    Ties go to the narrower range.
    """
    sign = 1 if (direction or ("amplify" if alpha > 1 else "attenuate")) == "amplify" else -1
    tried: list[tuple[int, int, float, int]] = []

    def best(ranges: list[tuple[int, int]]) -> tuple[int, int]:
        counts = count(ranges, alpha)
        tried.extend((low, high, alpha, number) for (low, high), number in zip(ranges, counts, strict=True))
        scored = zip(ranges, counts, strict=True)
        return max(scored, key=lambda one: (sign * one[1], one[0][0] - one[0][1]))[0]

    _, last = best([(first, upper) for upper in uppers])
    lower, _ = best([(low, last) for low in lowers if low <= last])
    return Bounds(lower, last, alpha, tried)


def alphas(direction: Direction, options: BoundsOptions) -> Iterator[float]:
    """The factors of the sweep, away from 1."""
    sign = 1 if direction == "amplify" else -1
    for number in range(1, options.most_steps + 1):
        alpha = round(1 + sign * number * options.step, 10)
        if alpha > 0:
            yield alpha


def first_loud(
    count: Count, first: int, uppers: Sequence[int], direction: Direction, n_prompts: int, options: BoundsOptions
) -> tuple[float | None, list[dict[str, Any]]]:
    """The first factor whose counts over the upper bounds spread enough, and what each one gave.

    Too small a factor leaves the counts flat; the spread is their sample standard deviation.
    """
    swept = []
    for alpha in alphas(direction, options):
        counts = count([(first, upper) for upper in uppers], alpha)
        spread = statistics.stdev(counts)
        swept.append({"alpha": alpha, "counts": counts, "spread": spread})
        if spread >= options.least_spread * n_prompts:
            return alpha, swept
    return None, swept


def around(middle: int, window: int, lowest: int, highest: int) -> list[int]:
    """`window` neighbouring numbers around `middle`, moved inside lowest..highest."""
    start = max(lowest, min(middle - window // 2, highest - window + 1))
    return list(range(start, min(start + window, highest + 1)))


def chance_of(
    plain: Sequence[Verdict], tried: Sequence[Sequence[Verdict]], best: int, alpha: float, looks: int, seed: int = 0
) -> float:
    """How likely chance alone gives a range that stands out as the best one does: the larger of two shares.

    It must move refusals: a sign test of the prompts that changed sides, times the ranges looked at, as the best was
    picked from them; a refusal that became stammering was not attenuated. And it must move them more than the other
    ranges do, else which one is best is chance: each prompt's verdicts are dealt out to the ranges anew.

    Args:
        plain: verdicts on the unscaled model's replies.
        tried: verdicts under each range tried by `alpha`.
        best: which of them was picked.
        alpha: the factor.
        looks: ranges measured on the way, with whatever factor.
        seed: of the dealing.
    """
    from scipy.stats import binomtest

    refused = np.array([[verdict == "refusal" for verdict in one] for one in tried])
    before = np.array([verdict == "refusal" for verdict in plain])
    changed = before != refused[best]
    wanted = changed & np.array([verdict == ("refusal" if alpha > 1 else "answer") for verdict in tried[best]])
    moved = 1.0
    if changed.any():
        moved = binomtest(int(wanted.sum()), int(changed.sum()), alternative="greater").pvalue * looks
    draw = np.random.default_rng(seed)
    sign = 1 if alpha > 1 else -1
    dealt = [(sign * draw.permuted(refused, axis=0).sum(1)).max() for _ in range(_DEALS)]
    ahead = (1 + sum(one >= sign * refused[best].sum() for one in dealt)) / (1 + _DEALS)
    return float(min(1.0, max(moved, ahead * max(1, looks // len(tried)))))
