"""What is kept of many rows' gradients while they stream by, parameter by parameter.

`Exact` keeps two numbers a row, <g, G> and |g|^2; `Projected` keeps the random projection of g. Both take a gradient as
it is, or as the two factors whose product it is for a linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from hf_safefilter.scores.gradient.projection import project, project_tokens

_AT_ONCE = 1 << 21  # entries of per-row gradients formed at a time: they stay in cache until they have been used
_AT_ONCE_PROJECTED = 1 << 25  # drawing the signs costs more than memory does, so more rows share them
_TRAFFIC = 24  # multiplications that cost as much as writing and reading an entry


class Meter(Protocol):
    """Takes the gradients of n rows for one parameter after the other."""

    def add(self, name: str, gradients: torch.Tensor, rows: slice = slice(None)) -> None:
        """Gradients (m, *shape of the parameter) of the rows `rows`."""

    def add_product(self, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
        """Gradients left_i^T right_i of all n rows, from `left` (n, tokens, a) and `right` (n, tokens, b)."""

    def add_tokens(self, name: str, ids: torch.Tensor, back: torch.Tensor) -> None:
        """Gradients of an embedding: for each row, vectors `back` (n, tokens, width) summed by `ids` (n, tokens)."""

    def add_overlap(self, twice: torch.Tensor) -> None:
        """2 <g', g''> (n,) for a parameter whose gradient g' + g'' was added in two parts."""

    def scores(self) -> torch.Tensor:
        """<g, G> / |g|, float64 (n,) on the CPU; NaN where g is zero or not finite."""

    def squared_norms(self) -> torch.Tensor:
        """|g|^2, float64 (n,) on the CPU."""


class Exact:
    """<g, G> and |g|^2 of `count` rows.

    Args:
        anchor: G, by parameter name, where the gradients are.
        count: n.
    """

    def __init__(self, anchor: Mapping[str, torch.Tensor], count: int) -> None:
        self._anchor = anchor
        device = next(iter(anchor.values())).device
        wide = torch.float32 if device.type == "mps" else torch.float64
        self._dots, self._squares = torch.zeros(2, count, dtype=wide, device=device)

    def add(self, name: str, gradients: torch.Tensor, rows: slice = slice(None)) -> None:
        """See `Meter`."""
        flat = widen(gradients).flatten(1)
        self._dots[rows] += flat @ self._anchor[name].to(flat.dtype).flatten()
        self._squares[rows] += flat.square().sum(1)

    def add_product(self, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
        """See `Meter`; by whichever of two exact ways is cheaper."""
        left, right = widen(left), widen(right)
        tokens, a, b = left.shape[1], left.shape[2], right.shape[2]
        if tokens * tokens * (a + b) >= _TRAFFIC * a * b:
            for rows in pieces(len(left), a * b, _AT_ONCE):
                self.add(name, left[rows].mT @ right[rows], rows)
            return
        self._dots += ((left @ self._anchor[name].to(left.dtype)) * right).sum((1, 2))
        self._squares += ((left @ left.mT) * (right @ right.mT)).to(self._squares.dtype).sum((1, 2))

    def add_tokens(self, name: str, ids: torch.Tensor, back: torch.Tensor) -> None:
        """See `Meter`."""
        summed, rows, tokens = by_token(ids, back)
        self._dots.index_add_(0, rows, (summed * self._anchor[name][tokens]).sum(1).to(self._dots.dtype))
        self._squares.index_add_(0, rows, summed.square().sum(1).to(self._squares.dtype))

    def add_overlap(self, twice: torch.Tensor) -> None:
        """See `Meter`."""
        self._squares += twice

    def scores(self) -> torch.Tensor:
        """See `Meter`."""
        return _by_length(self._dots.cpu().double(), self.squared_norms())

    def squared_norms(self) -> torch.Tensor:
        """See `Meter`."""
        return self._squares.cpu().double()


class Projected:
    """Random projections of the gradients of `count` rows.

    Args:
        seed: of the signs.
        width: of the projection.
        count: n.
        anchor: the combined anchor gradient, projected alike, (width,); None where only `sums` is asked for.
        device: where the gradients are.
    """

    def __init__(self, seed: int, width: int, count: int, anchor: torch.Tensor | None, device: torch.device) -> None:
        self._seed, self._width, self._anchor = seed, width, anchor
        self.sums = torch.zeros(count, width, device=device)

    def add(self, name: str, gradients: torch.Tensor, rows: slice = slice(None)) -> None:
        """See `Meter`."""
        self.sums[rows] += project(gradients.flatten(1), self._seed, name, self._width)

    def add_product(self, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
        """See `Meter`."""
        left, right = widen(left), widen(right)
        for rows in pieces(len(left), left.shape[2] * right.shape[2], _AT_ONCE_PROJECTED):
            self.add(name, left[rows].mT @ right[rows], rows)

    def add_tokens(self, name: str, ids: torch.Tensor, back: torch.Tensor) -> None:
        """See `Meter`."""
        summed, rows, tokens = by_token(ids, back)
        self.sums += project_tokens(summed, rows, tokens, len(ids), self._seed, name, self._width)

    def add_overlap(self, twice: torch.Tensor) -> None:
        """Nothing to do: a projection of a sum is the sum of the projections."""

    def scores(self) -> torch.Tensor:
        """See `Meter`."""
        return _by_length(self.sums.cpu().double() @ self._anchor.cpu().double(), self.squared_norms())

    def squared_norms(self) -> torch.Tensor:
        """See `Meter`; of the projections, without the factor 1/width by which they estimate those of the gradients."""
        return self.sums.cpu().double().square().sum(1)


def by_token(ids: torch.Tensor, back: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors summed over equal tokens of a row: (m, width), and the row and the token that each belongs to, (m,)."""
    words = int(ids.max()) + 1
    keys = ids + words * torch.arange(len(ids), device=ids.device)[:, None]
    pairs, place = keys.flatten().unique(return_inverse=True)
    summed = back.new_zeros(len(pairs), back.shape[-1]).index_add_(0, place, back.flatten(0, 1))
    return summed, pairs // words, pairs % words


def widen(values: torch.Tensor) -> torch.Tensor:
    """float64 stays, everything else becomes float32."""
    return values if values.dtype == torch.float64 else values.float()


def pieces(count: int, entries: int, at_once: int) -> list[slice]:
    """Slices over `count` rows of `entries` each, with about `at_once` entries a slice."""
    step = max(1, at_once // max(1, entries))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _by_length(dots: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    good = (squares > 0) & squares.isfinite() & dots.isfinite()
    return torch.where(good, dots / squares.sqrt(), torch.nan)
