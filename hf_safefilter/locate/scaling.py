"""LARF's layer search: blocks that refuse more when they are louder, and less when they are quieter (section 4.1).

One block at a time is scaled by six factors; refusals of prompts that only sound harmful are counted. The difference
between a louder and a quieter block takes out mere damage, which both do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_safefilter.errors import OptionError
from hf_safefilter.locate.refusals import Verdict

LEAST_PROMPTS = 10
"""Prompts below which refusals are not counted."""


@dataclass(frozen=True, slots=True)
class ScalingOptions:
    """What is tried and how it is judged.

    Attributes:
        scales: factors below 1, and their counterparts above 1 in the same distances; 1 itself is always measured.
        max_new_tokens: where replies are cut.
        refusals: preset of the refusal matcher (`locate.refusals`).
        include_o_proj: scale the output projection of attention too.
        resamples: bootstrap samples of the prompts, and sign flips of the test.
        level: of the interval and of the test.
        seed: of both.
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
                f"scales {list(self.scales)} are not pairs of a factor below and one above 1",
                fix="use e.g. (0.7, 0.8, 0.9, 1.1, 1.2, 1.3)",
            )
        if self.max_new_tokens < 1 or self.resamples < 19 or not 0 < self.level < 1:
            raise OptionError(
                f"max_new_tokens={self.max_new_tokens}, resamples={self.resamples}, level={self.level} make no test",
                fix="use at least 1 token and 19 resamples, and a level such as 0.05",
            )

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """(louder, quieter), strongest first."""
        low, high = (
            sorted(scale for scale in self.scales if side(scale)) for side in (lambda s: s < 1, lambda s: s > 1)
        )
        return list(zip(reversed(high), low, strict=True))


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How refusals follow the loudness of each block.

    Attributes:
        score: sum of the differences of all pairs over the number of prompts, float64 (L,).
        low: lower bound of its bootstrap interval over prompts.
        high: upper bound.
        best: the block chosen; None where there is no signal.
        top: the three blocks with the largest score.
        chance: how often signs flipped prompt by prompt give as large a best score.
        chosen_share: share of bootstrap samples in which the same block is chosen.
        why: "" or why there is no signal.
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
    """Choose the block whose loudness refusals follow. The reference leaves that to the eye; this rule is ours.

    The score of a block is the sum over the pairs of R[louder] - R[quieter], over the number of prompts. Chosen is the
    largest among the blocks whose refusals do not fall from the innermost lower scale over 1 to the innermost higher
    one; ties go to the lower block. All blocks are ranked (the reference leaves out the last two).

    Args:
        refused: which prompts were refused, bool (L, scales, prompts), scales in the order of the options.
        plain: the same for the unscaled model, bool (prompts,).
        options: the scales and the test.
    """
    place = {scale: number for number, scale in enumerate(options.scales)}
    gains = sum(
        refused[:, place[high]].astype(np.float64) - refused[:, place[low]] for high, low in options.pairs
    )  # (L, prompts): what each prompt adds
    n_blocks, n = gains.shape
    score = gains.mean(1)
    low, high = (refused[:, place[scale]].astype(np.float64) for scale in reversed(options.pairs[-1]))
    rising = (low.sum(1) <= plain.sum()) & (plain.sum() <= high.sum(1))
    draw = np.random.default_rng(options.seed)
    weights = draw.multinomial(n, np.full(n, 1 / n), size=options.resamples) / n
    resampled = weights @ gains.T  # (resamples, L)
    bounds = np.quantile(resampled, [options.level / 2, 1 - options.level / 2], axis=0)
    candidates = np.flatnonzero(rising)
    order = np.lexsort((np.arange(n_blocks), -score))
    top = tuple(int(block) for block in order[:3])
    why, best, chance, share = "", None, 1.0, 0.0
    if len(candidates):
        best = int(candidates[np.argmax(score[candidates])])
        # One flip swaps louder and quieter in all blocks of a prompt: their scores stay as correlated as they are. The
        # rule is applied to every flip anew: noise that happened to pass it must be held against noise that did too.
        flips = draw.choice([-1.0, 1.0], size=(options.resamples, n))
        middle, reach = (low + high).sum(1) / 2, flips @ (high - low).T / 2
        passed = (middle - reach <= plain.sum()) & (plain.sum() <= middle + reach)
        largest = np.where(passed, flips @ gains.T / n, -np.inf).max(1)
        chance = float((1 + (largest >= score[best] - 1e-12).sum()) / (1 + len(flips)))
        share = float((candidates[np.argmax(resampled[:, candidates], axis=1)] == best).mean())
    if not refused.any() and not plain.any():
        why = "the model refuses none of the prompts under any scale: a base model, or prompts that sound too harmless"
    elif refused.all() and plain.all():
        why = "the model refuses every prompt under every scale: use prompts that sound less harmful"
    elif best is None:
        why = "no block's refusals rise with its loudness"
    elif score[best] <= 0 or chance > options.level:
        why = f"the largest difference, {score[best]:+.3f} at block {best}, may be chance (p = {chance:.2f})"
    if why and (plain.all() or not plain.any()) and refused.any():
        why += f"; unscaled it refuses {'all' if plain.all() else 'none'} of the prompts, so there is little to see"
    return Sensitivity(score, *bounds, None if why else best, top, chance, share, why)


def scaling_table(
    verdicts: dict[tuple[int, float], list[Verdict]], found: Sensitivity, options: ScalingOptions
) -> tuple[dict[str, Any], ...]:
    """One row a block: refusals at each scale, differences of the pairs, degenerate replies, score and interval."""
    rows = []
    for block in range(len(found.score)):
        counts = {scale: verdicts[block, scale].count("refusal") for scale in options.scales}
        row: dict[str, Any] = {"block": block, "layer": block + 1}
        row |= {f"x{scale:g}": counts[scale] for scale in sorted(options.scales)}
        row |= {f"{high:g}-{low:g}": counts[high] - counts[low] for high, low in options.pairs}
        row["degenerate"] = sum(verdicts[block, scale].count("degenerate") for scale in options.scales)
        row |= {"score": float(found.score[block]), "low": float(found.low[block]), "high": float(found.high[block])}
        rows.append(row)
    return tuple(rows)
