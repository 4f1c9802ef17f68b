"""Sums of similarities between points and groups of points, from features without a matrix."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from epruner.cluster import validate
from epruner.cluster.backends.cuda.device import from_tensor
from epruner.cluster.products import products
from epruner.cluster.resources import effective_n_threads
from epruner.cluster.similarity import normalised
from epruner.cluster.types import Floats, Indices


@dataclass(frozen=True)
class Groups:
    """Groups of points, none of them empty.

    `order` (m,) holds the points, group after group; `starts` (K,) where each group begins.
    """

    order: Indices
    starts: Indices

    @classmethod
    def of_labels(cls, labels: Indices) -> "Groups":
        """Points of a label side by side, ascending; points without a label (-1) are left out."""
        order = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]
        return cls(order, np.flatnonzero(np.diff(labels[order], prepend=-1)))

    @property
    def sizes(self) -> Indices:
        return np.diff(self.starts, append=self.order.size)


class Sums(ABC):
    """Sums of similarities of n points, in float64.

    Attributes
    ----------
    n : int
    own : ndarray of shape (n,)
        The similarity of each point to itself.
    top : float
        No similarity is larger.
    """

    n: int
    own: Floats
    top: float

    @abstractmethod
    def with_points(self, groups: Groups) -> tuple[Floats, Floats]:
        """Return sums over each group, both (K, m), with columns in the groups' order.

        The first holds the similarities of a group's members to a point, the second those of a
        point to the members. They are one array where similarities are symmetric.
        """

    @abstractmethod
    def between(self, groups: Groups) -> Floats:
        """Return the sums (K, K) of the similarities of a group's members to another's."""

    @abstractmethod
    def links(self, rows: Indices, columns: Indices) -> Floats:
        """Return the similarities of pairs of points."""


class FeatureSums(Sums):
    """Similarities that are inner products: S = left @ right.T, so sums of rows give sums of S."""

    def __init__(self, X: Floats, *, cosine: bool, n_threads: int) -> None:
        self.n = X.shape[0]
        self.own = np.full(self.n, float(cosine))
        self.top = float(cosine)
        self._n_threads = n_threads
        X = X.astype(np.float64)
        if cosine:
            self._left = self._right = normalised(X)
            return
        X -= X[0].copy()  # a point, not the mean: integers stay integers, and their ties ties
        norms = np.einsum("ij,ij->i", X, X)
        validate.require_distances(norms)
        ones = np.ones(self.n)
        # -|x - y|² = (2x, -1, -|x|²) · (y, |y|², 1)
        self._left = np.column_stack([2 * X, -ones, -norms])
        self._right = np.column_stack([X, norms, ones])

    def with_points(self, groups: Groups) -> tuple[Floats, Floats]:
        out = np.empty((groups.starts.size, groups.order.size))
        left = np.add.reduceat(self._left[groups.order], groups.starts, axis=0)
        T = products(left, self._right[groups.order], self._n_threads, out)
        return T, T

    def between(self, groups: Groups) -> Floats:
        left, right = (
            np.add.reduceat(side[groups.order], groups.starts, axis=0)
            for side in (self._left, self._right)
        )
        return products(left, right, self._n_threads, np.empty((left.shape[0], right.shape[0])))

    def links(self, rows: Indices, columns: Indices) -> Floats:
        similarities: Floats = np.einsum("ij,ij->i", self._left[rows], self._right[columns])
        return similarities


class MatrixSums(Sums):
    """Similarities (n, n) in memory; `own` replaces their diagonal where it is given."""

    def __init__(self, S: Floats, own: float | None) -> None:
        self.n = S.shape[0]
        self._S = S
        self._replaced = own is not None
        self.own = S.diagonal().astype(np.float64) if own is None else np.full(self.n, own)
        self.top = max(float(S.max()), self.own.max())

    def with_points(self, groups: Groups) -> tuple[Floats, Floats]:
        T = self._with_points(self._S, groups)
        symmetric = np.array_equal(self._S, self._S.T)
        return T, T if symmetric else self._with_points(self._S.T, groups)

    def between(self, groups: Groups) -> Floats:
        sums: Floats = np.add.reduceat(self._with_points(self._S, groups), groups.starts, axis=1)
        return sums

    def links(self, rows: Indices, columns: Indices) -> Floats:
        return np.where(rows == columns, self.own[rows], self._S[rows, columns])

    def _with_points(self, S: Floats, groups: Groups) -> Floats:
        m = groups.order.size
        T = np.empty((groups.starts.size, m))
        for row, members in zip(T, np.split(groups.order, groups.starts[1:]), strict=True):
            row[:] = S[members].sum(axis=0, dtype=np.float64)[groups.order]
        if self._replaced:
            group = np.repeat(np.arange(groups.starts.size), groups.sizes)
            T[group, np.arange(m)] += (self.own - S.diagonal())[groups.order]
        return T


def sums_of(model: Any, X: ArrayLike | None) -> Sums:
    """Return the sums of the similarities that a model was fitted on.

    Parameters
    ----------
    model : AffinityPropagation
        Fitted; scikit-learn's will do.
    X : array-like or None
        What it was fitted on. None takes its ``affinity_matrix_``.

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    TypeError
        If the similarities are sparse.
    ValueError
        If `X` is missing or not what the model was fitted on.
    """
    check_is_fitted(model, "labels_")
    X = from_tensor(X, "X")
    affinity = model.affinity
    n = model.labels_.size
    known = isinstance(affinity, str) and affinity != "precomputed"
    if X is not None and hasattr(model, "sample_weight_"):
        raise ValueError(
            "the model was fitted with sample_weight, of which its affinity_matrix_ knows, and X "
            "does not: leave X out"
        )
    if X is not None and not known:
        S = affinity(X) if callable(affinity) else X
        _refuse_sparse(S)
        S = validate.similarities(S)
        validate.require_similarities(S)
        _require_points(S.shape[0], n)
        return MatrixSums(S, None)
    if X is None or issparse(X):  # a fit on sparse features keeps their matrix
        if not hasattr(model, "affinity_matrix_"):
            raise ValueError(f"the model of {n} points kept no matrix: pass the X it was fitted on")
        _refuse_sparse(model.affinity_matrix_)
        return MatrixSums(model.affinity_matrix_, float(affinity == "cosine") if known else None)
    features = check_array(X, dtype=[np.float64, np.float32])
    _require_points(features.shape[0], n)
    if not np.array_equal(features[model.cluster_centers_indices_], model.cluster_centers_):
        raise ValueError("X is not what the model was fitted on: its exemplars are other points")
    threads = effective_n_threads(getattr(model, "n_threads", None))
    return FeatureSums(features, cosine=affinity == "cosine", n_threads=threads)


def _refuse_sparse(S: object) -> None:
    if issparse(S):
        raise TypeError(
            "sparse similarities have no sums over whole clusters, as most pairs are not stored: "
            "fit and pass dense ones"
        )


def _require_points(given: int, n: int) -> None:
    if given != n:
        raise ValueError(f"X has {given} points, the model was fitted on {n}")
