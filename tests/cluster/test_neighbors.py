"""Nearest neighbours alone are linked: what the graph holds, and how near the answer comes."""

import sys
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score, pairwise_distances_argmin

from epruner import AffinityPropagation
from epruner.cluster import neighbors
from epruner.cluster.similarity import negative_squared_distances


def blobs(n: int = 300, dtype: Any = np.float64) -> NDArray[Any]:
    X: NDArray[Any] = make_blobs(n, n_features=5, centers=15, random_state=0)[0].astype(dtype)
    return X


def model(n_neighbors: int = 30, **options: Any) -> AffinityPropagation:
    settings: dict[str, Any] = {"damping": 0.8, "max_iter": 1000} | options
    return AffinityPropagation(affinity="nearest_neighbors", n_neighbors=n_neighbors, **settings)


@pytest.mark.parametrize("container", [np.asarray, scipy.sparse.csr_array])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_graph_holds_the_largest_similarities(container: Any, dtype: Any) -> None:
    X = blobs(100, dtype)
    graph = neighbors.graph(container(X), 7, 1)
    S = np.asarray(negative_squared_distances(X.astype(np.float64)))
    np.fill_diagonal(S, -np.inf)
    assert graph.dtype == dtype
    assert (np.diff(graph.indptr) == 7).all()
    found = np.sort(graph.data.reshape(100, 7), axis=1)
    np.testing.assert_allclose(found, np.sort(S, axis=1)[:, -7:], rtol=1e-5)
    rows = np.repeat(np.arange(100), 7)
    np.testing.assert_allclose(graph.data, S[rows, graph.indices], rtol=1e-5)


def test_with_all_neighbours_it_is_the_exact_clustering() -> None:
    X = blobs(100)
    near = model(n_neighbors=500).fit(X)
    exact = AffinityPropagation(preference=near.preference_, damping=0.8, max_iter=1000).fit(X)
    np.testing.assert_array_equal(near.labels_, exact.labels_)
    assert near.n_iter_ == exact.n_iter_
    assert near.net_similarity_ == pytest.approx(exact.net_similarity_)


def test_it_is_near_the_exact_clustering() -> None:
    X = blobs(1000)
    near = model().fit(X)
    exact = AffinityPropagation(preference=near.preference_, damping=0.8, max_iter=1000).fit(X)
    assert near.converged_
    assert near.net_similarity_ == pytest.approx(exact.net_similarity_, rel=0.02)
    assert adjusted_rand_score(near.labels_, exact.labels_) > 0.8
    assert near.affinity_matrix_.nnz == 31 * 1000  # with the preferences


def test_preferences_follow_the_density() -> None:
    X = blobs()
    both = model().fit(np.vstack([X, 1000 + 10 * X]))
    np.testing.assert_allclose(both.preference_[300:], 100 * both.preference_[:300], rtol=1e-6)
    first, second = np.split(both.labels_, 2)
    assert adjusted_rand_score(first, second) > 0.9


def test_the_default_preference_is_what_lists_hold() -> None:
    X = np.array([[0.0], [1.0], [3.0]])
    fit = model(n_neighbors=2).fit(X)
    np.testing.assert_allclose(fit.preference_, [-9 - 8 / 4, -4 - 3 / 4, -9 - 5 / 4])
    with pytest.warns(UserWarning, match="9 of 9 points coincide with all their neighbours"):
        copies = model(n_neighbors=2).fit(np.repeat(X, 3, axis=0))
    assert (copies.preference_ == 0).all()


def test_points_without_an_exemplar_among_their_neighbours_get_the_nearest() -> None:
    X = blobs()
    fit = model(n_neighbors=4, preference=-200.0, damping=0.95).fit(X)
    centres = X[fit.cluster_centers_indices_]
    nearest = pairwise_distances_argmin(X, centres)
    np.testing.assert_array_equal(fit.labels_, nearest)
    np.testing.assert_array_equal(fit.predict(X), nearest)
    links = -((X - centres[fit.labels_]) ** 2).sum()
    assert fit.net_similarity_ == pytest.approx(links - 200 * len(centres))


@pytest.mark.parametrize("options", [{"n_clusters": 25}, {"preference_quantile": 0.1}])
def test_other_ways_to_set_preferences(options: dict[str, Any]) -> None:
    fit = model(**options).fit(blobs())
    assert fit.converged_
    if "n_clusters" in options:
        assert fit.cluster_centers_indices_.size == 25
    else:
        graph = neighbors.graph(blobs(), 30, 1)
        assert fit.preference_[0] == pytest.approx(np.quantile(graph.data, 0.1))
    with pytest.raises(ValueError, match="beta needs all similarities"):
        model(beta=1.0).fit(blobs())


