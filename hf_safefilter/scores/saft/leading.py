"""Leading right singular vectors of a matrix that is read one block of rows at a time."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from hf_safefilter.errors import DataError

_MOST_BUFFERED = 2048  # rows
_SMALLEST_SHARE = 1e-6
_FEW, _LARGE = 16, 512


class Moments:
    """Count, mean and Gram matrix of rows of length d that are added block by block.

    Products of a block are taken in the rows' own dtype (float32 or float64), sums in float64: the error of the
    directions is about 1e-7, where sums in float32 give 5e-4. While there are fewer rows than d, the rows are buffered
    instead, and their own, smaller Gram matrix is used.
    """

    def __init__(self, center: bool) -> None:
        self.count = 0
        self._center = center
        self._buffer: list[np.ndarray] = []
        self._origin = self._total = self._gram = np.empty(0)

    def add(self, rows: np.ndarray) -> None:
        """Add `rows` (n, d), float32 or float64."""
        if not len(rows):
            return
        if not self.count:
            width = rows.shape[1]
            self._total = np.zeros(width)
            # Hidden states share a large mean, and in float32 products the variance about it would be lost. So rows
            # are moved by the mean of the first block, and the moments are corrected at the end.
            self._origin = rows.mean(axis=0)
        elif rows.shape[1] != len(self._total):
            raise DataError(
                f"vectors of length {rows.shape[1]} among vectors of length {len(self._total)}",
                fix="embed all splits with the same model",
            )
        rows = rows - self._origin
        self.count += len(rows)
        self._total += rows.sum(axis=0, dtype=np.float64)
        if not len(self._gram):
            self._buffer.append(rows)
            if self.count <= min(len(self._total), _MOST_BUFFERED):
                return
            rows, self._buffer = np.concatenate(self._buffer), []
            self._gram = np.zeros((len(self._total), len(self._total)))
        self._gram += rows.T @ rows

    def leading(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Directions (d, k), singular values (k,), and the mean that was subtracted (d,); float64, strongest first.

        Raises:
            DataError: The rows span fewer than `k` directions.
        """
        width, origin = len(self._total), self._origin.astype(np.float64)
        mean = self._total / self.count
        target = mean if self._center else -origin  # the point about which moments are taken, relative to the origin
        if len(self._gram):
            cross = np.outer(mean, target)
            squared, directions = _top(self._gram + self.count * (np.outer(target, target) - cross - cross.T), k)
            sigma = np.sqrt(np.maximum(squared, 0))
        else:
            rows = np.concatenate(self._buffer).astype(np.float64) - target
            squared, weights = _top(rows @ rows.T, k)
            sigma = np.sqrt(np.maximum(squared, 0))
            directions = rows.T @ weights / np.where(sigma > 0, sigma, 1)
        if len(sigma) < k or not sigma[-1] > _SMALLEST_SHARE * max(sigma[0], np.finfo(np.float64).tiny):
            raise DataError(
                f"the rows span fewer than {k} directions", found=f"{self.count} rows of length {width}",
                fix="use a smaller k or more rows",
            )  # fmt: skip
        # The sign of an eigenvector is arbitrary; a fixed one gives the same file for the same rows.
        largest = np.abs(directions).argmax(axis=0)
        directions = directions * np.sign(directions[largest, np.arange(k)])
        return directions, sigma, origin + target


def _top(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` largest eigenvalues of a symmetric matrix, largest first, and their vectors."""
    from scipy.linalg import eigh
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    size = len(matrix)
    if k <= _FEW and size >= _LARGE:
        # For a few directions of a large matrix, Lanczos needs some dozen products where eigh decomposes all of it.
        start = np.random.default_rng(0).standard_normal(size)
        with suppress(ArpackNoConvergence):
            values, vectors = eigsh(matrix, k, which="LA", v0=start)
            order = np.argsort(-values)
            return values[order], vectors[:, order]
    values, vectors = eigh(matrix, subset_by_index=[max(size - k, 0), size - 1])
    return values[::-1], vectors[:, ::-1]
