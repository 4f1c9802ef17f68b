"""Random clustering problems against the reference, by every way in, for as long as is asked.

    python tests/sanitizers/random_problems.py SECONDS [FIRST_SEED]

Prints the seed of each problem that went wrong, to be repeated with ``1 SEED``, and exits with 1.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "cluster"))

from problems import KINDS, Floats, judge, preferences

from epruner import AffinityPropagation, affinity_propagation, affinity_propagation_many
from epruner.cluster import backends
from epruner.cluster.backends import reference
from epruner.cluster.types import Options

Labels = NDArray[np.intp]


def well_posed(S: Floats, p: Floats, expected: NDArray[np.bool_], options: Options) -> bool:
    """Whether the reference finds the same exemplars when it adds up in other orders."""
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(S))
        again = reference.solve(np.ascontiguousarray(S[np.ix_(order, order)]), p[order], options)
        if not again.converged or (again.is_exemplar != expected[order]).any():
            return False
    return True


def solvers_agree(rng: np.random.Generator, S: Floats, p: Floats) -> str:
    """Compiled solvers on any number of threads."""
    damping = float(rng.choice([0.5, 0.7, 0.9]))
    verdict = judge(S, p, lambda seed: Options(damping, 300, seed=seed))
    found = {
        (backend, threads): backends.get(backend)(S, p, Options(damping, 300, n_threads=threads))
        for backend in ("native", "dense")
        for threads in (1, 2, 3)
    }
    for (backend, threads), answer in found.items():
        alone = found[backend, 1]
        if (answer.is_exemplar != alone.is_exemplar).any() or answer.n_iter != alone.n_iter:
            return f"{backend}: {threads} threads change the answer"
        expected = verdict.is_exemplar
        if (
            expected is not None
            and (answer.is_exemplar != expected).any()
            and well_posed(S, p, expected, Options(damping, 300))
        ):
            return f"{backend}: not the exemplars of the reference"
    return ""


def same_clusters(one: Labels, other: Labels) -> bool:
    """Whether the same points are together, whoever of equally good members stands for them."""
    together = {(int(a), int(b)) for a, b in zip(one, other, strict=True)}
    return len(together) == len(set(one.tolist())) == len(set(other.tolist()))


def sparse_is_dense(rng: np.random.Generator, S: Floats, p: Floats) -> str:
    """Similarities that a sparse matrix does not store are -inf."""
    linked = rng.random(S.shape) < rng.choice([0.05, 0.5, 1.0])
    blocked = np.where(linked & np.isfinite(S) & (S != 0), S, -np.inf).astype(S.dtype)
    stored = scipy.sparse.csr_matrix(np.where(np.isfinite(blocked), S, 0))
    threads = int(rng.integers(1, 4))
    options: dict[str, Any] = {"preference": p, "damping": 0.7, "n_threads": threads}
    one, other = (affinity_propagation(x, **options)[1] for x in (stored, blocked))
    expected = judge(blocked, p, lambda seed: Options(0.7, seed=seed)).is_exemplar
    if (
        expected is not None
        and not same_clusters(one, other)
        and well_posed(blocked, p, expected, Options(0.7))
    ):
        return "sparse and dense differ"
    return ""


def many_are_each(rng: np.random.Generator, S: Floats, p: Floats) -> str:
    """Several problems in one call are as each alone."""
    problems = [
        np.ascontiguousarray(S[:n, :n]) for n in rng.integers(1, len(S) + 1, rng.integers(1, 6))
    ]
    options: dict[str, Any] = {"damping": 0.7, "n_threads": int(rng.integers(1, 4))}
    together = affinity_propagation_many(problems, **options)
    for problem, answer in zip(problems, together, strict=True):
        if (affinity_propagation(problem, **options)[1] != answer.labels).any():
            return f"{len(problems)} problems together are not as each alone"
    return ""


def features_are_clustered(rng: np.random.Generator, S: Floats, p: Floats) -> str:
    """Tiles, cosine, searches for a number of clusters, points all alike: labels name clusters."""
    n = len(S)
    X = rng.normal(size=(n, int(rng.integers(1, 9)))).astype(S.dtype)
    if rng.random() < 0.3:
        X[rng.integers(0, n, n // 2)] = X[0]
    wanted = int(rng.integers(1, n + 1)) if rng.random() < 0.5 else None
    fit = AffinityPropagation(
        memory=str(rng.choice(["auto", "matrix", "tiles"])),
        affinity=str(rng.choice(["euclidean", "cosine"])),
        damping=0.7,
        n_clusters=wanted,
        n_threads=int(rng.integers(1, 4)),
    ).fit(X)
    if fit.labels_.shape != (n,) or fit.labels_.max() >= len(fit.cluster_centers_indices_):
        return "labels without a cluster"
    return ""


CHECKS: Sequence[Callable[[np.random.Generator, Floats, Floats], str]] = (
    solvers_agree,
    sparse_is_dense,
    many_are_each,
    features_are_clustered,
)


def run(seed: int) -> str:
    """What is wrong with this problem, if anything."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(list(KINDS)))
    n = int(rng.choice([2, 3, 5, 17, 40, 65, 130, 200]))
    dtype = str(rng.choice(["float32", "float64"]))
    S = np.ascontiguousarray(KINDS[kind](n, rng), dtype=dtype)
    p = preferences(S, float(rng.choice([0.3, 1.0, 3.0, 20.0])), bool(rng.random() < 0.8))
    wrong = CHECKS[seed % len(CHECKS)](rng, S, p)
    return wrong and f"{wrong} ({kind}, n = {n}, {dtype})"


def main() -> int:
    seconds, first = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    warnings.simplefilter("ignore")  # runs that do not converge
    end, seed, failed = time.monotonic() + seconds, first, 0
    while time.monotonic() < end:
        if wrong := run(seed):
            failed += 1
            print(f"seed {seed}: {wrong}")
        seed += 1
    print(f"{seed - first} problems, {failed} wrong")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
