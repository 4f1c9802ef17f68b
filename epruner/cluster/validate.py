"""Checks at the door, in argument order. Behind them, arrays are clean and options are sane."""

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from epruner.cluster.progress import reporter
from epruner.cluster.resources import effective_n_threads
from epruner.cluster.types import Floats, Options

RandomState = int | np.random.RandomState | None

TIES = ("fast", "scikit-learn")


def similarities(S: ArrayLike) -> Floats:
    """Return `S` as a C-contiguous float32 or float64 square matrix, copied only where needed.

    Its entries are not looked at; see `require_finite`.
    """
    array = np.asarray(S)
    if array.dtype not in (np.float32, np.float64):
        if array.dtype.kind not in "iufb":
            raise TypeError(f"S must hold real numbers, got dtype {array.dtype}")
        array = array.astype(np.float64 if array.dtype.kind != "f" else np.float32)
    _require_square(array.shape)
    return np.ascontiguousarray(array)


def require_finite(S: Floats) -> None:
    """Raise for entries of `S` (n, n), off the diagonal, that are NaN or +inf."""
    bad = ~(np.finfo(S.dtype).max >= S)
    np.fill_diagonal(bad, False)
    if bad.any():
        i, k = np.argwhere(bad)[0]
        raise ValueError(
            f"S[{i}, {k}] is {S[i, k]}: similarities must be finite, "
            "or -inf for pairs that must not be linked"
        )


def require_similarities(S: Floats) -> None:
    """Raise for entries of `S` (m, k) that are NaN or +inf."""
    bad = np.isnan(S) | np.isposinf(S)
    if bad.any():
        i, k = np.argwhere(bad)[0]
        raise ValueError(
            f"X[{i}, {k}] is {S[i, k]}: similarities must be finite, "
            "or -inf for pairs that must not be linked"
        )


def require_distances(squared: Floats, what: str = "the features") -> None:
    """Raise unless squared distances or norms are finite, with room to add a few of them."""
    most = float(squared.max(initial=0.0))
    if most <= np.finfo(squared.dtype).max / 8:
        return
    if np.isnan(most):
        raise ValueError(f"{what} hold NaN or infinite values; every entry must be finite")
    raise ValueError(
        f"squares of {what} overflow {squared.dtype}: scale them, as in X / abs(X).max()"
    )


def sparse_similarities(S: Any) -> Any:
    """Return the SciPy sparse matrix `S` as CSR in float32 or float64 without duplicates."""
    _require_square(S.shape)
    return sparse_rows(S)


def sparse_rows(S: Any) -> Any:
    """Do the same for some rows (m, n) of sparse similarities."""
    csr = S.tocsr()
    if csr.dtype not in (np.float32, np.float64):
        csr = csr.astype(np.float64)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    bad = ~(csr.data <= np.finfo(csr.dtype).max)
    if bad.any():
        raise ValueError(
            f"S stores {csr.data[bad][0]}: stored similarities must be finite; leave out the "
            "pairs that must not be linked"
        )
    return csr


def _require_square(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"The matrix of similarities must be a square array. Got {shape} instead.")
    if shape[0] == 0:
        raise ValueError("S holds no points: at least one is needed")


def preferences(preference: ArrayLike, n: int, dtype: Any) -> Floats:
    """Return one finite preference for each of `n` points."""
    try:
        p = np.asarray(preference, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"preference={preference!r} must be a number, one number per point, or None for the "
            "median similarity"
        ) from error
    if p.ndim != 0 and p.shape != (n,):
        raise ValueError(
            f"preference must be a scalar or have one entry per point: "
            f"got shape {p.shape} for {n} points"
        )
    if not np.isfinite(p).all():
        raise ValueError("preference holds NaN or infinite values; every entry must be finite")
    return np.full(n, p) if p.ndim == 0 else p


def weights(sample_weight: ArrayLike | None, n: int, dtype: Any) -> Floats | None:
    """Return the positive weight of each of `n` points; None where all count alike."""
    if sample_weight is None:
        return None
    try:
        w = np.asarray(sample_weight, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"sample_weight={sample_weight!r} must be None or one number per point"
        ) from error
    if w.shape != (n,):
        raise ValueError(
            f"sample_weight must have one entry per point: got shape {w.shape} for {n} points"
        )
    bad = np.flatnonzero(~((w > 0) & (w < np.inf)))
    if bad.size:
        raise ValueError(
            f"sample_weight[{bad[0]}] is {w[bad[0]]}: weights must be positive and finite; leave "
            "out points whose weight is zero, and predict them"
        )
    return None if (w == 1).all() else w


def options(
    damping: Any,
    max_iter: int,
    convergence_iter: int,
    random_state: RandomState,
    *,
    n_threads: int | None = None,
    verbose: bool = False,
    rising_damping: bool = False,
    ties: str = "fast",
) -> Options:
    """Check the iteration parameters and turn `random_state` into the key of the jitter, if any."""
    if not isinstance(damping, Real):
        raise TypeError(f"damping={damping!r} must be a number in [0.5, 1)")
    if not 0.5 <= float(damping) < 1:
        raise ValueError(f"damping={damping} must be in [0.5, 1)")
    for name, value in (("max_iter", max_iter), ("convergence_iter", convergence_iter)):
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise TypeError(f"{name}={value!r} must be an integer")
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if ties not in TIES:
        raise ValueError(f"ties={ties!r} is not one of {', '.join(TIES)}")
    return Options(
        damping=float(damping),
        max_iter=int(max_iter),
        convergence_iter=int(convergence_iter),
        seed=_seed(random_state) if ties == "fast" else None,
        n_threads=effective_n_threads(n_threads),
        progress=reporter(bool(verbose), int(max_iter), int(convergence_iter)),
        rising_damping=rising_damping,
    )


def _seed(random_state: RandomState) -> int:
    if random_state is None:
        return 0
    if isinstance(random_state, Integral):
        return int(random_state) % 2**63
    return int(check_random_state(random_state).randint(2**31 - 1))
