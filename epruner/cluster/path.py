"""Clusterings for many preferences over what is found once: similarities, lists, medians."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_array

from epruner.cluster import affinities, validate
from epruner.cluster.backends.cuda.device import from_tensor
from epruner.cluster.preference import PreferenceRule, preference_range
from epruner.cluster.problem import Problem
from epruner.cluster.types import Clustering, Floats, Indices, Options

_SAMPLED = 256  # points whose similarities tell between which preferences clusters form
_LEAST_GAP = 1e-6  # of the largest, where half of the points coincide with others


@dataclass(frozen=True)
class PreferencePath:
    """Clusterings of the same points for m preferences.

    Attributes
    ----------
    preferences : ndarray of shape (m,)
        What each had as the preference of every point.
    clusterings : tuple of Clustering
        One for each preference.
    damping : ndarray of shape (m,)
        The damping of each.

    Examples
    --------
    >>> import epruner
    >>> from sklearn.datasets import make_blobs
    >>> X, _ = make_blobs(60, cluster_std=0.5, random_state=0)
    >>> path = epruner.preference_path(X, [-2000, -100, -20, -0.5])
    >>> path.n_clusters.tolist(), path.labels.shape
    ([1, 2, 3, 17], (4, 60))
    >>> path.converged.tolist()
    [True, True, True, True]
    """

    preferences: Floats
    clusterings: tuple[Clustering, ...]
    damping: Floats

    @property
    def n_clusters(self) -> Indices:
        """Numbers of clusters (m,)."""
        return np.array([c.exemplars.size for c in self.clusterings], dtype=np.intp)

    @property
    def net_similarity(self) -> Floats:
        """Net similarities (m,), each with its own preference."""
        return np.array([c.net_similarity for c in self.clusterings])

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether each converged (m,)."""
        return np.array([c.converged for c in self.clusterings], dtype=np.bool_)

    @property
    def n_iter(self) -> Indices:
        """Iterations of each (m,)."""
        return np.array([c.n_iter for c in self.clusterings], dtype=np.intp)

    @cached_property
    def labels(self) -> Indices:
        """Labels (m, n); -1 where a point has no exemplar."""
        return np.stack([c.labels for c in self.clusterings])


