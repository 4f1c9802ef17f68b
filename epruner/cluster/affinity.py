"""Affinity propagation with scikit-learn's interface: a function and an estimator."""

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import euclidean_distances, pairwise_distances_argmin
from sklearn.utils.validation import check_is_fitted, validate_data

from epruner.cluster import validate
from epruner.cluster.outcome import Clustering
from epruner.cluster.solve import cluster_similarities

Indices = NDArray[np.intp]


def affinity_propagation(
    S: ArrayLike,
    *,
    preference: ArrayLike | None = None,
    convergence_iter: int = 15,
    max_iter: int = 200,
    damping: float = 0.5,
    copy: bool = True,
    verbose: bool = False,
    return_n_iter: bool = False,
    random_state: validate.RandomState = None,
    backend: str = "auto",
    n_threads: int | None = None,
) -> tuple[Indices, Indices] | tuple[Indices, Indices, int]:
    """Cluster similarities by affinity propagation.

    Takes scikit-learn's arguments and gives its answers; see `AffinityPropagation` for the
    parameters.

    Parameters
    ----------
    S : array-like of shape (n, n)
        Similarities, larger for closer pairs; float32 and float64 are used as they are. -inf
        marks a pair that must not be linked. The diagonal is ignored.
    copy : bool, default=True
        If False, the preferences are written to the diagonal of `S`, as scikit-learn does.
    return_n_iter : bool, default=False
        Whether to return the number of iterations, too.

    Returns
    -------
    cluster_centers_indices : ndarray of shape (n_clusters,)
        Indices of the exemplars, ascending; empty if none emerged.
    labels : ndarray of shape (n,)
        Cluster of each point; -1 where there is none.
    n_iter : int
        Only with ``return_n_iter=True``.

    Raises
    ------
    ValueError
        If `S` is not square or holds NaN or +inf, or a parameter is out of range.
    """
    similarities = validate.similarities(S)
    preferences = validate.preferences(preference, similarities)
    options = validate.options(
        damping, max_iter, convergence_iter, random_state, n_threads=n_threads, verbose=verbose
    )
    clustering = cluster_similarities(similarities, preferences, options, backend)
    if not copy and isinstance(S, np.ndarray):
        np.fill_diagonal(S, preferences)
    _warn(clustering)
    if return_n_iter:
        return clustering.exemplars, clustering.labels, clustering.n_iter
    return clustering.exemplars, clustering.labels


def _warn(clustering: Clustering) -> None:
    if clustering.exemplars.size == 0:
        warnings.warn(
            "Affinity propagation did not converge and this model will not have any cluster "
            "centers. Raise damping or max_iter, or the preference.",
            ConvergenceWarning,
            stacklevel=3,
        )
    elif not clustering.converged:
        warnings.warn(
            "Affinity propagation did not converge, this model may return degenerate cluster "
            "centers and labels. Raise damping or max_iter.",
            ConvergenceWarning,
            stacklevel=3,
        )


class AffinityPropagation(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Affinity propagation clustering, a drop-in for scikit-learn's.

    Parameters
    ----------
    damping : float, default=0.5
        How much of the old message is kept, in [0.5, 1). Raise it where runs oscillate.
    max_iter : int, default=200
        Most iterations.
    convergence_iter : int, default=15
        Iterations without a change of exemplars that count as convergence.
    copy : bool, default=True
        Whether to keep a precomputed `X` as it is; if False its diagonal takes the preferences.
    preference : array-like of shape (n,) or float, default=None
        How much each point wants to be an exemplar. None takes the median similarity. The larger,
        the more clusters.
    affinity : {'euclidean', 'precomputed'}, default='euclidean'
        'euclidean' is the negative squared distance.
    verbose : bool, default=False
        Whether to print progress.
    random_state : int, RandomState or None, default=None
        Key of the tie-breaking jitter. None is 0: the same input gives the same answer.
    backend : {'auto', 'native', 'reference'}, default='auto'
        The solver; all give the same answer.
    n_threads : int or None, default=None
        Threads of the native solver. None honours ``OMP_NUM_THREADS`` and threadpoolctl.

    Attributes
    ----------
    cluster_centers_indices_ : ndarray of shape (n_clusters,)
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
        Not with precomputed similarities.
    labels_ : ndarray of shape (n,)
    affinity_matrix_ : ndarray of shape (n, n)
    n_iter_ : int
    converged_ : bool
    net_similarity_ : float
        Sum of the points' similarities to their exemplars and of the exemplars' preferences.

    References
    ----------
    Frey & Dueck, "Clustering by passing messages between data points", Science 315 (2007).
    """

    def __init__(
        self,
        *,
        damping: float = 0.5,
        max_iter: int = 200,
        convergence_iter: int = 15,
        copy: bool = True,
        preference: ArrayLike | None = None,
        affinity: str = "euclidean",
        verbose: bool = False,
        random_state: validate.RandomState = None,
        backend: str = "auto",
        n_threads: int | None = None,
    ) -> None:
        self.damping = damping
        self.max_iter = max_iter
        self.convergence_iter = convergence_iter
        self.copy = copy
        self.preference = preference
        self.affinity = affinity
        self.verbose = verbose
        self.random_state = random_state
        self.backend = backend
        self.n_threads = n_threads

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.affinity == "precomputed"
        tags.input_tags.sparse = self.affinity != "precomputed"
        return tags

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Cluster features (n, d), or similarities (n, n) with ``affinity='precomputed'``."""
        if self.affinity == "precomputed":
            X = validate_data(self, X, copy=self.copy, force_writeable=True, ensure_all_finite=False)
            S = validate.similarities(X)
        elif self.affinity == "euclidean":
            X = validate_data(self, X, accept_sparse="csr")
            S = -euclidean_distances(X, squared=True)
        else:
            raise ValueError(f"affinity={self.affinity!r} is not 'euclidean' or 'precomputed'")
        preferences = validate.preferences(self.preference, S)
        options = validate.options(
            self.damping,
            self.max_iter,
            self.convergence_iter,
            self.random_state,
            n_threads=self.n_threads,
            verbose=self.verbose,
        )
        clustering = cluster_similarities(S, preferences, options, self.backend)
        _warn(clustering)
        self.affinity_matrix_ = S
        self.cluster_centers_indices_ = clustering.exemplars
        self.labels_ = clustering.labels
        self.n_iter_ = clustering.n_iter
        self.converged_ = clustering.converged
        self.net_similarity_ = clustering.net_similarity
        if self.affinity != "precomputed":
            self.cluster_centers_ = X[clustering.exemplars].copy()
        return self

    def predict(self, X: ArrayLike) -> Indices:
        """Return the closest exemplar's label for each row of `X` (m, d)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, accept_sparse="csr")
        if not hasattr(self, "cluster_centers_"):
            raise ValueError("Predict method is not supported when affinity='precomputed'.")
        if self.cluster_centers_.shape[0] == 0:
            warnings.warn(
                "This model does not have any cluster centers because affinity propagation did "
                "not converge. Labeling every sample as '-1'.",
                ConvergenceWarning,
                stacklevel=2,
            )
            return np.full(X.shape[0], -1)
        return pairwise_distances_argmin(X, self.cluster_centers_)
