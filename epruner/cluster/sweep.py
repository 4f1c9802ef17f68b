"""All pairs of points from features, each once, in tiles that are looked at while in cache."""

from collections.abc import Iterator
from threading import local
from typing import Any

import numpy as np

from epruner.cluster import _native
from epruner.cluster.products import one_thread_blas, pool
from epruner.cluster.types import Floats, Options

TILE = 1024  # points a side, ...
TILE_ROWS = 128  # ... of which so many at a time: their products stay in cache until looked at
# Before the sweep every point meets one of so many, ...
SAMPLED = 64
LEAST_SAMPLE = 256  # ... where these are not few, ...
# ... and what is less similar than about so many of them is not among those wanted. Should it be,
# its list stays shorter.
SAMPLE_RANK = 6


class Sweep:
    """One sweep over all pairs of points, which finds the nearest of each.

    Points meet in a random order, the same in every sweep: sorted input would make every
    similarity the best so far, and the medians' windows want a random order, too.

    Parameters
    ----------
    X : ndarray of shape (n, d), float32 or float64
        Features whose inner products tell similarities.
    norms : ndarray of shape (n,) or None
        Squared norms of the rows of `X`; None where the inner products are the similarities.
    want : int
        Nearest points to find for each.
    """

    def __init__(self, X: Floats, norms: Floats | None, want: int) -> None:
        order = np.random.default_rng(0).permutation(X.shape[0]).astype(np.int32)
        self._X = X[order]
        self.nearest: Any = _nearest_type(X.dtype)(
            order, None if norms is None else norms[order], want
        )

    @staticmethod
    def bytes_needed(X: Floats, want: int, *, medians: bool = False) -> int:
        """Memory that a sweep takes."""
        n = X.shape[0]
        return X.nbytes + int(_nearest_type(X.dtype).bytes_needed(n, want, medians))

    def run(self, options: Options) -> None:
        """Meet all pairs."""
        dots = TileProducts()
        n = self._X.shape[0]
        size = min(n // SAMPLED, TILE)

        def sample(row: int) -> None:
            rows = self._X[row : row + TILE_ROWS]
            self.nearest.start_from_sample(dots(rows, self._X[:size]), row, SAMPLE_RANK)

        def offer(pair: tuple[int, int]) -> None:
            for row, column, left, right in tile_parts(self._X, *pair):
                self.nearest.offer(dots(left, right), row, column)

        rounds = list(tournament(-(-n // TILE)))
        options.progress.stage("similarities", 0, len(rounds))
        with one_thread_blas(), pool(options.n_threads) as threads:
            try:
                if size >= LEAST_SAMPLE:
                    list(threads.map(sample, range(0, n, TILE_ROWS)))
                for played, pairs in enumerate(rounds, 1):
                    list(threads.map(offer, pairs))
                    options.progress.stage("similarities", played, len(rounds))
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise


class TileProducts:
    """Inner products of the rows of tiles, in memory that each thread uses again."""

    def __init__(self) -> None:
        self._scratch = local()

    def __call__(self, left: Floats, right: Floats) -> Floats:
        """Return those of at most `TILE_ROWS` rows with at most `TILE`."""
        if not hasattr(self._scratch, "room"):
            self._scratch.room = np.empty(TILE_ROWS * TILE, dtype=left.dtype)
        shape = left.shape[0], right.shape[0]
        room: Floats = self._scratch.room[: shape[0] * shape[1]].reshape(shape)
        return np.matmul(left, right.T, out=room)


def tile_parts(
    X: Floats, first_tile: int, second_tile: int
) -> Iterator[tuple[int, int, Floats, Floats]]:
    """The pairs of two tiles of `X` (n, d), some rows at a time: where they begin, and the rows."""
    first, second = first_tile * TILE, second_tile * TILE
    last = min(first + TILE, X.shape[0])
    for row in range(first, last, TILE_ROWS):
        column = row if first == second else second
        yield row, column, X[row : min(row + TILE_ROWS, last)], X[column : second + TILE]


def tournament(players: int) -> Iterator[list[tuple[int, int]]]:
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


def _nearest_type(dtype: np.dtype[Any]) -> Any:
    return _native.Nearest32 if dtype == np.float32 else _native.Nearest64
