"""Features and similarities come as frames, sparse matrices and tensors, too."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import sklearn
import sklearn.metrics
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from epruner import AffinityPropagation, affinity_propagation, affinity_propagation_many
from epruner.cluster import _native

NAMES = ["length", "width", "height", "weight"]
FORMATS = [
    getattr(scipy.sparse, f"{form}_{kind}")
    for form in ("csr", "csc", "coo")
    for kind in ("array", "matrix")
]


def points() -> NDArray[np.float64]:
    """Seventy-five points in four dimensions that every floating-point type can hold."""
    X: NDArray[np.float64] = make_blobs(75, 4, centers=5, random_state=1)[0]
    return np.round(4 * X) / 4


def similarities() -> NDArray[np.float64]:
    X = points()
    S: NDArray[np.float64] = -np.square(X[:, None] - X).sum(axis=-1)
    return S


@pytest.fixture(params=["pandas", "polars"])
def frame(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Make a data frame of columns, by name where they have one."""
    make = pytest.importorskip(request.param).DataFrame

    def framed(X: NDArray[Any], names: list[str] | None = None) -> Any:
        return make({names[k] if names else str(k): column for k, column in enumerate(X.T)})

    return framed


def test_frames_are_clustered_and_their_names_kept(frame: Callable[..., Any]) -> None:
    X = points()
    expected = AffinityPropagation().fit(X)
    assert not hasattr(expected, "feature_names_in_")
    for memory in ("matrix", "tiles"):
        fit = AffinityPropagation(memory=memory).fit(frame(X, NAMES))
        assert fit.feature_names_in_.tolist() == NAMES
        assert fit.n_features_in_ == 4
        np.testing.assert_array_equal(fit.labels_, expected.labels_)
        np.testing.assert_array_equal(fit.cluster_centers_, expected.cluster_centers_)
        np.testing.assert_array_equal(fit.predict(frame(X, NAMES)), expected.labels_)
    assert not hasattr(fit.fit(X), "feature_names_in_")


def test_predict_looks_at_names(frame: Callable[..., Any]) -> None:
    X = points()
    named, unnamed = AffinityPropagation().fit(frame(X, NAMES)), AffinityPropagation().fit(X)
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        named.predict(X)
    with pytest.warns(UserWarning, match="fitted without feature names"):
        unnamed.predict(frame(X, NAMES))
    with pytest.raises(ValueError, match="feature names should match"):
        named.predict(frame(X, NAMES[::-1]))


def test_frames_of_similarities(frame: Callable[..., Any]) -> None:
    S = similarities()
    given = frame(S)
    exemplars, labels = affinity_propagation(S)[:2]
    np.testing.assert_array_equal(affinity_propagation(given)[1], labels)
    np.testing.assert_array_equal(affinity_propagation_many([S, given])[1].labels, labels)
    fit = AffinityPropagation(affinity="precomputed", copy=False).fit(given)
    np.testing.assert_array_equal(fit.labels_, labels)
    np.testing.assert_array_equal(np.asarray(given), S)
    np.testing.assert_array_equal(fit.predict(frame(S[:, exemplars])), labels)


@pytest.mark.parametrize("output", ["pandas", "polars"])
def test_after_a_step_that_puts_out_frames(output: str) -> None:
    pytest.importorskip(output)
    X = points()
    steps = make_pipeline(StandardScaler().set_output(transform=output), AffinityPropagation())
    expected = AffinityPropagation().fit(StandardScaler().fit_transform(X))
    np.testing.assert_array_equal(steps.fit_predict(X), expected.labels_)
    np.testing.assert_array_equal(steps.predict(X), expected.labels_)
    assert steps[-1].feature_names_in_.tolist() == ["x0", "x1", "x2", "x3"]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("make", FORMATS)
def test_sparse_features(make: Callable[[Any], Any], dtype: type) -> None:
    X: NDArray[Any] = points().astype(dtype)
    fit, expected = AffinityPropagation().fit(make(X)), AffinityPropagation().fit(X)
    np.testing.assert_array_equal(fit.labels_, expected.labels_)
    assert scipy.sparse.issparse(fit.cluster_centers_)
    assert fit.affinity_matrix_.dtype == dtype
    np.testing.assert_array_equal(fit.cluster_centers_.toarray(), expected.cluster_centers_)
    for new in (X, make(X)):
        np.testing.assert_array_equal(fit.predict(new), expected.labels_)
        np.testing.assert_array_equal(expected.predict(new), expected.labels_)


@pytest.mark.parametrize("option", [{"affinity": "cosine"}, {"memory": "tiles"}])
def test_what_sparse_features_cannot_do(option: dict[str, Any]) -> None:
    ((name, value),) = option.items()
    with pytest.raises(TypeError, match=rf"{name}='{value}' takes dense features; pass X\.toarray"):
        AffinityPropagation(**option).fit(scipy.sparse.csr_array(points()))


