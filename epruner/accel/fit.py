"""What takes the place of ``sklearn.cluster.AffinityPropagation.fit``."""

import logging
import os
import warnings
from functools import wraps
from time import perf_counter
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn import get_config
from sklearn.cluster import AffinityPropagation
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import validate_data

from epruner.cluster import resources, validate
from epruner.cluster.affinities import FLOATS
from epruner.cluster.preference import PreferenceRule
from epruner.cluster.problem import (
    FeatureProblem,
    MatrixProblem,
    NoisyProblem,
    Problem,
    matrix_memory,
    require_matrix_memory,
)
from epruner.cluster.similarity import scikit_learns_similarities
from epruner.cluster.types import Clustering

TIES = ("auto", "scikit-learn", "fast")
_MOST_NOISY = 10_000  # points; noise for more takes seconds, the rest a fraction of that

THEIRS = AffinityPropagation.fit
_logger = logging.getLogger("epruner.accel")
_ties = "auto"


def choose(ties: str | None) -> None:
    """Set what breaks ties from now on; None asks the environment."""
    global _ties
    name = "ties"
    if ties is None:
        name, ties = "EPRUNER_TIES", os.environ.get("EPRUNER_TIES", "auto")
    if ties not in TIES:
        raise ValueError(f"{name}={ties!r} is not one of {', '.join(TIES)}")
    _ties = ties


@wraps(THEIRS)
def fit(self: Any, X: Any, y: object = None) -> Any:
    begin = perf_counter()
    if not get_config()["skip_parameter_validation"]:
        self._validate_params()
    pairwise = self.affinity == "precomputed"
    if pairwise:
        given, X = X, validate_data(self, X, copy=self.copy, force_writeable=True)
        if X.dtype not in FLOATS:  # others end in errors or roundings of its own
            _logger.info("similarities of %s: left to scikit-learn", X.dtype)
            return THEIRS(self, given)
    else:
        X = validate_data(self, X, accept_sparse="csr")
    ties, why = _rule(X.shape[0])
    problem = _problem(self, X, ties)
    options = validate.options(
        self.damping, self.max_iter, self.convergence_iter, self.random_state, ties=ties
    )
    clustering, _, preference = problem.solve(PreferenceRule(self.preference), options)
    found = clustering.exemplars.size > 0
    self.cluster_centers_indices_ = clustering.exemplars if found else []
    self.labels_ = clustering.labels
    self.n_iter_ = clustering.n_iter
    if not pairwise:
        self.cluster_centers_ = X[clustering.exemplars].copy()
    if clustering.n_iter == 0:  # nothing was iterated, and nothing written to the diagonal
        preference = X.diagonal().copy() if pairwise else np.zeros_like(preference)
    matrix = problem.affinity_matrix(preference, in_place=True)
    if pairwise:
        X[...] = matrix
        self.affinity_matrix_ = X
    elif matrix is not None:
        self.affinity_matrix_ = matrix
    elif hasattr(self, "affinity_matrix_"):
        del self.affinity_matrix_  # an earlier fit's
    _tell(self, clustering)
    _logger.info(
        "%d points (%s), ties=%s %s, %s: %d clusters after %d iterations, %.3f s",
        problem.n,
        problem.dtype,
        ties,
        why,
        "in tiles, no affinity_matrix_" if matrix is None else "from a matrix",
        clustering.exemplars.size,
        clustering.n_iter,
        perf_counter() - begin,
    )
    return self


def _rule(n: int) -> tuple[str, str]:
    """Return what breaks the ties of n points, and why."""
    if _ties != "auto":
        return _ties, "as asked"
    if n <= _MOST_NOISY:
        return "scikit-learn", f"(at most {_MOST_NOISY:,} points)"
    return "fast", f"(more than {_MOST_NOISY:,} points)"


def _problem(model: Any, X: Any, ties: str) -> Problem:
    """Return the problem that validated input poses."""
    if model.affinity == "precomputed":
        S = validate.similarities(X)
    else:
        n, dtype = X.shape[0], np.dtype(np.float32 if X.dtype == np.float32 else np.float64)
        X = X.astype(dtype, copy=False)
        if ties == "fast" and not issparse(X):
            kept = resources.memory_fits(matrix_memory(n, dtype))
            route = "matrix" if kept else "tiles"
            return FeatureProblem(np.ascontiguousarray(X), False, route, "auto", None)
        require_matrix_memory(n, dtype, "use ties='fast'")
        S = scikit_learns_similarities(X)
    if ties == "scikit-learn":
        return NoisyProblem(S, "auto", model.random_state)
    return MatrixProblem(S, "auto")


def _tell(model: Any, clustering: Clustering) -> None:
    """Say what scikit-learn says of a run."""
    if clustering.n_iter == 0:
        return
    if model.verbose:
        last = clustering.n_iter - 1
        print(f"Converged after {last} iterations." if clustering.converged else "Did not converge")
    if clustering.exemplars.size == 0:
        said = (
            "Affinity propagation did not converge and this model will not have any cluster "
            "centers."
        )
    elif not clustering.converged:
        said = (
            "Affinity propagation did not converge, this model may return degenerate cluster "
            "centers and labels."
        )
    else:
        return
    warnings.warn(said, ConvergenceWarning, stacklevel=3)
