"""Who stays: the members of a layer, once their number is set.

A criterion is a function from the candidates of one layer (or one group of a grouped
convolution) and a count to the indices that stay. New ones are one function and one line of
`CRITERIA`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.intp]
Matrix = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Candidates:
    """The filters that a criterion chooses from.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Filter matrix.
    similarities : ndarray of shape (n, n)
        Negative squared distances between its rows.
    exemplars : ndarray of int
        Exemplars that affinity propagation found, as many as it found.
    seed : int
        For criteria that draw.
    layer : str
        Name of the layer, for criteria that look up more about it than its weights.
    """

    features: Matrix
    similarities: Matrix
    exemplars: Indices
    seed: int
    layer: str


Criterion = Callable[[Candidates, int], Indices]


def exemplar(candidates: Candidates, count: int) -> Indices:
    """The exemplars; where another number is wanted, the best that adds or removes one at a time.

    "Best" is by net similarity, which affinity propagation maximises: a filter is added that
    brings the others closest to their exemplar, or removed that is missed least.
    """
    return resize_exemplars(candidates.similarities, candidates.exemplars, count)


def l1(candidates: Candidates, count: int) -> Indices:
    """The filters with the largest sum of absolute weights."""
    return _largest(np.abs(candidates.features).sum(axis=1, dtype=np.float64), count)


def l2(candidates: Candidates, count: int) -> Indices:
    """The filters with the largest Euclidean norm."""
    return _largest(np.square(candidates.features).sum(axis=1, dtype=np.float64), count)


def fpgm(candidates: Candidates, count: int) -> Indices:
    """The filters farthest from all others (He et al. 2019: prune near the geometric median)."""
    distances = np.sqrt(np.maximum(-candidates.similarities.astype(np.float64), 0))
    return _largest(distances.sum(axis=1), count)


def random(candidates: Candidates, count: int) -> Indices:
    """Any filters, the same for the same seed and layer."""
    key = [candidates.seed, *candidates.layer.encode()]
    chosen = np.random.default_rng(key).permutation(len(candidates.features))[:count]
    return np.sort(chosen).astype(np.intp)


CRITERIA: dict[str, Criterion] = {
    "exemplar": exemplar,
    "l1": l1,
    "l2": l2,
    "fpgm": fpgm,
    "random": random,
}


def resize_exemplars(similarities: Matrix, exemplars: Indices, count: int) -> Indices:
    """Grow or shrink a set of exemplars to `count`, one at a time, by net similarity.

    Parameters
    ----------
    similarities : ndarray of shape (n, n)
        Zero diagonal, no preferences on it.
    exemplars : ndarray of int
        May be empty.
    count : int
        1 to n.

    Returns
    -------
    ndarray of int, shape (count,)
        Ascending.
    """
    chosen = [int(i) for i in exemplars]
    s = similarities
    if not chosen and count:
        chosen = [int(np.argmax(s.sum(axis=0, dtype=np.float64)))]
    if len(chosen) < count:
        best = s[:, chosen].max(axis=1)
        while len(chosen) < count:
            gain = np.maximum(s - best[:, None], 0).sum(axis=0, dtype=np.float64)
            gain[chosen] = -1
            chosen.append(int(np.argmax(gain)))
            np.maximum(best, s[:, chosen[-1]], out=best)
    while len(chosen) > count:
        columns = s[:, chosen]
        nearest = columns.argmax(axis=1)
        first = columns[np.arange(len(s)), nearest]
        columns[np.arange(len(s)), nearest] = -np.inf
        loss = np.bincount(nearest, weights=first - columns.max(axis=1), minlength=len(chosen))
        chosen.pop(int(np.argmin(loss)))
    return np.sort(np.asarray(chosen, dtype=np.intp))


def _largest(scores: npt.NDArray[np.float64], count: int) -> Indices:
    # stable: of equal filters the first stays
    return np.sort(np.argsort(-scores, kind="stable")[:count]).astype(np.intp)
