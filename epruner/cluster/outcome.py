"""What a solver returns and what a clustering is: plain data."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from epruner.cluster import _native


@dataclass(frozen=True)
class Options:
    """How to iterate: the same for every solver, validated before it gets here.

    `seed` keys the tie-breaking jitter. `verbose` asks for progress on standard output.
    """

    damping: float = 0.5
    max_iter: int = 200
    convergence_iter: int = 15
    seed: int = 0
    n_threads: int = 1
    verbose: bool = False


@dataclass(frozen=True)
class Messages:
    """The end of the message passing: which points are exemplars, after how many iterations.

    `lists`, where a solver kept any, tell the nearest exemplar of most points.
    """

    is_exemplar: NDArray[np.bool_]
    n_iter: int
    converged: bool
    lists: "_native.ActiveSet | None" = None


@dataclass(frozen=True)
class Clustering:
    """One clustered problem.

    Attributes
    ----------
    exemplars : ndarray of shape (n_clusters,)
        Indices of the exemplars, ascending. Empty if none emerged.
    labels : ndarray of shape (n,)
        Position in `exemplars` of each point's exemplar; -1 where there is none.
    n_iter : int
        Iterations run.
    converged : bool
        Whether the set of exemplars was stable for ``convergence_iter`` iterations.
    net_similarity : float
        Similarities of the points to their exemplars plus the exemplars' preferences: what
        affinity propagation maximises.
    """

    exemplars: NDArray[np.intp]
    labels: NDArray[np.intp]
    n_iter: int
    converged: bool
    net_similarity: float
