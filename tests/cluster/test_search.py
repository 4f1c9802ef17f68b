"""A wanted number of clusters: what is found, at what price, and what is said where it is not."""

import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from problems import KINDS
from sklearn.datasets import load_digits

from epruner import AffinityPropagation, affinity_propagation
from epruner.cluster.candidates import MatrixSource
from epruner.cluster.preference import PreferenceRule
from epruner.cluster.problem import MatrixProblem
from epruner.cluster.progress import Progress
from epruner.cluster.similarity import negative_squared_distances
from epruner.cluster.types import Options

DIGITS = load_digits().data[:250]
SCANNED = (0.5, 0.7, 0.9)  # dampings


def _scan(S: NDArray[Any], preferences: int) -> set[int]:
    """Numbers of clusters of the runs that converge, over a grid of preferences and dampings."""
    n = S.shape[0]
    off = S[~np.eye(n, dtype=bool)]
    top = off.max()
    gaps = np.geomspace(1e-4, 300, preferences) * (top - np.median(off))
    source = MatrixSource(S)
    active_set = source.start(Options())
    found = set()
    for damping in SCANNED:
        for gap in gaps:
            active_set.restart(np.full(n, top - gap), damping)
            while (status := active_set.iterate(200)) == "needs candidates":
                source.refill(active_set)
            if status == "converged":
                found.add(int(active_set.is_exemplar.sum()))
    return found


def _missed(S: NDArray[Any], wanted: set[int]) -> Iterator[int]:
    for k in sorted(wanted):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no preference was found")
            fit = AffinityPropagation(affinity="precomputed", n_clusters=k).fit(S)
        if fit.cluster_centers_indices_.size != k or not fit.converged_:
            yield k


@pytest.mark.parametrize("kind", ["blobs", "moons", "digits", "gaussian", "directed"])
def test_what_a_scan_finds_the_search_finds(kind: str) -> None:
    S = KINDS[kind](60, np.random.default_rng(0))
    scanned = _scan(S, 100)
    assert len(scanned) > 25
    assert not list(_missed(S, scanned))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["blobs", "moons", "digits", "gaussian"])
def test_what_a_scan_finds_the_search_finds_among_more_points(kind: str) -> None:
    S = KINDS[kind](240, np.random.default_rng(0))
    scanned = _scan(S, 200)
    assert len(scanned) > 60
    assert len(list(_missed(S, scanned))) <= 1  # numbers of one preference in 600 can hide


@pytest.mark.parametrize("kind", ["blobs", "moons", "digits", "gaussian"])
def test_a_search_costs_few_runs(kind: str) -> None:
    class Counting(Progress):
        iterations = 0

        def iteration(self, *report: object) -> None:
            self.iterations += 1

    S = KINDS[kind](200, np.random.default_rng(0))
    costs = []
    for k in range(2, 15):
        progress = Counting()
        rule, options = PreferenceRule(n_clusters=k), Options(progress=progress)
        found, _, _ = MatrixProblem(S, "auto").solve(rule, options)
        assert found.exemplars.size == k
        costs.append(progress.iterations / found.n_iter)
    assert np.median(costs) <= 5


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("memory", ["matrix", "tiles"])
@pytest.mark.parametrize("wanted", [1, 5, 10, 40, 250])
def test_the_answer_is_that_of_a_plain_run(wanted: int, memory: str, backend: str) -> None:
    if backend == "reference" and memory == "tiles":
        pytest.skip("tiles are the compiled solver's")
    X = DIGITS if backend == "native" else DIGITS[:60]
    wanted = min(wanted, len(X))
    how: Any = {"memory": memory, "backend": backend}
    fit = AffinityPropagation(n_clusters=wanted, **how).fit(X)
    assert fit.cluster_centers_indices_.size == wanted
    assert fit.converged_
    plain = AffinityPropagation(preference=fit.preference_, damping=fit.damping_, **how).fit(X)
    np.testing.assert_array_equal(plain.labels_, fit.labels_)
    assert plain.n_iter_ == fit.n_iter_


def test_sparse_similarities_are_searched() -> None:
    S = negative_squared_distances(DIGITS)
    linked = (np.quantile(S, 0.7) < S) & ~np.eye(len(S), dtype=bool)
    sparse = scipy.sparse.csr_matrix(np.where(linked, S, 0))
    fit = AffinityPropagation(affinity="precomputed", n_clusters=30).fit(sparse)
    assert fit.cluster_centers_indices_.size == 30
    plain = affinity_propagation(sparse, preference=fit.preference_, damping=fit.damping_)
    np.testing.assert_array_equal(plain[1], fit.labels_)


def test_the_least_damping_is_kept() -> None:
    fit = AffinityPropagation(n_clusters=7, damping=0.85).fit(DIGITS)
    assert fit.damping_ >= 0.85


