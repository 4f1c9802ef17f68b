"""The jitter: bounded, a function of position and key only, and the same in every solver."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from problems import Case, problem

from epruner.cluster import affinity_propagation, backends, jitter
from epruner.cluster.types import Options

DTYPES = (np.float32, np.float64)


def jitter_of_ones(dtype: Any, seed: int, n: int = 200) -> NDArray[np.float64]:
    """Jittered minus plain similarities (n, n) where all of them are -1."""
    index = np.arange(n)
    s = np.full((n, n), -1, dtype=dtype)
    return jitter.jittered(s, index[:, None], index[None, :], seed) + 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitude", [0.0, 1e-6, 1.0, 1e30])
def test_bounded(dtype: Any, magnitude: float) -> None:
    relative, absolute = jitter.scale(np.dtype(dtype))
    s = np.full(10_000, -magnitude, dtype=dtype)
    noise = jitter.jittered(s, np.arange(s.size), np.zeros(s.size, dtype=int), 3) - s
    assert np.abs(noise).max() <= relative * magnitude + absolute


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_and_centred(dtype: Any) -> None:
    relative, _ = jitter.scale(np.dtype(dtype))
    u = jitter_of_ones(dtype, seed=0) / relative
    assert abs(u.mean()) < 0.02
    assert abs(u.var() - 1 / 3) < 0.02
    assert len(np.unique(u)) > 0.8 * u.size  # float64 near 1 holds 2**17 levels of it


def test_depends_on_position_and_key_only() -> None:
    s = np.full(4, -1.0)
    rows, columns = np.array([0, 5, 5, 7]), np.array([3, 5, 6, 0])
    together = jitter.jittered(s, rows, columns, 9)
    alone = [
        float(jitter.jittered(s[:1], rows[q : q + 1], columns[q : q + 1], 9)[0]) for q in range(4)
    ]
    assert together.tolist() == alone
    assert len(set(alone)) == 4
    assert (jitter.jittered(s, rows, columns, 10) != together).all()


def test_direction_matters() -> None:
    """Both entries of a pair share their similarity; their noise must differ to break the tie."""
    u = jitter_of_ones(np.float64, seed=0)
    off_diagonal = ~np.eye(len(u), dtype=bool)
    assert (u != u.T)[off_diagonal].mean() > 0.99


def test_infinite_entries_stay() -> None:
    s = np.array([-np.inf, -1.0])
    assert jitter.jittered(s, np.array([0, 0]), np.array([1, 2]), 0)[0] == -np.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["native", "numba"])
def test_solvers_share_the_jitter(backend: str, dtype: Any) -> None:
    """Which of two points that are only each other's is the exemplar is up to the jitter alone."""
    if backend == "numba":
        pytest.importorskip("numba", reason="the numba solver needs its extra")
    pairs = 60
    points = np.repeat(np.arange(pairs), 2)
    S = -1.0 - 1e3 * (points[:, None] != points[None, :]).astype(dtype)
    S, preference = S.astype(dtype), np.full(2 * pairs, -1.5, dtype=dtype)
    chosen = set()
    for seed in (0, 1, 2**40, 2**63 - 1):
        options = Options(seed=seed)
        ours = backends.get(backend)(S, preference, options)
        theirs = backends.get("reference")(S, preference, options)
        assert theirs.converged
        np.testing.assert_array_equal(ours.is_exemplar, theirs.is_exemplar)
        assert ours.n_iter == theirs.n_iter
        chosen.add(ours.is_exemplar.tobytes())
    assert len(chosen) == 4


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_solvers_share_the_jitter_among_integers(backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba", reason="the numba solver needs its extra")
    case = Case("integers", 40, "float64", 0.9, 1.0, False)
    S, preference = problem(case)
    for seed in range(5):
        ours = backends.get(backend)(S, preference, case.options(seed))
        theirs = backends.get("reference")(S, preference, case.options(seed))
        np.testing.assert_array_equal(ours.is_exemplar, theirs.is_exemplar)
        assert ours.n_iter == theirs.n_iter


def test_same_random_state_same_answer() -> None:
    S, _ = problem(Case("duplicates", 65, "float32", 0.5, 1.0, False))
    for key in (None, 7, np.random.RandomState(7)):
        runs = []
        for _ in range(2):
            state = np.random.RandomState(7) if isinstance(key, np.random.RandomState) else key
            runs.append(affinity_propagation(S, damping=0.8, random_state=state)[0].tolist())
        assert runs[0] == runs[1]
