"""Affinity propagation as its definition, in NumPy: the oracle that every fast solver is held to.

Frey & Dueck, "Clustering by passing messages between data points", Science 315 (2007). Kept slow
and plain on purpose: three n x n float64 matrices and a handful of passes over them per iteration.
"""

import numpy as np

from epruner.cluster.jitter import jittered
from epruner.cluster.types import Floats, Messages, Options


def solve(S: Floats, preference: Floats, options: Options) -> Messages:
    """Pass messages on similarities `S` (n, n) with `preference` (n,)."""
    n = S.shape[0]
    damping = options.damping
    diagonal = np.arange(n)
    S = S.copy()  # (n, n)
    np.fill_diagonal(S, preference)
    S = jittered(S, diagonal[:, None], diagonal[None, :], options.seed)
    R = np.zeros((n, n))
    A = np.zeros((n, n))
    streak = np.zeros(n, dtype=np.int64)  # iterations since each point last changed its role
    was_exemplar = np.zeros(n, dtype=bool)

    for t in range(options.max_iter):
        V = A + S
        best = V.max(axis=1)  # (n,)
        rest = V.copy()
        rest[diagonal, V.argmax(axis=1)] = -np.inf
        second = rest.max(axis=1)  # (n,)
        rival = np.where(best[:, None] == V, second[:, None], best[:, None])  # (n, n)
        with np.errstate(invalid="ignore"):
            R = damping * R + (1 - damping) * (S - rival)

        positive = np.maximum(R, 0)
        positive[diagonal, diagonal] = 0
        support = positive.sum(axis=0)  # (n,)  c[k]
        total = support + R[diagonal, diagonal]  # (n,)  b[k]
        A_new = np.minimum(0, total[None, :] - positive)
        A_new[diagonal, diagonal] = support
        A = damping * A + (1 - damping) * A_new

        is_exemplar = A[diagonal, diagonal] + R[diagonal, diagonal] > 0
        streak = np.where(is_exemplar == was_exemplar, streak + 1, 1)
        was_exemplar = is_exemplar
        options.progress.iteration(t + 1, is_exemplar)
        stable = bool((streak >= options.convergence_iter).all())
        if t >= options.convergence_iter and stable and is_exemplar.any():
            return Messages(is_exemplar, t + 1, converged=True)
    return Messages(is_exemplar, options.max_iter, converged=False)