@pytest.mark.parametrize("start", [-1e6, -1000.0, -1.0, 1000.0])
def test_the_search_starts_anywhere(start: float) -> None:
    fit = AffinityPropagation(n_clusters=9, preference=start).fit(DIGITS)
    assert fit.cluster_centers_indices_.size == 9


def test_the_numbers_on_both_sides_of_a_missing_one_are_named() -> None:
    # Two equal pairs: by symmetry they split together, unless the jitter of a seed parts them.
    S = np.full((4, 4), -100.0)
    S[0, 1] = S[1, 0] = S[2, 3] = S[3, 2] = -1.0
    said = []
    for seed in range(4):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit = AffinityPropagation(affinity="precomputed", n_clusters=3, random_state=seed).fit(
                S
            )
        found = fit.cluster_centers_indices_.size
        messages = [str(w.message) for w in caught]
        assert (found == 3) == (not messages)
        said += messages
    assert said
    for message in said:
        assert re.match(
            r"no preference was found that gives 3 clusters; 2 at -\S+ and 4 at -\S+; .*[24] are",
            message,
        )


@pytest.mark.parametrize("memory", ["matrix", "tiles"])
def test_points_that_coincide_are_counted_where_they_stand_in_the_way(memory: str) -> None:
    X = np.vstack([DIGITS[:30]] * 3)
    with pytest.warns(UserWarning, match="only 30 of the 90 points are distinct; 30 are returned"):
        fit = AffinityPropagation(n_clusters=40, memory=memory).fit(X)
    assert fit.cluster_centers_indices_.size == 30
    with pytest.warns(UserWarning, match="only 30 of the 90 points are distinct"):
        AffinityPropagation(affinity="precomputed", n_clusters=40).fit(
            negative_squared_distances(X)
        )


def test_points_that_are_all_alike_make_one_cluster_or_each_its_own() -> None:
    X = np.ones((5, 2))
    for wanted, found in ((1, 1), (3, 1), (5, 5)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit = AffinityPropagation(n_clusters=wanted).fit(X)
        assert fit.cluster_centers_indices_.size == found
        missed = [w for w in caught if "no preference gives" in str(w.message)]
        assert len(missed) == (wanted == 3)


def test_links_that_are_missing_make_small_numbers_impossible() -> None:
    S = np.full((9, 9), -np.inf)
    for first in (0, 3, 6):
        S[first : first + 3, first : first + 3] = -1 - np.random.default_rng(first).random((3, 3))
    with pytest.warns(UserWarning, match="gives 2 clusters; 3 at"):
        fit = AffinityPropagation(affinity="precomputed", n_clusters=2).fit(S)
    assert fit.cluster_centers_indices_.size == 3


def _dense_course(S: NDArray[Any], course: list[tuple[float, float]]) -> list[NDArray[Any]]:
    """Exemplars after every iteration, with the preference and damping that each of them has."""
    n = S.shape[0]
    own = np.arange(n)
    S, R, A = S.copy(), np.zeros((n, n)), np.zeros((n, n))
    exemplars = []
    for preference, damping in course:
        S[own, own] = preference
        AS = A + S  # (n, n)
        best = AS.argmax(axis=1)
        first = AS[own, best]
        AS[own, best] = -np.inf
        rival = np.repeat(first[:, None], n, axis=1)
        rival[own, best] = AS.max(axis=1)
        R = damping * R + (1 - damping) * (S - rival)
        positive = np.maximum(R, 0)
        positive[own, own] = R[own, own]
        total = positive.sum(axis=0)
        new = np.minimum(0, total[None, :] - positive)
        new[own, own] = total - R[own, own]
        A = damping * A + (1 - damping) * new
        exemplars.append(np.diag(A) + np.diag(R) > 0)
    return exemplars


@pytest.mark.parametrize("kind", ["blobs", "gaussian", "moons", "digits"])
def test_a_run_goes_on_with_another_preference_and_damping(kind: str) -> None:
    S = KINDS[kind](80, np.random.default_rng(1))
    S *= 1 + 1e-3 * np.random.default_rng(2).random(S.shape)  # no ties
    median = float(np.median(S))
    course = [(median, 0.5)] * 12 + [(6 * median, 0.7)] * 25 + [(0.3 * median, 0.9)] * 25
    source = MatrixSource(S)
    active_set = source.start(Options(seed=None))
    for t, expected in enumerate(_dense_course(S, course)):
        if t == 0 or course[t] != course[t - 1]:
            begin = active_set.continue_with if t else active_set.restart
            begin(np.full(80, course[t][0]), course[t][1])
        while active_set.iterate(1) == "needs candidates":
            source.refill(active_set)
        np.testing.assert_array_equal(active_set.is_exemplar, expected, err_msg=str(t))
