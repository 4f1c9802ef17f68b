"""Weights of points: as many copies of each, which share an exemplar."""

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from sklearn.cluster import affinity_propagation as scikit_learn
from sklearn.datasets import make_blobs

from epruner import AffinityPropagation
from epruner.cluster import problem
from epruner.cluster.similarity import negative_squared_distances

WEIGHTS = np.random.default_rng(0).integers(1, 5, 60).astype(float)
P = -40.0


def blobs(n: int = 60) -> NDArray[np.float64]:
    X: NDArray[np.float64] = make_blobs(n, centers=5, random_state=1)[0]
    return X


def scaled(X: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    S = np.asarray(negative_squared_distances(X), dtype=np.float64)
    return S * weights[:, None]


def fit(weights: Any, X: Any = None, **options: Any) -> AffinityPropagation:
    settings: dict[str, Any] = {"preference": P, "damping": 0.9} | options
    return AffinityPropagation(**settings).fit(blobs() if X is None else X, sample_weight=weights)


def test_a_weight_counts_like_copies() -> None:
    copies = np.repeat(np.arange(60), WEIGHTS.astype(int))
    repeated = fit(None, blobs()[copies], damping=0.7)  # copies tie, and more damping misleads them
    found = fit(WEIGHTS, damping=0.7)
    assert repeated.converged_
    assert found.converged_
    chosen = copies[repeated.cluster_centers_indices_]
    np.testing.assert_array_equal(found.cluster_centers_indices_, chosen)
    np.testing.assert_array_equal(found.labels_[copies], repeated.labels_)
    assert found.net_similarity_ == pytest.approx(repeated.net_similarity_)
    assert set(chosen) != set(fit(None).cluster_centers_indices_)


@pytest.mark.parametrize("backend", ["native", "dense", "reference", "scikit-learn"])
def test_it_is_scikit_learns_answer_on_scaled_rows(backend: str) -> None:
    options: dict[str, Any] = {"backend": backend}
    if backend == "scikit-learn":
        options = {"ties": backend, "random_state": 0}
    found = fit(WEIGHTS, **options)
    S = scaled(blobs(), WEIGHTS)
    exemplars, labels, n_iter = scikit_learn(
        S, preference=P, damping=0.9, random_state=0, return_n_iter=True
    )
    np.testing.assert_array_equal(found.cluster_centers_indices_, exemplars)
    np.testing.assert_array_equal(found.labels_, labels)
    assert found.n_iter_ == n_iter
    links = S[np.arange(60), exemplars[labels]].sum()
    assert found.net_similarity_ == pytest.approx(links + P * exemplars.size)


@pytest.mark.parametrize("options", [{}, {"n_clusters": 7}, {"damping": "auto"}, {"beta": 2.0}])
@pytest.mark.parametrize("memory", ["matrix", "tiles"])
def test_equal_weights_change_nothing(memory: str, options: dict[str, Any]) -> None:
    options = {"preference": None, "damping": 0.8, "memory": memory} | options
    with_them, without = fit(np.ones(60), **options), fit(None, **options)
    np.testing.assert_array_equal(with_them.labels_, without.labels_)
    assert with_them.net_similarity_ == without.net_similarity_
    assert with_them.n_iter_ == without.n_iter_


@pytest.mark.parametrize(
    "rule", [{}, {"preference_quantile": 0.2}, {"beta": 2.0}], ids=lambda rule: "".join(rule)
)
def test_preference_rules_are_those_of_unweighted_similarities(rule: dict[str, Any]) -> None:
    options = {"preference": None} | rule
    weighted, plain = fit(WEIGHTS, **options), fit(None, **options)
    np.testing.assert_array_equal(weighted.preference_, plain.preference_)
    expected = scaled(blobs(), WEIGHTS)
    np.fill_diagonal(expected, weighted.preference_)
    np.testing.assert_array_equal(weighted.affinity_matrix_, expected)


def test_sparse_similarities() -> None:
    S = negative_squared_distances(blobs())
    stored = scipy.sparse.csr_array(S)
    kept = stored.data.copy()
    found = fit(WEIGHTS, stored, affinity="precomputed", preference=None)
    dense = fit(WEIGHTS, S, affinity="precomputed", preference=found.preference_)
    np.testing.assert_array_equal(stored.data, kept)
    np.testing.assert_array_equal(found.labels_, dense.labels_)
    assert (
        found.preference_[0]
        == fit(None, stored, affinity="precomputed", preference=None).preference_[0]
    )
    assert found.net_similarity_ == pytest.approx(dense.net_similarity_)


@pytest.mark.parametrize("affinity", ["euclidean", "precomputed", "nearest_neighbors"])
def test_searches_work_with_weights(affinity: str) -> None:
    X = scaled(blobs(), np.ones(60)) if affinity == "precomputed" else blobs()
    options = {"affinity": affinity, "preference": None}
    assert fit(WEIGHTS, X, n_clusters=9, **options).cluster_centers_indices_.size == 9
    assert fit(WEIGHTS, X, damping="auto", **options).converged_


def test_many_points_have_a_matrix_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problem, "_LARGEST_MATRIX", 50)
    assert not hasattr(fit(None), "affinity_matrix_")
    found = fit(WEIGHTS)
    monkeypatch.undo()
    np.testing.assert_array_equal(found.affinity_matrix_, fit(WEIGHTS).affinity_matrix_)


def test_the_nearest_exemplar_is_predicted_whatever_the_weights() -> None:
    found = fit(WEIGHTS)
    np.testing.assert_array_equal(found.predict(blobs()), found.labels_)


def test_a_dropped_point_can_be_predicted() -> None:
    found = fit(WEIGHTS[1:], blobs()[1:])
    assert found.predict(blobs()[:1]).shape == (1,)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (WEIGHTS[1:], ValueError, r"one entry per point: got shape \(59,\) for 60 points"),
        (2.0, ValueError, r"got shape \(\) for 60 points"),
        (-WEIGHTS, ValueError, r"sample_weight\[0\] is -4.0: weights must be positive"),
        ([1.0, 0.0, *WEIGHTS[2:]], ValueError, r"sample_weight\[1\] is 0.0.*predict them"),
        ([1.0, np.nan, *WEIGHTS[2:]], ValueError, r"sample_weight\[1\] is nan"),
        (["a"] * 60, TypeError, r"sample_weight=\['a'.* must be None or one number per point"),
        (np.full(60, 1e308), ValueError, "overflow float64: scale the weights"),
    ],
)
def test_wrong_weights(weights: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(weights)


def test_tiles_have_no_weights() -> None:
    with pytest.raises(ValueError, match="sample_weight needs a matrix, not memory='tiles'"):
        fit(WEIGHTS, memory="tiles")
