"""Clustering problems of many kinds, and what can be asked of a solver on each of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits, make_blobs, make_moons

from epruner.cluster.backends import reference
from epruner.cluster.similarity import negative_squared_distances
from epruner.cluster.types import Messages, Options

Floats = NDArray[np.floating[Any]]
SEEDS = (0, 1, 2)
MAX_ITER = 300


def _blobs(n: int, rng: np.random.Generator) -> Floats:
    X, _ = make_blobs(n, n_features=8, centers=max(2, n // 12), random_state=rng.integers(2**31))
    return negative_squared_distances(X)


def _moons(n: int, rng: np.random.Generator) -> Floats:
    X, _ = make_moons(n, noise=0.05, random_state=rng.integers(2**31))
    return negative_squared_distances(X)


def _digits(n: int, rng: np.random.Generator) -> Floats:
    X = load_digits().data
    if n > len(X):
        X = np.vstack([X, X + rng.normal(size=X.shape)])
    return negative_squared_distances(X[:n])


def _gaussian(n: int, rng: np.random.Generator) -> Floats:
    return negative_squared_distances(rng.normal(size=(n, 32)))


def _duplicates(n: int, rng: np.random.Generator) -> Floats:
    X = rng.normal(size=(n, 5))
    X[n - n // 4 :] = X[: n // 4]  # every one of these has an exact twin
    return negative_squared_distances(X)


def _integers(n: int, rng: np.random.Generator) -> Floats:
    upper = np.triu(-rng.integers(1, 40, size=(n, n)), 1)
    return (upper + upper.T).astype(np.float64)


def _directed(n: int, rng: np.random.Generator) -> Floats:
    return _blobs(n, rng) * rng.uniform(0.8, 1.2, size=(n, n))


def _forbidden(n: int, rng: np.random.Generator) -> Floats:
    S = _gaussian(n, rng)
    S[rng.random((n, n)) < 0.5] = -np.inf
    S[n // 2, :] = S[:, n // 2] = -np.inf  # a point that can be linked to nobody
    np.fill_diagonal(S, 0)
    return S


KINDS: dict[str, Callable[[int, np.random.Generator], Floats]] = {
    "blobs": _blobs,
    "moons": _moons,
    "digits": _digits,
    "gaussian": _gaussian,
    "duplicates": _duplicates,
    "integers": _integers,
    "directed": _directed,
    "forbidden": _forbidden,
}


@dataclass(frozen=True)
class Case:
    """A problem and how to iterate on it; the preference is `factor` times the median.

    With `broken_ties` the preferences differ by parts in a thousand. Otherwise two points that are
    each other's nearest are tied in a symmetric S, and the jitter decides between them.
    """

    kind: str
    n: int
    dtype: str
    damping: float
    factor: float
    broken_ties: bool

    def __str__(self) -> str:
        ties = "broken" if self.broken_ties else "tied"
        return f"{self.kind}-{self.n}-{self.dtype}-{self.damping}-x{self.factor:g}-{ties}"

    def options(self, seed: int = 0, n_threads: int = 1) -> Options:
        return Options(self.damping, MAX_ITER, seed=seed, n_threads=n_threads)


def preferences(S: Floats, factor: float, broken_ties: bool) -> Floats:
    """Preferences (n,) of a case, in the dtype of `S`."""
    n = S.shape[0]
    off_diagonal = S[~np.eye(n, dtype=bool)]
    finite = off_diagonal[np.isfinite(off_diagonal)]
    p = np.full(n, factor * (np.median(finite) if finite.size else -1.0))
    if broken_ties:
        p *= 1 + 1e-3 * np.random.default_rng(n).normal(size=n)
    return p.astype(S.dtype)


def problem(case: Case) -> tuple[Floats, Floats]:
    """(similarities, preferences) of a case, the same on every call."""
    S = KINDS[case.kind](case.n, np.random.default_rng([case.n, len(case.kind)]))
    S = np.ascontiguousarray(S, dtype=case.dtype)
    return S, preferences(S, case.factor, case.broken_ties)


@dataclass(frozen=True)
class Verdict:
    """What the reference says: exemplar flags where they may be compared, and iterations where.

    A case is well posed when the reference converges to the same exemplars whatever the jitter;
    its iterations may be compared when they, too, do not depend on the jitter.
    """

    is_exemplar: NDArray[np.bool_] | None
    n_iter: int | None


def judge(S: Floats, preference: Floats, options: Callable[[int], Options]) -> Verdict:
    """Run the reference once per seed."""
    runs: list[Messages] = []
    for seed in SEEDS:
        run = reference.solve(S, preference, options(seed))
        if not run.converged or (runs and (run.is_exemplar != runs[0].is_exemplar).any()):
            return Verdict(None, None)
        runs.append(run)
    same = len({run.n_iter for run in runs}) == 1
    return Verdict(runs[0].is_exemplar, runs[0].n_iter if same else None)


@cache
def verdict(case: Case) -> Verdict:
    """The reference's verdict on a case; it is slow, so every test shares one."""
    return judge(*problem(case), case.options)


def pairwise(axes: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Few combinations of one value per axis in which every pair of values of two axes occurs.

    Greedy: among the combinations that hold the first pair still missing, take the one with the
    most missing pairs, the first of equals.
    """

    def pairs(row: Iterable[int]) -> set[tuple[int, int, int, int]]:
        return {(x, y, u, v) for (x, u), (y, v) in combinations(enumerate(row), 2)}

    rows = list(product(*(range(len(axis)) for axis in axes)))
    missing = set().union(*(pairs(row) for row in rows))
    chosen = []
    while missing:
        x, y, u, v = min(missing)
        row = max(
            (row for row in rows if row[x] == u and row[y] == v),
            key=lambda row: len(pairs(row) & missing),
        )
        missing -= pairs(row)
        chosen.append(tuple(axis[index] for axis, index in zip(axes, row, strict=True)))
    return chosen
