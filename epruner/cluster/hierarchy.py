"""Clusters merged by exemplars, two at a time, down to one."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from epruner.cluster.decode import sorted_by_index
from epruner.cluster.resources import require_memory
from epruner.cluster.sums import Groups, sums_of
from epruner.cluster.types import Clustering, Floats, Indices


@dataclass(frozen=True)
class ExemplarHierarchy:
    """Clusters of a model, merged two at a time.

    Clusters are numbered as in `scipy.cluster.hierarchy`: the K leaves are the model's clusters in
    the order of its exemplars, and merge s makes cluster K + s.

    Attributes
    ----------
    leaves : Clustering
        The model's clusters, K of them.
    merges : ndarray of shape (n_merges, 2)
        The two clusters of each merge, the smaller number first. K - 1 merges, fewer where
        similarities of -inf keep clusters apart.
    exemplars : ndarray of shape (n_merges,)
        The point that each merge makes the exemplar.
    heights : ndarray of shape (n_merges,)
        The objective of each merge, a similarity. Mostly falling; it can rise, as the union of
        two clusters can suit a third one better than either.
    net_similarities : ndarray of shape (n_merges + 1,)
        Net similarity before the first merge and after each.
    top : float
        No similarity is larger; 0 for euclidean and 1 for cosine similarities.

    Examples
    --------
    >>> import epruner
    >>> X = [[0, 0], [1, 0], [0, 1], [9, 9], [9, 8], [8, 9], [20, 0]]
    >>> model = epruner.AffinityPropagation().fit(X)
    >>> hierarchy = epruner.merge_exemplars(model, X)
    >>> hierarchy.merges.tolist()  # 0 and 1 make cluster 3
    [[0, 1], [2, 3]]
    >>> hierarchy.linkage.shape, hierarchy.leaf_order.tolist()
    ((2, 4), [2, 0, 1])
    """

    leaves: Clustering
    merges: Indices
    exemplars: Indices
    heights: Floats
    net_similarities: Floats
    top: float

    @property
    def distances(self) -> Floats:
        """How far below `top` each merge is, or an earlier one if that is lower; (n_merges,)."""
        distances: Floats = np.maximum.accumulate(np.maximum(self.top - self.heights, 0))
        return distances

    @property
    def linkage(self) -> Floats:
        """SciPy's linkage matrix (K - 1, 4): two clusters, their distance, leaves of both.

        Raises
        ------
        ValueError
            If not all clusters were merged.
        """
        K = self.leaves.exemplars.size
        if len(self.merges) < K - 1:
            raise ValueError(
                f"{K - len(self.merges)} clusters are left that must not be linked; a linkage "
                "matrix needs one. merges, distances and cut(k) are there"
            )
        counts = [1] * K
        for left, right in self.merges:
            counts.append(counts[left] + counts[right])
        return np.column_stack([self.merges, self.distances, counts[K:]])

    @property
    def leaf_order(self) -> Indices:
        """The leaves from left to right, so that no branches cross; (K,)."""
        under: list[list[int]] = [[leaf] for leaf in range(self.leaves.exemplars.size)]
        for left, right in self.merges:
            under.append(under[left] + under[right])
            under[left], under[right] = [], []
        return np.array([leaf for tree in under for leaf in tree], dtype=np.intp)

    def cut(self, k: int) -> Clustering:
        """Return the clustering into `k` clusters.

        Parameters
        ----------
        k : int
            From 1, or where clusters must not be linked the number that are left, to K.

        Returns
        -------
        Clustering
            Labels of all n points, -1 as in the model. Points are not assigned anew: each stays
            with its cluster, which takes the exemplar of its merge. ``n_iter`` and ``converged``
            are the model's.

        Raises
        ------
        TypeError
            If `k` is no integer.
        ValueError
            If there is no such clustering.

        Examples
        --------
        >>> import epruner
        >>> X = [[0, 0], [1, 0], [0, 1], [9, 9], [9, 8], [8, 9], [20, 0]]
        >>> model = epruner.AffinityPropagation().fit(X)
        >>> hierarchy = epruner.merge_exemplars(model, X)
        >>> hierarchy.cut(2).labels.tolist()
        [0, 0, 0, 0, 0, 0, 1]
        """
        if not isinstance(k, Integral) or isinstance(k, bool):
            raise TypeError(f"k={k!r} must be an integer")
        K = self.leaves.exemplars.size
        fewest = K - len(self.merges)
        if not fewest <= k <= K:
            why = " (the others must not be linked)" if fewest > 1 else ""
            raise ValueError(f"k={k} must be in {fewest} to {K}{why}")
        done = K - int(k)
        into = np.arange(K + done)  # what each cluster is part of in the end
        for s in range(done - 1, -1, -1):
            into[self.merges[s]] = into[K + s]
        left, of_leaf = np.unique(into[:K], return_inverse=True)
        exemplars = np.concatenate([self.leaves.exemplars, self.exemplars])[left]
        old = self.leaves.labels
        labels = np.where(old >= 0, of_leaf[old], -1)
        exemplars, labels = sorted_by_index(exemplars, labels)
        return Clustering(
            exemplars,
            labels,
            self.leaves.n_iter,
            self.leaves.converged,
            float(self.net_similarities[done]),
        )


def merge_exemplars(model: Any, X: ArrayLike | None = None) -> ExemplarHierarchy:
    """Merge the clusters of a fitted model by exemplars.

    For each pair of clusters the joint exemplar is the member of their union to which all members
    are most similar in sum. The objective is the mean over the two clusters of its mean similarity
    to their members, its own included. The pair with the largest objective is merged. This is
    ``aggExCluster`` of R's apcluster, for similarities that are not symmetric, too: those of the
    members to a point choose the exemplar, those of the exemplar to the members make the objective.
    Ties fall as there, where they are not broken by rounding.

    Takes O(n) memory and time a cluster: sums of similarities between points and clusters, from
    features without a matrix of similarities.

    Parameters
    ----------
    model : AffinityPropagation
        Fitted; scikit-learn's will do. Clusters of a run that did not converge are taken as they
        are.
    X : array-like of shape (n, d) or (n, n), optional
        What the model was fitted on. Needed where the model kept no ``affinity_matrix_``. Without
        it, precomputed similarities and those of a callable have the preferences on their
        diagonal, as in ``aggExCluster(x=)``; with it their own, as in ``aggExCluster(s, x)``.

    Returns
    -------
    ExemplarHierarchy
        With the model's clusters as leaves.

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    TypeError
        If the similarities are sparse.
    ValueError
        If the model has no clusters, or `X` is missing or not what it was fitted on.
    MemoryError
        If the sums, n times K float64 numbers, do not fit.

    References
    ----------
    Bodenhofer, Kothmeier & Hochreiter, "APCluster: an R package for affinity propagation
    clustering", Bioinformatics 27 (2011).

    Examples
    --------
    >>> import epruner
    >>> X = [[0, 0], [1, 0], [0, 1], [9, 9], [9, 8], [8, 9], [20, 0]]
    >>> model = epruner.AffinityPropagation().fit(X)
    >>> hierarchy = epruner.merge_exemplars(model, X)
    >>> hierarchy.exemplars.tolist()  # of each merge
    [1, 4]
    """
    sums = sums_of(model, X)
    exemplars, labels = model.cluster_centers_indices_, model.labels_
    K = len(exemplars)
    if K == 0:
        raise ValueError(
            "the model has no clusters to merge: raise its damping or max_iter, or the preference"
        )
    require_memory(
        8 * K * (labels.size + 7 * K),
        f"sums of similarities between {labels.size} points and {K} clusters",
        "fit with smaller preferences, for fewer clusters",
    )
    groups = Groups.of_labels(labels)
    forest = _Forest(*sums.with_points(groups), groups)
    preference = getattr(model, "preference_", None)
    if preference is None:  # scikit-learn's has them on the diagonal
        if not hasattr(model, "affinity_matrix_"):
            raise ValueError(
                "the model has neither preference_ nor affinity_matrix_: fit "
                "epruner.AffinityPropagation"
            )
        preference = model.affinity_matrix_.diagonal()
    raised = preference - sums.own  # by which being an exemplar differs from being a member

    place = np.empty(labels.size, dtype=np.intp)
    place[groups.order] = np.arange(groups.order.size)
    gains = [float(forest.to[c, place[e]] + raised[e]) for c, e in enumerate(exemplars)]
    nets = [sum(gains)]
    merges, joint, heights = [], [], []
    numbers = list(range(K))
    while (best := forest.best()) is not None:
        a, b, height = best
        position = forest.merge(a, b)
        exemplar = groups.order[position]
        gain = float(forest.to[a, position] + raised[exemplar])
        nets.append(nets[-1] - gains[a] - gains[b] + gain)
        merges.append(sorted((numbers[a], numbers[b])))
        joint.append(exemplar)
        heights.append(height)
        gains[a], numbers[a] = gain, K + len(merges) - 1
    leaves = Clustering(
        exemplars,
        labels,
        model.n_iter_,
        bool(getattr(model, "converged_", model.n_iter_ < model.max_iter)),
        nets[0],
    )
    return ExemplarHierarchy(
        leaves,
        np.array(merges, dtype=np.intp).reshape(-1, 2),
        np.array(joint, dtype=np.intp),
        np.array(heights),
        np.array(nets),
        sums.top,
    )


class _Forest:
    """Clusters that are merged, and what is known of every pair of them.

    Points are positions in the order of `groups`. A cluster is the number of a leaf in it. R's
    order decides ties: a merged cluster goes to the end of the list, its members are those of the
    earlier cluster and then those of the later, and of pairs that tie the one counts whose later
    cluster comes first, then the one whose earlier cluster does.

    Attributes
    ----------
    to : ndarray of shape (K, m)
        Sums of the similarities of each cluster's members to each point. Overwritten, as rows are
        added up.
    """

    def __init__(self, to: Floats, from_: Floats, groups: Groups) -> None:
        K = groups.starts.size
        self.to = to
        self._from = from_
        self._starts = groups.starts
        self._sizes = groups.sizes.astype(np.float64)
        self._members = np.split(np.arange(groups.order.size), groups.starts[1:])
        self._own = to[np.repeat(np.arange(K), groups.sizes), np.arange(groups.order.size)]
        # reach[j, c]: the largest of to[j] among the members of c
        self._reach = np.maximum.reduceat(to, groups.starts, axis=1)
        self._list = np.arange(K)
        self._leaves = np.arange(K)  # of the clusters of the list, ...
        self._counts = np.ones(K, np.intp)  # ... each of which has so many
        # Of each cluster with those before it in the list: objectives, the best, and whose it is
        self._objective = self._of_leaves()
        self._best = np.full(K, -np.inf)
        self._partner = np.full(K, -1)
        for place in range(K):
            self._choose(place)

    def _of_leaves(self) -> Floats:
        """The objectives (K, K) of each leaf, a row, and those before it."""
        K = self._list.size
        support, serving = np.empty((K, K)), np.empty((K, K), np.intp)
        for c, members in enumerate(self._members):  # which of its members would serve with another
            own = slice(members[0], members[-1] + 1)
            supports = self.to[:, own] + self._own[own]
            serving[c] = supports.argmax(axis=1)
            support[c] = _entries(supports, self._list, serving[c])
            serving[c] += members[0]
        exemplars = np.where(support <= support.T, serving.T, serving)
        rows, columns = self._list[:, None], self._list
        objectives: Floats = _entries(self._from, columns, exemplars) / self._sizes
        objectives += _entries(self._from, rows, exemplars) / self._sizes[:, None]
        objectives[np.maximum(support, support.T) == -np.inf] = -np.inf
        return 0.5 * objectives

    def best(self) -> tuple[int, int, float] | None:
        """Return the pair to merge, the earlier first, and its objective; None if there is none."""
        later = self._list[self._best[self._list].argmax()]
        if self._best[later] == -np.inf:
            return None
        return int(self._partner[later]), int(later), float(self._best[later])

    def merge(self, a: int, b: int) -> int:
        """Merge `b` into `a`, which comes before it in the list; return the joint exemplar."""
        members = np.concatenate([self._members[a], self._members[b]])
        self.to[a] += self.to[b]
        if self._from is not self.to:
            self._from[a] += self._from[b]
        self._own[members] = self.to[a, members]
        self._sizes[a] += self._sizes[b]
        self._members[a] = members
        self._to_the_end(a, b)
        self._reach[:, a] = np.maximum(self._reach[:, a], self._reach[:, b])
        of_leaf = np.maximum.reduceat(self.to[a], self._starts)[self._leaves]
        self._reach[a, self._list] = np.maximum.reduceat(of_leaf, self._first_leaves())
        self._meet_last()
        partners = self._partner[self._list[:-1]]
        orphans = np.flatnonzero((partners == a) | (partners == b))
        for place in [*orphans.tolist(), self._list.size - 1]:
            self._choose(place)
        return int(members[self._own[members].argmax()])

    def _to_the_end(self, a: int, b: int) -> None:
        owner = np.repeat(self._list, self._counts)
        parts = [self._leaves[(owner != a) & (owner != b)]]
        parts += [self._leaves[owner == c] for c in (a, b)]
        self._leaves = np.concatenate(parts)
        stays = (self._list != a) & (self._list != b)
        self._list = np.append(self._list[stays], a)
        self._counts = np.append(self._counts[stays], parts[1].size + parts[2].size)

    def _meet_last(self) -> None:
        """Find the objectives of the last cluster of the list and each before it."""
        c, others = self._list[-1], self._list[:-1]
        if others.size == 0:
            return
        members = self._members[c]
        # A member of c whose own sum is far below the largest is no joint exemplar with anyone.
        sums = self.to[c, members]
        with np.errstate(invalid="ignore"):
            slack = self._reach[others, c] - self.to[others, members[sums.argmax()]]
        able = members[sums >= sums.max() - np.fmax.reduce(slack, initial=0)]
        supports = _entries(self.to, others[:, None], able) + self.to[c, able]
        serving = supports.argmax(axis=1)
        support = _entries(supports, np.arange(others.size), serving)
        theirs, exemplars = self._first_largest(self._own + self.to[c])
        exemplars = np.where(support > theirs, able[serving], exemplars)
        objectives = _entries(self._from, others, exemplars) / self._sizes[others]
        objectives += self._from[c, exemplars] / self._sizes[c]
        objectives[np.maximum(support, theirs) == -np.inf] = -np.inf
        self._objective[c, others] = 0.5 * objectives

    def _choose(self, place: int) -> None:
        """Find the best partner of the cluster at a place of the list among those before it."""
        c, others = self._list[place], self._list[:place]
        if place == 0:
            self._best[c], self._partner[c] = -np.inf, -1
            return
        first = self._objective[c, others].argmax()
        self._best[c], self._partner[c] = self._objective[c, others[first]], others[first]

    def _first_leaves(self) -> Indices:
        """Where in the list of leaves those of each cluster begin."""
        starts: Indices = np.cumsum(self._counts) - self._counts
        return starts

    def _first_largest(self, values: Floats) -> tuple[Floats, Indices]:
        """Largest of the values (m,) in each cluster but the last, and where it is first."""
        of_leaf, at = _first_largest(values, self._starts)
        leaves = self._leaves[: self._leaves.size - self._counts[-1]]
        largest, first = _first_largest(of_leaf[leaves], self._first_leaves()[:-1])
        return largest, at[leaves[first]]


def _entries(matrix: Floats, rows: Indices, columns: Indices) -> Floats:
    """``matrix[rows, columns]``, faster where the matrix is C-contiguous."""
    entries: Floats = matrix.take(rows * matrix.shape[1] + columns)
    return entries


def _first_largest(values: Floats, starts: Indices) -> tuple[Floats, Indices]:
    """Largest value of each run that begins at `starts`, and where it is first."""
    largest = np.maximum.reduceat(values, starts)
    hits = np.flatnonzero(values == np.repeat(largest, np.diff(starts, append=values.size)))
    return largest, hits[np.searchsorted(hits, starts)]
