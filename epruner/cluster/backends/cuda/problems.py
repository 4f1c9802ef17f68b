"""Similarities on a device: a matrix per problem, or features whose products are seen in tiles."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from epruner.cluster.backends.cuda.device import Array, Engine, cover, pack, require_memory

_TILE_BYTES = 1 << 32


class Problems(ABC):
    """Problems one after the other; point i of problem p is number ``first[p] + i``.

    `dtype` is that of the similarities, which decides the size of the jitter.
    """

    kind: str  # of the kernels that read similarities
    source: Array  # the kernels' ``Source``

    def __init__(self, engine: Engine, sizes: Sequence[int], dtype: np.dtype[Any]) -> None:
        xp = engine.xp
        self.engine = engine
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.sizes)])  # (problems + 1), on the host
        self.points = int(self.first[-1])
        self.dtype = dtype
        self.number = "f32" if dtype == np.float32 else "f64"
        self.first_device = xp.asarray(self.first)
        self.problem = (
            xp.searchsorted(self.first_device, xp.arange(self.points), side="right") - 1
        ).astype(np.int32)

    def row_kernel(self, name: str) -> str:
        """Return the full name of a kernel that reads similarities."""
        return f"{name}_{self.kind}_{self.number}"

    @abstractmethod
    def alone(self, p: int) -> "Problems":
        """Return problem `p` as a batch of its own."""

    @abstractmethod
    def tiles(self, rows: Array, columns: Array | None = None) -> Iterator[tuple[slice, int]]:
        """Yield (which of `rows`, address of their products with `columns` or all points)."""


class Matrices(Problems):
    """Similarities as C-contiguous matrices (n_p, n_p) of one dtype."""

    kind = "matrix"

    def __init__(self, engine: Engine, matrices: Sequence[Array]) -> None:
        super().__init__(engine, [S.shape[0] for S in matrices], matrices[0].dtype)
        self.matrices = list(matrices)
        self._addresses = engine.xp.asarray(
            np.array([engine.address(S) for S in matrices], dtype=np.uint64)
        )
        self.source = pack(engine, [self._addresses, 0, 0, 0, 0.0, 0.0])

    def alone(self, p: int) -> "Matrices":
        return Matrices(self.engine, [self.matrices[p]])

    def tiles(self, rows: Array, columns: Array | None = None) -> Iterator[tuple[slice, int]]:
        yield slice(0, int(rows.size)), 0


class Features(Problems):
    """One problem: negative squared distances of the rows of X (n, d), never all of them held."""

    kind = "product"

    def __init__(self, engine: Engine, X: Array) -> None:
        n, d = X.shape
        xp = engine.xp
        super().__init__(engine, [n], X.dtype)
        self.X = xp.ascontiguousarray(X - X.mean(axis=0, dtype=np.float64).astype(X.dtype))
        self.norms = (self.X * self.X).sum(axis=1)
        largest = float(self.norms.max())
        if not largest < float(np.finfo(X.dtype).max) / 8:
            raise ValueError(f"squared distances of X overflow {X.dtype}; scale X or use float64")
        # Rounding of the product and of both norms, each at most d u times norms; u = eps / 2.
        error = (2 * d + 8) * float(np.finfo(X.dtype).eps) / 2
        self.source = pack(engine, [0, self.X, d, self.norms, error, largest])

    def alone(self, p: int) -> "Features":
        return self

    def tiles(self, rows: Array, columns: Array | None = None) -> Iterator[tuple[slice, int]]:
        others = self.X if columns is None else self.X[columns]
        bytes_a_row = max(1, others.shape[0]) * self.X.itemsize
        height = max(1, min(_TILE_BYTES, self.engine.free_bytes() // 4) // bytes_a_row)
        for begin in range(0, int(rows.size), height):
            some = slice(begin, min(begin + height, int(rows.size)))
            product = self.X[rows[some]] @ others.T
            yield some, self.engine.address(product)


def medians(problems: Problems) -> Array:
    """Return the median of every point's similarities, its own zero included: (points,)."""
    engine = problems.engine
    found = engine.xp.empty(problems.points, dtype=problems.dtype)
    scratch = 64 + 2 * 8 * engine.threads // 32
    rows = engine.xp.arange(problems.points)
    batch = problem_table(problems)
    for some, tile in problems.tiles(rows):
        engine.launch(
            problems.row_kernel("medians"),
            some.stop - some.start,
            engine.threads,
            batch,
            problems.source,
            some.start,
            tile,
            found,
            shared=scratch,
        )
    return found


def distances(engine: Engine, filters: Sequence[Array]) -> list[Array]:
    """Return S = -||x_i - x_k||² (n, n) for each X (n, d), as similarity.py does."""
    xp = engine.xp
    bytes_of = [X.shape[0] ** 2 * X.dtype.itemsize for X in filters]
    advice = "cluster fewer layers at a time, or from features"
    what = f"similarities of {len(filters)} layers"
    require_memory(engine, sum(bytes_of) + max(bytes_of, default=0), what, advice)
    found = []
    for X in filters:
        n, d = X.shape
        centred = xp.ascontiguousarray(X - X.mean(axis=0, dtype=np.float64).astype(X.dtype))
        product = centred @ centred.T
        S = xp.empty((n, n), dtype=X.dtype)
        kernel = f"distances_{'f32' if X.dtype == np.float32 else 'f64'}"
        blocks = min(cover(n * n, engine.threads), 1 << 16)
        engine.launch(kernel, blocks, engine.threads, product, centred, n, d, S)
        found.append(S)
    return found


def jitter_fields(seed: int | None) -> dict[str, int]:
    """Return the fields of the kernels' ``Batch`` that decide the jitter: none without a seed."""
    return {"has_jitter": int(seed is not None), "seed": seed or 0}


def problem_table(
    problems: Problems, fields: Mapping[str, Array | int | float] | None = None
) -> Array:
    """Return the kernels' ``Batch``; what `fields` does not name is zero."""
    known = {
        "points": problems.points,
        "problems": len(problems.sizes),
        "first": problems.first_device,
        "problem": problems.problem,
        **(fields or {}),
    }
    return pack(problems.engine, [known.get(name, 0) for name in BATCH_FIELDS])


BATCH_FIELDS = (
    *("points", "problems", "first", "problem", "preference", "a", "r", "total", "abar"),
    *("streak", "is_exemplar", "state", "t", "unstable", "any", "needs_candidates", "decay"),
    *("abar_max", "abar_next", "damping", "max_iter", "convergence_iter", "has_jitter", "seed"),
)
