"""Matrix products on threads of our own.

BLAS's own threads go on spinning for milliseconds after a product, in the way of the solver's
threads. So BLAS runs on one thread in each of ours. Products are made in tiles whose sizes do not
depend on the number of threads, so neither do their bits.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from itertools import combinations_with_replacement
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from epruner.cluster.types import Floats

_TILE = 512  # points a side
_COLUMNS = 4096  # of a product that is not symmetric
_FEW = 1 << 18  # multiply-adds for which no BLAS starts threads
_TOGETHER = 1 << 24  # multiply-adds from where threads are worth their start

Piece = TypeVar("Piece")
_limiting = Lock()


@cache
def _libraries(user_api: str) -> ThreadpoolController:
    found: ThreadpoolController = ThreadpoolController().select(user_api=user_api)  # milliseconds
    return found


@contextmanager
def one_thread_blas() -> Iterator[None]:
    """Let BLAS use one thread in this process.

    Callers in several threads may meet here. Who finds it limited leaves that to the first: to
    restore what was found would limit BLAS for good.
    """
    limiter: Any = nullcontext()
    with _limiting:
        blas = _libraries("blas")
        if any(library.num_threads != 1 for library in blas.lib_controllers):
            limiter = blas.limit(limits=1)
    with limiter:
        yield


def pool(n_threads: int) -> ThreadPoolExecutor:
    """Return threads for products, each of which BLAS by OpenMP limits by itself."""
    one_thread = partial(_libraries("openmp").limit, limits=1)
    return ThreadPoolExecutor(n_threads, initializer=one_thread)


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
        with pool(n_threads) as threads:
            list(threads.map(make, pieces))
