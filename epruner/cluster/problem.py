"""What is to be clustered and what is wished for, brought together: preference rules, the search
for a number of clusters, damping that rises.

A problem knows its similarities and how to cluster with given preferences. `Problem.solve` turns a
`Wish` into preferences and runs it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from epruner.cluster import memory, solvers, validate
from epruner.cluster._compiled import missing, native
from epruner.cluster.outcome import Clustering, Options
from epruner.cluster.preference import for_clusters
from epruner.cluster.similarity import (
    cosine,
    filled,
    median_preference,
    negative_squared_distances,
    quantile,
)
from epruner.cluster.solve import (
    all_equal,
    cluster_lists,
    cluster_similarities,
    degenerate,
    with_rising_damping,
)

Floats = NDArray[np.floating]
Run = Callable[[Floats, Options], Clustering]

_LARGEST_MATRIX = 4096  # points; a sweep over tiles is as fast from here on, and needs no n² memory


@dataclass(frozen=True)
class Wish:
    """What the caller asks for; at most one of the first three is given.

    They set the preferences, or with `n_clusters` the preference from which its search starts.
    """

    preference: ArrayLike | None = None
    preference_quantile: float | None = None
    beta: float | None = None
    n_clusters: int | None = None
    rising_damping: bool = False

    def check(self, n: int) -> None:
        names = ("preference", "preference_quantile", "beta")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; give one of them")
        if self.preference_quantile is not None and not 0 <= self.preference_quantile <= 1:
            raise ValueError(f"preference_quantile={self.preference_quantile} must be in [0, 1]")
        if self.beta is not None and not 0 < self.beta < np.inf:
            raise ValueError(f"beta={self.beta} must be positive")
        k = self.n_clusters
        if k is not None:
            if not isinstance(k, Integral) or isinstance(k, bool):
                raise TypeError(f"n_clusters={k!r} must be an integer")
            if not 1 <= k <= n:
                raise ValueError(f"n_clusters={k} must be between 1 and the {n} points")


class Problem(ABC):
    """Points to cluster."""

    n: int
    dtype: np.dtype[Any]
    kept: Any = None  # the similarities, where they are held as a matrix

    def __init__(self, n: int, dtype: np.dtype[Any], backend: str) -> None:
        solvers.check(backend)
        self.n = n
        self.dtype = dtype
        self.backend = backend
        self.compiled = native is not None and backend in ("auto", "native")

    @abstractmethod
    def prepare(self, wish: Wish, options: Options) -> tuple[Floats, Run]:
        """Return the preferences (n,) that the wish starts from, and what clusters with any."""

    @abstractmethod
    def top(self, options: Options) -> float:
        """Return a preference that makes nearly every point an exemplar."""

    def solve(self, wish: Wish, options: Options) -> tuple[Clustering, float, Floats]:
        """Return the clustering wished for, its damping and its preferences (n,)."""
        wish.check(self.n)
        preference, run = self.prepare(wish, options)
        used = options.damping
        # A search compares numbers of clusters, which mean nothing in runs that oscillate.
        rising = wish.rising_damping or wish.n_clusters is not None

        def cluster(p: Floats) -> Clustering:
            nonlocal used
            if not rising:
                return run(p, options)
            clustering, used = with_rising_damping(lambda o: run(p, o), options)
            return clustering

        if wish.n_clusters is None or self.n == 1:
            return cluster(preference), used, preference

        def common(p: float) -> Floats:
            return np.full(self.n, p, dtype=self.dtype)

        clustering, found = for_clusters(
            lambda p: cluster(common(p)),
            wish.n_clusters,
            float(preference.mean()),
            self.top(options),
        )
        return clustering, used, common(found)

    def _checked(self, preference: ArrayLike) -> Floats:
        return validate.preferences(preference, self.n, self.dtype)


class MatrixProblem(Problem):
    """Similarities (n, n) in memory."""

    def __init__(self, S: Floats, backend: str) -> None:
        super().__init__(S.shape[0], S.dtype, backend)
        self.kept = S
        if not self.compiled:
            validate.require_finite(S)

    def solve(self, wish: Wish, options: Options) -> tuple[Clustering, float, Floats]:
        try:
            return super().solve(wish, options)
        except ValueError:
            self.explain()
            raise

    def explain(self) -> None:
        """Raise for entries that are no similarities: the compiled solver does not say where."""
        if self.compiled:
            validate.require_finite(self.kept)

    def prepare(self, wish: Wish, options: Options) -> tuple[Floats, Run]:
        return self._checked(self._preference(wish, options)), self._runner(wish, options)

    def _preference(self, wish: Wish, options: Options) -> ArrayLike:
        S = self.kept
        if wish.preference is not None:
            return wish.preference
        if wish.beta is not None:
            return median_preference(S, wish.beta)
        if self.n == 1:
            return 0.0
        if wish.preference_quantile is not None:
            q = wish.preference_quantile
            return quantile(S, q, diagonal=False, n_threads=options.n_threads)
        return quantile(S, 0.5, diagonal=True, n_threads=options.n_threads)

    def _runner(self, wish: Wish, options: Options) -> Run:
        S = self.kept
        once = wish.n_clusters is None and not wish.rising_damping and not options.verbose
        if once or self.n == 1 or not self.compiled:
            return lambda p, o: cluster_similarities(S, p, o, self.backend)
        from epruner.cluster.lists import MatrixSource

        source = MatrixSource(S)
        lists = source.start(options)

        def run(p: Floats, o: Options) -> Clustering:
            if all_equal(S, p):
                return cluster_similarities(S, p, o, self.backend)
            return cluster_lists(source, lists, p, o)

        return run

    def top(self, options: Options) -> float:
        return quantile(self.kept, 1.0, diagonal=False, n_threads=options.n_threads)


class SparseProblem(Problem):
    """Stored pairs of a SciPy CSR matrix."""

    def __init__(self, S: Any, backend: str) -> None:
        super().__init__(S.shape[0], S.dtype, backend)
        self.kept = S

    @cached_property
    def _off_diagonal(self) -> Floats:
        stored = self.kept.tocoo()
        values: Floats = stored.data[(stored.row != stored.col) & (stored.data > -np.inf)]
        return values

    def prepare(self, wish: Wish, options: Options) -> tuple[Floats, Run]:
        return self._checked(self._preference(wish)), self._runner(options)

    def _preference(self, wish: Wish) -> ArrayLike:
        if wish.preference is not None:
            return wish.preference
        if wish.beta is not None:
            raise ValueError("beta needs all similarities; a sparse S takes preference or quantile")
        if self._off_diagonal.size == 0:
            return 0.0
        q = 0.5 if wish.preference_quantile is None else wish.preference_quantile
        return np.quantile(self._off_diagonal, q)

    def _runner(self, options: Options) -> Run:
        if not self.compiled:
            S = filled(self.kept)
            return lambda p, o: cluster_similarities(S, p, o, self.backend)
        from epruner.cluster.lists import SparseSource

        source = SparseSource(self.kept)
        lists = source.start(options)
        return lambda p, o: cluster_lists(source, lists, p, o)

    def top(self, options: Options) -> float:
        return float(self._off_diagonal.max(initial=0.0))


class FeatureProblem(Problem):
    """Features (n, d), similar by negative squared distance or, with rows of length 1, cosine."""

    def __init__(self, X: Floats, cosine: bool, route: str, backend: str) -> None:
        super().__init__(X.shape[0], X.dtype, backend)
        self.X = X
        self.cosine = cosine
        tiles = route == "tiles" or (route == "auto" and self.n > _LARGEST_MATRIX)
        if route == "tiles" and not self.compiled:
            if backend in ("auto", "native"):
                raise ImportError(f"memory='tiles' needs the compiled solver: {missing}")
            raise ValueError(f"memory='tiles' needs the native solver, not backend={backend!r}")
        self.matrix = None if tiles and self.compiled and self.n > 2 else self._matrix_problem()
        self.kept = self.matrix and self.matrix.kept

    def _matrix_problem(self) -> MatrixProblem:
        memory.require(
            4 * self.n * self.n * self.dtype.itemsize,
            f"a matrix of similarities of {self.n} points",
            "use memory='tiles'",
        )
        S = cosine(self.X) if self.cosine else negative_squared_distances(self.X)
        return MatrixProblem(S, self.backend)

    def prepare(self, wish: Wish, options: Options) -> tuple[Floats, Run]:
        if self.matrix is not None:
            return self.matrix.prepare(wish, options)
        from epruner.cluster.lists import FeatureSource

        source = FeatureSource(self.X, self.cosine)
        n = self.n
        preference: ArrayLike
        if wish.beta is not None:
            lists, medians = source.start_with_medians(options)
            preference = wish.beta * medians
        elif wish.preference is not None:
            lists = source.start(options)
            preference = wish.preference
        else:
            q = wish.preference_quantile
            # The median counts the diagonal, whose n entries are the largest; a quantile does not.
            position = (n * n - 1) / 2 if q is None else q * (n * (n - 1) - 1)
            lists, preference = source.start_with_ranks(options, position)
        identical = not np.ptp(self.X, axis=0).any()
        link = self.top(options)

        def run(p: Floats, o: Options) -> Clustering:
            if identical and (p == p[0]).all():
                return degenerate(p, link)
            return cluster_lists(source, lists, p, o)

        return self._checked(preference), run

    def top(self, options: Options) -> float:
        if self.matrix is not None:
            return self.matrix.top(options)
        return 1.0 if self.cosine else 0.0
