"""Which member of each cluster the others support most, where members lie with several ranks."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from scipy import sparse

from epruner.cluster import _native
from epruner.cluster.jitter import jittered, scale
from epruner.cluster.types import Floats, Indices
from epruner.distributed.group import Array, Group
from epruner.distributed.messages import of_all

_FEW_ROWS = 1 << 12  # features of which are held in float64 at once


class Features(Protocol):
    """Points of which this rank has rows, and gets the features of a few others."""

    group: Group
    X: Floats
    rows: slice
    cosine: bool
    dtype: np.dtype[Any]

    def features_of(self, points: Array) -> Floats: ...


def best_members(
    points: Features, labels: Indices, preference: Floats, K: int, seed: int | None
) -> Indices:
    """Return each cluster's member that the others and its own preference support most (K,).

    Sums of similarities to a point follow from its distance to the mean, but for a constant. Where
    rounding or the jitter could decide, the similarities themselves are summed.
    """
    group, X, m = points.group, points.X, labels.size
    sizes = group.sum(np.bincount(labels, minlength=K))
    within = sparse.csr_matrix((np.ones(m), (labels, np.arange(m))), shape=(K, m))
    means = group.sum(within @ X) / sizes[:, None]
    spread = np.empty(m)
    for first in range(0, m, _FEW_ROWS):
        some = slice(first, first + _FEW_ROWS)
        spread[some] = np.square(X[some] - means[labels[some]]).sum(axis=1)
    spread *= sizes[labels] * (0.5 if points.cosine else 1.0)
    support = preference - spread
    relative, absolute = scale(points.dtype)
    slack = np.maximum(spread * 1e-9, 2 * (relative * abs(support) + absolute))
    most, margin = (_largest(group, values, labels, K) for values in (support, slack))
    (likely,) = np.nonzero(support >= (most - margin)[labels])
    candidates = of_all(group, likely + points.rows.start)
    cluster = of_all(group, labels[likely])
    alone = (np.bincount(cluster, minlength=K) == 1)[cluster]
    best = np.empty(K, dtype=np.int64)
    best[cluster[alone]] = candidates[alone]
    if not alone.all():
        candidates, cluster = candidates[~alone], cluster[~alone]
        supported = _noisy_support(points, candidates, cluster, labels, preference, seed)
        order = np.lexsort((candidates, -supported, cluster))
        firsts = order[np.unique(cluster[order], return_index=True)[1]]
        best[cluster[firsts]] = candidates[firsts]
    return best


def _largest(group: Group, values: Floats, labels: Indices, K: int) -> Floats:
    """The largest of each cluster's values on all ranks (K,)."""
    own = np.full(K, -np.inf)
    np.maximum.at(own, labels, values)
    largest: Floats = np.max(group.gather(own, [K] * group.size), axis=0)
    return largest


def _noisy_support(
    points: Features,
    candidates: Indices,
    cluster: Indices,
    labels: Indices,
    preference: Floats,
    seed: int | None,
) -> Floats:
    """Sums of the similarities of clusters' members to candidates, and of these' own preference,
    with jitter: member by member, in ascending order over ranks."""
    features = points.features_of(candidates)
    between: Any = _native.similarities_between
    total = np.zeros(candidates.size)

    def add() -> None:
        for q, candidate in enumerate(candidates):
            (members,) = np.nonzero(labels == cluster[q])
            s = between(points.X, features, members, np.full(members.size, q), points.cosine)
            i = members + points.rows.start
            s[i == candidate] = preference[members[i == candidate]]
            noisy = jittered(s, i, np.full(i.size, candidate), seed, points.dtype)
            total[q] = np.add.accumulate(np.append(total[q], noisy))[-1]

    points.group.in_turn([total], add)
    return total
