"""Directions that tell two classes apart: shrinkage LDA in closed form, and logistic regression by scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_safefilter.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Vectors of both classes, with the weight of each.

    Attributes:
        vectors: float64 `(n, d)`.
        unsafe: bool `(n,)`.
        weights: float64 `(n,)`, positive; only their shares within a class matter.
        rows: int `(n,)`, the number of the row that each is a span of.
    """

    vectors: np.ndarray
    unsafe: np.ndarray
    weights: np.ndarray
    rows: np.ndarray

    def joined(self, other: Examples, weight: float) -> Examples:
        """These and the `other` ones, whose weights are multiplied by `weight`."""
        return Examples(
            np.concatenate([self.vectors, other.vectors]),
            np.concatenate([self.unsafe, other.unsafe]),
            np.concatenate([self.weights, weight * other.weights]),
            np.concatenate([self.rows, self.rows.max(initial=-1) + 1 + other.rows]),
        )

    def balanced(self) -> np.ndarray:
        """Weights `(n,)` of which each class has one half, times n."""
        shares = np.empty(len(self.weights))
        for side in (True, False):
            inside = self.unsafe == side
            shares[inside] = 0.5 * self.weights[inside] / self.weights[inside].sum()
        return shares * len(shares)


def lda(examples: Examples, shrinkage: float) -> tuple[np.ndarray, float]:
    """Direction `(d,)` and offset of linear discriminant analysis under one pooled, shrunk covariance.

    Both classes have the same weight. `shrinkage`, in (0, 1], is the share of the mean variance times the identity
    that is mixed into the covariance, which is singular without it where examples are fewer than dimensions.

    Raises:
        DataError: The classes have one mean, or no variance.
    """
    weights = examples.balanced() / len(examples.weights)
    means = {
        side: np.average(examples.vectors[examples.unsafe == side], axis=0, weights=weights[examples.unsafe == side])
        for side in (True, False)
    }
    difference = means[True] - means[False]
    if not np.linalg.norm(difference) > 1e-9:
        raise DataError("unsafe and safe examples have the same mean", fix="use other rows, or another layer")
    centred = examples.vectors - np.where(examples.unsafe[:, None], means[True], means[False])
    within = np.sqrt(weights)[:, None] * centred  # its rows sum up to the covariance
    variance = np.square(within).sum() / within.shape[1]
    if not variance > 0:
        raise DataError("the examples of each class are all equal, and lda needs variance", fix="use more rows")
    ridge, rest = shrinkage * variance, 1 - shrinkage
    count, width = within.shape
    if count < width:  # the Woodbury identity needs the inverse of a smaller matrix
        inner = ridge * np.eye(count) + rest * (within @ within.T)
        solved = (difference - rest * within.T @ np.linalg.solve(inner, within @ difference)) / ridge
    else:
        solved = np.linalg.solve(ridge * np.eye(width) + rest * (within.T @ within), difference)
    return solved, float(-solved @ (means[True] + means[False]) / 2)


def logistic(examples: Examples, strength: float) -> tuple[np.ndarray, float]:
    """Direction `(d,)` and offset of L2-penalised logistic regression: log-odds of being unsafe.

    Args:
        examples: The examples; both classes have the same weight.
        strength: Inverse of the penalty (scikit-learn's C), for weights that sum to the number of examples.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=2000, tol=1e-6)
    model.fit(examples.vectors, examples.unsafe, sample_weight=examples.balanced())
    return model.coef_[0].astype(np.float64), float(model.intercept_[0])
