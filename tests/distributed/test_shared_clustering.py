"""Clustering over ranks gives what one process gives, to the bit for any number of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ranks import MOST, ranks
from sklearn.datasets import load_digits, make_blobs

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
    model = Alone(**settings).fit(X)
    assert (model.cluster_centers_indices_ == found.exemplars).all()
    assert (model.labels_ == found.labels).all()
    assert found.facts[:2] == (model.n_iter_, model.converged_)
    assert found.facts[2] == pytest.approx(model.net_similarity_, rel=1e-6)
    np.testing.assert_allclose(found.preference, model.preference_, rtol=1e-6)


BLOBS = make_blobs(3000, 8, centers=12, random_state=1)[0].astype(np.float32)
DIGITS = load_digits().data

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "blobs": (BLOBS, {"damping": 0.7}),
    "few clusters": (BLOBS, {"damping": 0.7, "preference": -3000.0}),
    "digits": (DIGITS, {"damping": 0.6}),
    "digits, cosine": (DIGITS.astype(np.float32), {"damping": 0.7, "affinity": "cosine"}),
    "quantile": (BLOBS[:900], {"damping": 0.8, "preference_quantile": 0.1}),
    "beta": (DIGITS[:700].astype(np.float32), {"damping": 0.7, "beta": 3.0}),
    "ties": (np.round(BLOBS[:1000]), {"damping": 0.8}),
    "rising damping": (BLOBS[:500], {"damping": "auto"}),
}


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_ranks_gives_the_answer_of_one_process(case: str) -> None:
    X, settings = CASES[case]
    first, *others = (over_ranks(size, X, **settings) for size in SIZES)
    for other in others:
        same(first, other)
    check_alone(first, X, **settings)
