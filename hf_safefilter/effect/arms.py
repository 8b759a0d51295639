"""The arms of a study: the rows on which each model is tuned, and their order."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_safefilter.checks import require_choice
from hf_safefilter.errors import DataError, OptionError

ARMS = ("all", "kept", "dropped", "random", "length_matched", "masked", "refusals")
"""All rows; kept rows; dropped rows; as many rows as dropped, at random; as many kept rows with the same lengths; all
rows of which anything is left when the spans above the threshold are not learned; kept rows and a few refusals."""

USUAL = ARMS[:5]
"""The arms of a study that names none; `masked` needs a method that scores spans."""

MASKED, REFUSALS = "masked", "refusals"
_ORDER = 5  # no arm that draws rows has this number

FROZEN = "+frozen"
"""Ending of the name of an arm that is tuned with the safety blocks frozen."""

CONTRASTS = (
    ("kept", "all"),
    ("masked", "all"),
    ("masked", "kept"),
    ("refusals", "kept"),
    ("dropped", "random"),
    ("dropped", "length_matched"),
    ("all+frozen", "all"),
    ("kept+frozen", "all"),
    ("kept+frozen", "kept"),
    ("kept+frozen", "all+frozen"),
)
"""The comparisons that a study reports: the first arm against the second, seed by seed."""


@dataclass(frozen=True, slots=True)
class Arm:
    """The kind of rows to tune on, one of `ARMS`, and whether the safety blocks are frozen."""

    rows: str
    frozen: bool = False

    @property
    def name(self) -> str:
        """Name of the arm in tables and files."""
        return self.rows + FROZEN * self.frozen


def arms_of(names: Sequence[str], blocks: tuple[int, int] | None) -> list[Arm]:
    """The arms with these names; with `blocks` but no frozen arm, ``all+frozen`` and ``kept+frozen`` are added.

    Args:
        names: Names of arms: some of `ARMS`, each with or without the ending `FROZEN`.
        blocks: First and last block to freeze; None if no blocks are frozen.

    Raises:
        OptionError: An unknown arm, no arm, an arm named twice, or a frozen arm without blocks.
    """
    for name in names:
        require_choice("arms", name, [*ARMS, *(f"{rows}{FROZEN}" for rows in ARMS)])
    if not names or len(set(names)) < len(names):
        raise OptionError(
            f"`arms={tuple(names)}` names no arm, or one of them twice", fix=f"use some of {', '.join(ARMS)}"
        )
    arms = [Arm(name.removesuffix(FROZEN), name.endswith(FROZEN)) for name in names]
    if blocks is None and any(arm.frozen for arm in arms):
        raise OptionError(
            "an arm with frozen blocks needs a range of blocks", fix="name one, for example `freeze=(2, 4)`"
        )
    if blocks is not None and not any(arm.frozen for arm in arms):
        arms += [Arm(rows, frozen=True) for rows in ("all", "kept") if rows in names]
    return arms


def choose_rows(
    rows: str, kept: np.ndarray, lengths: np.ndarray, seed: int, left: np.ndarray | None = None, added: int = 0
) -> np.ndarray:
    """Indices of the rows of an arm, in ascending order.

    Args:
        rows: Kind of rows, one of `ARMS`.
        kept: Which rows the score keeps, bool (n,).
        lengths: Lengths of the responses, (n,).
        seed: Seed of the draws; another seed draws other rows.
        left: In which rows something is left when they are masked, bool (n,); for the arm `MASKED`.
        added: Number of refusals that follow the n rows; for the arm `REFUSALS`.

    Raises:
        DataError: The arm is empty, or there are too few rows to draw from.
    """
    dropped = np.flatnonzero(~kept)
    draw = np.random.default_rng([seed, ARMS.index(rows)])
    if rows in ("random", "length_matched") and not len(dropped):
        indices = dropped
    elif rows == "random":
        indices = np.sort(draw.permutation(len(kept))[: len(dropped)])
    elif rows == MASKED:
        indices = np.flatnonzero(kept if left is None else left)
    elif rows == REFUSALS:
        indices = np.concatenate([np.flatnonzero(kept), len(kept) + np.arange(added)])
    elif rows == "length_matched":
        indices = match_lengths(dropped, np.flatnonzero(kept), lengths, draw)
    else:
        indices = {"all": np.arange(len(kept)), "kept": np.flatnonzero(kept), "dropped": dropped}[rows]
    if not len(indices):
        raise DataError(
            f"arm {rows!r} has no rows", found=f"{int(kept.sum())} kept, {len(dropped)} dropped",
            fix="choose another threshold, or leave this arm out",
        )  # fmt: skip
    return indices


def match_lengths(wanted: np.ndarray, pool: np.ndarray, lengths: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Choose for each row of `wanted` another row of `pool` with the same or the nearest length; ascending indices.

    Rows are matched in random order, and among equally near rows a random one is chosen.

    Args:
        wanted: Indices of the rows to match.
        pool: Indices of the rows to choose from.
        lengths: Lengths of all rows.
        draw: Random generator.

    Raises:
        DataError: The pool has fewer rows than `wanted`.
    """
    if len(pool) < len(wanted):
        raise DataError(
            f"{len(wanted)} rows cannot be matched in length",
            found=f"{len(pool)} rows to choose from",
            fix="drop fewer rows than are kept, or leave the arm length_matched out",
        )
    free = sorted(zip(lengths[pool].tolist(), draw.random(len(pool)).tolist(), pool.tolist(), strict=True))
    matches = []
    for row in draw.permutation(wanted):
        length = lengths[row].item()
        after = bisect_left(free, (length, draw.random()))
        neighbours = [index for index in (after - 1, after) if 0 <= index < len(free)]
        nearest = min(neighbours, key=lambda index: abs(free[index][0] - length))
        matches.append(free.pop(nearest)[2])
    return np.sort(np.array(matches, dtype=np.int64))


def schedule(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` row indices in training order: all `rows` in a random order, then in another one, and so on.

    This way arms of any size see as many rows in as many steps.
    """
    draw = np.random.default_rng([seed, _ORDER])
    rounds = [draw.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate(rounds)[:count]
