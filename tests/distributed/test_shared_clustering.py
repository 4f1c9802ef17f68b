"""Clustering over ranks gives what one process gives, to the bit for any number of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ranks import MOST, ranks
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import kneighbors_graph

from epruner import AffinityPropagation as Alone
from epruner.distributed import AffinityPropagation

SIZES = list(range(1, MOST + 1))
Array = NDArray[Any]


@dataclass
class Found:
    exemplars: Array
    centers: Array
    labels: Array
    preference: Array
    facts: tuple[int, bool, float, float]


def fitted(process_group: Any, settings: dict[str, Any], X: Array) -> Found:
    model = AffinityPropagation(group=process_group, **settings).fit(X)
    facts = model.n_iter_, model.converged_, model.net_similarity_, model.damping_
    centers = model.cluster_centers_ if hasattr(model, "cluster_centers_") else np.empty(0)
    return Found(model.cluster_centers_indices_, centers, model.labels_, model.preference_, facts)


def over_ranks(size: int, X: Any, cuts: list[int] | None = None, **settings: Any) -> Found:
    """What they find together, which all of them must tell alike."""
    n = X.shape[0]
    cuts = cuts or [n * q // size for q in range(size + 1)]
    parts = [X[a:b] for a, b in pairwise(cuts)]
    found = ranks().run(size, fitted, settings, each=parts)
    first = found[0]
    for other in found:
        assert (other.exemplars == first.exemplars).all()
        assert (other.centers == first.centers).all()
        assert other.facts == first.facts
    assert [other.labels.size for other in found] == [part.shape[0] for part in parts]
    first.labels = np.concatenate([other.labels for other in found])
    first.preference = np.concatenate([other.preference for other in found])
    return first


def same(one: Found, other: Found) -> None:
    assert (one.exemplars == other.exemplars).all()
    assert (one.labels == other.labels).all()
    assert (one.preference == other.preference).all()
    assert one.facts == other.facts


def check_alone(found: Found, X: Any, **settings: Any) -> None:
    tiles = settings.get("affinity") != "precomputed" and X.shape[0] > 2
    model = Alone(memory="tiles" if tiles else "auto", **settings).fit(X)
    assert (model.cluster_centers_indices_ == found.exemplars).all()
    assert (model.labels_ == found.labels).all()
    assert found.facts[:2] == (model.n_iter_, model.converged_)
    assert found.facts[2] == pytest.approx(model.net_similarity_, rel=1e-6)
    np.testing.assert_allclose(found.preference, model.preference_, rtol=1e-6)


BLOBS = make_blobs(2500, 8, centers=12, random_state=1)[0].astype(np.float32)
DIGITS = load_digits().data

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "blobs": (BLOBS, {"damping": 0.7}),
    "few clusters": (BLOBS, {"damping": 0.9, "preference": -3000.0}),
    "digits, cosine": (DIGITS[:900], {"damping": 0.7, "affinity": "cosine"}),
    "quantile": (BLOBS[:700].astype(np.float64), {"damping": 0.8, "preference_quantile": 0.1}),
    "beta": (DIGITS[:300].astype(np.float32), {"damping": 0.7, "beta": 3.0}),
    "ties": (np.round(BLOBS[:500]), {"damping": 0.8}),
    "duplicates": (np.repeat(BLOBS[:60], 5, axis=0), {"damping": 0.8, "preference": -20.0}),
    "rising damping": (BLOBS[:200], {"damping": "auto"}),
    "a number of clusters": (BLOBS[:300], {"n_clusters": 7}),
    "one point": (BLOBS[:1], {}),
    "two points": (BLOBS[:2], {}),
    "few points": (BLOBS[:4], {"damping": 0.7}),
    "points that are all alike": (np.ones((70, 3)), {"preference": -2.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_ranks_gives_the_answer_of_one_process(case: str) -> None:
    X, settings = CASES[case]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All samples have mutually equal")
        check_alone(over_ranks(1, X, **settings), X, **settings)
    first, *others = (over_ranks(size, X, **settings) for size in SIZES)
    for other in others:
        same(first, other)


def test_ranks_may_hold_uneven_parts_or_none() -> None:
    even = over_ranks(2, BLOBS[:600], damping=0.7)
    same(even, over_ranks(3, BLOBS[:600], [0, 599, 599, 600], damping=0.7))


def graph(n: int, links: int) -> Any:
    """Negative squared distances to the nearest of some points, as CSR."""
    X = np.random.default_rng(4).standard_normal((n, 3))
    S = kneighbors_graph(X, links, mode="distance")
    S.data = -np.square(S.data)
    return S.tocsr()


def test_numbers_of_numpy_and_indices_of_any_width_will_do() -> None:
    S = graph(100, 5)
    wide = S[50:].copy()
    wide.indices = wide.indices.astype(np.int64)
    settings = {"affinity": "precomputed", "damping": np.float32(0.75), "max_iter": np.int64(40)}
    one, other = ranks().run(2, fitted, settings, each=[S[:50], wide])
    assert one.facts == other.facts


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_a_graph(dtype: Any) -> None:
    S = graph(400, 12).astype(dtype)
    settings: dict[str, Any] = {
        "affinity": "precomputed",
        "damping": 0.9,
        "preference": -2.0,
        "max_iter": 500,
    }
    first, *others = (over_ranks(size, S, **settings) for size in SIZES)
    check_alone(first, S, **settings)
    for other in others:
        same(first, other)
    assert (first.labels >= 0).all()


def test_rules_for_preferences_of_a_graph() -> None:
    S = graph(200, 8)
    for rule in ({}, {"preference_quantile": 0.3}):
        settings: dict[str, Any] = {"affinity": "precomputed", "damping": 0.9, **rule}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            check_alone(over_ranks(3, S, **settings), S, **settings)


def test_a_graph_must_have_a_column_for_every_row() -> None:
    S = graph(30, 3)
    for error in ranks().outcomes(2, fitted, {"affinity": "precomputed"}, each=[S[:9], S[9:20]]):
        assert error.kind == "ValueError"
        assert "20 rows of similarities to 30 points" in error.text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([{}, {"damping": 0.7}], "damping is 0.5 on rank 0 and 0.7 on rank 1"),
        ([{}, {"affinity": "cosine"}], "affinity is 'euclidean' on rank 0 and 'cosine' on rank 1"),
        ([{"damping": 2}, {}], "damping=2 must be in [0.5, 1)"),
        ([{"n_clusters": 50}, {"n_clusters": 50}], "n_clusters=50 must be between 1 and the 40"),
    ],
)
def test_parameters_are_checked_before_the_work(settings: list[dict[str, Any]], said: str) -> None:
    for error in ranks().outcomes(2, fitted_as, BLOBS[:20], each=settings):
        assert error.kind == "ValueError"
        assert said in error.text


def fitted_as(process_group: Any, X: Array, settings: dict[str, Any]) -> Found:
    return fitted(process_group, settings, X)


BAD = BLOBS[:20].copy()
BAD[3, 2] = np.nan


@pytest.mark.parametrize(
    ("parts", "kind", "said"),
    [
        ([BLOBS[:20], BAD], "ValueError", "Input contains NaN"),
        ([BLOBS[:20], BLOBS[:20, :4]], "ValueError", "columns is 8 on rank 0 and 4 on rank 1"),
        ([BLOBS[:20], DIGITS[:9, :8]], "ValueError", "dtype is 'float32' on rank 0 and 'float64'"),
        ([BLOBS[:0], BLOBS[:0]], "ValueError", "no points on any rank"),
        ([BLOBS[:20], BLOBS[:20] * 1e30], "ValueError", "overflow float32"),
    ],
)
def test_rows_are_checked_on_all_ranks(parts: list[Array], kind: str, said: str) -> None:
    for error in ranks().outcomes(2, fitted, {}, each=parts):
        assert error.kind == kind
        assert said in error.text


def test_new_points_are_predicted_without_the_others() -> None:
    (labels,) = {
        tuple(found) for found in ranks().run(2, predicted, each=[BLOBS[:50], BLOBS[50:90]])
    }
    model = Alone(damping=0.7).fit(BLOBS[:90])
    assert list(labels) == model.predict(BLOBS[100:120]).tolist()


def predicted(process_group: Any, X: Array) -> list[int]:
    model = AffinityPropagation(group=process_group, damping=0.7).fit(X)
    return list(model.predict(BLOBS[100:120]).tolist())
