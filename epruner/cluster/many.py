"""Several problems in one call: the layers of a network, the folds of a search."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from epruner.cluster import validate
from epruner.cluster.outcome import Clustering
from epruner.cluster.solve import cluster_similarities


def affinity_propagation_many(
    problems: Sequence[ArrayLike],
    *,
    preference: Sequence[ArrayLike | None] | float | None = None,
    damping: float = 0.5,
    max_iter: int = 200,
    convergence_iter: int = 15,
    random_state: int | np.random.RandomState | None = None,
    backend: str = "auto",
    n_threads: int | None = None,
) -> list[Clustering]:
    """Cluster several similarity matrices at once.

    Parameters
    ----------
    problems : sequence of array-like of shape (n_i, n_i)
        Similarities of each problem, as for `affinity_propagation`. Never written.
    preference : float, None, or a sequence with one entry per problem
        Each entry is a scalar, an array of shape (n_i,), or None for the median similarity.
    damping, max_iter, convergence_iter, random_state, backend, n_threads
        As for `affinity_propagation`, the same for every problem.

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
    if preference is None or np.isscalar(preference):
        preference = [preference] * len(problems)  # type: ignore[list-item]
    if len(preference) != len(problems):  # type: ignore[arg-type]
        raise ValueError(
            f"preference has {len(preference)} entries for {len(problems)} problems"  # type: ignore[arg-type]
        )
    results = []
    for S, p in zip(problems, preference, strict=True):  # type: ignore[arg-type]
        clean = validate.similarities(S)
        results.append(
            cluster_similarities(clean, validate.preferences(p, clean), options, backend)
        )
    return results
