"""Where the active set gets its candidates: a matrix, features seen tile by tile, a sparse matrix.

A source starts the lists, serves rows that run out of candidates, and decodes. The iteration over
them is `run`, the same for all.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from epruner.cluster import _native, memory
from epruner.cluster.decode import sorted_by_index
from epruner.cluster.outcome import Messages, Options
from epruner.cluster.similarity import cosine, filled, negative_squared_distances
from epruner.cluster.solvers.native import new_lists

Floats = NDArray[np.floating]
Indices = NDArray[np.intp]

FIRST_CANDIDATES = 48  # per point, from a sweep over tiles; whole rows later cost far more
_TILE = 1024  # points a side
_STRIP_ENTRIES = 1 << 24  # similarities held at once when rows are evaluated in full, ...
_LEAST_STRIP = 64  # ... but never fewer rows: all features are read for each strip
_REPORT_EVERY = 10  # iterations
_BYTES_PER_CANDIDATE = 48  # lists, and the sweep's buffers while they are handed over


def dense_bytes(n: int, dtype: np.dtype[Any]) -> int:
    """Bytes that dense passes over n points take: S, its jittered copy, R and A."""
    return 4 * n * n * dtype.itemsize


class Source(ABC):
    """Similarities of n points that lists can be filled from."""

    n: int
    dtype: np.dtype[Any]

    def fits_densely(self) -> bool:
        """Whether memory has room for similarities and messages of all pairs."""
        return memory.fits(dense_bytes(self.n, self.dtype))

    @abstractmethod
    def matrix(self) -> Floats:
        """Return the similarities (n, n)."""

    @abstractmethod
    def start(self, options: Options) -> _native.ActiveSet:
        """Return lists with first candidates for every point, ready to be restarted."""

    @abstractmethod
    def extend(self, lists: _native.ActiveSet, rows: Indices, options: Options) -> None:
        """Give these rows more candidates."""

    @abstractmethod
    def decode(
        self, lists: _native.ActiveSet, preference: Floats, exemplars: Indices, options: Options
    ) -> tuple[Indices, Indices]:
        """Return refined exemplars, ascending, and the labels."""

    @abstractmethod
    def links(self, rows: Indices, columns: Indices) -> Floats:
        """Return the similarities of these pairs."""

    def _lists(self, options: Options) -> _native.ActiveSet:
        return new_lists(np.zeros(self.n), self.dtype, options)


def run(
    lists: _native.ActiveSet, source: Source, preference: Floats, options: Options
) -> Messages | None:
    """Pass messages from the start with these preferences; None when dense passes are cheaper."""
    lists.restart(preference.astype(np.float64), options.damping)
    while True:
        status = lists.iterate(_REPORT_EVERY if options.verbose else options.max_iter)
        if status == "starved":
            if lists.crowded and source.fits_densely():
                return None
            rows = lists.starved()
            memory.require(
                2 * rows.size * max(FIRST_CANDIDATES, lists.longest) * _BYTES_PER_CANDIDATE,
                f"the lists of {source.n} points at iteration {lists.iteration}",
                "raise the preference (fewer clusters need longer lists) or cluster a sample",
            )
            source.extend(lists, rows, options)
            continue
        if options.verbose:
            print(
                f"iteration {lists.iteration}: {int(lists.is_exemplar.sum())} clusters, "
                f"lists of {lists.listed / source.n:.1f} on average, {lists.longest} at most"
            )
        if status != "running":
            return Messages(lists.is_exemplar, lists.iteration, status == "converged")


class MatrixSource(Source):
    """Similarities (n, n) in memory."""

    def __init__(self, S: Floats) -> None:
        self.S = S
        self.n = S.shape[0]
        self.dtype = S.dtype

    def matrix(self) -> Floats:
        return self.S

    def start(self, options: Options) -> _native.ActiveSet:
        lists = self._lists(options)
        lists.extend(np.arange(self.n), self.S)
        return lists

    def extend(self, lists: _native.ActiveSet, rows: Indices, options: Options) -> None:
        lists.extend(rows, self.S)

    def decode(
        self, lists: _native.ActiveSet, preference: Floats, exemplars: Indices, options: Options
    ) -> tuple[Indices, Indices]:
        return _native.decode(
            self.S,
            preference.astype(np.float64),
            exemplars,
            options.seed,
            options.n_threads,
            lists,
        )

    def links(self, rows: Indices, columns: Indices) -> Floats:
        return self.S[rows, columns].astype(np.float64)


class SparseSource(Source):
    """Stored pairs of a SciPy CSR matrix; pairs that are not stored are never linked."""

    def __init__(self, S: Any) -> None:
        self.S = S
        self.n = S.shape[0]
        self.dtype = S.dtype

    def matrix(self) -> Floats:
        return filled(self.S)

    def start(self, options: Options) -> _native.ActiveSet:
        lists = self._lists(options)
        lists.adopt_sparse(
            self.S.indptr.astype(np.int64),
            self.S.indices.astype(np.int32),
            self.S.data.astype(np.float64),
        )
        return lists

    def extend(self, lists: _native.ActiveSet, rows: Indices, options: Options) -> None:
        raise AssertionError("a sparse matrix lists everything from the start")

    def decode(
        self, lists: _native.ActiveSet, preference: Floats, exemplars: Indices, options: Options
    ) -> tuple[Indices, Indices]:
        labels = _assign(lists, exemplars)
        moved = np.array(
            [
                self._best_member(np.flatnonzero(labels == c), preference)
                for c in range(exemplars.size)
            ],
            dtype=np.intp,
        )
        return sorted_by_index(moved, _assign(lists, moved))

    def _best_member(self, members: Indices, preference: Floats) -> int:
        within = self.S[members][:, members].tocoo()
        off = within.row != within.col
        support = np.bincount(within.col[off], within.data[off], members.size)
        linked = np.bincount(within.col[off], minlength=members.size) == members.size - 1
        support = np.where(linked, support + preference[members], -np.inf)
        return int(members[support.argmax()])

    def links(self, rows: Indices, columns: Indices) -> Floats:
        if rows.size == 0:  # of which SciPy would make a sparse matrix
            return np.empty(0)
        return np.asarray(self.S[rows, columns], dtype=np.float64).ravel()


class FeatureSource(Source):
    """Features (n, d) whose similarities are made in tiles and thrown away.

    Tiles come from BLAS. Every pair that gets on a list is evaluated again by direct difference,
    and thresholds carry the product's error bound, so that cancellation decides nothing.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32 or float64
    cosine : bool
        Cosine similarity instead of the negative squared distance; `X` has rows of length 1.
    """

    def __init__(self, X: Floats, cosine: bool) -> None:
        self.n, d = X.shape
        self.dtype = X.dtype
        self.X = X
        self.cosine = cosine
        if cosine:
            self._factor, self._norms = X, None
        else:
            self._factor = X - X.mean(axis=0, dtype=np.float64).astype(X.dtype)
            self._norms = np.einsum("ij,ij->i", self._factor, self._factor)
        single = X.dtype == np.float32
        unit = 10 * (d + 4) * float(np.finfo(X.dtype).eps) / 2
        features = _native.Features32 if single else _native.Features64
        self._features: Any = features(X, self._norms, unit)
        self._nearest_type: Any = _native.Nearest32 if single else _native.Nearest64

    def matrix(self) -> Floats:
        return cosine(self.X) if self.cosine else negative_squared_distances(self.X)

    def start(self, options: Options) -> _native.ActiveSet:
        return self.start_with_ranks(options, None)[0]

    def start_with_ranks(
        self, options: Options, position: float | None
    ) -> tuple[_native.ActiveSet, float]:
        """Start the lists; in the same sweep, find an order statistic of all pairs' similarities.

        `position` counts ordered off-diagonal pairs in ascending order of similarity, from 0; a
        fraction interpolates; None asks for nothing.
        """
        memory.require(
            self.n * 2 * FIRST_CANDIDATES * _BYTES_PER_CANDIDATE,
            f"affinity propagation from features of {self.n} points",
            "cluster a sample and use predict for the rest",
        )
        nearest = self._nearest_type(self._features, FIRST_CANDIDATES)
        if position is None:
            self._sweep(nearest, options)
            value = float("nan")
        else:
            value = self._sweep_for(nearest, options, position)
        lists = self._lists(options)
        lists.adopt_nearest(nearest, self._features)
        return lists, value

    def start_with_medians(self, options: Options) -> tuple[_native.ActiveSet, Floats]:
        """Start the lists from whole rows, and return every row's median, own entry included."""
        lists = self._lists(options)
        medians = np.empty(self.n, dtype=self.dtype)
        for rows, dots in self._strips(np.arange(self.n)):
            medians[rows] = lists.extend_from_dots(rows, dots, self._features, True)
            if options.verbose:
                print(f"similarities: {100 * (rows[-1] + 1) // self.n} %", end="\r")
        if options.verbose:
            print()
        return lists, medians

    def extend(self, lists: _native.ActiveSet, rows: Indices, options: Options) -> None:
        for some, dots in self._strips(rows):
            lists.extend_from_dots(some, dots, self._features, False)

    def decode(
        self, lists: _native.ActiveSet, preference: Floats, exemplars: Indices, options: Options
    ) -> tuple[Indices, Indices]:
        decoded: tuple[Indices, Indices] = self._features.decode(
            lists, preference.astype(np.float64), exemplars, options.seed, options.n_threads
        )
        return decoded

    def links(self, rows: Indices, columns: Indices) -> Floats:
        similarities: Floats = self._features.similarities(rows, columns)
        return similarities

    def _strips(self, rows: Indices) -> Iterator[tuple[Indices, Floats]]:
        """Inner products of these rows with all, some rows at a time, in memory used again."""
        height = min(rows.size, max(_LEAST_STRIP, _STRIP_ENTRIES // self.n))
        room = np.empty((height, self.n), dtype=self.dtype)
        for first in range(0, rows.size, height):
            some = rows[first : first + height]
            yield some, np.matmul(self._factor[some], self._factor.T, out=room[: some.size])

    def _sweep(self, nearest: Any, options: Options) -> None:
        scratch = local()
        X, n = self._factor, self.n

        def offer(pair: tuple[int, int]) -> None:
            first, second = pair[0] * _TILE, pair[1] * _TILE
            left, right = X[first : first + _TILE], X[second : second + _TILE]
            if not hasattr(scratch, "dots"):
                scratch.dots = np.empty(_TILE * _TILE, dtype=X.dtype)
            dots = scratch.dots[: left.shape[0] * right.shape[0]]
            dots = dots.reshape(left.shape[0], right.shape[0])
            np.matmul(left, right.T, out=dots)
            nearest.offer(dots, first, second)

        rounds = list(_tournament(-(-n // _TILE)))
        with (
            threadpool_limits(1, user_api="blas"),
            ThreadPoolExecutor(options.n_threads) as pool,
        ):
            try:
                for played, pairs in enumerate(rounds, 1):
                    list(pool.map(offer, pairs))
                    if options.verbose:
                        print(f"similarities: {100 * played // len(rounds)} %", end="\r")
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        if options.verbose:
            print()

    def _sweep_for(self, nearest: Any, options: Options, position: float) -> float:
        pairs = self.n * (self.n - 1) // 2
        ranks = [int(position) // 2, min(int(position) + 1, 2 * pairs - 1) // 2]
        sample = np.sort(self._sampled_similarities())
        middle, slack = ranks[0] / pairs * sample.size, 4 * np.sqrt(sample.size)
        low = sample[int(middle - slack)] if middle > slack else -np.inf
        high = sample[int(middle + slack)] if middle + slack < sample.size else np.inf
        rounding = 1e-5 if self.dtype == np.float32 else 1e-12  # of the products, not the sample
        low, high = low - rounding * abs(low), high + rounding * abs(high)
        nearest.watch(low, high, int(2 * slack / sample.size * pairs))
        self._sweep(nearest, options)
        values: list[float] = nearest.watched_at(ranks)
        if not values:
            return float(sample[int(middle)])
        return values[0] + (values[1] - values[0]) * (position - int(position))

    def _sampled_similarities(self) -> Floats:
        rng = np.random.default_rng(0)
        rows, columns = rng.integers(self.n, size=(2, min(1 << 20, 4 * self.n * self.n)))
        rows, columns = rows[rows != columns], columns[rows != columns]
        return self.links(rows, columns).astype(self.dtype)


def _assign(lists: _native.ActiveSet, exemplars: Indices) -> Indices:
    position = np.full(lists.is_exemplar.size, -1, dtype=np.int64)
    position[exemplars] = np.arange(exemplars.size)
    labels: Indices = lists.assign(position)
    return labels


def _tournament(players: int) -> Iterator[list[tuple[int, int]]]:
    """Rounds in which all unordered pairs of players meet, nobody twice at a time (circle method).

    The first round pairs everyone with themselves.
    """
    yield [(p, p) for p in range(players)]
    seats = list(range(players + players % 2))  # an odd field gets a bye
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = zip(seats[:half], reversed(seats[half:]), strict=True)
        yield [(min(p, q), max(p, q)) for p, q in pairs if max(p, q) < players]
        seats = [seats[0], seats[-1], *seats[1:-1]]
