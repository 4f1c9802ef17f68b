"""From what users give to the problem that it poses, by affinity."""

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse

from epruner.cluster import validate
from epruner.cluster.backends.cuda.device import from_tensor
from epruner.cluster.problem import (
    FeatureProblem,
    MatrixProblem,
    NeighborProblem,
    NoisyProblem,
    Problem,
    SparseProblem,
    require_compiled,
    require_matrix_memory,
)
from epruner.cluster.similarity import cosine, normalised, scikit_learns_similarities
from epruner.cluster.types import Floats

FLOATS = [np.float64, np.float32]
AFFINITIES = ("euclidean", "cosine", "nearest_neighbors", "precomputed")
MEMORY = ("auto", "tiles", "matrix")

Affinity = str | Callable[[Any], ArrayLike]


def check(affinity: Affinity, memory: str) -> None:
    """Raise for an affinity or a way to hold similarities that there is not."""
    if isinstance(affinity, str) and affinity not in AFFINITIES:
        raise ValueError(
            f"affinity={affinity!r} is not one of {', '.join(AFFINITIES)} or a callable"
        )
    if memory not in MEMORY:
        raise ValueError(f"memory={memory!r} is not one of {', '.join(MEMORY)}")


def pose(
    X: Any,
    affinity: Affinity,
    *,
    sample_weight: ArrayLike | None,
    n_neighbors: int,
    memory: str,
    backend: str,
    ties: str,
    random_state: validate.RandomState,
    n_threads: int | None,
) -> Problem:
    """Return the problem that features `X` (n, d), or precomputed similarities (n, n), pose.

    `X` is an array or a SciPy sparse matrix of float32 or float64, finite but for similarities.
    """
    weights = validate.weights(sample_weight, X.shape[0], X.dtype)

    def from_matrix(S: ArrayLike) -> MatrixProblem:
        return matrix_problem(S, backend, ties, random_state, weights)

    if affinity == "precomputed":
        return similarity_problem(X, backend, ties, random_state, weights)
    if callable(affinity):
        return from_matrix(from_tensor(affinity(X), "affinity(X)"))
    if affinity == "nearest_neighbors":
        return _neighbor_problem(X, n_neighbors, backend, ties, n_threads, weights)
    is_cosine = affinity == "cosine"
    if issparse(X):
        for name, value in (("affinity", "cosine"), ("memory", "tiles")):
            if value in (affinity, memory):
                raise TypeError(f"{name}={value!r} takes dense features; pass X.toarray()")
        return from_matrix(scikit_learns_similarities(X))
    if ties != "fast":
        if memory == "tiles":
            raise ValueError(f"ties={ties!r} needs a matrix, not memory='tiles'")
        require_matrix_memory(X.shape[0], X.dtype)
        return from_matrix(cosine(X, n_threads) if is_cosine else scikit_learns_similarities(X))
    features = np.ascontiguousarray(normalised(X) if is_cosine else X)
    return FeatureProblem(features, is_cosine, memory, backend, n_threads, weights)


def similarity_problem(
    S: Any,
    backend: str,
    ties: str,
    random_state: validate.RandomState,
    weights: Floats | None = None,
) -> Problem:
    """Return the problem that similarities, an array or a SciPy sparse matrix, pose."""
    if not issparse(S):
        return matrix_problem(S, backend, ties, random_state, weights)
    if ties != "fast":
        raise ValueError(f"ties={ties!r} needs a dense matrix: pass S.toarray(), or ties='fast'")
    return SparseProblem(validate.sparse_similarities(S), backend, weights)


def matrix_problem(
    S: Any,
    backend: str,
    ties: str,
    random_state: validate.RandomState,
    weights: Floats | None = None,
) -> MatrixProblem:
    """Return the problem that a dense matrix of similarities poses."""
    matrix = validate.similarities(S)
    if ties == "fast":
        return MatrixProblem(matrix, backend, weights)
    return NoisyProblem(matrix, backend, random_state, weights)


def _neighbor_problem(
    X: Any,
    n_neighbors: int,
    backend: str,
    ties: str,
    n_threads: int | None,
    weights: Floats | None,
) -> NeighborProblem:
    if not isinstance(n_neighbors, Integral) or isinstance(n_neighbors, bool):
        raise TypeError(f"n_neighbors={n_neighbors!r} must be an integer")
    if n_neighbors < 1:
        raise ValueError(f"n_neighbors={n_neighbors} must be at least 1")
    if ties != "fast":
        raise ValueError(f"ties={ties!r} needs a matrix, not affinity='nearest_neighbors'")
    require_compiled("affinity='nearest_neighbors'", backend)
    return NeighborProblem(X, int(n_neighbors), backend, n_threads, weights)