@pytest.mark.parametrize("make", FORMATS)
def test_predict_takes_sparse_similarities_to_the_exemplars(make: Callable[[Any], Any]) -> None:
    S = np.exp(similarities())
    S[S < 0.5] = 0  # not stored: never linked
    fit = AffinityPropagation(affinity="precomputed", preference=0.6, damping=0.7).fit(make(S))
    near = S[:, fit.cluster_centers_indices_]
    np.testing.assert_array_equal(fit.predict(make(near)), fit.labels_)
    assert fit.predict(make(np.zeros_like(near[:1]))).tolist() == [-1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "options",
    [{}, {"memory": "tiles"}, {"n_clusters": 3}, {"beta": 1.0}, {"ties": "scikit-learn"}],
)
def test_values_that_scikit_learn_was_told_not_to_look_for(
    bad: float, options: dict[str, Any]
) -> None:
    X, S = points(), similarities()
    X[7, 1] = S[7, 1] = bad
    with sklearn.config_context(assume_finite=True):
        with pytest.raises(ValueError, match=r"NaN or infinite|overflow"):
            AffinityPropagation(**options).fit(X)
        if "memory" not in options:
            with pytest.raises(ValueError, match=r"NaN or infinite|overflow"):
                AffinityPropagation(**options).fit(scipy.sparse.csr_array(X))
        with pytest.raises(ValueError, match=rf"S\[7, 1\] is {bad}"):
            AffinityPropagation(affinity="precomputed", **options).fit(S)


class Seen:
    """Arrays that reach compiled functions, which still run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        self.arrays: list[Any] = []
        for name in names:
            monkeypatch.setattr(_native, name, self.spy(getattr(_native, name)))
        nearest = self.spy(sklearn.metrics.pairwise_distances_argmin)
        monkeypatch.setattr("epruner.cluster.estimator.pairwise_distances_argmin", nearest)

    def spy(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(first: Any, *rest: Any) -> Any:
            self.arrays += first if isinstance(first, list) else [first]
            return function(first, *rest)

        return run

    def all_in(self, tensor: Any) -> bool:
        """Whether they, at least one, are in a tensor's memory."""
        seen, self.arrays = self.arrays, []
        return bool(seen) and all(np.shares_memory(array, tensor.numpy()) for array in seen)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_tensors_are_not_copied(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    X = torch.from_numpy(points()).to(getattr(torch, kind))
    expected = AffinityPropagation().fit(points()).labels_
    seen = Seen(monkeypatch, "centre", "Features32", "Features64")
    for memory in ("matrix", "tiles"):
        fit = AffinityPropagation(memory=memory).fit(X)
        np.testing.assert_array_equal(fit.labels_, expected)
        assert seen.all_in(X)
    np.testing.assert_array_equal(fit.predict(X), expected)
    assert seen.all_in(X)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_tensors_of_similarities_are_not_copied(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    S = torch.from_numpy(similarities()).to(getattr(torch, kind))
    expected = affinity_propagation(similarities())[1]
    seen = Seen(monkeypatch, "solve", "cluster_many")
    np.testing.assert_array_equal(affinity_propagation(S)[1], expected)
    assert seen.all_in(S)
    fit = AffinityPropagation(affinity="precomputed").fit(S)
    np.testing.assert_array_equal(fit.labels_, expected)
    assert seen.all_in(S)
    found = affinity_propagation_many([S, S], n_threads=2)
    np.testing.assert_array_equal(found[1].labels, expected)
    assert seen.all_in(S)
    affinity_propagation(S, preference=-5.5, copy=False)
    assert seen.all_in(S)
    assert S.diagonal().unique().tolist() == [-5.5]


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "int64"])
def test_tensors_of_other_types(kind: str) -> None:
    torch = pytest.importorskip("torch")
    X, S = (torch.from_numpy(x).to(getattr(torch, kind)) for x in (points(), similarities()))
    fit, expected = (AffinityPropagation().fit(x) for x in (X, X.double()))
    np.testing.assert_array_equal(fit.labels_, expected.labels_)
    np.testing.assert_array_equal(fit.predict(X), expected.labels_)
    labels = affinity_propagation(S.double(), preference=-64)[1]
    preference = torch.tensor(-64, dtype=S.dtype)
    np.testing.assert_array_equal(affinity_propagation(S, preference=preference)[1], labels)


def test_a_callable_may_return_a_tensor() -> None:
    torch = pytest.importorskip("torch")

    def tensor(X: NDArray[Any]) -> Any:
        return torch.from_numpy(similarities()).requires_grad_(X is None)

    fit = AffinityPropagation(affinity=tensor).fit(points())
    np.testing.assert_array_equal(fit.labels_, affinity_propagation(similarities())[1])


def test_clones_and_metadata_routing() -> None:
    chosen: dict[str, Any] = {"damping": 0.7, "beta": 2.0, "memory": "tiles", "n_threads": 1}
    model = AffinityPropagation(**chosen).fit(points())
    fresh = clone(model)
    assert set(fresh.get_params()) == set(inspect.signature(AffinityPropagation).parameters)
    assert fresh.get_params() == model.get_params()
    assert not hasattr(fresh, "labels_")
    with sklearn.config_context(enable_metadata_routing=True):
        steps = make_pipeline(StandardScaler(), fresh)
        steps.get_metadata_routing()
        with pytest.raises(TypeError, match="weight"):
            steps.fit(points(), unheard_of_weight=np.ones(75))
        assert steps.fit(points())[-1].converged_
