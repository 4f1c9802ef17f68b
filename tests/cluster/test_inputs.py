"""What is said of inputs that cannot be clustered as they are, and what a fit leaves behind."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import sklearn
from numpy.typing import NDArray
from sklearn.datasets import make_blobs

from epruner import AffinityPropagation, affinity_propagation, affinity_propagation_many
from epruner.cluster.similarity import filled, negative_squared_distances


def blobs(n: int = 60) -> NDArray[np.float64]:
    X: NDArray[np.float64] = make_blobs(n, centers=4, cluster_std=0.5, random_state=0)[0]
    return X


def similarities(n: int = 60) -> NDArray[np.float64]:
    return np.asarray(negative_squared_distances(blobs(n)), dtype=np.float64)


def test_a_second_fit_leaves_nothing_of_the_first() -> None:
    fit = AffinityPropagation().fit(blobs())
    assert {"affinity_matrix_", "cluster_centers_"} <= set(vars(fit))
    fit.set_params(memory="tiles").fit(blobs())
    assert not hasattr(fit, "affinity_matrix_")
    fit.set_params(affinity="precomputed").fit(similarities())
    assert not hasattr(fit, "cluster_centers_")
    with pytest.raises(ValueError, match="beta"):
        fit.set_params(beta=-1.0).fit(similarities())
    assert not hasattr(fit, "labels_")


@pytest.mark.parametrize("memory", ["matrix", "tiles"])
@pytest.mark.parametrize(("dtype", "factor"), [(np.float32, 1e19), (np.float64, 1e200)])
def test_features_whose_squares_overflow(memory: str, dtype: type, factor: float) -> None:
    X: NDArray[Any] = (blobs() * factor).astype(dtype)
    with pytest.raises(ValueError, match=rf"overflow {dtype.__name__}: scale them"):
        AffinityPropagation(memory=memory).fit(X)
    scaled = AffinityPropagation(memory=memory).fit(X / np.abs(X).max())
    assert 1 < scaled.cluster_centers_indices_.size < 60


@pytest.mark.parametrize("options", [{"affinity": "cosine"}, {"ties": "scikit-learn"}])
def test_they_are_named_on_other_ways_too(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="overflow float64: scale them"):
        AffinityPropagation(**options).fit(blobs() * 1e200)
    with pytest.raises(ValueError, match="overflow float64: scale them"):
        AffinityPropagation().fit(scipy.sparse.csr_matrix(blobs() * 1e200))


@pytest.mark.parametrize("memory", ["matrix", "tiles"])
@pytest.mark.parametrize("affinity", ["euclidean", "cosine"])
def test_nan_that_scikit_learn_was_told_not_to_look_for(memory: str, affinity: str) -> None:
    X = blobs()
    X[7, 1] = np.nan
    with sklearn.config_context(assume_finite=True), pytest.raises(ValueError, match="NaN"):
        AffinityPropagation(memory=memory, affinity=affinity).fit(X)


def test_predict_knows_points_that_may_not_be_linked() -> None:
    S = similarities()
    fit = AffinityPropagation(affinity="precomputed").fit(S)
    near = S[:4, fit.cluster_centers_indices_]
    near[1] = -np.inf
    assert fit.predict(near).tolist() == [fit.labels_[0], -1, *fit.labels_[2:4]]
    near[2, 0] = np.nan
    with pytest.raises(ValueError, match=r"X\[2, 0\] is nan"):
        fit.predict(near)


@pytest.mark.parametrize("container", [np.asarray, scipy.sparse.csr_matrix])
def test_predict_refuses_points_without_direction(container: Callable[[Any], Any]) -> None:
    fit = AffinityPropagation(affinity="cosine").fit(blobs() + 20)
    assert fit.predict(container(blobs() + 20)).tolist() == fit.labels_.tolist()
    with pytest.raises(ValueError, match=r"X\[1\] is all zeros and has no direction"):
        fit.predict(container([[1.0, 2.0], [0.0, 0.0]]))


@pytest.mark.parametrize("call", ["function", "estimator"])
def test_copy_false_writes_only_what_it_can_write_whole(call: str) -> None:
    def run(S: Any) -> Any:
        if call == "function":
            return affinity_propagation(S, preference=-5.5, copy=False)[1]
        return (
            AffinityPropagation(affinity="precomputed", preference=-5.5, copy=False).fit(S).labels_
        )

    expected = run(similarities())
    written = np.asfortranarray(similarities())
    np.testing.assert_array_equal(run(written), expected)
    np.testing.assert_array_equal(np.diag(written), -5.5)

    fixed = similarities()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(run(fixed), expected)
    np.testing.assert_array_equal(np.diag(fixed), 0)

    whole = np.round(100 * similarities()).astype(np.int64)
    kept = whole.copy()
    assert run(whole).shape == (60,)
    np.testing.assert_array_equal(whole, kept)


@pytest.mark.parametrize("make", [np.asarray, np.ndarray.tolist, np.asfortranarray])
def test_the_affinity_matrix_has_the_preferences_and_the_input_has_not(
    make: Callable[[Any], Any],
) -> None:
    whole = np.round(100 * similarities()).astype(np.int64)
    for S in (similarities(), similarities().astype(np.float32), whole):
        given = make(S)
        fit = AffinityPropagation(affinity="precomputed", preference=-7.5, damping=0.7).fit(given)
        np.testing.assert_array_equal(np.asarray(given), S)
        expected = S.astype(np.float32 if S.dtype == np.float32 else np.float64)
        if make is np.ndarray.tolist:
            expected = S.astype(np.float64)
        np.fill_diagonal(expected, -7.5)
        np.testing.assert_array_equal(fit.affinity_matrix_, expected)
        assert not np.shares_memory(fit.affinity_matrix_, S)


def test_the_affinity_matrix_of_features_a_callable_and_without_a_copy() -> None:
    X, S = blobs(), similarities()
    expected = S.copy()
    np.fill_diagonal(expected, -7.5)
    fit = AffinityPropagation(preference=-7.5).fit(X)
    np.testing.assert_array_equal(fit.affinity_matrix_, expected)
    fit = AffinityPropagation(preference=-7.5, affinity=lambda _: S).fit(X)
    np.testing.assert_array_equal(fit.affinity_matrix_, expected)
    np.testing.assert_array_equal(np.diag(S), 0)
    fit = AffinityPropagation(preference=-7.5, affinity="precomputed", copy=False).fit(S)
    assert fit.affinity_matrix_ is S
    np.testing.assert_array_equal(S, expected)


def test_the_affinity_matrix_of_sparse_similarities() -> None:
    full = similarities()
    full[full < -50] = -np.inf
    rows, columns = np.nonzero(full > -np.inf)
    S = scipy.sparse.csr_array((full[rows, columns], (rows, columns)), shape=full.shape)
    stored = S.data.copy()
    fit = AffinityPropagation(affinity="precomputed", preference=-7.5, damping=0.7).fit(S)
    np.testing.assert_array_equal(S.data, stored)
    np.fill_diagonal(full, -7.5)
    np.testing.assert_array_equal(filled(fit.affinity_matrix_), full)


@pytest.mark.parametrize("diagonal", [True, False])
def test_the_median_of_sparse_similarities_is_that_of_the_dense_ones(diagonal: bool) -> None:
    full = similarities()
    stored = full > -20
    if not diagonal:
        np.fill_diagonal(stored, False)
    rows, columns = np.nonzero(stored)
    S = scipy.sparse.csr_array((full[rows, columns], (rows, columns)), shape=full.shape)
    sparse, dense = (
        AffinityPropagation(affinity="precomputed", damping=0.8).fit(x) for x in (S, filled(S))
    )
    assert sparse.preference_[0] == pytest.approx(dense.preference_[0])
    assert sparse.preference_[0] == pytest.approx(np.median(full[stored]))


@pytest.mark.parametrize("affinity", ["euclidean", "cosine"])
def test_no_quantile_of_similarities_exceeds_the_largest_possible(affinity: str) -> None:
    X = np.repeat(np.random.default_rng(0).normal(size=(30, 7)) + 50, 10, axis=0)
    X = X.astype(np.float32)
    fit = AffinityPropagation(
        affinity=affinity, memory="tiles", preference_quantile=1.0, damping=0.9, max_iter=20
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit.fit(X)
    assert fit.preference_.max() <= (1 if affinity == "cosine" else 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"preference": "median"}, TypeError, r"preference='median' must be a number"),
        ({"preference": {}}, TypeError, r"preference=\{\} must be a number"),
        ({"beta": "x"}, TypeError, r"beta='x' must be a number"),
        ({"beta": np.nan}, ValueError, r"beta=nan must be positive"),
        ({"preference_quantile": "a"}, TypeError, r"preference_quantile='a' must be a number"),
        ({"preference_quantile": True}, TypeError, r"preference_quantile=True must be a number"),
        ({"ties": "noise"}, ValueError, r"ties='noise' is not one of fast, scikit-learn"),
    ],
)
def test_wrong_values_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        AffinityPropagation(**options).fit(blobs())


def test_one_matrix_is_not_many() -> None:
    with pytest.raises(TypeError, match=r"problems is one matrix.*\[S\]"):
        affinity_propagation_many(similarities())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"problems is one matrix.*\[S\]"):
        affinity_propagation_many(scipy.sparse.csr_matrix(similarities()))
    stacked = np.stack([similarities(), 2 * similarities()])
    assert len(affinity_propagation_many(list(stacked))) == 2


def test_tensors_that_require_grad() -> None:
    torch = pytest.importorskip("torch")
    S = torch.from_numpy(similarities()).requires_grad_()
    X = torch.from_numpy(blobs()).requires_grad_()
    with pytest.raises(ValueError, match=r"S requires grad.*S\.detach\(\)"):
        affinity_propagation(S)
    with pytest.raises(ValueError, match=r"problems\[0\] requires grad"):
        affinity_propagation_many([S])
    with pytest.raises(ValueError, match=r"X requires grad.*X\.detach\(\)"):
        AffinityPropagation().fit(X)
    with pytest.raises(ValueError, match=r"preference requires grad"):
        affinity_propagation(similarities(), preference=X[:, 0])
    found = affinity_propagation(S.detach())[1]
    np.testing.assert_array_equal(found, affinity_propagation(similarities())[1])
