"""One clean problem in, one clustering out: degenerate cases, messages, decoding."""

import warnings

import numpy as np
from numpy.typing import NDArray

from epruner.cluster import solvers
from epruner.cluster.decode import decode
from epruner.cluster.outcome import Clustering, Options

Floats = NDArray[np.floating]


def cluster_similarities(
    S: Floats, preference: Floats, options: Options, backend: str = "auto"
) -> Clustering:
    """Cluster similarities `S` (n, n) with `preference` (n,); both are clean and are not written.

    Returns the arbitrary answer scikit-learn gives, without iterating, where all similarities and
    preferences are equal.
    """
    if _all_equal(S, preference):
        return _degenerate(S, preference)
    messages = solvers.get(backend)(S, preference, options)
    exemplars, labels, net = decode(S, preference, messages.is_exemplar, options.seed)
    return Clustering(exemplars, labels, messages.n_iter, messages.converged, net)


def _all_equal(S: Floats, preference: Floats) -> bool:
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


def _degenerate(S: Floats, preference: Floats) -> Clustering:
    n = S.shape[0]
    warnings.warn(
        "All samples have mutually equal similarities. Returning arbitrary cluster center(s).",
        stacklevel=4,
    )
    everyone = np.arange(n)
    link = S.flat[n - 1]
    if preference[0] > link:
        return Clustering(everyone, everyone.copy(), 0, True, float(preference.sum()))
    net = float(preference[0]) + (n - 1) * (float(link) if n > 1 else 0.0)
    return Clustering(everyone[:1], np.zeros(n, dtype=np.intp), 0, True, net)
