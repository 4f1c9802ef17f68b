"""Several problems in one call: the layers of a network, the folds of a search."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from epruner.cluster import gpu, validate
from epruner.cluster.outcome import Clustering
from epruner.cluster.problem import MatrixProblem, Wish

_WORTH_A_POOL = 1 << 16  # entries of all problems together; below, starting threads costs more


def affinity_propagation_many(
    problems: Sequence[ArrayLike],
    *,
    preference: Sequence[ArrayLike | None] | float | None = None,
    damping: float = 0.5,
    max_iter: int = 200,
    convergence_iter: int = 15,
    random_state: validate.RandomState = None,
    backend: str = "auto",
    n_threads: int | None = None,
) -> list[Clustering]:
    """Cluster several similarity matrices at once, one thread each, the largest first.

    Parameters
    ----------
    problems : sequence of array-like of shape (n_i, n_i)
        Similarities of each problem, as for `affinity_propagation`. Never written.
    preference : float, None, or a sequence with one entry per problem
        Each entry is a scalar, an array of shape (n_i,), or None for the median similarity.
    damping, max_iter, convergence_iter, random_state, backend, n_threads
        As for `affinity_propagation`, the same for every problem. Where problems are fewer than
        threads, threads work inside them.

    Returns
    -------
    list of Clustering
        In the order of `problems`. A problem that did not converge says so in ``converged``;
        no warning is raised.

    Raises
    ------
    ValueError
        If a matrix is not square, holds NaN or +inf, or a preference has the wrong length.
    """
    options = validate.options(
        damping, max_iter, convergence_iter, random_state, n_threads=n_threads
    )
    each: Sequence[Any]
    if isinstance(preference, Sequence | np.ndarray):
        each = list(preference)
    else:
        each = [preference] * len(problems)
    if len(each) != len(problems):
        raise ValueError(f"preference has {len(each)} entries for {len(problems)} problems")
    if gpu.wanted(problems, backend):
        return gpu.cluster_many(problems, each, options)
    cleaned = [MatrixProblem(validate.similarities(S), backend) for S in problems]
    work = sum(problem.n**2 for problem in cleaned)
    workers = options.n_threads
    if work < _WORTH_A_POOL or len(cleaned) < workers:
        workers = 1
    else:
        options = replace(options, n_threads=1)

    def solve(index: int) -> Clustering:
        return cleaned[index].solve(Wish(preference=each[index]), options)[0]

    if workers == 1:
        return [solve(index) for index in range(len(cleaned))]
    order = sorted(range(len(cleaned)), key=lambda index: -cleaned[index].n)
    with ThreadPoolExecutor(workers) as pool:
        solved = dict(zip(order, pool.map(solve, order), strict=True))
    return [solved[index] for index in range(len(cleaned))]
