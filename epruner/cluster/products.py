"""Matrix products on threads of our own.

BLAS's own threads go on spinning for milliseconds after a product, in the way of the solver's
threads. So BLAS runs on one thread in each of ours. Products are made in tiles whose sizes do not
depend on the number of threads, so neither do their bits.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import combinations_with_replacement
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from epruner.cluster.types import Floats

_TILE = 512  # points a side
_COLUMNS = 4096  # of a product that is not symmetric
_FEW = 1 << 18  # multiply-adds for which no BLAS starts threads
_TOGETHER = 1 << 24  # multiply-adds from where threads are worth their start

Piece = TypeVar("Piece")


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # looks at all libraries: milliseconds


@contextmanager
def one_thread_blas() -> Iterator[None]:
    """Let BLAS use one thread."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


def gram(X: Floats, n_threads: int) -> Floats:
    """Return the inner products (n, n) of the rows of `X` (n, d), symmetric to the last bit."""
    n, d = X.shape
    if n * n * d <= _FEW:
        return X @ X.T
    S: Floats = np.empty((n, n), dtype=X.dtype)

    def tile(pair: tuple[int, int]) -> None:
        rows, columns = (slice(first, first + _TILE) for first in pair)
        np.matmul(X[rows], X[columns].T, out=S[rows, columns])
        if rows != columns:
            S[columns, rows] = S[rows, columns].T

    tiles = combinations_with_replacement(range(0, n, _TILE), 2)
    _each(tile, tiles, n_threads if n * n * d > _TOGETHER else 1)
    return S


def products(left: Floats, right: Floats, n_threads: int, out: Floats) -> Floats:
    """Write the inner products of the rows of `left` with those of `right` to `out`; return it."""

    def columns(first: int) -> None:
        some = slice(first, first + _COLUMNS)
        np.matmul(left, right[some].T, out=out[:, some])

    work = left.size * right.shape[0]
    _each(columns, range(0, right.shape[0], _COLUMNS), n_threads if work > _TOGETHER else 1)
    return out


def _each(make: Callable[[Piece], Any], pieces: Iterable[Piece], n_threads: int) -> None:
    with one_thread_blas():
        if n_threads == 1:
            for piece in pieces:
                make(piece)
            return
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(make, pieces))
