"""Merging by exemplars: R's answers, the definition pair by pair, cuts, linkage, what cannot be."""

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.cluster.hierarchy import dendrogram, fcluster, is_valid_linkage, leaves_list
from scipy.sparse import csr_array
from sklearn.cluster import AffinityPropagation as ScikitLearn
from sklearn.datasets import load_digits, load_iris, make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from epruner import AffinityPropagation, ExemplarHierarchy, merge_exemplars

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.intp]


def distances(X: Floats) -> Floats:
    S: Floats = -((X[:, None] - X) ** 2).sum(-1)
    return S


def asymmetric() -> Floats:
    rng = np.random.default_rng(5)
    S = distances(rng.normal(size=(40, 2))) - rng.uniform(0, 1, (40, 40))
    return np.round(S, 3)


def clustered(S: Floats, exemplars: Any, labels: Any) -> AffinityPropagation:
    """A model that has found these clusters in these similarities."""
    model = AffinityPropagation(affinity="precomputed")
    model.cluster_centers_indices_ = np.asarray(exemplars, dtype=np.intp)
    model.labels_ = np.asarray(labels, dtype=np.intp)
    model.affinity_matrix_, model.preference_ = S, S.diagonal()
    model.n_iter_, model.converged_ = 20, True
    return model


def random_clusters(n: int, K: int, rng: np.random.Generator) -> tuple[Indices, Indices]:
    exemplars = np.sort(rng.permutation(n)[:K])
    labels = rng.integers(0, K, n)
    labels[exemplars] = np.arange(K)
    return exemplars, labels


def merged_pair_by_pair(S: Floats, labels: Indices) -> tuple[list[Any], list[int], list[float]]:
    """The definition: merges, exemplars, heights."""
    K = int(labels.max()) + 1
    clusters = {c: list(np.flatnonzero(labels == c)) for c in range(K)}
    merges: list[Any] = []
    exemplars: list[int] = []
    heights: list[float] = []
    while len(clusters) > 1:
        height, pair, exemplar = -np.inf, None, -1
        for later in clusters:
            for earlier in (c for c in clusters if c < later):
                union = clusters[earlier] + clusters[later]
                serves = union[int(S[np.ix_(union, union)].sum(axis=0).argmax())]
                found = np.mean([S[serves, clusters[c]].mean() for c in (earlier, later)])
                if found > height and S[union, serves].min() > -np.inf:
                    height, pair, exemplar = float(found), (earlier, later), int(serves)
        if pair is None:
            break
        clusters[K + len(merges)] = [point for c in pair for point in clusters.pop(c)]
        merges.append(pair)
        exemplars.append(exemplar)
        heights.append(height)
    return merges, exemplars, heights


# aggExCluster(S, x) of R's apcluster 1.4.10, counted from 0: merges, exemplars, heights, and the
# exemplars and cluster sizes of cutree(, 3)
BY_R: dict[str, tuple[list[list[int]], list[int], list[float], list[int], list[int]]] = {
    "iris": (
        [[1, 3], [5, 6], [2, 7], [4, 8], [0, 9]],
        [126, 147, 126, 126, 64],
        [-0.384060150376, -0.60955, -1.33123076923, -3.10802197802, -5.1503],
        [7, 105, 126],
        [50, 9, 91],
    ),
    "digits": (
        [[1, 6], [0, 5], [3, 4], [2, 9], [7, 10], [11, 12], [8, 13]],
        [62, 6, 114, 97, 114, 114, 114],
        [-967, -1351, -1351.22296544, -1550.94444444, -1611.26693548, -1712.78674171, -1977.41875],
        [62, 97, 114],
        [40, 78, 82],
    ),
    "asymmetric": (
        [[1, 3], [0, 6], [5, 7], [4, 9], [2, 8], [10, 11]],
        [36, 28, 36, 11, 30, 11],
        [-0.837736111111, -1.1784, -1.44993137255, -1.6311, -2.63577777778, -2.76666666667],
        [6, 11, 28],
        [1, 9, 30],
    ),
}


@pytest.mark.parametrize("name", BY_R)
def test_r_gives_the_same(name: str) -> None:
    X: Any
    if name == "iris":
        X = load_iris().data
        model = AffinityPropagation(damping=0.7).fit(X)
    elif name == "digits":
        X = load_digits().data[:200]
        model = AffinityPropagation(n_clusters=8).fit(X)
    else:
        X = asymmetric()
        model = AffinityPropagation(affinity="precomputed", damping=0.8).fit(X)
    merges, exemplars, heights, cut_exemplars, cut_sizes = BY_R[name]
    hierarchy = merge_exemplars(model, X)
    assert hierarchy.merges.tolist() == merges
    assert hierarchy.exemplars.tolist() == exemplars
    np.testing.assert_allclose(hierarchy.heights, heights, rtol=1e-11)
    three = hierarchy.cut(3)
    assert set(three.exemplars.tolist()) == set(cut_exemplars)
    assert sorted(np.bincount(three.labels).tolist()) == sorted(cut_sizes)


