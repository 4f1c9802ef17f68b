"""From exemplar flags to labels: assign, move each exemplar to its cluster's best member, assign."""

import numpy as np
from numpy.typing import NDArray

from epruner.cluster.ties import jittered

Floats = NDArray[np.floating]
Indices = NDArray[np.intp]


def decode(
    S: Floats, preference: Floats, is_exemplar: NDArray[np.bool_], seed: int
) -> tuple[Indices, Indices, float]:
    """Return (exemplars, labels, net similarity) as scikit-learn decodes them.

    A point that may not be linked to any exemplar (all its similarities are -inf) is labelled -1
    and left out of the net similarity.
    """
    n = S.shape[0]
    exemplars = np.flatnonzero(is_exemplar)
    if exemplars.size == 0:
        return exemplars, np.full(n, -1, dtype=np.intp), float("-inf")
    labels = _assign(S, exemplars, seed)
    moved = np.array(
        [_best_member(S, preference, np.flatnonzero(labels == c), seed) for c in range(exemplars.size)]
    )
    labels = _assign(S, moved, seed)
    exemplars, labels = _sorted_by_index(moved, labels)
    return exemplars, labels, net_similarity(S, preference, exemplars, labels)


def net_similarity(S: Floats, preference: Floats, exemplars: Indices, labels: Indices) -> float:
    """Sum of the similarities of the points to their exemplars and of the exemplars' preferences."""
    members = np.flatnonzero(labels >= 0)
    members = members[exemplars[labels[members]] != members]
    links = S[members, exemplars[labels[members]]].sum(dtype=np.float64)
    return float(links + preference[exemplars].sum(dtype=np.float64))


def _assign(S: Floats, exemplars: Indices, seed: int) -> Indices:
    rows = np.arange(S.shape[0])
    near = jittered(S[:, exemplars], rows[:, None], exemplars[None, :], seed)  # (n, K)
    labels = near.argmax(axis=1)
    labels[near[rows, labels] == -np.inf] = -1
    labels[exemplars] = np.arange(exemplars.size)
    return labels


def _best_member(S: Floats, preference: Floats, members: Indices, seed: int) -> int:
    within = S[np.ix_(members, members)].copy()  # (m, m)
    np.fill_diagonal(within, preference[members])
    support = jittered(within, members[:, None], members[None, :], seed).sum(axis=0)
    return int(members[support.argmax()])


def _sorted_by_index(exemplars: Indices, labels: Indices) -> tuple[Indices, Indices]:
    order = np.argsort(exemplars)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return exemplars[order], np.where(labels >= 0, rank[labels], -1)
