"""The nearest points of every point and order statistics of all pairs, over ranks.

Points are dealt in a random order, whole tiles to each rank. Blocks of them go round half of the
ring: each pair of blocks meets once, on one rank, which tells the visitor's owner what it found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from epruner.cluster import _native
from epruner.cluster.products import one_thread_blas, pool
from epruner.cluster.similarity import factors
from epruner.cluster.sweep import (
    LEAST_SAMPLE,
    SAMPLE_RANK,
    SAMPLED,
    TILE,
    TILE_ROWS,
    TileProducts,
    tile_parts,
    tournament,
)
from epruner.cluster.types import Doubles, Floats, Indices, Options
from epruner.distributed.group import Array, Group
from epruner.distributed.layout import Lists, Move, shares, visits
from epruner.distributed.order_statistics import values_at

_VISITORS = 2  # tiles of another rank's points that are met at a time: lists of all take memory


class RingSweep:
    """One sweep over all pairs.

    Parameters
    ----------
    group : Group
    X : ndarray of shape (m, d), float32 or float64
        Features of the points from starts[rank] on.
    starts : ndarray of shape (size + 1,)
        The first point of each rank.
    mean : ndarray of shape (d,) or None
        Of all features; None where inner products are the similarities.
    want : int
        Nearest points to find for each.
    unit : float
        Relative error of inner products.
    options : Options
    """

    def __init__(
        self,
        group: Group,
        X: Floats,
        starts: Indices,
        mean: Floats | None,
        want: int,
        unit: float,
        options: Options,
    ) -> None:
        self._group, self._options, self._mean = group, options, mean
        self._points_starts = starts
        n = self._n = int(starts[-1])
        self._starts = shares(n, TILE, group.size)
        order = np.random.default_rng(0).permutation(n).astype(np.int32)
        first, last = starts[group.rank : group.rank + 2]
        places = np.empty(n, dtype=np.int32)
        places[order] = np.arange(n, dtype=np.int32)
        self._X: Floats = Move(group, places[first:last], self._starts)(X)
        del places
        first, last = self._starts[group.rank : group.rank + 2]
        self._points = order[first:last].copy()
        del order
        self._factor, norms = factors(self._X, mean)
        kind: Any = _native.BlockNearest32 if X.dtype == np.float32 else _native.BlockNearest64
        self._size = min(n // SAMPLED, TILE)
        most = min(n, _VISITORS * TILE)
        self._nearest = kind(self._X, norms, self._points, most, n, want + 1, unit, options.seed)
        self._dots = TileProducts()

    def sampled_similarities(self, size: int) -> Floats:
        """Similarities of random pairs, about so many of all ranks.

        Points lie in a random order, so pairs within a tile are as good as any.
        """
        found = [np.empty(0, dtype=self._X.dtype)]
        cosine = self._mean is None
        for first in range(0, len(self._X), TILE):
            X = self._X[first : first + TILE]
            rng = np.random.default_rng([0, int(self._starts[self._group.rank]) + first])
            rows, columns = rng.integers(len(X), size=(2, -(-size * len(X) // self._n)))
            some = rows != columns
            between: Any = _native.similarities_between
            found.append(between(X, X, rows[some], columns[some], cosine).astype(X.dtype))
        return np.concatenate(found)

    def open_rank_window(self, low: float, high: float, expected: int) -> None:
        """Count the similarities between two of all pairs, of which so many are expected."""
        self._nearest.open_rank_window(low, high, expected)

    def values_at_ranks(self, ranks: list[int]) -> list[float]:
        """The similarities at these ranks, from 0, among those of all unordered pairs."""
        below, bins, kept = self._nearest.rank_window_counts()
        if bins.size:
            for q, others in enumerate(self._group.gather(np.append(bins, below)[None])):
                if q != self._group.rank:
                    self._nearest.add_rank_window_counts(int(others[0, -1]), others[0, :-1].copy())
            return list(self._nearest.values_at_ranks(ranks))
        all_below = int(self._group.sum(np.array([below]))[0])
        kept.sort()
        return values_at(self._group, kept, [rank - all_below for rank in ranks])

    def run(self) -> None:
        """Meet all pairs."""
        group = self._group
        steps = group.size // 2
        with one_thread_blas(), pool(self._options.n_threads) as threads:
            try:
                self._start_from_sample(threads)
                self._among_own(threads)
                self._options.progress.stage("similarities", 1, steps + 1)
                for step, (owner, arrays) in enumerate(
                    visits(group, [self._X, self._points], self._starts, steps), 1
                ):
                    self._meet(threads, owner, *arrays, twice=2 * step == group.size)
                    self._options.progress.stage("similarities", step + 1, steps + 1)
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise

    def lists(self) -> tuple[Lists, Doubles]:
        """The nearest points of those from starts[rank] on, and a bound on all others' similarity.

        Similarities have their jitter.
        """
        counts, columns, similarities, bounds = self._nearest.lists()
        move = Move(self._group, self._points.astype(np.int64), self._points_starts)
        return move.lists(Lists.of_counts(counts, columns, similarities)), move(bounds)

    def _start_from_sample(self, threads: Any) -> None:
        if self._size < LEAST_SAMPLE:
            return
        first = self._starts[self._group.rank]
        mine = slice(0, max(0, self._size - int(first)))
        X = np.concatenate(self._group.gather(self._X[mine]))
        points = np.concatenate(self._group.gather(self._points[mine]))
        sample, norms = factors(X, self._mean)
        self._nearest.receive(X, norms, points, np.full(self._size, np.inf))

        def start(row: int) -> None:
            rows = self._factor[row : row + TILE_ROWS]
            self._nearest.start_from_sample(self._dots(rows, sample), row, SAMPLE_RANK)

        list(threads.map(start, range(0, len(self._X), TILE_ROWS)))

    def _among_own(self, threads: Any) -> None:
        own = self._factor

        def offer(pair: tuple[int, int]) -> None:
            for row, column, left, right in tile_parts(own, *pair):
                self._nearest.offer(self._dots(left, right), row, column)

        for pairs in tournament(-(-len(own) // TILE)):
            list(threads.map(offer, pairs))

    def _meet(self, threads: Any, owner: int, X: Floats, points: Array, *, twice: bool) -> None:
        """Meet a visitor, all of its tiles or, where its owner meets ours, too, half of them."""
        group = self._group
        source = (2 * group.rank - owner) % group.size  # whom our block visits
        thresholds = np.empty(len(X))
        own_thresholds = self._nearest.thresholds()
        group.wait([group.receive(thresholds, owner), group.send(own_thresholds, source)])
        # So many at a time, whose lists are told before the next come; our own block is elsewhere
        # taken in such parts, too.
        for q in range(-(-int(np.diff(self._starts).max()) // (_VISITORS * TILE))):
            some = slice(q * _VISITORS * TILE, (q + 1) * _VISITORS * TILE)
            factor, norms = factors(X[some], self._mean)
            self._nearest.receive(X[some], norms, points[some], thresholds[some])
            self._meet_some(threads, owner, factor, q * _VISITORS, twice=twice)
            counts, columns, similarities = group.swap(self._nearest.found(), owner, source)
            own = np.zeros(len(self._X), dtype=np.int64)
            own[some] = counts
            self._nearest.add(own, columns, similarities)

    def _meet_some(
        self, threads: Any, owner: int, factor: Floats, first_tile: int, *, twice: bool
    ) -> None:
        """Meet these visitors, which begin with a tile of their block."""
        mine, rank = len(self._X), self._group.rank
        tiles = [int(start) // TILE for start in self._starts[[rank, owner]]]
        lower = rank < owner

        def offer(pair: tuple[int, int]) -> None:
            own, visitor = (slice(TILE * place, TILE * place + TILE) for place in pair)
            sides = (self._factor[own], own.start), (factor[visitor], mine + visitor.start)
            (rows, row), (columns, column) = sides if lower else sides[::-1]
            for part in range(0, len(rows), TILE_ROWS):
                dots = self._dots(rows[part : part + TILE_ROWS], columns)
                self._nearest.offer(dots, row + part, column)

        def ours(pair: tuple[int, int]) -> bool:
            return not twice or (sum(pair) + first_tile + sum(tiles)) % 2 == lower

        for pairs in _rounds(-(-mine // TILE), -(-len(factor) // TILE)):
            list(threads.map(offer, filter(ours, pairs)))


def _rounds(one: int, other: int) -> Iterator[list[tuple[int, int]]]:
    """Rounds in which each of one side meets each of the other, nobody twice at a time."""
    most = max(one, other)
    for turn in range(most):
        pairs = [(p, (p + turn) % most) for p in range(most)]
        yield [(p, q) for p, q in pairs if p < one and q < other]
