"""The angular gap: from which layer on a model separates malicious from normal prompts (Safety Layers, section 3.1).

At every layer, pairs of two normal prompts (NN), of two malicious ones (MM) and of one of each (NM) are compared by the
cosine of the states of their last tokens. Where an aligned model begins to treat the two kinds differently, the angle
of NM pairs grows larger than that of NN pairs. One pass over each prompt is enough; nothing is generated.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hf_safefilter.checks import require_choice, require_share, require_whole
from hf_safefilter.errors import DataError

LEAST_PROMPTS = 10
"""Smallest number of prompts of each kind from which a gap is computed."""


@dataclass(frozen=True, slots=True)
class GapOptions:
    """How the gap is measured and read.

    Attributes:
        pairs: Number of pairs drawn of each kind.
        reading: "code" for the angle of the mean cosine, as in the published code; "paper" for the mean of the angles.
        least_degrees: The gap appears at the first block where it exceeds this many degrees ...
        lasting: ... and stays above 0 for this many further blocks.
        flat: The gap flattens where it grows by less than this share of its largest growth so far.
        permutations: Number of random permutations of the kinds among the prompts, for the test of significance.
        level: Largest share of permutations that may reach as large a gap.
        seed: Seed of the permutations; the pairs are seeded as in the published code.
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
        require_choice("reading", self.reading, ("code", "paper"))
        require_whole("pairs", self.pairs, least=1)
        require_whole("permutations", self.permutations, least=19)
        require_share("level", self.level)


_SEEDS = {"nn": 10, "mm": 100, "nm": 1000}
"""First seed of the published code, by kind of pair."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The gap at every block (index b is the output of block b), and the range read from it.

    Attributes:
        cosines: Cosines of the pairs by kind of pair, float64 (pairs, L).
        degrees: Angle of NM pairs minus angle of NN pairs, in degrees, float64 (L,).
        chance: Share of permutations whose largest gap is at least as large.
        first: Block where the gap appears; None without a signal.
        last: Block where its growth flattens; None without a signal.
        why: Why there is no signal; "" if there is one.
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
    """Measure the gap and find where it appears and where it flattens.

    Args:
        normal: Last-token states of normal prompts after each block, float (n, L, d).
        malicious: The same for malicious prompts, float (m, L, d).
        options: How the gap is measured and read.

    Raises:
        DataError: Too few prompts, or states that are not finite or zero.
    """
    for name, states in (("normal", normal), ("malicious", malicious)):
        if len(states) < LEAST_PROMPTS:
            raise DataError(
                f"{len(states)} {name} prompts are too few", fix=f"give at least {LEAST_PROMPTS}, better 100"
            )
    n, m = len(normal), len(malicious)
    pairs = {kind: _draw_pairs(kind, n, m, options.pairs) for kind in _SEEDS}
    is_normal = _permuted_kinds(n, m, options)
    by_block: dict[str, list[np.ndarray]] = {kind: [] for kind in _SEEDS}
    gaps = []
    for block in range(normal.shape[1]):  # block by block, so that memory does not grow with the square of the prompts
        unit = _unit(np.concatenate([normal[:, block], malicious[:, block]]))
        for kind, (left, right) in pairs.items():
            by_block[kind].append((unit[left] * unit[right]).sum(1))
        gaps.append(_gaps_of_all_pairs(unit, is_normal, n, m))
    cosines = {kind: np.stack(values, axis=1) for kind, values in by_block.items()}
    degrees = angular_gap(cosines["nn"], cosines["nm"], options.reading)
    largest = np.max(gaps, axis=0)
    chance = float((largest >= largest[0] - 1e-12).mean())  # row 0 is the true assignment
    first, last = onset_and_flat(degrees, options)
    why = ""
    if first is None:
        why = f"the gap never exceeds {options.least_degrees:g} degrees for long; largest: {degrees.max():.2f}"
    elif chance > options.level:
        why = f"{chance:.0%} of random permutations of the prompts show as large a gap: it may be chance"
    return Gap(cosines, degrees, chance, None if why else first, None if why else last, why)


def angular_gap(nn: np.ndarray, nm: np.ndarray, reading: Literal["code", "paper"] = "code") -> np.ndarray:
    """The gap in degrees, float64 (L,), from cosines of pairs, (pairs, L).

    "code": arccos of the mean NM cosine minus arccos of the mean NN cosine. "paper": mean NM angle minus mean NN angle.
    The two differ because arccos is not linear.
    """
    clipped = [np.clip(np.asarray(cosines, np.float64), -1, 1) for cosines in (nm, nn)]
    angles = [np.arccos(values.mean(0)) if reading == "code" else np.arccos(values).mean(0) for values in clipped]
    return np.degrees(angles[0] - angles[1])


def onset_and_flat(degrees: np.ndarray, options: GapOptions) -> tuple[int | None, int | None]:
    """The blocks where the gap appears and where its growth flattens, by a rule of ours: none is published.

    It appears at the first block where it exceeds `least_degrees` and stays above 0 for `lasting` more (or to the end).
    It flattens at the first later block whose growth to the next is below `flat` times the largest growth so far, or at
    the last block if it grows to the end.
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
        raise DataError("a prompt's state is not finite, or zero", fix='use `dtype="float32"`, or remove the prompt')
    return states / norms


def _draw_pairs(kind: str, n: int, m: int, count: int) -> np.ndarray:
    """The pairs that the published code draws, as indices of prompts, int (2, count); each pair has its own seed."""
    pairs = np.empty((2, count), int)
    for number in range(count):
        draw = random.Random(_SEEDS[kind] + number)
        if kind == "nm":
            pairs[:, number] = draw.sample(range(n), 1)[0], n + draw.sample(range(m), 1)[0]
        else:
            start, size = (0, n) if kind == "nn" else (n, m)
            pairs[:, number] = [start + index for index in draw.sample(range(size), 2)]
    return pairs


def _permuted_kinds(n: int, m: int, options: GapOptions) -> np.ndarray:
    """1 for the prompts that count as normal, else 0, (permutations + 1, n + m); row 0 is the true assignment."""
    draw = np.random.default_rng(options.seed)
    is_normal = np.zeros((options.permutations + 1, n + m))
    is_normal[:, :n] = 1
    for row in range(1, len(is_normal)):
        draw.shuffle(is_normal[row])
    return is_normal


def _gaps_of_all_pairs(unit: np.ndarray, is_normal: np.ndarray, n: int, m: int) -> np.ndarray:
    """The gap over all pairs, in radians, for each row of `is_normal`; sums of vectors give the sums over pairs."""
    sums = is_normal @ unit
    nn = ((sums**2).sum(1) - n) / (n * (n - 1))
    nm = (sums * (unit.sum(0) - sums)).sum(1) / (n * m)
    return np.arccos(np.clip(nm, -1, 1)) - np.arccos(np.clip(nn, -1, 1))
