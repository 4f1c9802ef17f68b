"""Similarities of every point to its nearest neighbours only: a sparse matrix from features."""

import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.extmath import row_norms

from epruner.cluster import resources, validate
from epruner.cluster.types import Floats, Indices

_MANY_POINTS = 100_000  # from where an approximate search is faster, its compilation included
_BYTES_PER_LINK = 100  # at the peak: while neighbours are sought, or exemplars refined
_PAIRS_AT_ONCE = 1 << 16  # whose features are held twice


def graph(X: Any, n_neighbors: int, n_threads: int | None) -> Any:
    """Return the negative squared distances of the rows of `X` (n, d) to their neighbours, as CSR.

    Row i stores its `n_neighbors` nearest other points, or all where there are no more. Those of
    100,000 dense points and more are found approximately, by PyNNDescent where it is installed.
    """
    n = X.shape[0]
    with np.errstate(over="ignore"):
        validate.require_distances(row_norms(X, squared=True))
    wanted = min(n_neighbors, n - 1)
    resources.require_memory(
        n * wanted * _BYTES_PER_LINK,
        f"a graph of {wanted} neighbours of {n} points, and messages,",
        "lower n_neighbors",
    )
    threads = resources.effective_n_threads(n_threads)
    if n >= _MANY_POINTS and isinstance(X, np.ndarray) and find_spec("pynndescent") is not None:
        found = _approximately(X, wanted, threads)
    else:
        found = _exactly(X, wanted, threads)
    rows = np.repeat(np.arange(n, dtype=np.int32), found.shape[1])
    columns = found.ravel().astype(np.int32)
    other = (columns >= 0) & (columns != rows)
    rows, columns = rows[other], columns[other]
    similarities = negative_squared_distances_of(X, rows, columns)
    return csr_array((similarities, (rows, columns)), shape=(n, n))


def preferences(S: Any) -> Floats:
    """Return the preferences (n,) that suit a graph.

    For each point the similarity to its farthest neighbour, and a quarter of what the others would
    lose, were they as far away. Any neighbour is then better than to be alone, and clusters are
    somewhat smaller than lists, however dense the points lie.
    """
    n = S.shape[0]
    rows = np.repeat(np.arange(n), np.diff(S.indptr))
    farthest = np.zeros(n, dtype=S.dtype)
    np.minimum.at(farthest, rows, S.data)
    own = farthest + np.bincount(rows, farthest[rows] - S.data, n) / 4
    stuck = np.count_nonzero(own == 0)
    if 2 * stuck > n and S.nnz < n * (n - 1):
        warnings.warn(
            f"{stuck} of {n} points coincide with all their neighbours and are linked to nothing "
            "else: raise n_neighbors, or cluster each once with sample_weight",
            stacklevel=2,
        )
    if stuck == n:
        return own
    return np.where(own < 0, own, np.median(own[own < 0]))


def negative_squared_distances_of(X: Any, rows: Indices, columns: Indices) -> Floats:
    """Return the similarities of these pairs of rows of `X` (n, d), by direct difference."""
    out = np.empty(rows.size, dtype=X.dtype)
    for first in range(0, rows.size, _PAIRS_AT_ONCE):
        some = slice(first, first + _PAIRS_AT_ONCE)
        out[some] = row_norms(X[rows[some]] - X[columns[some]], squared=True)
    return np.negative(out, out=out)


def _exactly(X: Any, wanted: int, n_threads: int) -> Indices:
    if wanted == 0:
        return np.empty((1, 0), dtype=np.intp)
    search = NearestNeighbors(n_neighbors=wanted, n_jobs=n_threads).fit(X)
    found: Indices = search.kneighbors(return_distance=False)
    return found


def _approximately(X: Floats, wanted: int, n_threads: int) -> Indices:
    """Return neighbours (n, wanted + 1), with the point itself; -1 for those not found."""
    from numba import config
    from pynndescent import NNDescent

    search = NNDescent(
        X,
        metric="sqeuclidean",
        n_neighbors=wanted + 1,
        random_state=0,
        n_jobs=min(n_threads, config.NUMBA_NUM_THREADS),
    )
    found: Indices = search.neighbor_graph[0]
    return found
