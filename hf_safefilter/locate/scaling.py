"""LARF's layer search: the model refuses more when a safety block is scaled up, less when scaled down (section 4.1).

One block at a time is scaled by six factors, and the refusals of prompts that only sound harmful are counted. Scaling
damages the model in either direction; the difference between a factor above and one below 1 cancels that effect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_safefilter.checks import require_share, require_whole
from hf_safefilter.errors import OptionError
from hf_safefilter.locate.refusals import Verdict

LEAST_PROMPTS = 10
"""Smallest number of prompts for a search that counts refusals."""


@dataclass(frozen=True, slots=True)
class ScalingOptions:
    """Which factors are tried, and how the counts are tested.

    Attributes:
        scales: Factors below 1 and as many above 1, paired from the outermost inwards; 1 itself is always measured.
        max_new_tokens: Largest number of tokens of a reply.
        refusals: Name of the refusal matcher, one of `locate.refusals.PRESETS`.
        include_o_proj: Whether the output projection of attention is scaled too.
        resamples: Number of bootstrap samples of the prompts, and of sign flips in the test.
        level: Significance level of the test, and of the interval.
        seed: Seed of the bootstrap and of the sign flips.
    """

    scales: tuple[float, ...] = (0.7, 0.8, 0.9, 1.1, 1.2, 1.3)
    max_new_tokens: int = 32
    refusals: str = "larf"
    include_o_proj: bool = True
    resamples: int = 2000
    level: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        low = [scale for scale in self.scales if 0 < scale < 1]
        high = [scale for scale in self.scales if 1 < scale < math.inf]
        paired = len(low) == len(high) > 0 and len(low) + len(high) == len(self.scales)
        if not paired or len(set(self.scales)) < len(self.scales):
            raise OptionError(
                f"`scales={tuple(self.scales)}` are not pairs of a factor below and one above 1",
                fix="use for example `scales=(0.7, 0.8, 0.9, 1.1, 1.2, 1.3)`",
            )
        require_whole("max_new_tokens", self.max_new_tokens, least=1)
        require_whole("resamples", self.resamples, least=19)
        require_share("level", self.level)

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """Pairs of a factor above and one below 1, the pair furthest from 1 first."""
        low = sorted(scale for scale in self.scales if scale < 1)
        high = sorted(scale for scale in self.scales if scale > 1)
        return list(zip(reversed(high), low, strict=True))


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How refusals follow the scale of each block.

    Attributes:
        score: Sum of the differences of all pairs, divided by the number of prompts, float64 (L,).
        low: Lower ends of the bootstrap intervals of the scores, float64 (L,).
        high: Upper ends of these intervals, float64 (L,).
        best: Chosen block; None without a signal.
        top: The three blocks with the largest scores.
        chance: Share of sign flips, drawn prompt by prompt, that give as large a best score (a p value).
        chosen_share: Share of bootstrap samples in which the same block is chosen.
        why: Why there is no signal; "" if there is one.
    """

    score: np.ndarray
    low: np.ndarray
    high: np.ndarray
    best: int | None
    top: tuple[int, ...]
    chance: float
    chosen_share: float
    why: str


def find_sensitive(
    refused: np.ndarray,
    plain: np.ndarray,
    options: ScalingOptions = ScalingOptions(),  # noqa: B008
) -> Sensitivity:
    """Choose the block whose scale refusals follow; the reference leaves that to the eye, so this rule is ours.

    The score of a block is the sum over the pairs of R[scaled up] - R[scaled down], divided by the number of prompts.
    The largest score wins among the blocks whose refusals do not fall from the innermost lower factor to 1 and to the
    innermost higher one; ties go to the lower block. All blocks are ranked (the reference leaves out the last two).

    Args:
        refused: Which prompts were refused, bool (L, scales, prompts), with scales in the order of the options.
        plain: Which prompts the unscaled model refused, bool (prompts,).
        options: The scales and the test.
    """
    column = {scale: number for number, scale in enumerate(options.scales)}
    by_pair = [refused[:, column[high]].astype(np.float64) - refused[:, column[low]] for high, low in options.pairs]
    gains = np.sum(by_pair, axis=0)  # what each prompt adds, (L, prompts)
    n_blocks, n = gains.shape
    score = gains.mean(1)
    low, high = (refused[:, column[scale]].astype(np.float64) for scale in reversed(options.pairs[-1]))
    rising = (low.sum(1) <= plain.sum()) & (plain.sum() <= high.sum(1))
    draw = np.random.default_rng(options.seed)
    weights = draw.multinomial(n, np.full(n, 1 / n), size=options.resamples) / n
    resampled = weights @ gains.T  # (resamples, L)
    lowest, highest = np.quantile(resampled, [options.level / 2, 1 - options.level / 2], axis=0)
    candidates = np.flatnonzero(rising)
    order = np.lexsort((np.arange(n_blocks), -score))
    top = tuple(int(block) for block in order[:3])
    why, best, chance, share = "", None, 1.0, 0.0
    if len(candidates):
        best = int(candidates[np.argmax(score[candidates])])
        # One flip swaps the two factors of a pair in all blocks of a prompt, so that the scores of the blocks stay
        # correlated. The rule is applied to every flip again: a score that passed it is compared with others that did.
        flips = draw.choice([-1.0, 1.0], size=(options.resamples, n))
        middle, half = (low + high).sum(1) / 2, flips @ (high - low).T / 2
        passed = (middle - half <= plain.sum()) & (plain.sum() <= middle + half)
        largest = np.where(passed, flips @ gains.T / n, -np.inf).max(1)
        chance = float((1 + (largest >= score[best] - 1e-12).sum()) / (1 + len(flips)))
        share = float((candidates[np.argmax(resampled[:, candidates], axis=1)] == best).mean())
    if not refused.any() and not plain.any():
        why = "the model refuses none of the prompts under any scale: a base model, or prompts that sound too harmless"
    elif refused.all() and plain.all():
        why = "the model refuses every prompt under every scale: use prompts that sound less harmful"
    elif best is None:
        why = "no block's refusals rise with its scale"
    elif score[best] <= 0 or chance > options.level:
        why = f"the largest difference, {score[best]:+.3f} at block {best}, may be chance (p = {chance:.2f})"
    if why and (plain.all() or not plain.any()) and refused.any():
        why += f"; unscaled it refuses {'all' if plain.all() else 'none'} of the prompts, so little can be measured"
    return Sensitivity(score, lowest, highest, None if why else best, top, chance, share, why)


def scaling_table(
    verdicts: dict[tuple[int, float], list[Verdict]], sensitivity: Sensitivity, options: ScalingOptions
) -> tuple[dict[str, Any], ...]:
    """One row a block: refusals at each scale, differences of the pairs, degenerate replies, score and interval."""
    scores, lowest, highest = (values.tolist() for values in (sensitivity.score, sensitivity.low, sensitivity.high))
    rows = []
    for block in range(len(scores)):
        counts = {scale: verdicts[block, scale].count("refusal") for scale in options.scales}
        row: dict[str, Any] = {"block": block, "layer": block + 1}
        row |= {f"x{scale:g}": counts[scale] for scale in sorted(options.scales)}
        row |= {f"{high:g}-{low:g}": counts[high] - counts[low] for high, low in options.pairs}
        row["degenerate"] = sum(verdicts[block, scale].count("degenerate") for scale in options.scales)
        row |= {"score": scores[block], "low": lowest[block], "high": highest[block]}
        rows.append(row)
    return tuple(rows)
