"""A path of preferences is the fits with each of them, for less."""

import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import ConvergenceWarning

import epruner
from epruner import AffinityPropagation, preference_path
from epruner.cluster.candidates import FeatureSource
from epruner.cluster.similarity import negative_squared_distances

DIGITS: NDArray[np.float64] = load_digits().data[:300] + np.random.default_rng(0).normal(
    size=(300, 64)
)
PREFERENCES = [-20_000.0, -500.0, -3_000.0, -8_000.0]  # in no order


def sparse(X: NDArray[Any]) -> Any:
    S = negative_squared_distances(X)
    return scipy.sparse.csr_array(np.where(np.median(S) < S, S, 0))


INPUTS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "matrix": (np.asarray, {}),
    "tiles": (np.asarray, {"memory": "tiles"}),
    "cosine": (np.asarray, {"affinity": "cosine", "memory": "tiles"}),
    "precomputed": (negative_squared_distances, {"affinity": "precomputed"}),
    "sparse": (sparse, {"affinity": "precomputed"}),
    "neighbours": (np.asarray, {"affinity": "nearest_neighbors", "n_neighbors": 20}),
    "sparse features": (scipy.sparse.csr_array, {}),
    "scikit-learn's ties": (np.asarray, {"ties": "scikit-learn", "random_state": 0}),
    "reference": (np.asarray, {"backend": "reference"}),
}


@pytest.mark.parametrize("damping", [0.9, "auto"])
@pytest.mark.parametrize("name", INPUTS)
def test_every_entry_is_a_single_fit(name: str, damping: float | str) -> None:
    make, options = INPUTS[name]
    n = 80 if name == "reference" else 300
    X = make(DIGITS[:n])
    preferences = np.array(PREFERENCES) * (1e-4 if name == "cosine" else 1)
    path = preference_path(X, preferences, damping=damping, **options)
    assert path.converged.all()
    assert path.labels.shape == (4, n)
    np.testing.assert_array_equal(path.preferences, preferences)
    for q, found in enumerate(path.clusterings):
        fit = AffinityPropagation(preference=preferences[q], damping=damping, **options).fit(X)
        np.testing.assert_array_equal(found.labels, fit.labels_)
        np.testing.assert_array_equal(found.labels, path.labels[q])
        np.testing.assert_array_equal(found.exemplars, fit.cluster_centers_indices_)
        assert found.exemplars.size == path.n_clusters[q]
        assert (found.n_iter, path.n_iter[q]) == (fit.n_iter_, fit.n_iter_)
        assert (found.converged, path.damping[q]) == (fit.converged_, fit.damping_)
        assert path.net_similarity[q] == pytest.approx(fit.net_similarity_)


def test_features_are_swept_once() -> None:
    with mock.patch.object(
        FeatureSource, "start", autospec=True, side_effect=FeatureSource.start
    ) as start:
        preference_path(DIGITS, PREFERENCES, memory="tiles")
    assert start.call_count == 1


@pytest.mark.parametrize("memory", ["matrix", "tiles"])
def test_a_number_goes_from_few_clusters_to_many(memory: str) -> None:
    path = preference_path(DIGITS, 12, memory=memory)
    assert (np.diff(path.preferences) > 0).all()
    assert path.converged.all()
    assert path.n_clusters[0] <= 3
    assert path.n_clusters[-1] > 100
    assert (np.diff(path.n_clusters) >= 0).all()


def test_a_number_of_sparse_similarities() -> None:
    path = preference_path(sparse(DIGITS), 6, affinity="precomputed")
    assert (np.diff(path.preferences) > 0).all()
    assert path.n_clusters[0] < 30 < 100 < path.n_clusters[-1]
    apart = scipy.sparse.csr_array((5, 5))
    with pytest.raises(ValueError, match="no two points may be linked: pass preferences"):
        preference_path(apart, 6, affinity="precomputed")


def test_a_number_for_points_that_are_all_equally_similar() -> None:
    with pytest.warns(UserWarning, match="mutually equal similarities"):
        path = preference_path(np.zeros((6, 2)), 3)
    assert (path.n_clusters == 1).all()


def test_one_warning_names_what_did_not_converge() -> None:
    with pytest.warns(ConvergenceWarning, match="for 2 of 3 preferences: -3000, -500") as caught:
        path = preference_path(DIGITS, [-3000, 1.0, -500], max_iter=18, convergence_iter=15)
    assert len(caught) == 1
    assert path.converged.tolist() == [False, True, False]


def test_weights_and_one_preference() -> None:
    weight = np.random.default_rng(0).uniform(1, 5, 300)
    (found,) = preference_path(DIGITS, [-8000], sample_weight=weight).clusterings
    fit = AffinityPropagation(preference=-8000, damping=0.9).fit(DIGITS, sample_weight=weight)
    np.testing.assert_array_equal(found.labels, fit.labels_)


def test_a_path_is_frozen() -> None:
    path = epruner.preference_path(make_blobs(30, random_state=0)[0], 2)
    with pytest.raises(FrozenInstanceError):
        path.preferences = np.zeros(2)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("preferences", "error", "message"),
    [
        (0, ValueError, "preferences=0 must be at least 1"),
        ([], ValueError, r"got \(0,\)"),
        ([[-1.0]], ValueError, r"got \(1, 1\)"),
        ([-1.0, np.nan], ValueError, "NaN, or infinite in float64"),
        ("median", TypeError, "preferences='median' must be numbers"),
        (2.5, ValueError, r"got \(\)"),
    ],
)
def test_wrong_preferences(preferences: Any, error: type[Exception], message: str) -> None:
    with warnings.catch_warnings(), pytest.raises(error, match=message):
        preference_path(DIGITS, preferences)
