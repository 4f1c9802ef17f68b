"""Clusterings of similarities and of features on a device: checks, degenerate problems, results."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from epruner.cluster import validate
from epruner.cluster.gpu.arrays import adopt, engine_for, on_device, refuse_gradient
from epruner.cluster.gpu.decode import decode
from epruner.cluster.gpu.engine import Array, Engine, cover
from epruner.cluster.gpu.messages import pass_messages
from epruner.cluster.gpu.problems import Features, Matrices, medians, problem_table
from epruner.cluster.outcome import Clustering, Options

_INVALID, _LINKS_DIFFER, _PREFERENCES_DIFFER, _PREFERENCE_INVALID = 1, 2, 4, 8


def cluster_many(
    problems: Sequence[Any], preference: Sequence[ArrayLike | None], options: Options
) -> list[Clustering]:
    """Cluster similarity matrices on their device (NumPy's on the current one).

    Parameters
    ----------
    problems : sequence of arrays of shape (n_i, n_i)
        CuPy arrays, torch CUDA tensors or NumPy arrays; float32 and float64 are used as they are.
    preference : sequence of scalar, array of shape (n_i,) or None
        None is the median similarity.
    options : Options

    Returns
    -------
    list of Clustering
        NumPy's, in the order of `problems`.
    """
    count = len(problems)
    names = ["S"] if count == 1 else [f"problems[{q}]" for q in range(count)]
    for S, name in zip(problems, names, strict=True):
        refuse_gradient(S, name)
    with engine_for([*problems, *preference]) as engine:
        matrices = [_square(adopt(S, name), name) for S, name in zip(problems, names, strict=True)]
        own = [_preference(p, S, engine.xp) for p, S in zip(preference, matrices, strict=True)]
        return cluster_matrices(engine, matrices, own, options)


def _square(S: Array, name: str) -> Array:
    if S.ndim != 2 or S.shape[0] != S.shape[1]:
        raise ValueError(f"{name}: similarities must be a square array. Got {S.shape} instead.")
    if S.shape[0] == 0:
        raise ValueError(f"{name} holds no points: at least one is needed")
    return S


def _preference(preference: Any, S: Array, xp: Any) -> Array:
    n = S.shape[0]
    if preference is None:
        preference = xp.median(S[xp.isfinite(S)])
    elif on_device(preference):
        preference = adopt(preference, "preference")
    p = xp.asarray(preference, dtype=S.dtype)
    if p.ndim == 0:
        p = xp.zeros(n, dtype=S.dtype) + p
    if p.shape != (n,):
        raise ValueError(
            f"preference must be a scalar or have one entry per point: "
            f"got shape {p.shape} for {n} points"
        )
    return p


def cluster_matrices(
    engine: Engine,
    matrices: Sequence[Array],
    preference: Sequence[Array],
    options: Options,
    regime: str = "auto",
) -> list[Clustering]:
    """Cluster matrices on the engine's device; `preference` has an array of its dtype for each.

    Raises
    ------
    ValueError
        If similarities or preferences are not valid; the message names the problem.
    """
    found: dict[int, Clustering] = {}
    for dtype in (np.float32, np.float64):
        rest = []
        same = [q for q, S in enumerate(matrices) if S.dtype == dtype]
        for q, flag in zip(same, _inspect(engine, matrices, preference, same), strict=True):
            if flag & _INVALID:
                raise ValueError(
                    f"problem {q} holds NaN or +inf: similarities must be finite, or -inf for "
                    "pairs that must not be linked"
                )
            if flag & _PREFERENCE_INVALID:
                raise ValueError(f"the preference of problem {q} holds NaN or infinite values")
            if matrices[q].shape[0] == 1 or not flag & (_LINKS_DIFFER | _PREFERENCES_DIFFER):
                found[q] = _all_alike(engine, matrices[q], preference[q])
            else:
                rest.append(q)
        if rest:
            problems = Matrices(engine, [matrices[q] for q in rest])
            preferences = engine.xp.concatenate([preference[q] for q in rest])
            passed = pass_messages(problems, preferences, options, regime)
            found.update(zip(rest, decode(problems, passed, preferences, options), strict=True))
    return [found[q] for q in range(len(matrices))]


def _inspect(
    engine: Engine, matrices: Sequence[Array], preference: Sequence[Array], which: Sequence[int]
) -> NDArray[np.int32]:
    """Return what the kernel ``inspect`` says of each of these problems, all of one dtype."""
    flags = engine.xp.zeros(len(which), dtype=np.int32)
    if which:
        problems = Matrices(engine, [matrices[q] for q in which])
        engine.launch(
            f"inspect_{problems.number}",
            cover(32 * problems.points, engine.threads),
            engine.threads,
            problem_table(problems),
            problems.source,
            engine.xp.concatenate([preference[q] for q in which]),
            flags,
        )
    return engine.host(flags)


def _all_alike(engine: Engine, S: Array, preference: Array) -> Clustering:
    """scikit-learn's arbitrary answer where all similarities and preferences are equal."""
    n = S.shape[0]
    warnings.warn(
        "All samples have mutually equal similarities. Returning arbitrary cluster center(s).",
        stacklevel=2,
    )
    link, own = float(engine.host(S[0, n - 1])), float(engine.host(preference[0]))
    if own > link:
        return Clustering(np.arange(n), np.arange(n), 0, True, n * own)
    net = own + (n - 1) * (link if n > 1 else 0.0)
    return Clustering(np.zeros(1, dtype=np.intp), np.zeros(n, dtype=np.intp), 0, True, net)


def cluster_features(
    X: Any,
    *,
    preference: ArrayLike | None = None,
    beta: float = 1.0,
    damping: float = 0.5,
    max_iter: int = 200,
    convergence_iter: int = 15,
    random_state: validate.RandomState = None,
) -> Clustering:
    """Cluster the rows of `X` (n, d) by negative squared distance, never holding (n, n) of them.

    Parameters
    ----------
    X : array of shape (n, d)
        CuPy array, torch CUDA tensor or NumPy array.
    preference : scalar, array of shape (n,) or None
        None is `beta` times the median of each point's similarities, its own zero included.
    beta : float
    damping, max_iter, convergence_iter, random_state
        As for `affinity_propagation`.

    Raises
    ------
    MemoryError
        If the lists do not fit on the device; the message holds the figure.
    """
    options = validate.options(damping, max_iter, convergence_iter, random_state)
    with engine_for([X, preference]) as engine:
        points = require_rows(adopt(X, "X"), "X", engine.xp)
        if points.shape[0] == 1:
            raise ValueError("X holds one point: two are needed to be compared")
        problem = Features(engine, points)
        if preference is None:
            preference = medians(problem) * points.dtype.type(beta)
        own = _preference(preference, points, engine.xp)
        if not bool(engine.xp.isfinite(own).all()):
            raise ValueError("preference holds NaN or infinite values; every entry must be finite")
        passed = pass_messages(problem, own, options)
        return decode(problem, passed, own, options)[0]


def require_rows(X: Array, name: str, xp: Any) -> Array:
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"{name} must hold rows of features, got shape {X.shape}")
    if not bool(xp.isfinite(X).all()):
        raise ValueError(f"{name} holds NaN or infinite values")
    return X
