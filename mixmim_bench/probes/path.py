"""Base class of linear classifiers with a path of penalties."""

from collections.abc import Iterator
from typing import Any, Self

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from mixmim_bench.probes.rows import Stacked, stacked


class LinearPath(ClassifierMixin, BaseEstimator):
    """A linear classifier for each of several penalties; `select` chooses the one for predictions.

    Subclasses set `classes_`, `coef_path_` (n_path, K, d) and `intercept_path_` (n_path, K) for the original
    features, with a single row for two classes.
    """

    classes_: np.ndarray
    coef_path_: np.ndarray
    intercept_path_: np.ndarray

    def _check_data(self, X: Any, y: Any) -> tuple[Stacked, np.ndarray]:
        """Check features (n, d) and labels (n,), encode the labels and store the classes."""
        if not isinstance(X, Stacked | np.memmap):
            X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        rows, labels = stacked(X), column_or_1d(y, warn=True)
        check_classification_targets(labels)
        if len(rows) != len(labels):
            raise ValueError(f"there are {len(rows)} rows in X and {len(labels)} labels in y")
        self.n_features_in_ = rows.shape[1]
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"a classifier needs samples of at least 2 classes, and y has one class: {self.classes_[0]!r}"
            )
        return rows, codes

    def select(self, place: int) -> Self:
        """Use the coefficients of one penalty for predictions."""
        self.coef_, self.intercept_ = self.coef_path_[place], self.intercept_path_[place]
        return self

    def decision_path(self, X: Any) -> Iterator[np.ndarray]:
        """Yield the scores of all classes (n, K) for each penalty."""
        return decide_each(X, self.coef_path_, self.intercept_path_)

    @property
    def _one_row(self) -> bool:
        return self.coef_path_.shape[1] == 1

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits (n, K), or (n,) for two classes."""
        check_is_fitted(self)
        if not isinstance(X, Stacked | np.memmap):
            X = validate_data(self, X, reset=False, dtype=[np.float32, np.float64])
        logits = [_decide(block, self.coef_, self.intercept_) for _, block in stacked(X).blocks()]
        return np.concatenate(logits)[:, 0] if self._one_row else np.concatenate(logits)

    def _name(self, logits: np.ndarray) -> np.ndarray:
        if self._one_row:
            return self.classes_[(logits.reshape(-1) > 0).astype(int)]
        return self.classes_[logits.argmax(1)]

    def predict(self, X: Any) -> np.ndarray:
        """Return the most likely class of each row (n,)."""
        return self._name(self.decision_function(X))

    def log_odds(self, X: Any) -> np.ndarray:
        logits = self.decision_function(X)
        return np.stack([np.zeros_like(logits), logits], 1) if self._one_row else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities (n, K)."""
        return softmax(self.log_odds(X), axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of the probabilities (n, K)."""
        return log_softmax(self.log_odds(X), axis=1)


def decide_each(X: Any, coefs: np.ndarray, intercepts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the scores of all classes (n, K) for each of several coefs (m, K, d) and intercepts (m, K)."""
    rows = stacked(X)
    for coef, intercept in zip(coefs, intercepts, strict=True):
        decided = np.concatenate([_decide(block, coef, intercept) for _, block in rows.blocks()])
        yield np.hstack([np.zeros_like(decided), decided]) if len(coef) == 1 else decided


def _decide(block: np.ndarray, coef: np.ndarray, intercept: np.ndarray) -> np.ndarray:
    return block.astype(np.float64, copy=False) @ coef.T + intercept
