"""Who stays: the members of a layer, once their number is set.

An importance is a function from the candidates of one layer (or one group of a grouped
convolution) and a count to the indices that stay. New ones are one function and one line of
`IMPORTANCE`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.intp]
Matrix = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Candidates:
    """The filters that an importance chooses from.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Filter matrix.
    exemplars : ndarray of int, shape (clusters,)
        Exemplars that affinity propagation found, as many as it found.
    seed : int
        For those that draw.
    layer : str
        Name of the layer, for those that look up more about it than its weights.
    compare : callable
        Gives `similarities`, which not all look at.
    first : int
        Channel of the layer that the first of them is: of a grouped convolution one group's.

    Examples
    --------
    An importance of one's own, that keeps the filters of the largest weight:

    >>> import epruner
    >>> from torch import nn
    >>> def largest(candidates, count):
    ...     order = abs(candidates.features).max(axis=1).argsort()
    ...     return sorted(order[-count:])
    >>> method = epruner.Method("uniform", largest)
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> epruner.prune(model, (1, 8), macs=0.5, method=method).model[0].out_features
    16
    """

    features: Matrix
    exemplars: Indices
    seed: int
    layer: str
    compare: Callable[[], Matrix]
    first: int = 0

    @property
    def similarities(self) -> Matrix:
        """Negative squared distances between the rows of `features`, shape (n, n)."""
        return self.compare()


Importance = Callable[[Candidates, int], Indices]


def exemplar(candidates: Candidates, count: int) -> Indices:
    """The exemplars; where another number is wanted, the best that adds or removes one at a time.

    "Best" is by net similarity, which affinity propagation maximises: a filter is added that
    brings the others closest to their exemplar, or removed that is missed least.
    """
    return resize_exemplars(candidates.similarities, candidates.exemplars, count)


def l1(candidates: Candidates, count: int) -> Indices:
    """The filters with the largest sum of absolute weights."""
    return largest(np.abs(candidates.features).sum(axis=1, dtype=np.float64), count)


def l2(candidates: Candidates, count: int) -> Indices:
    """The filters with the largest Euclidean norm."""
    return largest(np.square(candidates.features).sum(axis=1, dtype=np.float64), count)


def fpgm(candidates: Candidates, count: int) -> Indices:
    """The filters farthest from all others (He et al. 2019: prune near the geometric median)."""
    distances = np.sqrt(np.maximum(-candidates.similarities.astype(np.float64), 0))
    return largest(distances.sum(axis=1), count)


def random(candidates: Candidates, count: int) -> Indices:
    """Any filters, the same for the same seed and layer."""
    key = [candidates.seed, *candidates.layer.encode()]
    chosen = np.random.default_rng(key).permutation(len(candidates.features))[:count]
    return np.sort(chosen).astype(np.intp)


IMPORTANCE: dict[str, Importance] = {
    "exemplar": exemplar,
    "l1": l1,
    "l2": l2,
    "fpgm": fpgm,
    "random": random,
}


def checked(importance: Importance) -> Importance:
    """A user's importance, held to what it must return."""

    def held(candidates: Candidates, count: int) -> Indices:
        n = len(candidates.features)
        found = np.asarray(importance(candidates, count))
        if (
            found.shape != (count,)
            or not np.issubdtype(found.dtype, np.integer)
            or len(np.unique(found)) != count
            or found.min() < 0
            or found.max() >= n
        ):
            raise ValueError(
                f"importance must return {count} different indices of the {n} filters of "
                f"{candidates.layer!r}, got {found!r:.80}"
            )
        return np.sort(found).astype(np.intp)

    return held


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
    chosen = _started(similarities, exemplars)
    change = _grown if len(chosen) < count else _shrunk
    return np.sort(change(similarities, chosen, count)[:count])


def rank_by_exemplars(similarities: Matrix, exemplars: Indices) -> Indices:
    """All filters in the order in which they would be given up last to first.

    The first `count` are those of `resize_exemplars`, for every count.

    Parameters
    ----------
    similarities : ndarray of shape (n, n)
        Zero diagonal, no preferences on it.
    exemplars : ndarray of int
        May be empty.

    Returns
    -------
    ndarray of int, shape (n,)
    """
    chosen = _started(similarities, exemplars)
    grown = _grown(similarities, chosen, len(similarities))
    return np.concatenate([_shrunk(similarities, chosen, 1), grown[len(chosen) :]])


def _started(s: Matrix, exemplars: Indices) -> Indices:
    """The exemplars, or the best one where there are none."""
    if len(exemplars):
        return np.asarray(exemplars, dtype=np.intp)
    return np.array([np.argmax(s.sum(axis=0, dtype=np.float64))])


def _grown(s: Matrix, chosen: Indices, count: int) -> Indices:
    """Append one at a time the candidate that raises the net similarity most.

    What a candidate adds only falls as others are added, so a sum made earlier bounds it from
    above, and only those at the head of the queue are summed again.
    """
    best = s[:, chosen].max(axis=1)
    gains = np.maximum(s - best[:, None], 0).sum(axis=0, dtype=np.float64)
    fresh = len(chosen)  # a sum made when so many were chosen is no mere bound
    queue = [(-gains[k], k, fresh) for k in set(range(len(s))).difference(chosen.tolist())]
    heapq.heapify(queue)  # of equal ones the first
    added: list[int] = []
    while fresh < count:
        _, k, made = queue[0]
        if made < fresh:
            gain = np.maximum(s[:, k] - best, 0).sum(dtype=np.float64)
            heapq.heapreplace(queue, (-gain, k, fresh))
            continue
        heapq.heappop(queue)
        added.append(k)
        fresh += 1
        np.maximum(best, s[:, k], out=best)
    return np.concatenate([chosen, np.asarray(added, dtype=np.intp)])


def _shrunk(s: Matrix, chosen: Indices, count: int) -> Indices:
    """Move to the end, one at a time, the exemplar that lowers the net similarity least.

    Those moved earlier stand behind those moved later.
    """
    n = len(s)
    nearest, second = np.empty(n, np.intp), np.empty(n, np.intp)
    margin = np.empty(n, s.dtype)  # what a row loses with its nearest exemplar
    rows = np.arange(n)
    removed: list[int] = []
    while len(chosen) > count:
        columns = s[np.ix_(rows, chosen)]
        places = np.arange(len(rows))
        first = columns.argmax(axis=1)
        most = columns[places, first]
        columns[places, first] = -np.inf
        then = columns.argmax(axis=1)
        nearest[rows], second[rows] = chosen[first], chosen[then]
        margin[rows] = most - columns[places, then]
        loss = np.bincount(nearest, weights=margin, minlength=n)[chosen]
        gone = chosen[np.argmin(loss)]
        chosen = chosen[chosen != gone]
        removed.insert(0, int(gone))
        rows = np.flatnonzero((nearest == gone) | (second == gone))  # of all others nothing changes
    return np.concatenate([chosen, np.asarray(removed, dtype=np.intp)])


def largest(scores: npt.NDArray[np.float64], count: int) -> Indices:
    """Indices of the largest scores, ascending; of equal ones the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:count]).astype(np.intp)
