"""Clustering: from a matrix, by the estimator, for a wanted number of clusters, and many points."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from epruner import AffinityPropagation, affinity_propagation


def points(n: int) -> NDArray[np.float32]:
    """Gaussian points of 64 features, which converge at the dampings used here."""
    return np.random.default_rng(0).normal(size=(n, 64)).astype(np.float32)


class Function:
    """Messages and decoding: similarities are given."""

    params = (64, 512, 2048)
    param_names = ("n",)

    def setup(self, n: int) -> None:
        X = points(n)
        squares = (X**2).sum(axis=1)
        self.S = 2 * X @ X.T - squares - squares[:, None]

    def time_function(self, n: int) -> None:
        affinity_propagation(self.S, damping=0.7)

    def peakmem_function(self, n: int) -> None:
        affinity_propagation(self.S, damping=0.7)


class Fit:
    """The estimator from features, with its checks and its matrix."""

    params = (150, 512, 2048)
    param_names = ("n",)

    def setup(self, n: int) -> None:
        self.X = points(n)

    def time_fit(self, n: int) -> None:
        AffinityPropagation(damping=0.7).fit(self.X)

    def peakmem_fit(self, n: int) -> None:
        AffinityPropagation(damping=0.7).fit(self.X)


class WantedClusters:
    """A search for the preference that gives a number of clusters, digits."""

    params = (10, 50)
    param_names = ("n_clusters",)

    def setup(self, n_clusters: int) -> None:
        from sklearn.datasets import load_digits

        self.X: Any = load_digits().data.astype(np.float32)

    def time_search(self, n_clusters: int) -> None:
        AffinityPropagation(n_clusters=n_clusters, damping=0.7).fit(self.X)


class TenThousand:
    """Ten thousand points from features, without the matrix."""

    timeout = 300

    def setup(self) -> None:
        self.X = points(10_000)

    def time_fit(self) -> None:
        AffinityPropagation(damping=0.8, memory="tiles").fit(self.X)

    def peakmem_fit(self) -> None:
        AffinityPropagation(damping=0.8, memory="tiles").fit(self.X)