def problems(kind: str, seed: int) -> tuple[Floats, Indices, Indices]:
    rng = np.random.default_rng(seed)
    n, K = (24, 24) if kind == "single points" else (40, 12)
    S = rng.normal(size=(n, n))
    if kind in ("symmetric", "never linked"):
        S = S + S.T
    if kind == "ties":
        S = np.round(S)
    if kind == "single points":
        S = np.round(2 * (S + S.T)) / 2
    if kind == "never linked":
        S[rng.uniform(size=(n, n)) < 0.003] = -np.inf
    if kind == "a giant":  # one cluster takes in single points, so few of its members can serve
        X = rng.normal(size=(n, 3)) * np.where(np.arange(n) < K, 5, 1)[:, None]
        return distances(X), np.arange(K), np.minimum(np.arange(n), K - 1)
    return S, *random_clusters(n, K, rng)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "kind", ["symmetric", "asymmetric", "ties", "single points", "never linked", "a giant"]
)
def test_the_definition_gives_the_same(kind: str, seed: int) -> None:
    S, exemplars, labels = problems(kind, seed)
    before = S.copy()
    hierarchy = merge_exemplars(clustered(S, exemplars, labels))
    merges, joint, heights = merged_pair_by_pair(S, labels)
    assert [tuple(pair) for pair in hierarchy.merges] == merges
    assert hierarchy.exemplars.tolist() == joint
    np.testing.assert_allclose(hierarchy.heights, heights, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(S, before)


@pytest.mark.parametrize("affinity", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_need_no_matrix(affinity: str, dtype: Any) -> None:
    X = np.random.default_rng(3).normal(size=(300, 5)).astype(dtype)
    model = AffinityPropagation(damping=0.7, affinity=affinity, memory="tiles").fit(X)
    found = merge_exemplars(model, X)
    wide = X.astype(np.float64)
    directions = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    S = directions @ directions.T if affinity == "cosine" else distances(wide)
    expected = merge_exemplars(clustered(S, model.cluster_centers_indices_, model.labels_))
    np.testing.assert_array_equal(found.merges, expected.merges)
    np.testing.assert_array_equal(found.exemplars, expected.exemplars)
    np.testing.assert_allclose(found.heights, expected.heights, rtol=1e-6)
    assert found.leaves.net_similarity == pytest.approx(model.net_similarity_, rel=1e-5)


def test_far_from_the_origin() -> None:
    X, _ = make_blobs(200, centers=9, random_state=0)
    near = merge_exemplars(model := AffinityPropagation(damping=0.8).fit(X), X)
    moved = X + 1e6
    model.cluster_centers_ = moved[model.cluster_centers_indices_]
    far = merge_exemplars(model, moved)
    np.testing.assert_array_equal(far.merges, near.merges)
    np.testing.assert_allclose(far.heights, near.heights, rtol=1e-6)


@pytest.mark.parametrize("affinity", ["euclidean", "cosine"])
def test_the_matrix_that_a_model_keeps_will_do(affinity: str) -> None:
    X = load_iris().data
    model = AffinityPropagation(damping=0.7, affinity=affinity).fit(X)
    kept, given = merge_exemplars(model), merge_exemplars(model, X)
    np.testing.assert_array_equal(kept.merges, given.merges)
    np.testing.assert_allclose(kept.heights, given.heights, rtol=1e-9)
    np.testing.assert_allclose(kept.net_similarities, given.net_similarities, rtol=1e-9)
    assert kept.top == given.top == (affinity == "cosine")


def test_a_callable() -> None:
    X = load_iris().data
    model = AffinityPropagation(damping=0.7, affinity=distances).fit(X)
    euclidean = merge_exemplars(AffinityPropagation(damping=0.7).fit(X), X)
    np.testing.assert_array_equal(merge_exemplars(model, X).merges, euclidean.merges)
    np.testing.assert_allclose(merge_exemplars(model, X).heights, euclidean.heights)


def test_sparse_features() -> None:
    X = load_iris().data
    model = AffinityPropagation(damping=0.7).fit(csr_array(X))
    dense = merge_exemplars(AffinityPropagation(damping=0.7).fit(X), X)
    for given in (None, csr_array(X)):
        np.testing.assert_array_equal(merge_exemplars(model, given).merges, dense.merges)


def test_without_x_precomputed_similarities_have_preferences_on_their_diagonal() -> None:
    S = distances(load_iris().data)
    model = AffinityPropagation(affinity="precomputed", damping=0.7).fit(S)
    own = merge_exemplars(model, S)
    S[np.diag_indices(150)] = model.preference_
    np.testing.assert_array_equal(merge_exemplars(model).heights, merge_exemplars(model, S).heights)
    assert (merge_exemplars(model).heights < own.heights).all()


def test_scikit_learns_model() -> None:
    X = load_iris().data
    theirs = ScikitLearn(damping=0.7, random_state=0).fit(X)
    found = merge_exemplars(theirs)
    ours = merge_exemplars(AffinityPropagation(damping=0.7).fit(X))
    np.testing.assert_array_equal(found.merges, ours.merges)
    np.testing.assert_allclose(found.net_similarities, ours.net_similarities)
    assert found.leaves.converged


@pytest.fixture(scope="module")
def digits() -> tuple[Floats, AffinityPropagation, ExemplarHierarchy]:
    X = load_digits().data[:300]
    model = AffinityPropagation(damping=0.7).fit(X)
    return X, model, merge_exemplars(model, X)


def test_cuts(digits: tuple[Floats, AffinityPropagation, ExemplarHierarchy]) -> None:
    X, model, hierarchy = digits
    K = model.cluster_centers_indices_.size
    finer = hierarchy.cut(K)
    np.testing.assert_array_equal(finer.labels, model.labels_)
    np.testing.assert_array_equal(finer.exemplars, model.cluster_centers_indices_)
    assert finer.net_similarity == pytest.approx(model.net_similarity_)
    for k in range(K - 1, 0, -1):
        cut = hierarchy.cut(k)
        assert (np.diff(cut.exemplars) > 0).all()
        np.testing.assert_array_equal(cut.labels[cut.exemplars], np.arange(k))
        assert len(set(zip(finer.labels, cut.labels, strict=True))) == k + 1  # two became one
        members = np.setdiff1d(np.arange(300), cut.exemplars)
        net = -np.square(X[members] - X[cut.exemplars[cut.labels[members]]]).sum()
        net += model.preference_[cut.exemplars].sum()
        assert cut.net_similarity == pytest.approx(net)
        assert (cut.n_iter, cut.converged) == (model.n_iter_, True)
        finer = cut


@pytest.mark.parametrize(
    ("k", "error"), [(0, ValueError), (28, ValueError), (2.0, TypeError), (True, TypeError)]
)
def test_no_such_cut(
    digits: tuple[Floats, AffinityPropagation, ExemplarHierarchy], k: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"k={k} must be "):
        digits[2].cut(k)


def test_linkage(digits: tuple[Floats, AffinityPropagation, ExemplarHierarchy]) -> None:
    _, _, hierarchy = digits
    Z = hierarchy.linkage
    K = len(Z) + 1
    assert is_valid_linkage(Z)
    assert Z.dtype == np.float64
    np.testing.assert_array_equal(leaves_list(Z), hierarchy.leaf_order)
    assert dendrogram(Z, no_plot=True)["leaves"] == hierarchy.leaf_order.tolist()
    assert Z[-1, 3] == K
    exemplars = hierarchy.leaves.exemplars
    for k in (2, 7, K):
        by_scipy = fcluster(Z, k, "maxclust")
        ours = hierarchy.cut(k).labels[exemplars]
        assert len(set(zip(by_scipy, ours, strict=True))) == k


def test_heights_that_rise_are_flat_in_the_linkage() -> None:
    X = np.random.default_rng(3).normal(size=(12, 3))
    hierarchy = merge_exemplars(clustered(distances(X), range(12), range(12)))
    rising = np.diff(hierarchy.heights) > 0
    assert rising.any()
    assert (np.diff(hierarchy.distances)[rising] == 0).all()
    assert (np.diff(hierarchy.distances) >= 0).all()
    assert is_valid_linkage(hierarchy.linkage)


def test_clusters_that_must_not_be_linked() -> None:
    X, y = make_blobs(60, centers=2, random_state=0)
    S = np.where(y[:, None] == y, distances(X), -np.inf)
    model = AffinityPropagation(affinity="precomputed", preference=-2, damping=0.8).fit(S)
    hierarchy = merge_exemplars(model, S)
    K = model.cluster_centers_indices_.size
    assert K > 2
    assert len(hierarchy.merges) == K - 2
    halves = hierarchy.cut(2).labels
    assert len(set(zip(halves, y, strict=True))) == 2
    assert sorted(hierarchy.leaf_order) == list(range(K))
    with pytest.raises(ValueError, match=f"k=1 must be in 2 to {K} .the others must not be"):
        hierarchy.cut(1)
    with pytest.raises(ValueError, match="2 clusters are left that must not be linked"):
        _ = hierarchy.linkage


def test_points_without_a_cluster_stay_without() -> None:
    S, exemplars, labels = problems("symmetric", 0)
    lost = np.setdiff1d(np.arange(40), exemplars)[[2, 9]]
    labels[lost] = -1
    hierarchy = merge_exemplars(clustered(S, exemplars, labels))
    merges, _, heights = merged_pair_by_pair(S, labels)
    assert [tuple(pair) for pair in hierarchy.merges] == merges
    np.testing.assert_allclose(hierarchy.heights, heights)
    assert (hierarchy.cut(3).labels[lost] == -1).all()
    cut = hierarchy.cut(3)
    assert (cut.labels >= 0).sum() == 38
    chosen = cut.exemplars[cut.labels]
    linked = (cut.labels >= 0) & (chosen != np.arange(40))
    net = S[linked, chosen[linked]].sum() + S.diagonal()[cut.exemplars].sum()
    assert cut.net_similarity == pytest.approx(net)


def test_one_cluster() -> None:
    X = load_iris().data
    hierarchy = merge_exemplars(AffinityPropagation(preference=-1e6, damping=0.9).fit(X), X)
    assert hierarchy.linkage.shape == (0, 4)
    assert hierarchy.leaf_order.tolist() == [0]
    assert (hierarchy.cut(1).labels == 0).all()


def test_a_run_that_did_not_converge_is_merged_all_the_same() -> None:
    X = load_iris().data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = AffinityPropagation(max_iter=12).fit(X)
    assert model.cluster_centers_indices_.size > 1
    assert not merge_exemplars(model, X).cut(1).converged


def test_no_cluster() -> None:
    X = load_iris().data
    with pytest.warns(ConvergenceWarning):
        model = AffinityPropagation(max_iter=1, preference=-1e9).fit(X)
    with pytest.raises(ValueError, match="no clusters to merge: raise its damping"):
        merge_exemplars(model, X)


def test_inputs_that_are_refused() -> None:
    X = load_iris().data
    model = AffinityPropagation(damping=0.7, memory="tiles").fit(X)
    with pytest.raises(NotFittedError):
        merge_exemplars(AffinityPropagation(), X)
    with pytest.raises(ValueError, match="model of 150 points kept no matrix: pass the X"):
        merge_exemplars(model)
    with pytest.raises(ValueError, match="X has 149 points, the model was fitted on 150"):
        merge_exemplars(model, X[1:])
    with pytest.raises(ValueError, match="its exemplars are other points"):
        merge_exemplars(model, X + 1)
    S = distances(X)
    precomputed = AffinityPropagation(affinity="precomputed", damping=0.7)
    with pytest.raises(TypeError, match="sparse similarities have no sums"):
        merge_exemplars(precomputed.fit(csr_array(S)))
    with pytest.raises(TypeError, match="sparse similarities have no sums"):
        merge_exemplars(precomputed, csr_array(S))
    precomputed.fit(S)
    S[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"X\[3, 4\] is nan"):
        merge_exemplars(precomputed, S)


def test_sums_that_do_not_fit_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.random.default_rng(0).normal(size=(3000, 2))
    model = AffinityPropagation(affinity="euclidean", memory="tiles")
    model.labels_, model.cluster_centers_indices_ = np.arange(3000), np.arange(3000)
    model.cluster_centers_ = X
    monkeypatch.setattr("epruner.cluster.resources.available_memory", lambda: 1000)
    with pytest.raises(MemoryError, match="3000 points and 3000 clusters needs about"):
        merge_exemplars(model, X)


def test_weights_are_those_of_the_fit() -> None:
    X = np.random.default_rng(0).normal(size=(40, 3))
    weights = np.linspace(1, 3, 40)
    model = AffinityPropagation(affinity="cosine", preference=0.2).fit(X, sample_weight=weights)
    hierarchy = merge_exemplars(model)
    assert hierarchy.net_similarities[0] == pytest.approx(model.net_similarity_)
    assert hierarchy.top >= hierarchy.heights.max()
    with pytest.raises(ValueError, match="fitted with sample_weight"):
        merge_exemplars(model, X)
