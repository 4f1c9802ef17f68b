"""Filters compared with each other once and clustered at any beta: on the CPU or on a device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from epruner.cluster import Clustering, affinity_propagation_many
from epruner.cluster.backends import cuda
from epruner.cluster.similarity import median_preference, negative_squared_distances
from epruner.pruning.network.filters import Matrix
from epruner.pruning.select.parallel import side_by_side

ITERATION: dict[str, Any] = {"damping": 0.5, "max_iter": 200, "convergence_iter": 15}
PATIENCE: dict[str, Any] = {"damping": 0.7, "max_iter": 1000}  # losses differ by many magnitudes


class Comparison(Protocol):
    """Sets of filters, each compared within itself; they go by their number."""

    def features(self, index: int) -> Matrix:
        """Return the filter matrix (n, d)."""

    def similarities(self, index: int) -> Matrix:
        """Return the negative squared distances between the filters, (n, n)."""

    def cluster(
        self, strengths: Mapping[int, float], *, seed: int, n_threads: int | None
    ) -> dict[int, Clustering]:
        """Cluster some sets; the stronger, the fewer exemplars.

        By weights the strength is a beta: filter k is preferred by beta times the median of its
        similarities. By losses it is a price, to be paid for every filter that stays.
        """


def compare(
    filters: Sequence[Tensor | Matrix], *, n_threads: int | None
) -> tuple[Comparison, list[str]]:
    """Compare filters where they are.

    Parameters
    ----------
    filters : sequence of Tensor or ndarray of shape (n, d)
        A set of filters each. If any is on a CUDA device, all are compared on the first of these
        devices that occurs, provided that CuPy can use it and they fit; otherwise on the CPU.
    n_threads : int or None
        On the CPU.

    Returns
    -------
    comparison : Comparison
    notes : list of str
        Why filters on a device were compared on the CPU, if so.
    """
    there = (rows.device for rows in filters if isinstance(rows, Tensor) and cuda.on_device(rows))
    device = next(there, None)
    if device is None:
        return HostComparison(filters, n_threads), []
    try:
        cuda.load_cupy()
    except (ImportError, RuntimeError) as error:
        obstacle: Exception = error
    else:
        try:
            return DeviceComparison(filters, device), []
        except MemoryError as error:
            obstacle = error
    note = f"the weights are on {device} and their filters were clustered on the CPU: {obstacle}"
    return HostComparison(filters, n_threads), [note]


class HostComparison:
    """A `Comparison` on the CPU.

    Parameters
    ----------
    filters : sequence of Tensor or ndarray of shape (n, d)
    n_threads : int or None
    """

    def __init__(self, filters: Sequence[Tensor | Matrix], n_threads: int | None) -> None:
        self._features = [_on_host(rows) for rows in filters]
        self._n_threads = n_threads

    @cached_property
    def _compared(self) -> list[tuple[Matrix, Matrix]]:
        """Similarities and medians of all sets; once any is asked for, and not before."""
        return side_by_side(
            _compared, self._features, lambda rows: len(rows) * rows.size, self._n_threads
        )

    def features(self, index: int) -> Matrix:
        return self._features[index]

    def similarities(self, index: int) -> Matrix:
        return self._compared[index][0]

    def cluster(
        self, strengths: Mapping[int, float], *, seed: int, n_threads: int | None
    ) -> dict[int, Clustering]:
        medians = [self._compared[index][1] for index in strengths]
        with _no_news():
            found = affinity_propagation_many(
                [self._compared[index][0] for index in strengths],
                preference=[
                    m * m.dtype.type(beta)
                    for m, beta in zip(medians, strengths.values(), strict=True)
                ],
                random_state=seed,
                n_threads=n_threads,
                **ITERATION,
            )
        return dict(zip(strengths, found, strict=True))


class DeviceComparison:
    """A `Comparison` on a CUDA device; what importances and results ask for comes to the host then.

    Parameters
    ----------
    filters : sequence of Tensor or ndarray of shape (n, d)
    device : torch.device
        Filters that are elsewhere are copied there.

    Raises
    ------
    MemoryError
        If the similarities do not fit on the device.
    """

    def __init__(self, filters: Sequence[Tensor | Matrix], device: torch.device) -> None:
        self._filters = list(filters)
        self._batch = cuda.FilterBatch([torch.as_tensor(x, device=device) for x in filters])

    def features(self, index: int) -> Matrix:
        rows = _on_host(self._filters[index])
        self._filters[index] = rows
        return rows

    def similarities(self, index: int) -> Matrix:
        return self._batch.similarities(index)

    def cluster(
        self, strengths: Mapping[int, float], *, seed: int, n_threads: int | None
    ) -> dict[int, Clustering]:
        with _no_news():
            return self._batch.cluster(strengths, random_state=seed, **ITERATION)


class LossComparison:
    """A `Comparison` by what is lost when one filter stands in for another.

    Parameters
    ----------
    weights : Comparison
        For sets of which the losses are not known: not clustered, but compared by their weights.
    losses : mapping of int to ndarray of shape (n, n)
        What is lost when column k stands in for row i.
    """

    def __init__(self, weights: Comparison, losses: Mapping[int, Matrix]) -> None:
        self._weights = weights
        self._losses = losses

    def features(self, index: int) -> Matrix:
        return self._weights.features(index)

    def similarities(self, index: int) -> Matrix:
        if index in self._losses:
            return -self._losses[index]
        return self._weights.similarities(index)

    def cluster(
        self, strengths: Mapping[int, float], *, seed: int, n_threads: int | None
    ) -> dict[int, Clustering]:
        with _no_news():
            found = affinity_propagation_many(
                [-self._losses[index] for index in strengths],
                preference=[-price for price in strengths.values()],
                random_state=seed,
                n_threads=n_threads,
                **(ITERATION | PATIENCE),
            )
        return dict(zip(strengths, found, strict=True))


def _compared(rows: Matrix) -> tuple[Matrix, Matrix]:
    """Similarities (n, n), and the median of each filter's (n,)."""
    similarities = negative_squared_distances(rows)
    return similarities, median_preference(similarities, 1.0)


def _on_host(rows: Tensor | Matrix) -> Matrix:
    return rows.cpu().numpy() if isinstance(rows, Tensor) else rows


@contextmanager
def _no_news() -> Iterator[None]:
    """Filters all alike (two in a block, or all dead) are no news to whoever prunes them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All samples have mutually equal")
        yield
