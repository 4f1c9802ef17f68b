"""What is to be clustered: a matrix, a sparse matrix or features, and a rule for the preferences.

A problem knows its similarities and how to cluster with given preferences. `Problem.solve` turns a
rule into preferences, searches the number of clusters and raises the damping.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.metrics import euclidean_distances
from sklearn.utils import check_random_state

from epruner.cluster import _compiled, backends, neighbors, resources, validate
from epruner.cluster.preference import PreferenceRule
from epruner.cluster.search import Search
from epruner.cluster.similarity import (
    cosine,
    filled,
    median,
    median_preference,
    negative_squared_distances,
    quantile,
    weighted,
)
from epruner.cluster.solve import (
    CandidateTrials,
    Run,
    Trials,
    all_equal,
    cluster_candidates,
    cluster_noisy,
    cluster_side_by_side,
    cluster_similarities,
    cluster_while_damping_rises,
    degenerate,
    with_rising_damping,
)
from epruner.cluster.types import Clustering, Floats, Indices, Options

if TYPE_CHECKING:
    from epruner.cluster import _native
    from epruner.cluster.candidates import CandidateSource, SparseSource

_NORMALS = 1 << 15  # random numbers drawn at a time, which stay in cache until used
_LARGEST_MATRIX = 4096  # points; a sweep over tiles is as fast from here on, and needs no n² memory
# Among many points with few links some oscillate for ever, the slower the more damping there is.
_RISING = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
_SAMPLED_ENTRIES, _LEAST_SAMPLE = 1 << 24, 16  # of rows that stand for all


@dataclass(frozen=True)
class Prepared:
    """Preferences (n,) that a rule sets, what clusters with any, and where it keeps its lists."""

    preference: Floats
    run: Run
    lists: "tuple[CandidateSource, _native.ActiveSet] | None" = None


class Solvable(ABC):
    """Points that can be clustered with any preferences."""

    n: int
    dtype: np.dtype[Any]

    @abstractmethod
    def prepare(self, rule: PreferenceRule, options: Options) -> Prepared:
        """Get ready to cluster as the rule says."""

    @abstractmethod
    def top(self, options: Options) -> float:
        """Return a preference that makes nearly every point an exemplar: the largest similarity."""

    @abstractmethod
    def alike(self) -> bool:
        """Whether all similarities of different points are equal."""

    @abstractmethod
    def n_distinct(self) -> int:
        """Return how many points do not coincide with an earlier one."""

    def solve(self, rule: PreferenceRule, options: Options) -> tuple[Clustering, float, Floats]:
        """Return the clustering asked for, its damping and its preferences (n,)."""
        rule.check(self.n)
        prepared = self.prepare(rule, options)
        if rule.n_clusters is not None and self.n > 1:
            return self._search(rule, options, prepared)
        return *self.cluster(prepared, prepared.preference, options), prepared.preference

    def cluster(
        self, prepared: Prepared, preference: Floats, options: Options
    ) -> tuple[Clustering, float]:
        """Cluster with these preferences (n,); return the damping, too, which may rise."""
        if options.rising_damping:
            return with_rising_damping(partial(prepared.run, preference), options)
        return prepared.run(preference, options), options.damping

    def _search(
        self, rule: PreferenceRule, options: Options, prepared: Prepared
    ) -> tuple[Clustering, float, Floats]:
        """Search a common preference that gives so many clusters."""
        wanted = rule.n_clusters
        assert wanted is not None
        top = self.top(options)
        if self.alike():
            preference = self._common(_beside(top, above=wanted == self.n))
            clustering = prepared.run(preference, options)
            if clustering.exemplars.size != wanted:
                warnings.warn(
                    f"no preference gives {wanted} clusters: all similarities are equal, so there "
                    f"is one cluster or there are {self.n}",
                    stacklevel=4,
                )
            return clustering, options.damping, preference
        search = Search(
            self._trials(prepared, options),
            wanted,
            start=self._mean(prepared.preference),
            top=top,
            damping=options.damping,
            guess=rule.preference is None,
            progress=options.progress,
        )
        clustering, preference, used = search.run()
        if clustering.exemplars.size != wanted:
            warnings.warn(
                self._missed(wanted, search.neighbours())
                + f"; {clustering.exemplars.size} are returned",
                stacklevel=4,
            )
        return clustering, used, preference

    def _missed(self, wanted: int, neighbours: list[tuple[int, float]]) -> str:
        """Say what was found where the number wanted was not."""
        said = [f"no preference was found that gives {wanted} clusters"]
        if neighbours:
            said.append(" and ".join(f"{count} at {p:.6g}" for count, p in neighbours))
        distinct = self.n_distinct()
        if distinct < wanted:
            said.append(f"only {distinct} of the {self.n} points are distinct")
        return "; ".join(said)

    def _common(self, preference: float) -> Floats:
        """Return this preference for all points."""
        return np.full(self.n, preference, dtype=self.dtype)

    def _mean(self, preference: Floats) -> float:
        return float(preference.mean(dtype=np.float64))

    @abstractmethod
    def _trials(self, prepared: Prepared, options: Options) -> Trials:
        """Return runs with one preference for all points."""


class Problem(Solvable):
    """Points in this process's memory, or their similarities."""

    def __init__(self, n: int, dtype: np.dtype[Any], backend: str) -> None:
        backends.check(backend)
        self.n = n
        self.dtype = dtype
        self.backend = backend
        self.compiled = _compiled.native is not None and backend in ("auto", "native")

    def some_similarities(self, count: int) -> tuple[Floats, Indices]:
        """Return similarities (m, n) of at most `count` points to all, -inf to themselves, and
        which points (m,)."""
        count = max(_LEAST_SAMPLE, min(count, _SAMPLED_ENTRIES // self.n))
        rows = np.random.default_rng(0).permutation(self.n)[:count]
        S = self._rows(rows)
        S[np.arange(rows.size), rows] = -np.inf
        return S, rows

    @abstractmethod
    def _rows(self, rows: Indices) -> Floats:
        """Return a copy of these rows of the similarities (m, n)."""

    @abstractmethod
    def affinity_matrix(self, preference: Floats, in_place: bool) -> Any:
        """Return the similarities with these preferences on their diagonal, if they are held.

        `in_place` says whether the matrix that was given may be written; else it is copied.
        """

    def _checked(self, preference: ArrayLike) -> Floats:
        return validate.preferences(preference, self.n, self.dtype)

    def _trials(self, prepared: Prepared, options: Options) -> Trials:
        if prepared.lists is None:
            return Trials(self.n, self.dtype, prepared.run, options)
        return CandidateTrials(*prepared.lists, options)


class MatrixProblem(Problem):
    """Similarities (n, n) in memory."""

    similarity_matrix: Floats

    def __init__(self, S: Floats, backend: str, weights: Floats | None = None) -> None:
        super().__init__(S.shape[0], S.dtype, backend)
        self._unweighted = S  # what preference rules refer to
        self.similarity_matrix = S if weights is None else weighted(S, weights)
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

    def prepare(self, rule: PreferenceRule, options: Options) -> Prepared:
        options.progress.stage("preferences")
        preference = self._checked(self._preference(rule, options))
        S = self.similarity_matrix
        whole = rule.n_clusters is None and options.progress.silent  # runs, each in one call
        if whole or self.n == 1 or not self.compiled:
            return Prepared(preference, lambda p, o: cluster_similarities(S, p, o, self.backend))
        from epruner.cluster.candidates import MatrixSource

        options.progress.stage("candidates")
        source = MatrixSource(S)
        active_set = source.start(options)

        def run(p: Floats, o: Options) -> Clustering:
            if all_equal(S, p):
                return cluster_similarities(S, p, o, self.backend)
            return cluster_candidates(source, active_set, p, o)

        return Prepared(preference, run, (source, active_set))

    def _preference(self, rule: PreferenceRule, options: Options) -> ArrayLike:
        S = self._unweighted
        if rule.preference is not None:
            return rule.preference
        if rule.beta is not None:
            return median_preference(S, rule.beta)
        if self.n == 1:
            return 0.0
        if rule.preference_quantile is not None:
            q = rule.preference_quantile
            return quantile(S, q, diagonal=False, n_threads=options.n_threads)
        return median(self._unweighted, options.n_threads)

    def top(self, options: Options) -> float:
        return quantile(self.similarity_matrix, 1.0, diagonal=False, n_threads=options.n_threads)

    def _rows(self, rows: Indices) -> Floats:
        chosen: Floats = self.similarity_matrix[rows]
        return chosen

    def alike(self) -> bool:
        return all_equal(self.similarity_matrix, np.zeros(self.n))

    def n_distinct(self) -> int:
        S = self._unweighted.copy()
        np.fill_diagonal(S, -np.inf)
        np.fill_diagonal(S, S.max(axis=1))  # points that coincide are each other's nearest
        return int(np.unique(np.hstack([S, S.T]) + 0.0, axis=0).shape[0])

    def affinity_matrix(self, preference: Floats, in_place: bool) -> Floats:
        S = self.similarity_matrix if in_place else self.similarity_matrix.copy()
        np.fill_diagonal(S, preference)
        return S


class NoisyProblem(MatrixProblem):
    """Similarities (n, n) in memory whose ties are broken as scikit-learn does: by noise.

    Solvers get a copy with the noise, drawn from `random_state` once it is known to be needed, and
    options without a seed. A search for a number of clusters keeps its noise.
    """

    def __init__(
        self,
        S: Floats,
        backend: str,
        random_state: validate.RandomState,
        weights: Floats | None = None,
    ) -> None:
        super().__init__(S, backend, weights)
        validate.require_finite(S)
        self._random = check_random_state(random_state)
        self._noisy: Floats | None = None

    def prepare(self, rule: PreferenceRule, options: Options) -> Prepared:
        S = self.similarity_matrix

        def run(p: Floats, o: Options) -> Clustering:
            if all_equal(S, p):
                return degenerate(p, float(S[0, -1]))
            return cluster_noisy(S, self._with_noise(p), p, o, self.backend)

        options.progress.stage("preferences")
        return Prepared(self._checked(self._preference(rule, options)), run)

    def _with_noise(self, preference: Floats) -> Floats:
        """Return the similarities, and preferences on their diagonal, with noise."""
        if self._noisy is None:
            self._noisy = np.empty_like(self.similarity_matrix)
            self._own_normal = np.empty(self.n)
            rows = max(1, _NORMALS // self.n)
            for first in range(0, self.n, rows):
                some = slice(first, first + rows)
                normal = self._random.standard_normal(self.similarity_matrix[some].shape)
                self._own_normal[some] = normal.diagonal(first)
                self._noisy[some] = _noisy(self.similarity_matrix[some], normal)
        np.fill_diagonal(self._noisy, _noisy(preference, self._own_normal.copy()))
        return self._noisy

    def affinity_matrix(self, preference: Floats, in_place: bool) -> Floats:
        """Return the similarities with their noise, as scikit-learn keeps them."""
        if self._noisy is None:
            return super().affinity_matrix(preference, in_place)
        return self._noisy


def _noisy(s: Floats, normal: Floats) -> Floats:
    """Similarities with scikit-learn's noise, about one unit in the last place; uses `normal` up.

    The order of operations and their types are scikit-learn's, too.
    """
    info = np.finfo(s.dtype)
    scale = info.eps * s
    scale += info.tiny * 100
    with np.errstate(invalid="ignore"):
        normal *= scale
        normal += s
    normal[s == -np.inf] = -np.inf
    noisy: Floats = normal.astype(s.dtype, copy=False)
    return noisy


class SparseProblem(Problem):
    """Stored pairs of a SciPy CSR matrix."""

    def __init__(self, S: Any, backend: str, weights: Floats | None = None) -> None:
        super().__init__(S.shape[0], S.dtype, backend)
        self._unweighted = S  # what preference rules refer to
        self.S = S if weights is None else weighted(S, weights)

    def prepare(self, rule: PreferenceRule, options: Options) -> Prepared:
        preference = self._checked(self._preference(rule))
        if not self.compiled:
            S = filled(self.S)
            return Prepared(preference, lambda p, o: cluster_similarities(S, p, o, self.backend))
        source = self._source()
        active_set = source.start(options)
        return Prepared(
            preference,
            lambda p, o: cluster_candidates(source, active_set, p, o),
            (source, active_set),
        )

    def _source(self) -> "SparseSource":
        from epruner.cluster.candidates import SparseSource

        return SparseSource(self.S)

    def _preference(self, rule: PreferenceRule) -> ArrayLike:
        if rule.preference is not None:
            return rule.preference
        if rule.beta is not None:
            raise ValueError("beta needs all similarities; a sparse S takes preference or quantile")
        links = _off_diagonal(self._unweighted)
        if links.size == 0:
            return 0.0
        if rule.preference_quantile is not None:
            return float(np.quantile(links, rule.preference_quantile))
        stored = self._unweighted.data  # its diagonal counts
        return float(np.median(stored[stored > -np.inf]))

    def top(self, options: Options) -> float:
        links = _off_diagonal(self.S)
        return float(links.max()) if links.size else 0.0

    def _rows(self, rows: Indices) -> Floats:
        return filled(self.S[rows])

    def alike(self) -> bool:
        return False  # stored pairs may be few

    def n_distinct(self) -> int:
        return self.n  # points without a stored pair are not told apart

    def affinity_matrix(self, preference: Floats, in_place: bool) -> Any:
        stored, own = self.S.tocoo(), np.arange(self.n)
        other = stored.row != stored.col
        values = np.concatenate([stored.data[other], preference])
        rows, columns = (np.concatenate([x[other], own]) for x in (stored.row, stored.col))
        return type(self.S)((values, (rows, columns)), shape=self.S.shape)


def _off_diagonal(S: Any) -> Floats:
    """The stored similarities of different points that may be linked."""
    stored = S.tocoo()
    values: Floats = stored.data[(stored.row != stored.col) & (stored.data > -np.inf)]
    return values


class NeighborProblem(SparseProblem):
    """Features (n, d), each point similar to its nearest neighbours only."""

    def __init__(
        self, X: Any, n_neighbors: int, backend: str, n_threads: int | None, weights: Floats | None
    ) -> None:
        self.X = X
        self._weights = weights
        super().__init__(neighbors.graph(X, n_neighbors, n_threads), backend, weights)

    def cluster(
        self, prepared: Prepared, preference: Floats, options: Options
    ) -> tuple[Clustering, float]:
        if options.rising_damping and prepared.lists is not None:
            return cluster_while_damping_rises(*prepared.lists, preference, options, _RISING)
        return super().cluster(prepared, preference, options)

    def _preference(self, rule: PreferenceRule) -> ArrayLike:
        if rule.preference is None and rule.preference_quantile is None and rule.beta is None:
            return neighbors.preferences(self._unweighted)
        return super()._preference(rule)

    def _source(self) -> "SparseSource":
        from epruner.cluster.candidates import NeighborSource

        return NeighborSource(self.S, self.X, self._weights)

    def n_distinct(self) -> int:
        return _distinct_rows(self.X)


class FeatureProblem(Problem):
    """Features (n, d), similar by negative squared distance or, with rows of length 1, cosine."""

    def __init__(
        self,
        X: Floats,
        cosine: bool,
        route: str,
        backend: str,
        n_threads: int | None,
        weights: Floats | None = None,
    ) -> None:
        super().__init__(X.shape[0], X.dtype, backend)
        self.X = X
        self.cosine = cosine
        if route == "tiles":
            require_compiled("memory='tiles'", backend)
            if weights is not None:
                raise ValueError("sample_weight needs a matrix, not memory='tiles'")
        large = route == "auto" and self.n > _LARGEST_MATRIX and weights is None
        tiles = (route == "tiles" or large) and self.compiled and self.n > 2
        self.matrix = None if tiles else self._matrix_problem(n_threads, weights)
        if self.matrix is None:
            with np.errstate(over="ignore"):
                reach = np.ptp(X, axis=0)
                bound = np.square(reach, dtype=np.float64).sum(keepdims=True)
                validate.require_distances(bound.astype(X.dtype))
            self._identical = not reach.any()

    def _matrix_problem(self, n_threads: int | None, weights: Floats | None) -> MatrixProblem:
        require_matrix_memory(self.n, self.dtype)
        similarities = cosine if self.cosine else negative_squared_distances
        S = similarities(self.X, n_threads)
        return MatrixProblem(S, self.backend, weights)

    def prepare(self, rule: PreferenceRule, options: Options) -> Prepared:
        if self.matrix is not None:
            return self.matrix.prepare(rule, options)
        from epruner.cluster.candidates import FeatureSource

        source = FeatureSource(self.X, self.cosine, options.n_threads)
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
        alike, link = self.alike(), self.top(options)
        if rule.preference_quantile is not None:  # of products, whose rounding may exceed it
            preference = np.minimum(preference, link)

        def run(p: Floats, o: Options) -> Clustering:
            if alike and (p == p[0]).all():
                return degenerate(p, link)
            return cluster_candidates(source, active_set, p, o)

        return Prepared(self._checked(preference), run, (source, active_set))

    def top(self, options: Options) -> float:
        if self.matrix is not None:
            return self.matrix.top(options)
        return 1.0 if self.cosine else 0.0

    def _rows(self, rows: Indices) -> Floats:
        if self.matrix is not None:
            return self.matrix._rows(rows)
        S: Floats
        if self.cosine:
            S = self.X[rows] @ self.X.T
        else:
            S = -euclidean_distances(self.X[rows], self.X, squared=True)
        return S

    def alike(self) -> bool:
        return self.matrix.alike() if self.matrix is not None else self._identical

    def n_distinct(self) -> int:
        return _distinct_rows(self.X)

    def affinity_matrix(self, preference: Floats, in_place: bool) -> Floats | None:
        if self.matrix is None:
            return None
        return self.matrix.affinity_matrix(preference, in_place=True)


def require_compiled(what: str, backend: str) -> None:
    """Raise unless this backend is the compiled solver, and there."""
    backends.check(backend)
    if backend not in ("auto", "native"):
        raise ValueError(f"{what} needs the native solver, not backend={backend!r}")
    _compiled.require(what)


def matrix_memory(n: int, dtype: np.dtype[Any]) -> int:
    """Return the bytes that a matrix of similarities of `n` points takes, and messages."""
    return 4 * n * n * dtype.itemsize


def require_matrix_memory(n: int, dtype: np.dtype[Any], advice: str = "use memory='tiles'") -> None:
    """Raise if a matrix of similarities of `n` points, and messages, do not fit in memory."""
    resources.require_memory(
        matrix_memory(n, dtype), f"a matrix of similarities of {n} points", advice
    )


def _distinct_rows(X: Any) -> int:
    """How many rows of an array, or of a SciPy sparse matrix, differ from all before them."""
    if issparse(X):
        csr = X.tocsr(copy=True)
        csr.sum_duplicates()
        csr.eliminate_zeros()
        parts = (csr.indices, csr.data)
        return len({tuple(x[a:b].tobytes() for x in parts) for a, b in pairwise(csr.indptr)})
    return int(np.unique(X + 0.0, axis=0).shape[0])


def _beside(link: float, *, above: bool) -> float:
    """Return a preference above or below a similarity."""
    return link + max(1.0, abs(link)) * (1 if above else -1)


def solve_many(
    problems: Sequence[MatrixProblem], preferences: Sequence[Any], options: Options
) -> list[Clustering]:
    """Cluster several problems, one thread each; where they are fewer, threads work inside them."""
    rules = [PreferenceRule(preference) for preference in preferences]

    def solve(q: int, options: Options) -> Clustering:
        return problems[q].solve(rules[q], options)[0]

    in_order = options.seed is None  # noise comes from one generator
    if in_order or len(problems) < options.n_threads:
        return [solve(q, options) for q in range(len(problems))]
    if problems[0].compiled:
        try:
            own = [
                p.prepare(rule, options).preference for p, rule in zip(problems, rules, strict=True)
            ]
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
