"""What goes between the files: options, what a solver returns, what a clustering is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from epruner.cluster.progress import SILENT, Progress

if TYPE_CHECKING:
    from epruner.cluster import _native

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Options:
    """How to iterate: the same for every solver, validated before it gets here.

    `seed` keys the tie-breaking jitter; None is without. `progress` takes what there is to report,
    `rising_damping` asks for runs with more and more damping until one converges.
    """

    damping: float = 0.5
    max_iter: int = 200
    convergence_iter: int = 15
    seed: int | None = 0
    n_threads: int = 1
    progress: Progress = SILENT
    rising_damping: bool = False


@dataclass(frozen=True)
class Messages:
    """The end of the message passing: which points are exemplars, after how many iterations.

    `active_set`, where a solver kept one, tells the nearest exemplar of most points.
    """

    is_exemplar: NDArray[np.bool_]
    n_iter: int
    converged: bool
    active_set: "_native.ActiveSet | None" = None


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

    Examples
    --------
    >>> import numpy as np
    >>> import epruner
    >>> x = np.array([0.0, 1.0, 2.0, 10.0, 11.0])
    >>> S = -((x[:, None] - x) ** 2)
    >>> (clustering,) = epruner.affinity_propagation_many([S], preference=-20.0)
    >>> clustering.exemplars[clustering.labels].tolist()  # the exemplar of each point
    [1, 1, 1, 3, 3]
    >>> clustering.converged, float(clustering.net_similarity)
    (True, -43.0)
    """

    exemplars: Indices
    labels: Indices
    n_iter: int
    converged: bool
    net_similarity: float
