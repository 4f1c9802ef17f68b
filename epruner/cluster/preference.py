"""How preferences are asked for, and between which the number of clusters changes."""

from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from numpy.typing import ArrayLike

from epruner.cluster import validate
from epruner.cluster.backends.cuda.device import from_tensor


@dataclass(frozen=True)
class PreferenceRule:
    """What sets the preferences: at most one of the first three, or the median similarity.

    With `n_clusters` that is the scale at which the search for a common preference starts.
    """

    preference: ArrayLike | None = None
    preference_quantile: float | None = None
    beta: float | None = None
    n_clusters: int | None = None

    def check(self, n: int) -> None:
        """Raise for values that n points cannot have."""
        q, beta = self.preference_quantile, self.beta
        if (self.preference is not None) + (q is not None) + (beta is not None) > 1:
            names = ("preference", "preference_quantile", "beta")
            given = [name for name in names if getattr(self, name) is not None]
            raise ValueError(f"{' and '.join(given)} exclude each other; give one of them")
        if q is not None:
            _require_number("preference_quantile", q)
            if not 0 <= q <= 1:
                raise ValueError(f"preference_quantile={q} must be in [0, 1]")
        if beta is not None:
            _require_number("beta", beta)
            if not 0 < beta < np.inf:
                raise ValueError(f"beta={beta} must be positive")
        k = self.n_clusters
        if k is not None:
            if not isinstance(k, Integral) or isinstance(k, bool):
                raise TypeError(f"n_clusters={k!r} must be an integer")
            if not 1 <= k <= n:
                raise ValueError(f"n_clusters={k} must be between 1 and the {n} points")


def _require_number(name: str, value: object) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be a number")


def preference_range(S: ArrayLike, *, exact: bool = False) -> tuple[float, float]:
    """Return preferences (low, high) between which the number of clusters changes.

    Below `low` one cluster has the largest net similarity; above `high`, the largest similarity,
    every point is its own exemplar.

    Parameters
    ----------
    S : array-like of shape (n, n)
        Finite similarities; the diagonal is ignored.
    exact : bool, default=False
        `low` is otherwise a bound from below, in O(n²); exactly, it takes O(n³).

    Returns
    -------
    low, high : float
        Both of the similarities' unit.

    Raises
    ------
    ValueError
        If `S` is not square, holds one point only, or NaN or infinite entries, -inf included.
    TypeError
        If `S` holds no real numbers.

    References
    ----------
    Frey & Dueck's preferenceRange; `preferenceRange` of R's apcluster.

    Examples
    --------
    >>> import numpy as np
    >>> import epruner
    >>> x = np.array([0.0, 1.0, 2.0, 10.0, 11.0])
    >>> epruner.preference_range(-((x[:, None] - x) ** 2), exact=True)
    (-147.0, -1.0)
    """
    clean = validate.similarities(from_tensor(S, "S"))
    validate.require_finite(clean)
    s = clean.astype(np.float64)
    n = s.shape[0]
    if n < 2:
        raise ValueError("S holds one point: a preference range needs at least two")
    np.fill_diagonal(s, 0)
    if np.isneginf(s).any():
        i, k = np.argwhere(np.isneginf(s))[0]
        raise ValueError(
            f"S[{i}, {k}] is -inf: a preference range begins with one cluster of all points, which "
            "may not exist where pairs must not be linked"
        )
    np.fill_diagonal(s, -np.inf)
    nearest = s.max(axis=1)
    np.fill_diagonal(s, 0)
    one = s.sum(axis=0).max()  # net similarity of the best single cluster, without preferences
    if exact:
        two = max(np.maximum(s[:, [k]], s[:, k + 1 :]).sum(axis=0).max() for k in range(n - 1))
    else:
        two = nearest.sum() - np.partition(nearest, 1)[:2].sum()
    return float(one - two), float(nearest.max())
