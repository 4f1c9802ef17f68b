"""Features that lie with several ranks: first candidates, iterations, more candidates, labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from epruner.cluster import _native, resources
from epruner.cluster.candidates import first_candidates, relative_error
from epruner.cluster.decode import sorted_by_index
from epruner.cluster.order_statistic import OrderStatistic
from epruner.cluster.products import one_thread_blas, pool
from epruner.cluster.progress import SILENT, Progress
from epruner.cluster.similarity import factors
from epruner.cluster.types import Doubles, Floats, Indices, Options
from epruner.distributed.checkpoint import Saved, digest
from epruner.distributed.group import Array, Group
from epruner.distributed.layout import visits
from epruner.distributed.members import best_members
from epruner.distributed.messages import SharedActiveSet, of_all
from epruner.distributed.source import SharedSource
from epruner.distributed.sweep import RingSweep

_STRIP_ENTRIES, _STRIP_ROWS = 1 << 24, 128  # similarities held at once, rows multiplied at once
_LEAST_STRIP = 32
# What memory is needed for: a list from the sweep, blocks of features at a time, numbers for each
# of all points.
_BYTES_PER_LISTED, _SPARE_PLACES, _BLOCKS, _COLUMN_NUMBERS = 36, 24, 6, 6


class SharedFeatures(SharedSource):
    """Features (n, d) of which each rank has its rows.

    Whole rows of similarities, where they are needed, come from passing all blocks by: once for
    their products, once for the pairs that get on lists, by direct difference.

    Parameters
    ----------
    group : Group
    X : ndarray of shape (m, d), float32 or float64
        The own rows.
    n : int
    cosine : bool
        Cosine similarity instead of the negative squared distance; `X` has rows of length 1.
    n_threads : int
    """

    def __init__(self, group: Group, X: Floats, n: int, cosine: bool, n_threads: int) -> None:
        super().__init__(group, n, X.dtype)
        self.X, self.cosine = X, cosine
        self._n_threads = n_threads
        self._unit = relative_error(X.shape[1], X.dtype)
        self._block = _native.ActiveSet.block_rows(n)
        self._mean = None if cosine else self._mean_of_all()
        self._norms = None if cosine else of_all(group, self._own_norms())
        self._between: Any = _native.similarities_between

    def _mean_of_all(self) -> Floats:
        parts = [
            self.X[k : k + self._block].sum(axis=0, dtype=np.float64)
            for k in range(0, len(self.X), self._block)
        ]
        sums = of_all(self.group, np.array(parts).reshape(-1, self.X.shape[1]))
        mean: Floats = (np.add.accumulate(sums, axis=0)[-1] / self.n).astype(self.dtype)
        return mean

    def _own_norms(self) -> Floats:
        parts = [np.empty(0, self.dtype)]
        for first in range(0, len(self.X), self._block):
            _, norms = factors(self.X[first : first + self._block], self._mean)
            assert norms is not None
            parts.append(norms)
        return np.concatenate(parts)

    # ---- First candidates -----------------------------------------------------------------------

    def start(self, options: Options, position: float | None) -> tuple[SharedActiveSet, float]:
        """Start an active set; in the same sweep, find an order statistic of all similarities.

        `position` is as for `OrderStatistic`; None asks for nothing.
        """
        want = first_candidates(self.n)
        self._require_memory(want)
        sweep = RingSweep(self.group, self.X, self.starts, self._mean, want, self._unit, options)
        value = float("nan")
        if position is None:
            sweep.run()
        else:
            wanted = OrderStatistic(self.n, position)
            sample = np.sort(of_all(self.group, sweep.sampled_similarities(wanted.sample_size)))
            sweep.open_rank_window(*wanted.window(sample), wanted.n_expected)
            sweep.run()
            value = wanted.interpolated(sweep.values_at_ranks(wanted.ranks), sample)
        options.progress.part("candidates")
        lists, bounds = sweep.lists()
        del sweep  # and its memory
        active_set = self.begin(options)
        active_set.own.fill_from_lists(lists.offsets, lists.columns, lists.values, bounds)
        return active_set, value

    def _require_memory(self, want: int) -> None:
        """Raise if lists of so many candidates, blocks of features and sums do not fit."""
        m, n = len(self.X), self.n
        lists = m * (want + want // 2 + _SPARE_PLACES) * _BYTES_PER_LISTED
        sums = n * 8 * (-(-m // self._block) + _COLUMN_NUMBERS)
        resources.require_memory(
            lists + sums + _BLOCKS * self.X.nbytes,
            f"rank {self.group.rank}'s share of affinity propagation of {n} points",
            "start more ranks on more machines, or cluster a sample and use predict for the rest",
        )

    def start_with_medians(self, options: Options) -> tuple[SharedActiveSet, Floats]:
        """Start an active set from whole rows, and find the own rows' medians."""
        active_set = self.begin(options)
        rows = np.arange(self.rows.start, self.rows.stop)
        own = 1.0 if self.cosine else 0.0
        return active_set, self._refill(active_set, rows, options.progress, own)

    def begin(self, options: Options) -> SharedActiveSet:
        return SharedActiveSet(self.group, self.n, self.dtype, options, self._pairs())

    def resumed(self, options: Options, saved: Saved) -> SharedActiveSet:
        active_set = super().resumed(options, saved)
        columns = saved["prominent"]
        active_set.pairs.tell(columns, self.features_of(columns))
        return active_set

    def digest(self) -> str:
        return digest(self.group, self.n, self.X)

    def _pairs(self) -> Any:
        """Pairs of own points and a few others that are told."""
        kind = _native.KnownPairs32 if self.dtype == np.float32 else _native.KnownPairs64
        return kind(self.rows.start, self.X, self.cosine)

    # ---- Iterations -----------------------------------------------------------------------------

    def _iterate_once(self, active_set: SharedActiveSet) -> str:
        own, pairs = active_set.own, active_set.pairs
        while True:
            if own.run_rows(pairs) == "exhausted":
                return "exhausted"
            demands = active_set.demands()
            if demands is None:
                return active_set.finish()
            columns = own.add_prominent(*demands)
            if columns.size == 0:
                return "needs candidates"
            pairs.tell(columns, self.features_of(columns))
            own.bound_prominent(columns.size, pairs)

    def features_of(self, points: Array) -> Floats:
        """Features (m, d) of points of any rank."""
        ascending = np.sort(points)
        mine = ascending[(ascending >= self.rows.start) & (ascending < self.rows.stop)]
        lengths = np.diff(np.searchsorted(ascending, self.starts)).tolist()
        features = np.concatenate(self.group.gather(self.X[mine - self.rows.start], lengths))
        return features[np.searchsorted(ascending, points)]

    def refill(self, active_set: SharedActiveSet, progress: Progress = SILENT) -> None:
        progress.part("candidates")
        self._refill(active_set, active_set.own.rows_needing_candidates(), progress, None)
        progress.over()

    def _refill(
        self, active_set: SharedActiveSet, rows: Indices, progress: Progress, own: float | None
    ) -> Floats:
        """Give these own rows, ascending, what they need; return their medians if `own`, the
        similarity of a point to itself, is told."""
        most = max(_LEAST_STRIP, _STRIP_ENTRIES // self.n)
        height = min(_STRIP_ROWS, most)
        # Rows of a block are multiplied together, so that shapes of products, on which their bits
        # may depend, do not depend on how many ranks there are.
        cuts = np.flatnonzero(np.diff(rows // self._block)) + 1
        pieces = [
            block[k : k + height]
            for block in np.split(rows, cuts)
            for k in range(0, block.size, height)
        ]
        strips = _strips(pieces, most)
        n_strips = self.group.most(len(strips))
        medians = [np.empty(0, self.dtype)]
        for q in range(n_strips):
            progress.part("candidates", q, n_strips)
            strip = strips[q] if q < len(strips) else []
            some = np.concatenate([np.empty(0, dtype=np.int64), *strip])
            dots = self._dots(strip)
            i, k, found = active_set.own.plan_refill(some, dots, self._norms, self._unit, own)
            medians.append(found)
            active_set.own.finish_refill(self._similarities(i, k))
        return np.concatenate(medians)

    def _dots(self, strip: list[Indices]) -> Floats:
        """Inner products of these rows with all."""
        group, first = self.group, self.rows.start
        dots = np.empty((sum(rows.size for rows in strip), self.n), dtype=self.dtype)
        tops = np.cumsum([0, *(rows.size for rows in strip)])
        own_rows = [factors(self.X[rows - first], self._mean)[0] for rows in strip]

        def multiply(place: tuple[int, Floats]) -> None:
            column, factor = place
            for top, rows in zip(tops, own_rows, strict=False):
                out = dots[top : top + len(rows), column : column + len(factor)]
                np.matmul(rows, factor.T, out=out)

        def blocks(owner: int, factor: Floats) -> list[tuple[int, Floats]]:
            start = int(self.starts[owner])
            return [
                (start + k, factor[k : k + self._block]) for k in range(0, len(factor), self._block)
            ]

        with one_thread_blas(), pool(self._n_threads) as threads:
            list(threads.map(multiply, blocks(group.rank, factors(self.X, self._mean)[0])))
            for owner, (X,) in visits(group, [self.X], self.starts, group.size - 1):
                list(threads.map(multiply, blocks(owner, factors(X, self._mean)[0])))
        return dots

    def _similarities(self, i: Indices, k: Array) -> Doubles:
        """Similarities of own points to any."""
        found = np.empty(i.size)

        def evaluate(owner: int, X: Floats) -> None:
            start, end = self.starts[owner : owner + 2]
            (some,) = np.nonzero((k >= start) & (k < end))
            found[some] = self._between(
                self.X, X, i[some] - self.rows.start, k[some].astype(np.int64) - start, self.cosine
            )

        evaluate(self.group.rank, self.X)
        for owner, (X,) in visits(self.group, [self.X], self.starts, self.group.size - 1):
            evaluate(owner, X)
        return found

    # ---- Decoding -------------------------------------------------------------------------------

    def decode(
        self, active_set: SharedActiveSet, preference: Floats, exemplars: Indices, options: Options
    ) -> tuple[Indices, Indices]:
        labels = self._assign(active_set, exemplars, options)
        moved = best_members(self, labels, preference, exemplars.size, options.seed)
        return sorted_by_index(moved, self._assign(active_set, moved, options))

    def _assign(self, active_set: SharedActiveSet, exemplars: Indices, options: Options) -> Indices:
        pairs = self._pairs()
        pairs.tell(exemplars.astype(np.int32), self.features_of(exemplars))
        labels: Indices = pairs.assign(active_set.own, exemplars, options.seed, options.n_threads)
        return labels

    def links(self, exemplars: Indices, labels: Indices) -> Floats:
        rows, features = np.arange(labels.size), self.features_of(exemplars)
        found: Floats = self._between(self.X, features, rows, np.maximum(labels, 0), self.cosine)
        return found


def _strips(pieces: list[Indices], most: int) -> list[list[Indices]]:
    """Pieces of rows side by side, at most so many rows together."""
    strips: list[list[Indices]] = []
    room = 0
    for piece in pieces:
        if piece.size > room:
            strips.append([])
            room = most
        strips[-1].append(piece)
        room -= piece.size
    return strips
