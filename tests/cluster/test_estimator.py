"""The function and the estimator keep scikit-learn's contract."""

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from processes import in_a_process
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator

import epruner
from epruner import AffinityPropagation, affinity_propagation
from epruner.cluster.similarity import negative_squared_distances


def blobs(n: int = 60) -> NDArray[np.float64]:
    X: NDArray[np.float64]
    X, _ = make_blobs(n, centers=4, cluster_std=0.5, random_state=0)
    return X


def similarities(n: int = 60) -> NDArray[np.float64]:
    return np.asarray(negative_squared_distances(blobs(n)), dtype=np.float64)


_COPIES = "copies of a point change the median; a weight of zero is an error that says what to do"
_REFUSED = {
    "check_sample_weight_equivalence_on_dense_data": _COPIES,
    "check_sample_weight_equivalence_on_sparse_data": _COPIES,
}


def test_check_estimator() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some checks cluster points that are all equal
        check_estimator(AffinityPropagation(), expected_failed_checks=_REFUSED)


def test_importing_epruner_imports_no_optional_package() -> None:
    code = (
        "import sys, epruner, epruner.cluster\n"
        "unwanted = {'torch', 'torch_pruning', 'numba', 'cupy', 'pynndescent'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(unwanted)}' if unwanted else 0)"
    )
    in_a_process(code)


def test_public_names_resolve() -> None:
    assert {"AffinityPropagation", "affinity_propagation"} <= set(dir(epruner))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = epruner.nothing


def test_copy_false_writes_the_preferences_to_the_diagonal() -> None:
    S = similarities()
    kept = S.copy()
    affinity_propagation(S, preference=-5.0)
    np.testing.assert_array_equal(S, kept)
    affinity_propagation(S, preference=-5.0, copy=False)
    np.testing.assert_array_equal(np.diag(S), -5.0)


def test_estimator_agrees_with_function() -> None:
    X = blobs()
    model = AffinityPropagation(preference=-20.0, random_state=0).fit(X)
    exemplars, labels = affinity_propagation(similarities(), preference=-20.0, random_state=0)[:2]
    np.testing.assert_array_equal(model.cluster_centers_indices_, exemplars)
    np.testing.assert_array_equal(model.labels_, labels)
    np.testing.assert_array_equal(model.cluster_centers_, X[exemplars])
    np.testing.assert_array_equal(model.predict(X), labels)
    assert model.converged_
    centers = exemplars[labels]
    links = similarities()[np.arange(len(X)), centers].sum()
    assert model.net_similarity_ == pytest.approx(links - 20.0 * len(exemplars))


@pytest.mark.parametrize(("preference", "clusters"), [(-2.0, 1), (0.0, 3)])
def test_equal_similarities(preference: float, clusters: int) -> None:
    S = np.full((3, 3), -1.0)
    with pytest.warns(UserWarning, match="mutually equal similarities"):
        exemplars, labels = affinity_propagation(S, preference=preference)[:2]
    assert len(exemplars) == clusters
    assert len(set(labels)) == clusters


def test_no_exemplar_means_no_centers_and_no_labels() -> None:
    X = blobs()
    model = AffinityPropagation(preference=-1000.0, max_iter=1)
    with pytest.warns(ConvergenceWarning, match="will not have any cluster centers"):
        model.fit(X)
    assert not model.converged_
    assert model.cluster_centers_indices_.size == 0
    assert (model.labels_ == -1).all()
    with pytest.warns(ConvergenceWarning, match="does not have any cluster centers"):
        assert (model.predict(X) == -1).all()


def test_labels_are_kept_when_a_run_does_not_converge() -> None:
    model = AffinityPropagation(max_iter=10)
    with pytest.warns(ConvergenceWarning, match="may return degenerate cluster centers"):
        model.fit(blobs())
    assert not model.converged_
    assert model.n_iter_ == 10
    assert model.cluster_centers_indices_.size > 0
    assert (model.labels_ >= 0).all()


def test_return_n_iter() -> None:
    result = affinity_propagation(similarities(), return_n_iter=True)
    assert len(result) == 3
    assert result[2] > 15


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", [(0, 3), (4, 1), (59, 58)])
def test_rejects_what_is_no_similarity(value: float, where: tuple[int, int]) -> None:
    S = similarities()
    S[where] = value
    with pytest.raises(ValueError, match=rf"S\[{where[0]}, {where[1]}\] is {value}"):
        affinity_propagation(S)


@pytest.mark.parametrize("lowest", [np.finfo(float).min, -np.inf])
def test_some_use_the_lowest_number_for_never(lowest: float) -> None:
    S = -np.random.default_rng(0).random((100, 100))
    S[5] = S[:, 7] = lowest
    with np.errstate(over="ignore"):  # the noise may turn one into the other
        answers = [
            affinity_propagation(S, preference=-2.0, damping=0.7, backend=backend)
            for backend in ("native", "reference")
        ]
    for found, expected in zip(*answers, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_rejects_similarities_that_are_all_infinite() -> None:
    with pytest.raises(ValueError, match=r"S\[0, 1\] is inf"):
        affinity_propagation(np.full((4, 4), np.inf), preference=0.0)


def test_rejects_what_is_not_square() -> None:
    with pytest.raises(ValueError, match=r"must be a square array.*\(3, 4\)"):
        affinity_propagation(np.zeros((3, 4)))


def test_rejects_a_preference_of_the_wrong_length() -> None:
    with pytest.raises(ValueError, match=r"preference must.*\(3,\) for 60 points"):
        affinity_propagation(similarities(), preference=[-1.0, -2.0, -3.0])


def test_rejects_an_infinite_preference() -> None:
    with pytest.raises(ValueError, match="preference"):
        affinity_propagation(similarities(), preference=-np.inf)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"damping": 0.4}, ValueError, r"damping=0.4 must be"),
        ({"damping": 1.0}, ValueError, r"damping=1.0 must be"),
        ({"damping": float("nan")}, ValueError, r"damping=nan must be"),
        ({"damping": None}, TypeError, r"damping=None"),
        ({"max_iter": 0}, ValueError, r"max_iter=0 must be at least 1"),
        ({"max_iter": 1.5}, TypeError, r"max_iter=1.5 must be an integer"),
        ({"convergence_iter": -1}, ValueError, r"convergence_iter=-1 must be at least 1"),
        ({"convergence_iter": True}, TypeError, r"convergence_iter=True must be an integer"),
        ({"n_threads": 0}, ValueError, r"n_threads=0 must be at least 1"),
        ({"n_threads": "2"}, TypeError, r"n_threads='2' must be an integer"),
        ({"backend": "cuda"}, ValueError, r"backend='cuda' is not one of"),
    ],
)
def test_rejects_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        affinity_propagation(similarities(), **options)
    with pytest.raises(error, match=message):
        AffinityPropagation(**options).fit(blobs())


def test_rejects_an_unknown_affinity() -> None:
    with pytest.raises(ValueError, match="affinity='manhattan'"):
        AffinityPropagation(affinity="manhattan").fit(blobs())


def test_rejects_complex_similarities() -> None:
    with pytest.raises(TypeError, match="complex"):
        affinity_propagation(np.zeros((3, 3), dtype=complex))
