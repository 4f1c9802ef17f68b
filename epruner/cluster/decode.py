"""From exemplars to labels: assign, move exemplars to their clusters' best members, assign."""

from collections.abc import Callable

import numpy as np

from epruner.cluster.jitter import jittered, scale
from epruner.cluster.types import Floats, Indices


def decode(
    S: Floats, preference: Floats, exemplars: Indices, seed: int | None
) -> tuple[Indices, Indices]:
    """Return the refined exemplars, ascending, and the labels, as scikit-learn decodes them.

    A point that may not be linked to any exemplar (all its similarities are -inf) is labelled -1.
    """
    labels = _assign(S, exemplars, seed)
    by_label = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]
    clusters = np.split(by_label, np.cumsum(np.bincount(labels[by_label]))[:-1])
    moved = np.array([_best_member(S, preference, members, seed) for members in clusters])
    return sorted_by_index(moved, _assign(S, moved, seed))


def decode_noisy(S: Floats, exemplars: Indices) -> tuple[Indices, Indices]:
    """Return the refined exemplars, ascending, and the labels; noise in `S` has broken its ties.

    `S` (n, n) has preferences on its diagonal. Sums are those of its dtype, in which two supports
    may tie; then the first counts, as in scikit-learn.
    """

    def assign() -> Indices:
        near = S[:, exemplars]  # (n, K)
        labels: Indices = near.argmax(axis=1)
        labels[near.max(axis=1) == -np.inf] = -1
        labels[exemplars] = np.arange(exemplars.size)
        return labels

    labels, exemplars = assign(), exemplars.copy()
    for c in range(exemplars.size):
        members = np.flatnonzero(labels == c)
        exemplars[c] = members[S[np.ix_(members, members)].sum(axis=0).argmax()]
    return sorted_by_index(exemplars, assign())


def net_similarity(
    links: Callable[[Indices, Indices], Floats],
    preference: Floats,
    exemplars: Indices,
    labels: Indices,
) -> float:
    """Sum of the similarities of the points to their exemplars and of the exemplars' preferences.

    `links` returns the similarities of pairs given as rows and columns. Points without an exemplar
    are left out.
    """
    chosen = exemplars[labels]  # by -1, which is masked, the last
    (members,) = ((chosen != np.arange(labels.size)) & (labels >= 0)).nonzero()
    similarities = links(members, chosen[members])
    total = np.add.reduce(similarities, dtype=np.float64)
    return float(total + np.add.reduce(preference[exemplars], dtype=np.float64))


def _assign(S: Floats, exemplars: Indices, seed: int | None) -> Indices:
    near = S[:, exemplars]  # (n, K)
    labels: Indices = near.argmax(axis=1)
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


def _best_member(S: Floats, preference: Floats, members: Indices, seed: int | None) -> int:
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
