"""What numba's solver keeps between iterations, with few clusters: closed forms and bursts."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from problems import Floats
from sklearn.datasets import make_blobs

from epruner.cluster.backends import reference
from epruner.cluster.jitter import jittered
from epruner.cluster.similarity import negative_squared_distances
from epruner.cluster.types import Options

numba_backend = pytest.importorskip(
    "epruner.cluster.backends.numba",
    reason="the numba solver needs its extra",
    exc_type=ImportError,
)


def few_clusters(n: int) -> tuple[Floats, Floats]:
    """Return similarities and preferences of points in about four clusters."""
    X, _ = make_blobs(n, n_features=8, centers=4, cluster_std=3.0, random_state=1)
    S: Floats = negative_squared_distances(X)
    return S, np.full(n, 20 * np.median(S)) * (1 + 1e-3 * np.random.default_rng(0).normal(size=n))


def state_after(S: Floats, p: Floats, options: Options) -> Any:
    with ThreadPoolExecutor(options.n_threads) as workers:
        solver = numba_backend._ActiveSet(S, p, options, workers)
        solver.run()
        return solver


def messages_of_all_pairs(S: Floats, damping: float, n_iter: int) -> tuple[Floats, Floats, int]:
    """Return R, the A it was made from, and the most pairs that had R > 0 at once."""
    n = len(S)
    own = np.arange(n)
    R, A, most = np.zeros((n, n)), np.zeros((n, n)), 0
    for t in range(n_iter):
        if t > 0:
            P = np.maximum(R, 0)
            P[own, own] = R[own, own]
            b = P.sum(axis=0)
            fresh = np.minimum(0, b - np.maximum(R, 0))
            fresh[own, own] = b - R[own, own]
            A = damping * A + (1 - damping) * fresh
        V = A + S
        first = V.argmax(axis=1)
        rival = np.repeat(V.max(axis=1)[:, None], n, axis=1)
        V[own, first] = -np.inf
        rival[own, first] = V.max(axis=1)
        R = damping * R + (1 - damping) * (S - rival)
        most = max(most, int((R > 0).sum()))
    return R, A, most


@pytest.mark.parametrize("n_iter", [1, 2, 3, 8, 30])
def test_messages_are_those_of_all_pairs(n_iter: int) -> None:
    S, p = few_clusters(150)
    n, damping = len(S), 0.7
    solver = state_after(S, p, Options(damping, max_iter=n_iter))
    points, candidates, _ = solver.state
    own = np.arange(n)
    exact = jittered(S, own[:, None], own[None, :], 0)
    R = (1 - damping**n_iter) * exact - points.mu[:, None]
    A = np.tile(points.abar, (n, 1))
    for i in range(n):
        stored = slice(candidates.start[i], candidates.start[i] + candidates.active[i])
        R[i, candidates.column[stored]] = candidates.r[stored]
        A[i, candidates.column[stored]] = candidates.a[stored]
        rest = slice(stored.stop, candidates.start[i] + candidates.listed[i])
        assert (np.diff(candidates.s[rest]) <= 0).all()
    exact[own, own] = jittered(p, own, own, 0)
    expected_R, expected_A, _ = messages_of_all_pairs(exact, damping, n_iter)
    R[own, own], A[own, own] = points.r, expected_A[own, own]
    np.testing.assert_allclose(R, expected_R, rtol=1e-9, atol=1e-9 * np.abs(S).max())
    np.testing.assert_allclose(A, expected_A, rtol=1e-9, atol=1e-9 * np.abs(S).max())


def test_few_pairs_hold_messages_where_most_were_positive() -> None:
    S, p = few_clusters(400)
    options = Options(0.7)
    solver = state_after(S, p, options)
    own = np.arange(len(S))
    exact = jittered(S, own[:, None], own[None, :], 0)
    exact[own, own] = p
    *_, most = messages_of_all_pairs(exact, 0.7, 4)
    assert most > 0.5 * S.size
    assert solver.state.candidates.active.sum() < 0.25 * S.size
    assert solver.state.points.reads.max() > 1
    expected = reference.solve(S, p, options)
    found = numba_backend.solve(S, p, options)
    assert expected.converged
    assert expected.n_iter == found.n_iter
    np.testing.assert_array_equal(found.is_exemplar, expected.is_exemplar)


def test_bursts_give_the_same_bits_on_any_number_of_threads() -> None:
    S, p = few_clusters(400)
    totals = [state_after(S, p, Options(0.7, n_threads=k)).state.points.total for k in (1, 2, 3)]
    assert totals[0].tobytes() == totals[1].tobytes() == totals[2].tobytes()


def test_without_a_seed_there_is_no_jitter() -> None:
    S, p = few_clusters(150)
    options = Options(0.7, seed=None)
    solver = state_after(S, p, options)
    np.testing.assert_array_equal(solver.state.points.preference, p)
    candidates = solver.state.candidates
    for i in (0, 77, 149):
        listed = slice(candidates.start[i], candidates.start[i] + candidates.listed[i])
        np.testing.assert_array_equal(candidates.s[listed], S[i, candidates.column[listed]])
    np.testing.assert_array_equal(
        solver.state.points.is_exemplar, reference.solve(S, p, options).is_exemplar
    )
