"""From exemplar flags to labels: assign, move each exemplar to its cluster's best member, assign."""

import numpy as np
from numpy.typing import NDArray

from epruner.cluster.ties import jittered, scale

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
    by_label = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]
    clusters = np.split(by_label, np.cumsum(np.bincount(labels[by_label]))[:-1])
    moved = np.array([_best_member(S, preference, members, seed) for members in clusters])
    labels = _assign(S, moved, seed)
    exemplars, labels = sorted_by_index(moved, labels)
    return exemplars, labels, net_similarity(S, preference, exemplars, labels)


def net_similarity(S: Floats, preference: Floats, exemplars: Indices, labels: Indices) -> float:
    """Sum of the similarities of the points to their exemplars and of the exemplars' preferences."""
    members = np.flatnonzero(labels >= 0)
    members = members[exemplars[labels[members]] != members]
    links = S[members, exemplars[labels[members]]].sum(dtype=np.float64)
    return float(links + preference[exemplars].sum(dtype=np.float64))


def _assign(S: Floats, exemplars: Indices, seed: int) -> Indices:
    near = S[:, exemplars]  # (n, K)
    labels = near.argmax(axis=1)
    best = near.max(axis=1).astype(np.float64)
    labels[best == -np.inf] = -1
    # The jitter, costly per element, can only decide between entries this close to the largest.
    relative, absolute = scale(S.dtype)
    finite = np.isfinite(best)
    floor = np.where(finite, best - 4 * (relative * np.abs(best) + absolute), np.inf)
    tied = np.flatnonzero((near >= floor[:, None]).sum(axis=1) > 1)
    labels[tied] = jittered(near[tied], tied[:, None], exemplars[None, :], seed).argmax(axis=1)
    labels[exemplars] = np.arange(exemplars.size)
    return labels


def _best_member(S: Floats, preference: Floats, members: Indices, seed: int) -> int:
    if members.size == 1:
        return int(members[0])
    within = S[np.ix_(members, members)].copy()  # (m, m)
    np.fill_diagonal(within, preference[members])
    support = jittered(within, members[:, None], members[None, :], seed).sum(axis=0)
    return int(members[support.argmax()])


def sorted_by_index(exemplars: Indices, labels: Indices) -> tuple[Indices, Indices]:
    """Put the exemplars in ascending order and rename the labels to match."""
    order = np.argsort(exemplars)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    return exemplars[order], np.where(labels >= 0, rank[labels], -1)
