"""Filters of many layers on a device: compared once, clustered as often as is asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epruner.cluster import validate
from epruner.cluster.gpu.arrays import adopt, engine_for, refuse_gradient
from epruner.cluster.gpu.cluster import cluster_matrices, require_rows
from epruner.cluster.gpu.engine import Array, Engine, cover, require
from epruner.cluster.gpu.problems import Matrices, medians
from epruner.cluster.outcome import Clustering


class FilterBatch:
    """Similarities of the filters of many layers, and the medians that preferences come from.

    Parameters
    ----------
    filters : sequence of arrays of shape (n_i, d_i)
        CuPy arrays, torch CUDA tensors or NumPy arrays, a row a filter. Device arrays are on one
        device.

    Raises
    ------
    MemoryError
        If the similarities do not fit on the device; the message holds the figure.
    """

    def __init__(self, filters: Sequence[Any]) -> None:
        names = [f"filters[{q}]" for q in range(len(filters))]
        for X, name in zip(filters, names, strict=True):
            refuse_gradient(X, name)
        with engine_for(filters) as engine:
            rows = [
                require_rows(adopt(X, name), name, engine.xp)
                for X, name in zip(filters, names, strict=True)
            ]
            self._similarities = distances(engine, rows)
            self._medians: list[Array] = [None] * len(rows)
            for dtype in {X.dtype for X in rows}:
                which = [q for q, X in enumerate(rows) if X.dtype == dtype]
                problems = Matrices(engine, [self._similarities[q] for q in which])
                parts = engine.xp.split(medians(problems), problems.first[1:-1].tolist())
                for q, part in zip(which, parts, strict=True):
                    self._medians[q] = part

    def __len__(self) -> int:
        return len(self._similarities)

    def similarities(self, layer: int) -> NDArray[np.floating[Any]]:
        """Return negative squared distances between the filters of a layer, (n, n), on the host."""
        with engine_for(self._similarities[:1]) as engine:
            return engine.host(self._similarities[layer])

    def medians(self, layer: int) -> NDArray[np.floating[Any]]:
        """Return the median of each filter's similarities, its own zero included, on the host."""
        with engine_for(self._similarities[:1]) as engine:
            return engine.host(self._medians[layer])

    def cluster(
        self,
        betas: Mapping[int, float],
        *,
        damping: float = 0.5,
        max_iter: int = 200,
        convergence_iter: int = 15,
        random_state: validate.RandomState = None,
    ) -> dict[int, Clustering]:
        """Cluster some layers, all in one batch.

        Parameters
        ----------
        betas : mapping of int to float
            By number of the layer. The preference of filter k is beta times the median of its
            similarities.
        damping, max_iter, convergence_iter, random_state
            As for `affinity_propagation`.
        """
        options = validate.options(damping, max_iter, convergence_iter, random_state)
        with engine_for(self._similarities[:1]) as engine:
            matrices = [self._similarities[layer] for layer in betas]
            preferences = []
            for layer, beta in betas.items():
                medians = self._medians[layer]
                preferences.append(medians * medians.dtype.type(beta))
            found = cluster_matrices(engine, matrices, preferences, options)
        return dict(zip(betas, found, strict=True))


def distances(engine: Engine, filters: Sequence[Array]) -> list[Array]:
    """Return S = -||x_i - x_k||² (n, n) for each X (n, d), as similarity.py does."""
    xp = engine.xp
    bytes_of = [X.shape[0] ** 2 * X.dtype.itemsize for X in filters]
    advice = "cluster fewer layers at a time, or from features"
    what = f"similarities of {len(filters)} layers"
    require(engine, sum(bytes_of) + max(bytes_of, default=0), what, advice)
    found = []
    for X in filters:
        n, d = X.shape
        centred = xp.ascontiguousarray(X - X.mean(axis=0, dtype=np.float64).astype(X.dtype))
        product = centred @ centred.T
        S = xp.empty((n, n), dtype=X.dtype)
        kernel = f"distances_{'f32' if X.dtype == np.float32 else 'f64'}"
        blocks = min(cover(n * n, engine.threads), 1 << 16)
        engine.launch(kernel, blocks, engine.threads, product, centred, n, d, S)
        found.append(S)
    return found
