"""Several problems in one call: the layers of a network, the folds of a search."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from epruner.cluster import gpu, validate
from epruner.cluster.outcome import Clustering, Options
from epruner.cluster.problem import MatrixProblem, Wish
from epruner.cluster.solve import cluster_side_by_side


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
    if len(cleaned) < options.n_threads:
        return [_solve(problem, p, options) for problem, p in zip(cleaned, each, strict=True)]
    if cleaned[0].compiled:
        return _compiled(cleaned, each, options)
    alone = replace(options, n_threads=1)
    order = sorted(range(len(cleaned)), key=lambda index: -cleaned[index].n)
    with ThreadPoolExecutor(options.n_threads) as pool:
        solved = pool.map(lambda index: _solve(cleaned[index], each[index], alone), order)
        found = dict(zip(order, solved, strict=True))
    return [found[index] for index in range(len(cleaned))]


def _solve(problem: MatrixProblem, preference: Any, options: Options) -> Clustering:
    return problem.solve(Wish(preference=preference), options)[0]


def _compiled(
    problems: list[MatrixProblem], preferences: Sequence[Any], options: Options
) -> list[Clustering]:
    try:
        each = [
            problem.prepare(Wish(preference=p), options)[0]
            for problem, p in zip(problems, preferences, strict=True)
        ]
        return cluster_side_by_side([problem.kept for problem in problems], each, options)
    except ValueError:
        for problem in problems:
            problem.explain()
        raise
