"""The arms of a study: which rows each model is tuned on, in which order."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from hf_safefilter.errors import DataError, OptionError

ARMS = ("all", "kept", "dropped", "random", "length_matched")
"""All rows; what the score keeps; what it drops; as many at random from all; as many kept ones of the same lengths."""

FROZEN = "+frozen"
"""What stands behind the name of an arm that is tuned with the safety blocks frozen."""

CONTRASTS = (
    ("kept", "all"),
    ("dropped", "random"),
    ("dropped", "length_matched"),
    ("all+frozen", "all"),
    ("kept+frozen", "all"),
    ("kept+frozen", "kept"),
    ("kept+frozen", "all+frozen"),
)
"""The comparisons that a study is made for: the first arm against the second, seed by seed."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Rows to tune on, and whether the safety blocks stay as they are meanwhile."""

    rows: str
    frozen: bool = False

    @property
    def name(self) -> str:
        """As tables and files have it."""
        return self.rows + FROZEN * self.frozen


def arms_of(names: Sequence[str], blocks: tuple[int, int] | None) -> list[Arm]:
    """The arms called `names`; where blocks are to be frozen, ``all+frozen`` and ``kept+frozen`` come with them.

    Raises:
        OptionError: no such arm, none, one twice, or a frozen one without blocks.
    """
    known = [*ARMS, *(f"{rows}{FROZEN}" for rows in ARMS)]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else "use some of these"
            raise OptionError(f"there is no arm {name!r}", found=", ".join(known), fix=fix)
    if not names or len(set(names)) < len(names):
        raise OptionError(f"arms {list(names)}: none, or one twice", fix=f"use some of {', '.join(ARMS)}")
    found = [Arm(name.removesuffix(FROZEN), name.endswith(FROZEN)) for name in names]
    if blocks is None and any(arm.frozen for arm in found):
        raise OptionError("an arm with frozen blocks needs to know which", fix="say e.g. `freeze=(2, 4)`")
    if blocks is not None and not any(arm.frozen for arm in found):
        found += [Arm(rows, frozen=True) for rows in ("all", "kept") if rows in names]
    return found


def choose_rows(rows: str, kept: np.ndarray, lengths: np.ndarray, seed: int) -> np.ndarray:
    """Places of the rows of an arm, ascending.

    Args:
        rows: one of `ARMS`.
        kept: bool (n,), what the score keeps.
        lengths: of the responses, (n,).
        seed: of the draws; another seed draws other rows.

    Raises:
        DataError: the arm is empty, or there are too few rows to draw from.
    """
    dropped = np.flatnonzero(~kept)
    draw = np.random.default_rng([seed, ARMS.index(rows)])
    if rows in ("random", "length_matched") and not len(dropped):
        found = dropped
    elif rows == "random":
        found = np.sort(draw.permutation(len(kept))[: len(dropped)])
    elif rows == "length_matched":
        found = match_lengths(dropped, np.flatnonzero(kept), lengths, draw)
    else:
        found = {"all": np.arange(len(kept)), "kept": np.flatnonzero(kept), "dropped": dropped}[rows]
    if not len(found):
        raise DataError(
            f"arm {rows!r} has no rows", found=f"{int(kept.sum())} kept, {len(dropped)} dropped",
            fix="choose another threshold, or leave this arm out",
        )  # fmt: skip
    return found


def match_lengths(wanted: np.ndarray, pool: np.ndarray, lengths: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """For each row of `wanted` an own row of `pool` of the same or the nearest length; ascending places.

    Rows are served in random order, and of equally near rows a random one is taken.

    Raises:
        DataError: fewer rows in the pool than wanted.
    """
    if len(pool) < len(wanted):
        raise DataError(
            f"{len(wanted)} rows cannot be matched in length",
            found=f"{len(pool)} rows to choose from",
            fix="drop fewer rows than are kept, or leave the arm length_matched out",
        )
    free = sorted(zip(lengths[pool].tolist(), draw.random(len(pool)).tolist(), pool.tolist(), strict=True))
    found = []
    for row in draw.permutation(wanted):
        at = bisect_left(free, (lengths[row].item(), draw.random()))
        near = [place for place in (at - 1, at) if 0 <= place < len(free)]
        best = min(near, key=lambda place: abs(free[place][0] - lengths[row]))
        found.append(free.pop(best)[2])
    return np.sort(np.array(found, dtype=np.int64))


def schedule(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` places in the order in which they are trained on: all `rows`, shuffled, over and over again.

    Arms of any size so see as many rows in as many steps.
    """
    draw = np.random.default_rng([seed, len(ARMS)])
    rounds = [draw.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate(rounds)[:count]
