"""Where the active set gets its candidates: a matrix, features seen tile by tile, a sparse matrix.

A source starts an active set, gives more candidates to rows that run out of them, and decodes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.metrics import pairwise_distances_argmin

from epruner.cluster import _native, resources
from epruner.cluster._native import ActiveSet
from epruner.cluster.backends.native import new_active_set
from epruner.cluster.decode import sorted_by_index
from epruner.cluster.neighbors import negative_squared_distances_of
from epruner.cluster.order_statistic import OrderStatistic
from epruner.cluster.products import products
from epruner.cluster.progress import SILENT, Progress
from epruner.cluster.similarity import factors
from epruner.cluster.sweep import Sweep
from epruner.cluster.types import Floats, Indices, Options

_FIRST_CANDIDATES = 48  # per point, from a sweep over tiles, ...
_FEW_POINTS = 20_000  # ... for so many points or fewer
_STRIP_ENTRIES = 1 << 24  # similarities held at once when rows are evaluated in full, ...
_LEAST_STRIP = 64  # ... but never fewer rows: all features are read for each strip
_BYTES_PER_CANDIDATE = 48  # in lists that grow
_BYTES_PER_LISTED = 24  # in lists from a sweep, which finds half as many again as are wanted
_SPARE_PLACES = 24  # in such a list


class CandidateSource(ABC):
    """Similarities of n points that candidates can be taken from."""

    n: int
    dtype: np.dtype[Any]

    @abstractmethod
    def start(self, options: Options) -> ActiveSet:
        """Return an active set with first candidates for every point, ready to be restarted."""

    def iterate(self, active_set: ActiveSet, iterations: int) -> str:
        """Go on for at most so many iterations; return how that ended."""
        return active_set.iterate(iterations)

    def refill(self, active_set: ActiveSet, progress: Progress = SILENT) -> None:
        """Give more candidates to the rows that need them."""
        rows = active_set.rows_needing_candidates()
        resources.require_memory(
            active_set.n_candidates_needed * _BYTES_PER_CANDIDATE,
            f"the lists of {self.n} points at iteration {active_set.iteration}",
            "raise the preference (fewer clusters need longer lists) or cluster a sample",
        )
        progress.part("candidates")
        self._refill(active_set, rows, progress)
        progress.over()

    @abstractmethod
    def _refill(self, active_set: ActiveSet, rows: Indices, progress: Progress) -> None:
        """Give these rows more candidates."""

    @abstractmethod
    def decode(
        self, active_set: ActiveSet, preference: Floats, exemplars: Indices, options: Options
    ) -> tuple[Indices, Indices]:
        """Return refined exemplars, ascending, and the labels."""

    @abstractmethod
    def links(self, rows: Indices, columns: Indices) -> Floats:
        """Return the similarities of these pairs."""

    def _empty(self, options: Options) -> ActiveSet:
        return new_active_set(np.zeros(self.n), self.dtype, options)


class MatrixSource(CandidateSource):
    """Similarities (n, n) in memory."""

    def __init__(self, S: Floats) -> None:
        self.S = S
        self.n = S.shape[0]
        self.dtype = S.dtype

    def start(self, options: Options) -> ActiveSet:
        active_set = self._empty(options)
        active_set.refill(np.arange(self.n), self.S)
        return active_set

    def iterate(self, active_set: ActiveSet, iterations: int) -> str:
        return active_set.iterate(iterations, self.S)

    def _refill(self, active_set: ActiveSet, rows: Indices, progress: Progress) -> None:
        active_set.refill(rows, self.S)

    def decode(
        self, active_set: ActiveSet, preference: Floats, exemplars: Indices, options: Options
    ) -> tuple[Indices, Indices]:
        return _native.decode(
            self.S,
            preference.astype(np.float64),
            exemplars,
            options.seed,
            options.n_threads,
            active_set,
        )

    def links(self, rows: Indices, columns: Indices) -> Floats:
        return self.S[rows, columns].astype(np.float64)


class SparseSource(CandidateSource):
    """Stored pairs of a SciPy CSR matrix; pairs that are not stored are never linked."""

    def __init__(self, S: Any) -> None:
        self.S = S
        self.n = S.shape[0]
        self.dtype = S.dtype

    def start(self, options: Options) -> ActiveSet:
        active_set = self._empty(options)
        active_set.fill_from_csr(
            self.S.indptr.astype(np.int64),
            self.S.indices.astype(np.int32),
            self.S.data.astype(np.float64),
        )
        return active_set

    def _refill(self, active_set: ActiveSet, rows: Indices, progress: Progress) -> None:
        raise AssertionError("a sparse matrix lists everything from the start")

    def decode(
        self, active_set: ActiveSet, preference: Floats, exemplars: Indices, options: Options
    ) -> tuple[Indices, Indices]:
        labels = _assign(active_set, exemplars)
        moved = self._best_members(labels, preference)
        return sorted_by_index(moved, _assign(active_set, moved))

    def _best_members(self, labels: Indices, preference: Floats) -> Indices:
        """Each cluster's member that its own preference and all others, linked to it, support most.

        Where there is none, the first member.
        """
        S = self.S
        rows = np.repeat(np.arange(self.n, dtype=S.indices.dtype), np.diff(S.indptr))
        within = (labels[rows] == labels[S.indices]) & (rows != S.indices) & (S.data > -np.inf)
        to = S.indices[within]
        support = np.bincount(to, S.data[within], self.n) + preference
        others = np.bincount(labels[labels >= 0])[labels] - 1
        support[np.bincount(to, minlength=self.n) < others] = -np.inf
        (members,) = (labels >= 0).nonzero()
        best_first = members[np.lexsort((-support[members], labels[members]))]
        moved: Indices = best_first[np.unique(labels[best_first], return_index=True)[1]]
        return moved

    def links(self, rows: Indices, columns: Indices) -> Floats:
        if rows.size == 0:  # of which SciPy would make a sparse matrix
            return np.empty(0)
        return np.asarray(self.S[rows, columns], dtype=np.float64).ravel()


class NeighborSource(SparseSource):
    """Stored pairs of the rows of `X` (n, d); points with no exemplar among them get the nearest.

    Row i of `S` is weights[i] times the negative squared distances, which pairs that are not stored
    have, too, once they are labelled.
    """

    def __init__(self, S: Any, X: Any, weights: Floats | None) -> None:
        super().__init__(S)
        self.X = X
        self._weights = weights

    def decode(
        self, active_set: ActiveSet, preference: Floats, exemplars: Indices, options: Options
    ) -> tuple[Indices, Indices]:
        exemplars, labels = super().decode(active_set, preference, exemplars, options)
        (lost,) = (labels < 0).nonzero()
        if lost.size:
            labels[lost] = pairwise_distances_argmin(self.X[lost], self.X[exemplars])
        return exemplars, labels

    def links(self, rows: Indices, columns: Indices) -> Floats:
        similarities = negative_squared_distances_of(self.X, rows, columns)
        return similarities if self._weights is None else similarities * self._weights[rows]


class FeatureSource(CandidateSource):
    """Features (n, d) whose similarities are made in tiles and thrown away.

    Tiles come from BLAS. Every pair that gets on a list is evaluated again by direct difference,
    and thresholds carry the product's error bound, so that cancellation decides nothing.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32 or float64
    cosine : bool
        Cosine similarity instead of the negative squared distance; `X` has rows of length 1.
    n_threads : int
        For the products of single rows; sweeps get their own.
    """

    def __init__(self, X: Floats, cosine: bool, n_threads: int = 1) -> None:
        self.n, d = X.shape
        self.dtype = X.dtype
        self.X = X
        self.cosine = cosine
        self._n_threads = n_threads
        mean = None if cosine else X.mean(axis=0, dtype=np.float64).astype(X.dtype)
        self._factor, self._norms = factors(X, mean)
        single = X.dtype == np.float32
        unit = relative_error(d, X.dtype)
        features = _native.Features32 if single else _native.Features64
        self._features: Any = features(X, self._norms, unit)

    def start(self, options: Options) -> ActiveSet:
        return self.start_with_ranks(options, None)[0]

    def start_with_ranks(self, options: Options, position: float | None) -> tuple[ActiveSet, float]:
        """Start; in the same sweep, find an order statistic of all pairs' similarities.

        `position` counts ordered off-diagonal pairs in ascending order of similarity, from 0; a
        fraction interpolates; None asks for nothing.
        """
        sweep = self._new_sweep(medians=False)
        if position is None:
            sweep.run(options)
            return self._started(sweep, options), float("nan")
        value = self._sweep_for(sweep, options, position)
        return self._started(sweep, options), value

    def start_with_medians(self, options: Options) -> tuple[ActiveSet, Floats]:
        """Start; in the same sweep, find every row's median, own entry included."""
        if resources.memory_fits(self._memory_needed(medians=True)):
            sweep = self._new_sweep(medians=True)
            sweep.nearest.open_medians()
            sweep.run(options)
            medians: Floats = sweep.nearest.medians(1.0 if self.cosine else 0.0, options.n_threads)
            active_set = self._started(sweep, options)
        else:
            medians = np.full(self.n, np.nan, dtype=self.dtype)
            active_set = self._empty(options)
        for rows, dots in self._strips(np.flatnonzero(np.isnan(medians)), options.progress):
            medians[rows] = active_set.refill_from_dots(rows, dots, self._features, True)
        return active_set, medians

    def _new_sweep(self, *, medians: bool) -> Sweep:
        resources.require_memory(
            self._memory_needed(medians=medians),
            f"affinity propagation from features of {self.n} points",
            "cluster a sample and use predict for the rest",
        )
        return Sweep(self._factor, self._norms, first_candidates(self.n))

    def _memory_needed(self, *, medians: bool) -> int:
        want = first_candidates(self.n)
        sweep = Sweep.bytes_needed(self._factor, want, medians=medians)
        if not medians:  # values near the order statistic asked for, while they are sorted, too
            sweep += 3 * OrderStatistic(self.n, 0).n_kept * self.dtype.itemsize
        return sweep + self.n * (want + want // 2 + _SPARE_PLACES) * _BYTES_PER_LISTED

    def _started(self, sweep: Sweep, options: Options) -> ActiveSet:
        options.progress.part("candidates")
        active_set = self._empty(options)
        active_set.fill_from_nearest(sweep.nearest, self._features)
        return active_set

    def iterate(self, active_set: ActiveSet, iterations: int) -> str:
        return active_set.iterate(iterations, self._features)

    def _refill(self, active_set: ActiveSet, rows: Indices, progress: Progress) -> None:
        for some, dots in self._strips(rows, progress):
            active_set.refill_from_dots(some, dots, self._features, False)

    def decode(
        self, active_set: ActiveSet, preference: Floats, exemplars: Indices, options: Options
    ) -> tuple[Indices, Indices]:
        decoded: tuple[Indices, Indices] = self._features.decode(
            active_set, preference.astype(np.float64), exemplars, options.seed, options.n_threads
        )
        return decoded

    def links(self, rows: Indices, columns: Indices) -> Floats:
        similarities: Floats = self._features.similarities(rows, columns)
        return similarities

    def _strips(self, rows: Indices, progress: Progress) -> Iterator[tuple[Indices, Floats]]:
        """Inner products of these rows with all, some rows at a time, in memory used again."""
        height = min(rows.size, max(_LEAST_STRIP, _STRIP_ENTRIES // self.n))
        room = np.empty((height, self.n), dtype=self.dtype)
        for first in range(0, rows.size, max(1, height)):
            progress.part("candidates", first, rows.size)
            some = rows[first : first + height]
            dots = room[: some.size]
            yield some, products(self._factor[some], self._factor, self._n_threads, out=dots)

    def _sweep_for(self, sweep: Sweep, options: Options, position: float) -> float:
        wanted = OrderStatistic(self.n, position)
        sample = np.sort(self._sampled_similarities())
        low, high = wanted.window(sample)
        sweep.nearest.open_rank_window(low, high, wanted.n_expected)
        sweep.run(options)
        return wanted.interpolated(sweep.nearest.values_at_ranks(wanted.ranks), sample)

    def _sampled_similarities(self) -> Floats:
        rng = np.random.default_rng(0)
        rows, columns = rng.integers(self.n, size=(2, OrderStatistic(self.n, 0).sample_size))
        rows, columns = rows[rows != columns], columns[rows != columns]
        return self.links(rows, columns).astype(self.dtype)


def relative_error(d: int, dtype: np.dtype[Any]) -> float:
    """A bound on that of inner products of `d` features."""
    return 10 * (d + 4) * float(np.finfo(dtype).eps) / 2


def first_candidates(n: int) -> int:
    """How many a sweep finds for each point: a row that runs out of them costs O(n) later."""
    growth: float = max(1.0, n / _FEW_POINTS) ** (1 / 6)
    return round(_FIRST_CANDIDATES * growth)


def _assign(active_set: ActiveSet, exemplars: Indices) -> Indices:
    position = np.full(active_set.is_exemplar.size, -1, dtype=np.int64)
    position[exemplars] = np.arange(exemplars.size)
    labels: Indices = active_set.assign(position)
    return labels
