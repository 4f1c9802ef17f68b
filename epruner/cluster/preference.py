"""How preferences are asked for, and which of them give how many clusters."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike

from epruner.cluster import validate
from epruner.cluster.types import Clustering

_BRACKETING = 60  # steps of a factor 4 away from the starting point
_BISECTIONS = 40


@dataclass(frozen=True)
class PreferenceRule:
    """What sets the preferences: at most one of the first three, or the median similarity.

    With `n_clusters` that is where the search for a common preference starts.
    """

    preference: ArrayLike | None = None
    preference_quantile: float | None = None
    beta: float | None = None
    n_clusters: int | None = None

    def check(self, n: int) -> None:
        """Raise for values that n points cannot have."""
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


def preference_range(S: ArrayLike, *, exact: bool = False) -> tuple[float, float]:
    """Return preferences (low, high) between which the number of clusters changes.

    Below `low` one cluster has the largest net similarity; above `high`, the largest similarity,
    every point is its own exemplar.

    Parameters
    ----------
    S : array-like of shape (n, n)
        Similarities; the diagonal is ignored.
    exact : bool, default=False
        `low` is otherwise a bound from below, in O(n²); exactly, it takes O(n³).

    References
    ----------
    Frey & Dueck's preferenceRange; `preferenceRange` of R's apcluster.
    """
    clean = validate.similarities(S)
    validate.require_finite(clean)
    s = clean.astype(np.float64)
    n = s.shape[0]
    if n < 2:
        raise ValueError("S holds one point: a preference range needs at least two")
    np.fill_diagonal(s, -np.inf)
    nearest = s.max(axis=1)
    np.fill_diagonal(s, 0)
    one = s.sum(axis=0).max()  # net similarity of the best single cluster, without preferences
    if exact:
        two = max(np.maximum(s[:, [k]], s[:, k + 1 :]).sum(axis=0).max() for k in range(n - 1))
    else:
        two = nearest.sum() - np.partition(nearest, 1)[:2].sum()
    return float(one - two), float(nearest.max())


def search_n_clusters(
    solve: Callable[[float], Clustering], n_clusters: int, start: float, top: float
) -> tuple[Clustering, float]:
    """Search a common preference that gives so many clusters.

    Parameters
    ----------
    solve : callable
        Clusters with one preference for all points.
    n_clusters : int
    start : float
        A preference to start from, below `top`.
    top : float
        A preference that makes (nearly) every point an exemplar: the largest similarity.

    Returns
    -------
    clustering, preference
        Of the closest number of clusters found; converged ones are preferred. Warns where that
        number is not `n_clusters`.
    """
    best: tuple[tuple[int, bool], Clustering, float] | None = None

    def clusters(gap: float) -> int:
        nonlocal best
        clustering = solve(top - gap)
        miss = abs(clustering.exemplars.size - n_clusters)
        if best is None or (miss, not clustering.converged) < best[0]:
            best = ((miss, not clustering.converged), clustering, top - gap)
        return clustering.exemplars.size

    gap = max(top - start, 1e-6 * max(1.0, abs(top)))  # the larger, the fewer clusters
    count = clusters(gap)
    factor = 4.0 if count > n_clusters else 0.25
    many = few = gap
    for _ in range(_BRACKETING):
        if count == n_clusters or (count < n_clusters) == (factor > 1):
            break
        gap *= factor
        count = clusters(gap)
        many, few = (few, gap) if factor > 1 else (gap, many)
    for _ in range(_BISECTIONS):
        if (best is not None and best[0] == (0, False)) or few <= many * (1 + 1e-12):
            break
        gap = float(np.sqrt(many * few))
        many, few = (gap, few) if clusters(gap) > n_clusters else (many, gap)
    assert best is not None
    _, clustering, preference = best
    if clustering.exemplars.size != n_clusters:
        warnings.warn(
            f"no preference was found that gives {n_clusters} clusters; the "
            f"closest, {preference:.6g}, gives {clustering.exemplars.size}",
            stacklevel=4,
        )
    return clustering, preference
