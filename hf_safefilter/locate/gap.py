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
    unit = _unit(np.concatenate([normal, malicious])).swapaxes(0, 1)
    table = unit @ unit.swapaxes(1, 2)  # (L, prompts, prompts): cosines of all pairs, once
    n, m = len(normal), len(malicious)
    cosines = {kind: _drawn(table, kind, n, m, options.pairs) for kind in _SEEDS}
    degrees = angular_gap(cosines["nn"], cosines["nm"], options.reading)
    chance = _chance(table, n, m, options)
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


def _drawn(table: np.ndarray, kind: str, n: int, m: int, pairs: int) -> np.ndarray:
    """Cosines of the pairs that the published code draws: a fresh seed for every pair."""
    found = np.empty((pairs, len(table)))
    for number in range(pairs):
        draw = random.Random(_SEEDS[kind] + number)
        if kind == "nm":
            one, other = draw.sample(range(n), 1)[0], n + draw.sample(range(m), 1)[0]
        else:
            start, size = (0, n) if kind == "nn" else (n, m)
            one, other = (start + number for number in draw.sample(range(size), 2))
        found[number] = table[:, one, other]
    return found


def _chance(table: np.ndarray, n: int, m: int, options: GapOptions) -> float:
    """How often the largest gap over the layers is as large when the kinds are shuffled, over all pairs."""
    draw = np.random.default_rng(options.seed)
    total = n + m
    kinds = np.zeros((options.permutations + 1, total))
    kinds[:, :n] = 1
    for row in range(1, len(kinds)):
        draw.shuffle(kinds[row])
    diagonal = np.einsum("lii->li", table)
    within = np.einsum("pi,lij,pj->pl", kinds, table, kinds, optimize=True) - kinds @ diagonal.T
    between = np.einsum("pi,lij,pj->pl", kinds, table, 1 - kinds, optimize=True)
    means = [within / (n * (n - 1)), between / (n * m)]
    angles = [np.arccos(np.clip(mean, -1, 1)) for mean in means]
    largest = (angles[1] - angles[0]).max(1)
    return float((largest >= largest[0] - 1e-12).mean())
