"""The angular gap: from which layer on a model tells malicious prompts from normal ones (Safety Layers, section 3.1).

At every layer, pairs of two normal prompts (NN), of two malicious ones (MM) and of one each (NM) are compared by the
cosine of their last tokens' states. Where an aligned model begins to treat the two kinds apart, NM pairs come to stand
at a larger angle than NN pairs. One pass over each prompt is all it takes; nothing is generated.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hf_safefilter.errors import DataError, OptionError

LEAST_PROMPTS = 10
"""Prompts of each kind below which no gap is looked for."""


@dataclass(frozen=True, slots=True)
class GapOptions:
    """How the gap is measured and read.

    Attributes:
        pairs: pairs drawn of each kind.
        reading: "code": angle of the mean cosines, as the published code has it; "paper": mean of the angles.
        least_degrees: the gap appears where it exceeds this ...
        lasting: ... and stays above 0 for so many layers more.
        flat: it flattens where it grows by less than this share of its largest growth so far.
        permutations: shufflings of the two kinds among the prompts that the gap must stand out from.
        level: share of shufflings that may reach as large a gap.
        seed: of the shufflings; the pairs are seeded as the published code seeds them.
    """

    pairs: int = 500
    reading: Literal["code", "paper"] = "code"
    least_degrees: float = 1.0
    lasting: int = 3
    flat: float = 0.25
    permutations: int = 400
    level: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reading not in ("code", "paper"):
            raise OptionError(f"reading={self.reading!r} is not known", fix="use 'code' or 'paper'")
        if self.pairs < 1 or self.permutations < 19 or not 0 < self.level < 1:
            raise OptionError(
                f"pairs={self.pairs}, permutations={self.permutations}, level={self.level} make no test",
                fix="use at least 1 pair and 19 permutations, and a level such as 0.05",
            )


_SEEDS = {"nn": 10, "mm": 100, "nm": 1000}
"""Where the published code starts to count its seeds, by kind of pair."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Per-block curves (position b is the output of block b), and what they say.

    Attributes:
        cosines: kind of pair -> float64 (pairs, L).
        degrees: NM minus NN, float64 (L,).
        chance: share of shufflings whose largest gap is at least as large.
        first: block where the gap appears; None: it does not.
        last: block where its growth flattens.
        why: "" or why there is no signal.
    """

    cosines: dict[str, np.ndarray]
    degrees: np.ndarray
    chance: float
    first: int | None
    last: int | None
    why: str

    def table(self) -> tuple[dict[str, Any], ...]:
        """One row a block."""
        means = {kind: values.mean(0) for kind, values in self.cosines.items()}
        return tuple(
            {"block": block, "layer": block + 1} | {f"cos_{kind}": float(mean[block]) for kind, mean in means.items()}
            | {"gap": float(self.degrees[block])}
            for block in range(len(self.degrees))
        )  # fmt: skip


def find_gap(normal: np.ndarray, malicious: np.ndarray, options: GapOptions = GapOptions()) -> Gap:  # noqa: B008
    """Measure the gap and find where it appears and flattens.

    Args:
        normal: last-token states of normal prompts after each block, float (n, L, d).
        malicious: of malicious prompts, (m, L, d).
        options: how.

    Raises:
        DataError: too few prompts, or states that are not finite or of zero length.
    """
    for name, states in (("normal", normal), ("malicious", malicious)):
        if len(states) < LEAST_PROMPTS:
            raise DataError(
                f"{len(states)} {name} prompts are too few", fix=f"give at least {LEAST_PROMPTS}, better 100"
            )
    n, m = len(normal), len(malicious)
    drawn = {kind: _drawn(kind, n, m, options.pairs) for kind in _SEEDS}
    kinds = _shuffled(n, m, options)
    cosines, shuffled = {kind: [] for kind in _SEEDS}, []
    for layer in range(normal.shape[1]):  # one at a time: nothing grows with the square of the prompts
        unit = _unit(np.concatenate([normal[:, layer], malicious[:, layer]]))
        for kind, (one, other) in drawn.items():
            cosines[kind].append((unit[one] * unit[other]).sum(1))
        shuffled.append(_gaps_of_all_pairs(unit, kinds, n, m))
    cosines = {kind: np.stack(found, axis=1) for kind, found in cosines.items()}
    degrees = angular_gap(cosines["nn"], cosines["nm"], options.reading)
    largest = np.max(shuffled, axis=0)
    chance = float((largest >= largest[0] - 1e-12).mean())  # the first is as it is
    first, last = onset_and_flat(degrees, options)
    why = ""
    if first is None:
        why = f"the gap never exceeds {options.least_degrees:g} degrees for long; largest: {degrees.max():.2f}"
    elif chance > options.level:
        why = f"{chance:.0%} of shuffled prompts show as large a gap: it may be chance"
    return Gap(cosines, degrees, chance, None if why else first, None if why else last, why)


def angular_gap(nn: np.ndarray, nm: np.ndarray, reading: Literal["code", "paper"] = "code") -> np.ndarray:
    """The gap in degrees, float64 (L,), from cosines of pairs `(pairs, L)`.

    "code": arccos of the mean NM cosine minus arccos of the mean NN cosine. "paper": mean NM angle minus mean NN angle.
    The two differ (arccos is not linear).
    """
    both = [np.clip(np.asarray(values, np.float64), -1, 1) for values in (nm, nn)]
    angles = [np.arccos(values.mean(0)) if reading == "code" else np.arccos(values).mean(0) for values in both]
    return np.degrees(angles[0] - angles[1])


def onset_and_flat(degrees: np.ndarray, options: GapOptions) -> tuple[int | None, int | None]:
    """Where the gap appears and where its growth flattens, as blocks. No numeric rule is published; this one is ours.

    It appears at the first block where it exceeds `least_degrees` and stays above 0 for `lasting` more (or to the end).
    It flattens at the first block after that whose growth to the next is below `flat` of the largest growth so far; at
    the last block, if it grows to the end.
    """
    n_blocks = len(degrees)
    first = next(
        (b for b in range(n_blocks)
         if degrees[b] > options.least_degrees and (degrees[b : b + 1 + options.lasting] > 0).all()),
        None,
    )  # fmt: skip
    if first is None:
        return None, None
    growth = np.diff(degrees)
    for block in range(first + 1, n_blocks - 1):
        if growth[block] < options.flat * growth[: block + 1].max():
            return first, block
    return first, n_blocks - 1


def _unit(states: np.ndarray) -> np.ndarray:
    states = np.asarray(states, np.float64)
    norms = np.linalg.norm(states, axis=-1, keepdims=True)
    if not np.isfinite(states).all() or not (norms > 0).all():
        raise DataError("a prompt's state is not finite, or zero", fix="use dtype='float32'; or leave the prompt out")
    return states / norms


def _drawn(kind: str, n: int, m: int, pairs: int) -> np.ndarray:
    """The pairs that the published code draws, int (2, pairs): a fresh seed for every one."""
    found = np.empty((2, pairs), int)
    for number in range(pairs):
        draw = random.Random(_SEEDS[kind] + number)
        if kind == "nm":
            found[:, number] = draw.sample(range(n), 1)[0], n + draw.sample(range(m), 1)[0]
        else:
            start, size = (0, n) if kind == "nn" else (n, m)
            found[:, number] = [start + one for one in draw.sample(range(size), 2)]
    return found


def _shuffled(n: int, m: int, options: GapOptions) -> np.ndarray:
    """Which prompts are taken for normal: as it is, then shuffled; (permutations + 1, n + m)."""
    draw = np.random.default_rng(options.seed)
    kinds = np.zeros((options.permutations + 1, n + m))
    kinds[:, :n] = 1
    for row in range(1, len(kinds)):
        draw.shuffle(kinds[row])
    return kinds


def _gaps_of_all_pairs(unit: np.ndarray, kinds: np.ndarray, n: int, m: int) -> np.ndarray:
    """The gap (radians) over all pairs for each way to take prompts for normal; sums of vectors give those of pairs."""
    sums = kinds @ unit
    within = ((sums**2).sum(1) - n) / (n * (n - 1))
    between = (sums * (unit.sum(0) - sums)).sum(1) / (n * m)
    within, between = (np.arccos(np.clip(mean, -1, 1)) for mean in (within, between))
    return between - within
