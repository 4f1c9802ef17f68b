"""Several problems in one call are what they are one by one."""

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from epruner import affinity_propagation, affinity_propagation_many
from epruner.cluster.similarity import median_preference, negative_squared_distances

Floats = NDArray[np.floating[Any]]


def gaussian(n: int, dtype: type = np.float32) -> Floats:
    X: Floats = np.random.default_rng(n).normal(size=(n, 8)).astype(dtype)
    return negative_squared_distances(X)


@pytest.mark.parametrize("backend", ["auto", "native", "numba", "reference"])
@pytest.mark.parametrize("n_threads", [1, 2, 8])
def test_same_as_one_by_one(backend: str, n_threads: int) -> None:
    if backend == "numba":
        pytest.importorskip("numba", reason="the numba solver needs its extra")
    problems: list[Any] = [
        gaussian(40),
        gaussian(350),
        gaussian(90, np.float64),
        -np.ones((5, 5)),  # all equal: decided without iterating
        gaussian(1),
        gaussian(30)[::-1, ::-1],  # not contiguous
        gaussian(90, np.float64).tolist(),
    ]
    preferences = [None, median_preference(problems[1], 0.5), -3.0, None, None, None, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of points that are all equal, and no convergence
        found = affinity_propagation_many(
            problems, preference=preferences, backend=backend, n_threads=n_threads
        )
        for S, p, clustering in zip(problems, preferences, found, strict=True):
            alone: tuple[Any, ...] = affinity_propagation(
                S, preference=p, backend=backend, return_n_iter=True
            )
            np.testing.assert_array_equal(clustering.exemplars, alone[0])
            np.testing.assert_array_equal(clustering.labels, alone[1])
            assert clustering.n_iter == alone[2]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_problem_without_exemplars(n_threads: int) -> None:
    S = [gaussian(300), gaussian(250), gaussian(200)]
    hopeless = affinity_propagation_many(S, preference=-1e6, max_iter=1, n_threads=n_threads)
    for clustering, s in zip(hopeless, S, strict=True):
        assert not clustering.converged
        assert clustering.exemplars.size == 0
        np.testing.assert_array_equal(clustering.labels, np.full(len(s), -1))


def test_says_which_entry_is_no_similarity() -> None:
    S = [gaussian(20), gaussian(30)]
    S[1][4, 7] = np.nan
    with pytest.raises(ValueError, match=r"S\[4, 7\] is nan"):
        affinity_propagation_many(S, n_threads=1)


@pytest.mark.parametrize("backend", ["native", "dense", "reference"])
def test_the_diagonal_is_ignored(backend: str) -> None:
    S = gaussian(60)
    expected = affinity_propagation(S, preference=-5, backend=backend)
    np.fill_diagonal(S, np.nan)
    found = affinity_propagation(S, preference=-5, backend=backend)
    np.testing.assert_array_equal(found[1], expected[1])


def test_as_many_preferences_as_problems() -> None:
    with pytest.raises(ValueError, match="1 entries for 2 problems"):
        affinity_propagation_many([gaussian(20), gaussian(30)], preference=[None])
