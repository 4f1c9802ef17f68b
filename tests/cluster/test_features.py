"""Clustering from features without the matrix, and everything that goes with large inputs."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits, make_blobs
from threadpoolctl import threadpool_info, threadpool_limits

from epruner import AffinityPropagation, affinity_propagation
from epruner.cluster import _native, resources
from epruner.cluster.candidates import FeatureSource
from epruner.cluster.products import gram, one_thread_blas, products
from epruner.cluster.similarity import (
    cosine,
    median_preference,
    negative_squared_distances,
    normalised,
    quantile,
)
from epruner.cluster.sweep import Sweep, tournament
from epruner.cluster.types import Options

Floats = NDArray[np.floating[Any]]


def gaussian(n: int, d: int, dtype: type, offset: float = 0.0) -> Floats:
    points: Floats = (np.random.default_rng(n + d).normal(size=(n, d)) + offset).astype(dtype)
    return points


@pytest.mark.parametrize("players", [1, 2, 3, 6, 7])
def test_a_tournament_pairs_everyone_once_and_nobody_twice_at_a_time(players: int) -> None:
    rounds = list(tournament(players))
    for pairs in rounds[1:]:
        busy = [p for pair in pairs for p in pair]
        assert len(busy) == len(set(busy))
    met = [pair for pairs in rounds for pair in pairs]
    assert sorted(met) == [(p, q) for p in range(players) for q in range(p, players)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("affinity", "rule"),
    [
        ("euclidean", {}),
        ("euclidean", {"beta": 1.0}),
        ("euclidean", {"preference_quantile": 0.2}),
        ("cosine", {}),
    ],
)
def test_tiles_and_matrix_agree(dtype: type, affinity: str, rule: dict[str, Any]) -> None:
    X = gaussian(2300, 12, dtype, offset=3.0 if affinity == "euclidean" else 0.5)
    fits = [
        AffinityPropagation(affinity=affinity, memory=route, damping=0.7, **rule).fit(X)
        for route in ("tiles", "matrix")
    ]
    tiles, matrix = fits
    assert tiles.converged_
    np.testing.assert_allclose(tiles.preference_, matrix.preference_, rtol=1e-5)
    np.testing.assert_array_equal(tiles.cluster_centers_indices_, matrix.cluster_centers_indices_)
    np.testing.assert_array_equal(tiles.labels_, matrix.labels_)
    assert tiles.n_iter_ == matrix.n_iter_
    assert tiles.net_similarity_ == pytest.approx(matrix.net_similarity_, rel=1e-5)
    assert hasattr(matrix, "affinity_matrix_")
    assert not hasattr(tiles, "affinity_matrix_")


def test_tiles_give_the_same_bits_for_any_number_of_threads() -> None:
    X = gaussian(3000, 6, np.float32)
    for beta in (None, 1.0):
        fits = [
            AffinityPropagation(memory="tiles", beta=beta, damping=0.7, n_threads=t).fit(X)
            for t in (1, 2, 4)
        ]
        for fit in fits[1:]:
            np.testing.assert_array_equal(fit.labels_, fits[0].labels_)
            np.testing.assert_array_equal(fit.preference_, fits[0].preference_)
            assert fit.net_similarity_ == fits[0].net_similarity_


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_near_duplicates_far_from_the_origin_keep_their_distance(dtype: type) -> None:
    X = gaussian(400, 5, np.float64, offset=100.0)
    X[200:] = X[:200] + 1e-3
    X = X.astype(dtype)
    wide = X.astype(np.float64)
    exact = -((wide[:, None] - wide[None]) ** 2).sum(axis=2)
    S = negative_squared_distances(X)
    np.testing.assert_array_equal(S, S.T)
    pairs = (np.arange(200), np.arange(200, 400))
    np.testing.assert_allclose(S[pairs], exact[pairs], rtol=1e-6)
    assert np.abs(S - exact).max() < 1e-5 * np.abs(exact).max()


def test_lists_hold_the_nearest_neighbours() -> None:
    X = gaussian(2500, 8, np.float32)
    S = negative_squared_distances(X)
    np.fill_diagonal(S, -np.inf)
    active_set = FeatureSource(X, cosine=False).start(Options(n_threads=2))
    nearest = active_set.assign(np.arange(2500))
    np.testing.assert_array_equal(nearest, np.arange(2500))  # every point is its own exemplar here
    wanted = np.full(2500, -1)
    some = np.random.default_rng(0).permutation(2500)[:800]
    wanted[some] = some
    found = active_set.assign(wanted)
    others = np.setdiff1d(np.flatnonzero(found >= 0), some)
    assert others.size > 1500
    np.testing.assert_array_equal(found[others], some[S[others][:, some].argmax(axis=1)])


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("q", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_quantiles_are_numpys(q: float, diagonal: bool) -> None:
    rng = np.random.default_rng(0)
    for S in (
        negative_squared_distances(gaussian(300, 3, np.float32)),
        -rng.integers(1, 4, (257, 257)).astype(np.float64),
    ):
        chosen = S if diagonal else S[~np.eye(len(S), dtype=bool)]
        assert quantile(S, q, diagonal=diagonal) == pytest.approx(np.quantile(chosen, q), rel=1e-6)


@pytest.mark.parametrize("expected", [100, 1 << 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranks_are_found_in_a_sweep(dtype: type, expected: int) -> None:
    """Exactly, but for doubles that are too many to keep: these to a bin."""
    X = gaussian(400, 6, dtype)
    dots = X @ X.T
    kind = "32" if dtype is np.float32 else "64"
    nearest = getattr(_native, f"Nearest{kind}")(np.arange(400, dtype=np.int32), None, 24)
    values = np.sort(dots[np.triu_indices(400, 1)])
    low, high = values[[3000, 9000]]
    nearest.open_rank_window(float(low), float(high), expected)
    nearest.offer(dots, 0, 0)
    ranks = [3000, 5000, 5001, 9000]
    found = nearest.values_at_ranks(ranks)
    tolerance = 1e-5 if dtype is np.float64 and expected > 100 else 0
    np.testing.assert_allclose(found, values[ranks], rtol=tolerance)
    assert nearest.values_at_ranks([0, 79_000]) == pytest.approx([low, high], rel=1e-5)


def test_ranks_do_not_mind_the_sign_of_zero() -> None:
    nearest = _native.Nearest32(np.arange(30, dtype=np.int32), None, 5)
    nearest.open_rank_window(0.0, 1.0, 100)
    nearest.offer(-0.0 * np.ones((30, 30), dtype=np.float32), 0, 0)
    assert nearest.values_at_ranks([7]) == [0.0]


def sorted_blobs(n: int, d: int, dtype: type) -> Floats:
    X, _ = make_blobs(n, n_features=d, centers=5, shuffle=False, random_state=1)
    points: Floats = X.astype(dtype)
    return points


def few_values(n: int, d: int, dtype: type) -> Floats:
    return np.random.default_rng(n).integers(0, 3, size=(n, d)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cosine_similarity", [False, True])
@pytest.mark.parametrize("n", [3, 7, 200, 1024, 2600])
@pytest.mark.parametrize("points", [gaussian, sorted_blobs, few_values])
def test_medians_of_rows_are_numpys(
    points: Callable[[int, int, type], Floats], n: int, cosine_similarity: bool, dtype: type
) -> None:
    X = points(n, 5, dtype) + dtype(cosine_similarity)
    if cosine_similarity:
        X = normalised(X)
    wide = X.astype(np.float64)
    S = wide @ wide.T if cosine_similarity else negative_squared_distances(wide)
    np.fill_diagonal(S, 1.0 if cosine_similarity else 0.0)
    _, medians = FeatureSource(X, cosine_similarity).start_with_medians(Options())
    atol = 1e-4 if dtype is np.float32 else 1e-10
    np.testing.assert_allclose(medians, np.median(S, axis=1), atol=atol * np.abs(S).max())


def test_a_sweep_loses_no_medians() -> None:
    """In random order; where one is lost, its row is read again, and slowly."""
    X = gaussian(3000, 8, np.float32)
    sweep = Sweep(X, None, 24)
    sweep.nearest.open_medians()
    sweep.run(Options())
    medians = sweep.nearest.medians(np.float32(99), 1)
    dots = X @ X.T
    np.fill_diagonal(dots, 99)
    np.testing.assert_allclose(medians, np.median(dots, axis=1), rtol=0, atol=1e-6)


def test_medians_are_found_in_whole_rows_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X = gaussian(600, 4, np.float64)
    expected = FeatureSource(X, cosine=False).start_with_medians(Options())[1]
    monkeypatch.setattr(resources, "memory_fits", lambda _: False)
    found = FeatureSource(X, cosine=False).start_with_medians(Options())[1]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [3, 60, 1025, 2300])
@pytest.mark.parametrize("points", [gaussian, sorted_blobs, few_values])
def test_a_sweep_lists_all_that_is_over_its_thresholds(
    points: Callable[[int, int, type], Floats], n: int, dtype: type
) -> None:
    """Whatever the order of the input and however many similarities are equal."""
    X = points(n, 4, dtype)
    S = negative_squared_distances(X)
    active_set = FeatureSource(X, cosine=False).start(Options(seed=None))
    some = np.arange(0, n, 3)
    position = np.full(n, -1)
    position[some] = np.arange(some.size)
    labels = active_set.assign(position)
    others = np.setdiff1d(np.flatnonzero(labels >= 0), some)
    chosen = S[others, some[labels[others]]]
    np.testing.assert_allclose(chosen, S[np.ix_(others, some)].max(axis=1), rtol=1e-5)
    if points is gaussian and n > 3:
        assert others.size > 0.9 * (n - some.size)


@pytest.mark.parametrize("n", [1, 2, 7, 200, 1500])
def test_median_preferences_are_numpys(n: int) -> None:
    S = negative_squared_distances(gaussian(n, 4, np.float32))
    np.testing.assert_array_equal(median_preference(S, 0.75), (0.75 * np.median(S, axis=0)))


def test_cosine_rejects_points_without_direction() -> None:
    X = gaussian(10, 3, np.float64)
    X[4] = 0
    with pytest.raises(ValueError, match=r"X\[4\] is all zeros"):
        cosine(X)


def test_memory_is_estimated_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "available_memory", lambda: 10_000_000)
    X = gaussian(5000, 4, np.float32)
    with pytest.raises(MemoryError, match=r"matrix of similarities .* memory='tiles'"):
        AffinityPropagation(memory="matrix").fit(X)
    with pytest.raises(MemoryError, match=r"from features of 5000 points needs about"):
        AffinityPropagation(memory="tiles").fit(X)


OSCILLATING = """
import resource, warnings
import numpy as np
from sklearn.datasets import make_blobs
from epruner import AffinityPropagation
warnings.simplefilter("ignore")
X = make_blobs(1000, 16, centers=20, random_state=0)[0].astype(np.float32)
AffinityPropagation(memory="tiles").fit(X[:100])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
AffinityPropagation(memory="tiles", preference=-7500).fit(X)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak in kB, as Linux gives it")
def test_lists_that_grow_in_a_long_oscillation_leave_no_memory_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OSCILLATING], capture_output=True, text=True, timeout=300, check=True
    )
    # All pairs listed take 20 MB, and as much again while lists double.
    assert float(done.stdout) < 120


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d"), [(3, 2), (700, 40), (1537, 9)])
def test_products_are_symmetric_and_the_same_on_any_number_of_threads(
    n: int, d: int, dtype: type
) -> None:
    X = gaussian(n, d, dtype)
    S = gram(X, 1)
    np.testing.assert_array_equal(S, S.T)
    np.testing.assert_array_equal(S, gram(X, 3))
    np.testing.assert_allclose(S, X.astype(np.float64) @ X.T, atol=1e-4, rtol=1e-5)
    some: Floats = np.empty((n // 2, n), dtype=dtype)
    np.testing.assert_array_equal(
        products(X[: n // 2], X, 3, out=some),
        products(X[: n // 2], X, 1, out=np.empty_like(some)),
    )
    np.testing.assert_allclose(some, S[: n // 2], atol=1e-4, rtol=1e-5)


def test_callers_in_several_threads_leave_blas_as_they_found_it() -> None:
    def blas_threads() -> set[int]:
        return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        first, second = one_thread_blas(), one_thread_blas()
        first.__enter__()
        second.__enter__()
        assert blas_threads() == {1}
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert blas_threads() == {2}


def test_available_memory_is_known_here() -> None:
    free = resources.available_memory()
    assert free is None or 1 << 20 < free < 1 << 50


@pytest.mark.timeout(60)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("memory", ["matrix", "tiles"])
def test_rows_whose_nearest_entries_all_tie_end(dtype: type, memory: str) -> None:
    pairs = np.repeat(gaussian(2, 4, dtype), 150, axis=0)  # 2 x 150 duplicates
    fit = AffinityPropagation(memory=memory, preference=-1.0, damping=0.7, max_iter=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(pairs)
        AffinityPropagation(memory=memory, max_iter=30).fit(np.eye(300, dtype=dtype))
    assert fit.labels_.shape == (300,)


@pytest.mark.parametrize("memory", ["matrix", "tiles"])
def test_identical_points_are_one_cluster_with_a_warning(memory: str) -> None:
    with pytest.warns(UserWarning, match="mutually equal similarities"):
        fit = AffinityPropagation(memory=memory).fit(np.ones((300, 3)))
    assert fit.cluster_centers_indices_.tolist() == [0]


def test_few_clusters_from_features_turn_dense_and_agree() -> None:
    X = make_blobs(2500, n_features=3, centers=4, random_state=3)[0].astype(np.float32)
    preference = -2000.0
    fits = [
        AffinityPropagation(memory=route, damping=0.8, preference=preference).fit(X)
        for route in ("tiles", "matrix")
    ]
    assert fits[0].converged_
    np.testing.assert_array_equal(fits[0].labels_, fits[1].labels_)


def test_total_similarity_is_close_to_k_medoids() -> None:
    kmedoids = pytest.importorskip("kmedoids")
    X = load_digits().data[:900]
    fit = AffinityPropagation().fit(X)
    assert fit.converged_
    k = fit.cluster_centers_indices_.size
    D = -negative_squared_distances(X)
    ours = D[np.arange(900), fit.cluster_centers_indices_[fit.labels_]].sum()
    best = min(kmedoids.fasterpam(D, k, random_state=seed).loss for seed in range(5))
    assert ours <= 1.01 * best


@pytest.mark.slow
def test_more_pairs_than_32_bits_count() -> None:
    X = gaussian(50_000, 16, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = AffinityPropagation(damping=0.9, max_iter=300).fit(X)
    centers = fit.cluster_centers_indices_
    assert centers.size > 100
    np.testing.assert_array_equal(fit.labels_[centers], np.arange(centers.size))
    near = X[-500:, None] - X[centers][None]
    np.testing.assert_array_equal(fit.labels_[-500:], (near**2).sum(axis=2).argmin(axis=1))


def test_dense_passes_say_how_much_memory_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    S = negative_squared_distances(gaussian(2500, 4, np.float32))
    monkeypatch.setattr(resources, "available_memory", lambda: 10_000_000)
    with pytest.raises(MemoryError, match=r"dense passes over 2500 points .* backend='native'"):
        affinity_propagation(S, preference=-1.0, backend="dense")
