"""What a caller can ask for beside a preference: numbers of clusters, damping, links left out."""

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from sklearn.datasets import load_digits, make_blobs

from epruner import AffinityPropagation, affinity_propagation, preference_range
from epruner.cluster.similarity import negative_squared_distances

DIGITS = load_digits().data[:600]


@pytest.mark.parametrize("wanted", [0, 601, 2.5, True])
def test_impossible_numbers_of_clusters(wanted: object) -> None:
    with pytest.raises((ValueError, TypeError), match="n_clusters="):
        AffinityPropagation(n_clusters=wanted).fit(DIGITS)  # type: ignore[arg-type]


def test_rules_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="preference and beta exclude each other"):
        AffinityPropagation(preference=-1.0, beta=0.7).fit(DIGITS)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("preference_quantile", 1.5), ("beta", -1.0), ("memory", "disk"), ("affinity", "manhattan")],
)
def test_values_out_of_range_are_named(parameter: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{parameter}="):
        AffinityPropagation(**{parameter: value}).fit(DIGITS)  # type: ignore[arg-type]


def test_damping_rises_until_a_run_converges() -> None:
    X = make_blobs(300, centers=3, cluster_std=0.5, random_state=0)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fixed = AffinityPropagation(damping=0.5, preference=-500).fit(X)
    assert not fixed.converged_
    rising = AffinityPropagation(damping="auto", preference=-500).fit(X)
    assert rising.converged_
    assert rising.damping_ > 0.5
    calm = AffinityPropagation(damping="auto", preference=-50).fit(X)
    assert calm.converged_
    assert calm.damping_ == 0.5


def test_preference_range_brackets_the_numbers_of_clusters() -> None:
    S = negative_squared_distances(DIGITS[:150])
    low, high = preference_range(S, exact=True)
    bound, same_high = preference_range(S)
    assert bound <= low < high == same_high
    S0 = S - np.diag(np.diag(S))
    one = S0.sum(axis=0).max()
    two = max(np.maximum(S0[:, a], S0[:, b]).sum() for a in range(150) for b in range(a + 1, 150))
    assert low == pytest.approx(one - two)
    everyone = affinity_propagation(S, preference=high + abs(high), damping=0.7)[0]
    assert everyone.size == 150


@pytest.mark.parametrize("bad", [-np.inf, np.inf, np.nan])
def test_a_preference_range_needs_every_similarity(bad: float) -> None:
    S = negative_squared_distances(DIGITS[:5])
    S[1, 3] = bad
    with pytest.raises(ValueError, match=r"S\[1, 3\] is"):
        preference_range(S)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_sparse_points_that_are_all_exemplars(n: int) -> None:
    S = scipy.sparse.csr_matrix(-1 - np.random.default_rng(0).random((n, n)))
    exemplars, labels = affinity_propagation(S, preference=5.0, damping=0.7)[:2]
    np.testing.assert_array_equal(exemplars, np.arange(n))
    np.testing.assert_array_equal(labels, np.arange(n))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparse_similarities_equal_dense_ones_with_minus_infinity(dtype: type) -> None:
    rng = np.random.default_rng(0)
    S = negative_squared_distances(rng.normal(size=(400, 5)).astype(dtype))
    linked = np.quantile(S, 0.6) < S
    linked = linked & linked.T & ~np.eye(400, dtype=bool)
    stored = scipy.sparse.csr_matrix(np.where(linked, S, 0))
    blocked: NDArray[Any] = np.where(linked, S, -np.inf).astype(dtype)
    sparse, dense = (
        AffinityPropagation(affinity="precomputed", preference=-8.0, damping=0.7).fit(x)
        for x in (stored, blocked)
    )
    assert sparse.converged_
    np.testing.assert_array_equal(sparse.labels_, dense.labels_)
    assert sparse.n_iter_ == dense.n_iter_
    assert sparse.net_similarity_ == pytest.approx(dense.net_similarity_)
    members = np.flatnonzero(np.arange(400) != sparse.cluster_centers_indices_[sparse.labels_])
    assert linked[members, sparse.cluster_centers_indices_[sparse.labels_[members]]].all()


def test_points_without_links_stand_alone() -> None:
    S = np.full((5, 5), -np.inf)
    S[0, 1] = S[1, 0] = S[1, 2] = S[2, 1] = -1.0
    centers, labels = affinity_propagation(S, preference=-1.5, damping=0.7)[:2]
    assert {3, 4} <= set(centers)
    assert labels[3] != labels[4]


@pytest.mark.parametrize("affinity", ["euclidean", "cosine"])
def test_predict_gives_training_points_their_labels(affinity: str) -> None:
    fit = AffinityPropagation(affinity=affinity).fit(DIGITS)
    assert (fit.predict(DIGITS) == fit.labels_).mean() > 0.99  # pixels are integers: ties


def test_predict_after_a_precomputed_fit_takes_similarities_to_the_exemplars() -> None:
    S = negative_squared_distances(DIGITS)
    fit = AffinityPropagation(affinity="precomputed").fit(S)
    near = S[:, fit.cluster_centers_indices_]
    assert (fit.predict(near) == fit.labels_).mean() > 0.99
    with pytest.raises(ValueError, match=r"similarities of\s+new points to the"):
        fit.predict(DIGITS)


def test_a_callable_gets_the_features() -> None:
    fit = AffinityPropagation(affinity=negative_squared_distances).fit(DIGITS)
    plain = AffinityPropagation().fit(DIGITS)
    np.testing.assert_array_equal(fit.labels_, plain.labels_)
