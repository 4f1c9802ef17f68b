"""One clean problem in, one clustering out: degenerate cases, messages, decoding."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from epruner.cluster import solvers
from epruner.cluster._compiled import native
from epruner.cluster.decode import decode, net_similarity
from epruner.cluster.outcome import Clustering, Messages, Options

if TYPE_CHECKING:
    from epruner.cluster import _native
    from epruner.cluster.lists import Source

Floats = NDArray[np.floating]
Solve = Callable[[Options], Clustering]

_RISING = (0.7, 0.8, 0.9, 0.95)


def cluster_similarities(
    S: Floats, preference: Floats, options: Options, backend: str = "auto"
) -> Clustering:
    """Cluster similarities `S` (n, n) with `preference` (n,); both are clean and are not written.

    Returns the arbitrary answer scikit-learn gives, without iterating, where all similarities and
    preferences are equal.
    """
    if all_equal(S, preference):
        return degenerate(preference, float(S.flat[S.shape[0] - 1]))
    messages = solvers.get(backend)(S, preference, options)
    exemplars = np.flatnonzero(messages.is_exemplar)
    if exemplars.size == 0:
        return _without_exemplars(messages)
    if native is None:
        exemplars, labels = decode(S, preference, exemplars, options.seed)
    else:
        exemplars, labels = native.decode(
            S,
            preference.astype(np.float64),
            exemplars,
            options.seed,
            options.n_threads,
            messages.lists,
        )
    net = net_similarity(lambda rows, columns: S[rows, columns], preference, exemplars, labels)
    return Clustering(exemplars, labels, messages.n_iter, messages.converged, net)


def cluster_lists(
    source: "Source", lists: "_native.ActiveSet", preference: Floats, options: Options
) -> Clustering:
    """Cluster the points of `source` by its started `lists`, which keep what they learn."""
    from epruner.cluster.lists import run

    messages = run(lists, source, preference, options)
    if messages is None:
        return cluster_similarities(source.matrix(), preference, options, "native")
    exemplars = np.flatnonzero(messages.is_exemplar)
    if exemplars.size == 0:
        return _without_exemplars(messages)
    exemplars, labels = source.decode(lists, preference, exemplars, options)
    net = net_similarity(source.links, preference, exemplars, labels)
    return Clustering(exemplars, labels, messages.n_iter, messages.converged, net)


def with_rising_damping(solve: Solve, options: Options) -> tuple[Clustering, float]:
    """Solve with the least damping that converges; return the clustering and that damping."""
    for damping in sorted({options.damping, *(d for d in _RISING if d > options.damping)}):
        clustering = solve(replace(options, damping=damping))
        if clustering.converged:
            break
        if options.verbose:
            print(f"damping {damping}: oscillates, no convergence")
    return clustering, damping


def _without_exemplars(messages: Messages) -> Clustering:
    nobody = np.empty(0, dtype=np.intp)
    labels = np.full(messages.is_exemplar.size, -1, dtype=np.intp)
    return Clustering(nobody, labels, messages.n_iter, messages.converged, float("-inf"))


def all_equal(S: Floats, preference: Floats) -> bool:
    """Whether all preferences are equal, and all similarities of different points."""
    n = S.shape[0]
    if n == 1:
        return True
    if not (preference == preference[0]).all():
        return False
    first = S[0, 1]
    if not (S[0, 1:] == first).all():  # settles nearly every input at the cost of one row
        return False
    own = np.arange(n)
    return all((row[own != i] == first).all() for i, row in enumerate(S))


def degenerate(preference: Floats, link: float) -> Clustering:
    """Cluster points that are all equally similar, `link`, as scikit-learn does, with a warning."""
    n = preference.size
    warnings.warn(
        "All samples have mutually equal similarities. Returning arbitrary cluster center(s).",
        stacklevel=4,
    )
    everyone = np.arange(n)
    if preference[0] > link:
        return Clustering(everyone, everyone.copy(), 0, True, float(preference.sum()))
    net = float(preference[0]) + (n - 1) * (link if n > 1 else 0.0)
    return Clustering(everyone[:1], np.zeros(n, dtype=np.intp), 0, True, net)
