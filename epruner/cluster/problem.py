"""What is to be clustered: a matrix, a sparse matrix or features, and a rule for the preferences.

A problem knows its similarities and how to cluster with given preferences. `Problem.solve` turns a
rule into preferences, searches the number of clusters and raises the damping.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from epruner.cluster import _compiled, backends, resources, validate
from epruner.cluster.preference import PreferenceRule, search_n_clusters
from epruner.cluster.similarity import (
    cosine,
    filled,
    median_preference,
    negative_squared_distances,
    quantile,
)
from epruner.cluster.solve import (
    all_equal,
    cluster_candidates,
    cluster_side_by_side,
    cluster_similarities,
    degenerate,
    with_rising_damping,
)
from epruner.cluster.types import Clustering, Floats, Options

Run = Callable[[Floats, Options], Clustering]

_LARGEST_MATRIX = 4096  # points; a sweep over tiles is as fast from here on, and needs no n² memory


class Problem(ABC):
    """Points to cluster."""

    n: int
    dtype: np.dtype[Any]
    similarity_matrix: Any = None  # where similarities are held as one

    def __init__(self, n: int, dtype: np.dtype[Any], backend: str) -> None:
        backends.check(backend)
        self.n = n
        self.dtype = dtype
        self.backend = backend
        self.compiled = _compiled.native is not None and backend in ("auto", "native")

    @abstractmethod
    def prepare(self, rule: PreferenceRule, options: Options) -> tuple[Floats, Run]:
        """Return the preferences (n,) that the rule sets, and what clusters with any."""

    @abstractmethod
    def top(self, options: Options) -> float:
        """Return a preference that makes nearly every point an exemplar."""

    def solve(self, rule: PreferenceRule, options: Options) -> tuple[Clustering, float, Floats]:
        """Return the clustering asked for, its damping and its preferences (n,)."""
        rule.check(self.n)
        preference, run = self.prepare(rule, options)
        used = options.damping
        # A search compares numbers of clusters, which mean nothing in runs that oscillate.
        rising = options.rising_damping or rule.n_clusters is not None

        def cluster(p: Floats) -> Clustering:
            nonlocal used
            if not rising:
                return run(p, options)
            clustering, used = with_rising_damping(lambda o: run(p, o), options)
            return clustering

        if rule.n_clusters is None or self.n == 1:
            return cluster(preference), used, preference

        def common(p: float) -> Floats:
            return np.full(self.n, p, dtype=self.dtype)

        clustering, found = search_n_clusters(
            lambda p: cluster(common(p)),
            rule.n_clusters,
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
        self.similarity_matrix = S
        if not self.compiled:
            validate.require_finite(S)

    def solve(self, rule: PreferenceRule, options: Options) -> tuple[Clustering, float, Floats]:
        try:
            return super().solve(rule, options)
        except ValueError:
            self.explain()
            raise

    def explain(self) -> None:
        """Raise for entries that are no similarities: the compiled solver does not say where."""
        if self.compiled:
            validate.require_finite(self.similarity_matrix)

    def prepare(self, rule: PreferenceRule, options: Options) -> tuple[Floats, Run]:
        return self._checked(self._preference(rule, options)), self._runner(rule, options)

    def _preference(self, rule: PreferenceRule, options: Options) -> ArrayLike:
        S = self.similarity_matrix
        if rule.preference is not None:
            return rule.preference
        if rule.beta is not None:
            return median_preference(S, rule.beta)
        if self.n == 1:
            return 0.0
        if rule.preference_quantile is not None:
            q = rule.preference_quantile
            return quantile(S, q, diagonal=False, n_threads=options.n_threads)
        return quantile(S, 0.5, diagonal=True, n_threads=options.n_threads)

    def _runner(self, rule: PreferenceRule, options: Options) -> Run:
        S = self.similarity_matrix
        once = rule.n_clusters is None and not options.rising_damping and not options.verbose
        if once or self.n == 1 or not self.compiled:
            return lambda p, o: cluster_similarities(S, p, o, self.backend)
        from epruner.cluster.candidates import MatrixSource

        source = MatrixSource(S)
        active_set = source.start(options)

        def run(p: Floats, o: Options) -> Clustering:
            if all_equal(S, p):
                return cluster_similarities(S, p, o, self.backend)
            return cluster_candidates(source, active_set, p, o)

        return run

    def top(self, options: Options) -> float:
        return quantile(self.similarity_matrix, 1.0, diagonal=False, n_threads=options.n_threads)


class SparseProblem(Problem):
    """Stored pairs of a SciPy CSR matrix."""

    def __init__(self, S: Any, backend: str) -> None:
        super().__init__(S.shape[0], S.dtype, backend)
        self.similarity_matrix = S

    @cached_property
    def _off_diagonal(self) -> Floats:
        stored = self.similarity_matrix.tocoo()
        values: Floats = stored.data[(stored.row != stored.col) & (stored.data > -np.inf)]
        return values

    def prepare(self, rule: PreferenceRule, options: Options) -> tuple[Floats, Run]:
        return self._checked(self._preference(rule)), self._runner(options)

    def _preference(self, rule: PreferenceRule) -> ArrayLike:
        if rule.preference is not None:
            return rule.preference
        if rule.beta is not None:
            raise ValueError("beta needs all similarities; a sparse S takes preference or quantile")
        if self._off_diagonal.size == 0:
            return 0.0
        q = 0.5 if rule.preference_quantile is None else rule.preference_quantile
        return np.quantile(self._off_diagonal, q)

    def _runner(self, options: Options) -> Run:
        if not self.compiled:
            S = filled(self.similarity_matrix)
            return lambda p, o: cluster_similarities(S, p, o, self.backend)
        from epruner.cluster.candidates import SparseSource

        source = SparseSource(self.similarity_matrix)
        active_set = source.start(options)
        return lambda p, o: cluster_candidates(source, active_set, p, o)

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
                _compiled.require("memory='tiles'")
            raise ValueError(f"memory='tiles' needs the native solver, not backend={backend!r}")
        self.matrix = None if tiles and self.compiled and self.n > 2 else self._matrix_problem()
        self.similarity_matrix = self.matrix and self.matrix.similarity_matrix

    def _matrix_problem(self) -> MatrixProblem:
        resources.require_memory(
            4 * self.n * self.n * self.dtype.itemsize,
            f"a matrix of similarities of {self.n} points",
            "use memory='tiles'",
        )
        S = cosine(self.X) if self.cosine else negative_squared_distances(self.X)
        return MatrixProblem(S, self.backend)

    def prepare(self, rule: PreferenceRule, options: Options) -> tuple[Floats, Run]:
        if self.matrix is not None:
            return self.matrix.prepare(rule, options)
        from epruner.cluster.candidates import FeatureSource

        source = FeatureSource(self.X, self.cosine)
        n = self.n
        preference: ArrayLike
        if rule.beta is not None:
            active_set, medians = source.start_with_medians(options)
            preference = rule.beta * medians
        elif rule.preference is not None:
            active_set = source.start(options)
            preference = rule.preference
        else:
            q = rule.preference_quantile
            # The median counts the diagonal, whose n entries are the largest; a quantile does not.
            position = (n * n - 1) / 2 if q is None else q * (n * (n - 1) - 1)
            active_set, preference = source.start_with_ranks(options, position)
        identical = not np.ptp(self.X, axis=0).any()
        link = self.top(options)

        def run(p: Floats, o: Options) -> Clustering:
            if identical and (p == p[0]).all():
                return degenerate(p, link)
            return cluster_candidates(source, active_set, p, o)

        return self._checked(preference), run

    def top(self, options: Options) -> float:
        if self.matrix is not None:
            return self.matrix.top(options)
        return 1.0 if self.cosine else 0.0


def solve_many(
    problems: Sequence[MatrixProblem], preferences: Sequence[Any], options: Options
) -> list[Clustering]:
    """Cluster several problems, one thread each; where they are fewer, threads work inside them."""
    rules = [PreferenceRule(preference) for preference in preferences]

    def solve(q: int, options: Options) -> Clustering:
        return problems[q].solve(rules[q], options)[0]

    if len(problems) < options.n_threads:
        return [solve(q, options) for q in range(len(problems))]
    if problems[0].compiled:
        try:
            own = [p.prepare(rule, options)[0] for p, rule in zip(problems, rules, strict=True)]
            return cluster_side_by_side([p.similarity_matrix for p in problems], own, options)
        except ValueError:
            for problem in problems:
                problem.explain()
            raise
    alone = replace(options, n_threads=1)
    largest_first = sorted(range(len(problems)), key=lambda q: -problems[q].n)
    with ThreadPoolExecutor(options.n_threads) as pool:
        solved = pool.map(lambda q: solve(q, alone), largest_first)
        found = dict(zip(largest_first, solved, strict=True))
    return [found[q] for q in range(len(problems))]