def preference_path(
    X: ArrayLike,
    preferences: ArrayLike | int = 20,
    *,
    affinity: affinities.Affinity = "euclidean",
    damping: float | str = 0.9,
    max_iter: int = 200,
    convergence_iter: int = 15,
    random_state: validate.RandomState = None,
    ties: str = "fast",
    sample_weight: ArrayLike | None = None,
    n_neighbors: int = 30,
    memory: str = "auto",
    backend: str = "auto",
    n_threads: int | None = None,
    verbose: bool = False,
) -> PreferencePath:
    """Cluster the same points for many preferences.

    Every entry is what `AffinityPropagation` gives for its preference: messages start from zero.
    Similarities, the sweep over features and the lists of candidates are made once.

    Parameters
    ----------
    X : array-like or SciPy sparse matrix of shape (n, d) or (n, n)
        Features, or similarities with ``affinity='precomputed'``.
    preferences : array-like of shape (m,) or int, default=20
        Preferences, each for all points. A number asks for so many, ascending in even steps of
        the logarithm of their distance to the largest similarity: from the lower end of
        `preference_range`, where one cluster is best, to the median similarity of points to their
        nearest, above which about half of them are exemplars. Both are those of 256 points.
    affinity : as for `AffinityPropagation`
        What similarities are made of.
    damping : float or 'auto', default=0.9
        As for `AffinityPropagation`, whose 0.5 is too little where clusters are few.
    max_iter, convergence_iter, random_state, ties : as for `AffinityPropagation`
        The same for every preference.
    sample_weight : array-like of shape (n,), default=None
        As for ``AffinityPropagation.fit``.
    n_neighbors, memory, backend, n_threads, verbose : as for `AffinityPropagation`
        What is computed and by what.

    Returns
    -------
    PreferencePath
        In the order of `preferences`, ascending where a number was given.

    Raises
    ------
    ValueError
        If `X`, `preferences` or a parameter is out of range.
    TypeError
        If a parameter is of the wrong type.
    MemoryError
        If the similarities do not fit; the message holds the figure.

    Warns
    -----
    ConvergenceWarning
        Once, naming the preferences whose runs did not converge.

    Examples
    --------
    >>> import epruner
    >>> from sklearn.datasets import make_blobs
    >>> X, _ = make_blobs(60, cluster_std=0.5, random_state=0)
    >>> epruner.preference_path(X, [-2000, -100, -20, -0.5]).n_clusters.tolist()
    [1, 2, 3, 17]
    >>> epruner.preference_path(X, 5).preferences.shape  # five, from one cluster to many
    (5,)
    """
    X = from_tensor(X, "X")
    automatic = damping == "auto"
    options = validate.options(
        0.5 if automatic else damping,
        max_iter,
        convergence_iter,
        random_state,
        n_threads=n_threads,
        verbose=verbose,
        rising_damping=automatic,
        ties=ties,
    )
    affinities.check(affinity, memory)
    finite = affinity != "precomputed"
    X = check_array(
        X, accept_sparse="csr", ensure_all_finite=finite, dtype=affinities.FLOATS, input_name="X"
    )
    with options.progress as progress:
        progress.stage("similarities")
        problem = affinities.pose(
            X,
            affinity,
            sample_weight=sample_weight,
            n_neighbors=n_neighbors,
            memory=memory,
            backend=backend,
            ties=ties,
            random_state=random_state,
            n_threads=n_threads,
        )
        chosen = _chosen(preferences, problem, options)
        solved = dict(_solved(problem, chosen, options))
    path = PreferencePath(
        chosen,
        tuple(solved[q][0] for q in range(chosen.size)),
        np.array([solved[q][1] for q in range(chosen.size)]),
    )
    if not path.converged.all():
        said = ", ".join(f"{p:.6g}" for p in chosen[~path.converged])
        warnings.warn(
            f"Affinity propagation did not converge for {np.count_nonzero(~path.converged)} of "
            f"{chosen.size} preferences: {said}. Raise damping or max_iter.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return path


def _solved(
    problem: Problem, preferences: Floats, options: Options
) -> Iterator[tuple[int, tuple[Clustering, float]]]:
    """Cluster with the largest preference first: few clusters need longer lists than many."""
    rule = PreferenceRule(float(preferences.max()))
    prepared = problem.prepare(rule, options)
    for number, q in enumerate(np.argsort(-preferences), 1):
        options.progress.preference(preferences[q], number, preferences.size)
        preference = np.full(problem.n, preferences[q], dtype=problem.dtype)
        yield int(q), problem.cluster(prepared, preference, options)


def _chosen(preferences: ArrayLike | int, problem: Problem, options: Options) -> Floats:
    if isinstance(preferences, Integral) and not isinstance(preferences, bool):
        if preferences < 1:
            raise ValueError(f"preferences={preferences} must be at least 1, or numbers")
        return _spaced(int(preferences), problem, options)
    try:
        chosen = np.asarray(from_tensor(preferences, "preferences"), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"preferences={preferences!r} must be numbers, or how many") from error
    if chosen.ndim != 1 or chosen.size == 0:
        raise ValueError(
            f"preferences must have shape (m,), one for all points of each run: got {chosen.shape}"
        )
    if not np.isfinite(chosen.astype(problem.dtype)).all():
        raise ValueError(f"preferences hold values that are NaN, or infinite in {problem.dtype}")
    return chosen


def _spaced(count: int, problem: Problem, options: Options) -> Floats:
    """So many preferences from few clusters to many, ascending."""
    S, rows = problem.some_similarities(_SAMPLED)  # (m, n), (m,)
    top, nearest = problem.top(options), S.max(axis=1)
    linked = nearest > -np.inf
    if not linked.any():
        raise ValueError("no two points may be linked: pass preferences as numbers")
    within = S[:, rows]
    if np.count_nonzero(np.isfinite(within)) == rows.size * (rows.size - 1):
        widest = top - preference_range(within, exact=True)[0] * problem.n / rows.size
    else:  # no point can serve all: what one could lose by serving all that list it
        links = np.where(np.isfinite(S[linked]), S[linked], nearest[linked, None])
        widest = float((nearest[linked, None] - links).sum(axis=1, dtype=np.float64).mean())
    if not widest > 0:  # all are equally similar
        widest = max(1.0, abs(top))
    narrowest = max(top - float(np.median(nearest[linked])), _LEAST_GAP * widest)
    return top - np.geomspace(max(widest, narrowest), narrowest, count)