def test_damping_rises_from_where_a_run_is() -> None:
    once = model(damping=0.9).fit(blobs())
    fit = model(damping="auto", max_iter=once.n_iter_ // 2).fit(blobs())
    assert fit.converged_
    assert fit.damping_ > 0.9
    assert fit.n_iter_ > once.n_iter_ // 2
    assert fit.net_similarity_ == pytest.approx(once.net_similarity_, rel=1e-3)
    enough = model(damping="auto").fit(blobs())
    assert (enough.damping_, enough.n_iter_) == (0.9, once.n_iter_)
    np.testing.assert_array_equal(enough.labels_, once.labels_)


def test_more_duplicates_than_neighbours() -> None:
    X = np.repeat(blobs(30), 20, axis=0)
    with pytest.warns(UserWarning, match="raise n_neighbors, or cluster each once"):
        fit = model(n_neighbors=10, damping=0.9).fit(X)
    assert fit.converged_
    assert (X[fit.cluster_centers_indices_][fit.labels_] == X).mean() > 0.9
    assert (fit.labels_ >= 0).all()


def test_a_number_that_sparse_features_do_not_give_is_said() -> None:
    X = scipy.sparse.csr_array(np.eye(3))
    with pytest.warns(UserWarning, match="no preference"):
        model(n_neighbors=1, n_clusters=2).fit(X)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_points(n: int) -> None:
    fit = model().fit(blobs(n))
    assert (fit.labels_ >= 0).all()
    assert fit.predict(blobs(n)).tolist() == fit.labels_.tolist()


def test_one_neighbour() -> None:
    assert model(n_neighbors=1).fit(blobs()).converged_


def test_sparse_features() -> None:
    X = blobs()
    dense, sparse = (model().fit(x) for x in (X, scipy.sparse.csr_array(X)))
    np.testing.assert_array_equal(dense.labels_, sparse.labels_)
    np.testing.assert_array_equal(sparse.predict(scipy.sparse.csr_array(X)), sparse.labels_)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_neighbors": 0}, ValueError, "n_neighbors=0 must be at least 1"),
        ({"n_neighbors": 2.0}, TypeError, "n_neighbors=2.0 must be an integer"),
        ({"ties": "scikit-learn"}, ValueError, "not affinity='nearest_neighbors'"),
        ({"backend": "cupy"}, ValueError, "needs the native solver, not backend='cupy'"),
        ({"backend": "nothing"}, ValueError, "backend='nothing' is not one of"),
    ],
)
def test_what_is_not_possible(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model(**options).fit(blobs())


def test_features_that_cannot_be_compared() -> None:
    X = blobs()
    with pytest.raises(ValueError, match="overflow float64: scale them"):
        model().fit(X * 1e200)
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        model().fit(X)


class Search:
    """Stands for PyNNDescent's: finds the point itself and, but for one of them, its neighbours."""

    def __init__(self, X: Any, **options: Any) -> None:
        found = negative_squared_distances(X).argsort(axis=1)[:, ::-1][:, : options["n_neighbors"]]
        found[5, 3:] = -1
        self.neighbor_graph = (found.astype(np.int32), None)


def test_many_points_are_searched_approximately(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="PyNNDescent comes with it")
    X = blobs(100)
    exact = neighbors.graph(X, 7, 1)
    module: Any = type(sys)("pynndescent")
    module.NNDescent, module.__spec__ = Search, sys.__spec__
    monkeypatch.setitem(sys.modules, "pynndescent", module)
    monkeypatch.setattr(neighbors, "_MANY_POINTS", 100)
    graph = neighbors.graph(X, 7, 1)
    lengths = np.diff(graph.indptr)
    assert lengths[5] == 2
    assert (np.delete(lengths, 5) == 7).all()
    difference = (graph - exact).tocsr()
    assert set(difference.nonzero()[0]) == {5}
    assert (neighbors.preferences(graph) < 0).all()
    fit = model(n_neighbors=7).fit(X)
    assert (fit.labels_ >= 0).all()


@pytest.mark.slow  # what it compiles takes a minute
def test_pynndescent_finds_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pynndescent", reason="needs the extra neighbors")
    monkeypatch.setattr(neighbors, "_MANY_POINTS", 100)
    X = blobs(400, np.float32)
    near = neighbors.graph(X, 10, 1)
    monkeypatch.undo()
    exact = neighbors.graph(X, 10, 1)
    assert near.multiply(exact).nnz > 0.9 * exact.nnz
