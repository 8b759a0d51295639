"""Progressive localisation: the range of blocks whose scaling moves refusals most (Safety Layers, sections 3.2 to 3.4).

First the upper bound is varied with the lower one fixed, then the lower bound with the best upper one. The counts are
not unimodal, so a whole window is measured and its best range taken, never the first peak.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hf_safefilter.checks import is_whole, require_number, require_share, require_whole
from hf_safefilter.errors import OptionError
from hf_safefilter.locate.refusals import Verdict

LEVEL = 0.05
"""Largest chance (see `chance_of`) at which the best range counts as a signal."""

_SHUFFLES = 1999

CountRefusals = Callable[[list[tuple[int, int]], float], list[int]]
"""Gives the number of refusals for each range of blocks (first, last, both included) scaled by a factor."""

Direction = Literal["amplify", "attenuate"]


@dataclass(frozen=True, slots=True)
class BoundsOptions:
    """Which ranges and factors the search for the bounds tries.

    Attributes:
        initial: Range to start from, as (first, last) block; None starts from the range of the angular gap.
        alpha: Factor by which blocks are scaled; None takes the first factor of a sweep whose counts spread enough.
        step: Distance between the factors of that sweep, which starts at 1.
        most_steps: Largest number of factors in that sweep.
        least_spread: Standard deviation of the counts, as a share of the prompts, that a factor must reach in the
            sweep (the paper: 15 to 20 of 721).
        window: Number of values tried for each bound, around its initial value.
        max_new_tokens: Largest number of tokens of a reply; the first 4 to 8 decide.
        refusals: Name of the refusal matcher, one of `locate.refusals.PRESETS`.
        include_o_proj: Whether the output projection of attention is scaled too; the published tables were most likely
            made without it.
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
        if self.alpha is not None:
            require_number("alpha", self.alpha, above=0)
            if self.alpha == 1:
                raise OptionError("`alpha=1` changes nothing", fix="use for example `alpha=1.2` or `alpha=0.8`")
        require_share("step", self.step)
        require_whole("window", self.window, least=2)
        require_whole("most_steps", self.most_steps, least=1)
        require_whole("max_new_tokens", self.max_new_tokens, least=1)
        if self.initial is not None:
            if len(self.initial) != 2 or not all(map(is_whole, self.initial)):
                raise OptionError(
                    f"`initial={self.initial!r}` is not a range of blocks", fix="use for example `initial=(6, 12)`"
                )
            object.__setattr__(self, "initial", tuple(map(int, self.initial)))


@dataclass(frozen=True, slots=True)
class Bounds:
    """The best range of blocks, and every range tried.

    Attributes:
        first: Lowest block of the range.
        last: Highest block of the range, included.
        alpha: Factor by which the blocks were scaled.
        tried: (first, last, alpha, refusals) of each range, in the order in which they were measured.
    """

    first: int
    last: int
    alpha: float
    tried: list[tuple[int, int, float, int]] = field(default_factory=list)

    def at_edge(self, uppers: Sequence[int], lowers: Sequence[int]) -> bool:
        """Whether a bound is the smallest or largest value tried, so that a better one may lie outside."""
        return self.last in (min(uppers), max(uppers)) or self.first in (min(lowers), max(lowers))


