"""Digits clustered here and by scikit-learn, side by side, and the ten that stand for the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn import cluster
from sklearn.datasets import load_digits

from epruner._tables import Table, percent
from epruner.cluster import AffinityPropagation


@dataclass(frozen=True)
class Run:
    """One clustering of all images."""

    name: str
    clusters: int
    iterations: int
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What this half of the demo shows; printing it gives a table and two lines."""

    images: int
    runs: tuple[Run, ...]  # of ours, of scikit-learn, of ours for ten clusters
    same_exemplars: int
    shown: tuple[int, ...]  # by the ten exemplars
    alike: float  # share of images that show what their exemplar shows

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        ours, theirs, _ = self.runs
        rows = [
            (run.name, str(run.clusters), str(run.iterations), f"{run.seconds:.3f}")
            for run in self.runs
        ]
        header = (f"{self.images:,} digits", "clusters", "iterations", "seconds")
        return (
            f"{Table(header, rows).to_text()}\n\n"
            f"{self.same_exemplars} of scikit-learn's {theirs.clusters} exemplars are among ours, "
            f"found {theirs.seconds / ours.seconds:.0f} times faster\n"
            f"ten exemplars show {' '.join(map(str, self.shown))}; "
            f"{percent(self.alike)} of the images show what their exemplar shows"
        )


def run(
    *, seed: int = 0, n_threads: int | None = None, say: Callable[[str], None] = print
) -> Outcome:
    """Cluster scikit-learn's digits with its estimator and ours.

    Parameters
    ----------
    seed : int
        Of what breaks ties.
    n_threads : int, optional
        Of ours; one by default, as the other has no more.
    say : callable
        Receives one line a stage.
    """
    X, digits = load_digits(return_X_y=True)
    n_threads = n_threads or 1
    ours = AffinityPropagation(random_state=seed, n_threads=n_threads)
    theirs = cluster.AffinityPropagation(random_state=seed)
    ten = AffinityPropagation(n_clusters=10, random_state=seed, n_threads=n_threads)
    say(f"clustering {len(X):,} images of handwritten digits, with scikit-learn, too ...")
    runs = tuple(
        _timed(name, model, X)
        for name, model in (
            ("epruner", ours),
            ("scikit-learn", theirs),
            ("epruner, n_clusters=10", ten),
        )
    )
    same = np.intersect1d(ours.cluster_centers_indices_, theirs.cluster_centers_indices_)
    shown = digits[ten.cluster_centers_indices_]
    return Outcome(
        images=len(X),
        runs=runs,
        same_exemplars=same.size,
        shown=tuple(shown.tolist()),
        alike=float((shown[ten.labels_] == digits).mean()),
    )


def _timed(name: str, model: Any, X: Any) -> Run:
    start = time.perf_counter()
    model.fit(X)
    seconds = time.perf_counter() - start
    return Run(name, model.cluster_centers_indices_.size, model.n_iter_, seconds)
