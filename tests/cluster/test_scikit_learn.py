"""With `ties="scikit-learn"` answers are scikit-learn's to the last tie, and its own tests pass."""

import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import sklearn.cluster
from numpy.typing import NDArray
from sklearn.datasets import load_digits, make_blobs
from sklearn.metrics import euclidean_distances

from epruner import AffinityPropagation, affinity_propagation, affinity_propagation_many

# Its tests of what is no error here: prediction after precomputed similarities, sparse ones.
LEFT_OUT = {
    "test_affinity_propagation_predict_error",
    "test_affinity_propagation_precomputed_with_sparse_input",
}
try:
    theirs: Any = import_module("sklearn.cluster.tests.test_affinity_propagation")
except ImportError:  # installed without its tests
    theirs = None
else:
    globals().update(
        {name: test for name, test in vars(theirs).items() if name.startswith("test_")}
    )
    for _name in LEFT_OUT:
        del globals()[_name]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _ours(monkeypatch: pytest.MonkeyPatch) -> None:
    if theirs is not None:
        for ours in (AffinityPropagation, affinity_propagation):
            monkeypatch.setattr(theirs, ours.__name__, partial(ours, ties="scikit-learn"))


@pytest.fixture(params=[np.float32, np.float64])
def global_dtype(request: pytest.FixtureRequest) -> type:
    dtype: type = request.param
    return dtype


@pytest.fixture(params=[0, 42])
def global_random_seed(request: pytest.FixtureRequest) -> int:
    seed: int = request.param
    return seed


def digits(n: int, dtype: type) -> NDArray[Any]:
    X: NDArray[Any] = load_digits().data[:n].astype(dtype)
    return X


def blobs(n: int, dtype: type) -> NDArray[Any]:
    X: NDArray[Any] = make_blobs(n, n_features=5, centers=7, random_state=n)[0].astype(dtype)
    return X


def duplicates(n: int, dtype: type) -> NDArray[Any]:
    return np.random.default_rng(n).integers(0, 3, size=(n, 3)).astype(dtype)


@pytest.mark.parametrize(
    ("make", "n", "dtype", "options"),
    [
        (digits, 1797, np.float64, {}),
        (digits, 500, np.float64, {"random_state": 3}),
        (digits, 500, np.float64, {"preference": -20_000.0, "damping": 0.8, "random_state": 1}),
        (blobs, 300, np.float64, {"damping": 0.7, "random_state": 0}),
        (blobs, 300, np.float32, {"damping": 0.7, "random_state": 0}),
        (duplicates, 150, np.float64, {"damping": 0.9, "random_state": 5}),
    ],
)
def test_the_answer_is_scikit_learns(
    make: Callable[[int, type], NDArray[Any]], n: int, dtype: type, options: dict[str, Any]
) -> None:
    X = make(n, dtype)
    fits = []
    for estimator in (
        AffinityPropagation(ties="scikit-learn", **options),
        sklearn.cluster.AffinityPropagation(**options),
    ):
        np.random.seed(7)  # noqa: NPY002 (what None stands for in scikit-learn)
        fits.append(estimator.fit(X))
    ours, reference = fits
    assert ours.converged_
    np.testing.assert_array_equal(ours.cluster_centers_indices_, reference.cluster_centers_indices_)
    np.testing.assert_array_equal(ours.labels_, reference.labels_)
    if make is not duplicates:  # these oscillate first, where rounding tells how long
        assert ours.n_iter_ == reference.n_iter_
    np.testing.assert_array_equal(ours.affinity_matrix_, reference.affinity_matrix_)
    assert ours.affinity_matrix_.dtype == reference.affinity_matrix_.dtype


@pytest.mark.parametrize("backend", ["native", "dense", "numba", "reference"])
def test_every_solver_gets_the_noise(backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba", reason="the numba solver needs its extra")
    S = -euclidean_distances(digits(300, np.float64), squared=True)
    kept = S.copy()
    found = affinity_propagation(
        S, ties="scikit-learn", random_state=0, backend=backend, return_n_iter=True
    )
    expected = sklearn.cluster.affinity_propagation(S, random_state=0, return_n_iter=True)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(S, kept)


def test_many_draw_in_turn_from_one_generator() -> None:
    problems = [-euclidean_distances(digits(n, np.float64), squared=True) for n in (120, 200, 90)]
    rng = np.random.RandomState(4)
    expected = [sklearn.cluster.affinity_propagation(S, random_state=rng) for S in problems]
    found = affinity_propagation_many(
        problems, ties="scikit-learn", random_state=np.random.RandomState(4), n_threads=2
    )
    for clustering, (exemplars, labels) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(clustering.exemplars, exemplars)
        np.testing.assert_array_equal(clustering.labels, labels)


def test_pairs_that_must_not_be_linked_stay_apart() -> None:
    S = -euclidean_distances(blobs(60, np.float64), squared=True)
    S[:30, 30:] = S[30:, :30] = -np.inf
    S[7] = -np.inf
    labels = affinity_propagation(S, preference=-50.0, ties="scikit-learn", random_state=0)[1]
    assert not set(labels[:30]) & set(labels[30:])


def test_a_number_of_clusters_can_be_searched() -> None:
    fit = AffinityPropagation(n_clusters=7, ties="scikit-learn", random_state=0)
    assert len(fit.fit(blobs(200, np.float64)).cluster_centers_indices_) == 7
    again = sklearn.cluster.AffinityPropagation(
        preference=fit.preference_[0], damping=fit.damping_, random_state=0
    ).fit(blobs(200, np.float64))
    np.testing.assert_array_equal(fit.labels_, again.labels_)


def test_what_has_no_dense_matrix_is_refused() -> None:
    X = blobs(30, np.float64)
    S = scipy.sparse.csr_matrix(-euclidean_distances(X, squared=True))
    with pytest.raises(ValueError, match=r"ties='scikit-learn' needs a dense matrix"):
        affinity_propagation(S, ties="scikit-learn")
    with pytest.raises(ValueError, match=r"ties='scikit-learn' works on the CPU only"):
        affinity_propagation(S.toarray(), ties="scikit-learn", backend="cupy")
    with pytest.raises(ValueError, match=r"ties='scikit-learn' needs a matrix, not memory='tiles'"):
        AffinityPropagation(ties="scikit-learn", memory="tiles").fit(X)
    with pytest.raises(ValueError, match=r"ties='noise' is not one of fast, scikit-learn"):
        affinity_propagation(S.toarray(), ties="noise")


def test_nothing_is_drawn_where_all_is_equal() -> None:
    rng = np.random.RandomState(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        affinity_propagation(-np.ones((4, 4)), preference=0, ties="scikit-learn", random_state=rng)
    assert rng.randint(2**31 - 1) == np.random.RandomState(0).randint(2**31 - 1)