def find_bounds(
    count: CountRefusals,
    first: int,
    uppers: Sequence[int],
    lowers: Sequence[int],
    alpha: float,
    direction: Direction | None = None,
) -> Bounds:
    """Find the best upper bound with `first` fixed, then the best lower bound with that upper bound fixed.

    Ties go to the narrower range.

    Args:
        count: Measures refusals.
        first: Initial lower bound.
        uppers: Last blocks to try.
        lowers: First blocks to try.
        alpha: Factor by which blocks are scaled.
        direction: "amplify" if the most refusals are best, "attenuate" if the fewest are; None decides by `alpha`.
    """
    sign = 1 if (direction or ("amplify" if alpha > 1 else "attenuate")) == "amplify" else -1
    tried: list[tuple[int, int, float, int]] = []

    def best(ranges: list[tuple[int, int]]) -> tuple[int, int]:
        counts = count(ranges, alpha)
        tried.extend((low, high, alpha, refusals) for (low, high), refusals in zip(ranges, counts, strict=True))
        ranks = [(sign * refusals, low - high) for (low, high), refusals in zip(ranges, counts, strict=True)]
        return ranges[ranks.index(max(ranks))]

    _, last = best([(first, upper) for upper in uppers])
    lower, _ = best([(low, last) for low in lowers if low <= last])
    return Bounds(lower, last, alpha, tried)


def alphas(direction: Direction, options: BoundsOptions) -> Iterator[float]:
    """The factors of the sweep, from the one nearest to 1 outwards."""
    sign = 1 if direction == "amplify" else -1
    for step in range(1, options.most_steps + 1):
        alpha = round(1 + sign * step * options.step, 10)
        if alpha > 0:
            yield alpha


def sweep_alphas(
    count: CountRefusals, first: int, uppers: Sequence[int], direction: Direction, n_prompts: int,
    options: BoundsOptions,
) -> tuple[float | None, list[dict[str, Any]]]:  # fmt: skip
    """The first factor whose counts over the upper bounds spread enough, and the counts of every factor measured.

    Too small a factor leaves the counts flat. Their spread is the sample standard deviation.
    """
    measured = []
    for alpha in alphas(direction, options):
        counts = count([(first, upper) for upper in uppers], alpha)
        spread = statistics.stdev(counts)
        measured.append({"alpha": alpha, "counts": counts, "spread": spread})
        if spread >= options.least_spread * n_prompts:
            return alpha, measured
    return None, measured


def window_around(middle: int, width: int, lowest: int, highest: int) -> list[int]:
    """`width` neighbouring numbers around `middle`, moved so that they lie in lowest..highest."""
    start = max(lowest, min(middle - width // 2, highest - width + 1))
    return list(range(start, min(start + width, highest + 1)))


def chance_of(
    plain: Sequence[Verdict], tried: Sequence[Sequence[Verdict]], best: int, alpha: float, looks: int, seed: int = 0
) -> float:
    """How likely a range stands out by chance as much as the best one does: the larger of two p values.

    The range must move refusals: a sign test over the prompts whose verdict changed, multiplied by the number of ranges
    measured, because the best was chosen among them; a refusal that became a degenerate reply was not attenuated. And
    it must move them more than the other ranges do, or the choice among them means nothing: for this, the verdicts of
    each prompt are shuffled among the ranges.

    Args:
        plain: Verdicts on the replies of the unscaled model.
        tried: Verdicts for each range that was scaled by `alpha`.
        best: Index of the chosen range in `tried`.
        alpha: Factor by which the blocks were scaled.
        looks: Number of ranges measured in the search, with any factor.
        seed: Seed of the shuffles.
    """
    from scipy.stats import binomtest

    refused = np.array([[verdict == "refusal" for verdict in verdicts] for verdicts in tried])
    before = np.array([verdict == "refusal" for verdict in plain])
    changed = before != refused[best]
    wanted = changed & np.array([verdict == ("refusal" if alpha > 1 else "answer") for verdict in tried[best]])
    moved = 1.0
    if changed.any():
        moved = binomtest(int(wanted.sum()), int(changed.sum()), alternative="greater").pvalue * looks
    draw = np.random.default_rng(seed)
    sign = 1 if alpha > 1 else -1
    largest = [(sign * draw.permuted(refused, axis=0).sum(1)).max() for _ in range(_SHUFFLES)]
    ahead = (1 + sum(count >= sign * refused[best].sum() for count in largest)) / (1 + _SHUFFLES)
    return float(min(1.0, max(moved, ahead * max(1, looks // len(tried)))))
