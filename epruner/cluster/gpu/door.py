"""Where arrays come in, and clusterings go out: checks, devices, degenerate problems."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from epruner.cluster import validate
from epruner.cluster.gpu.batch import pass_messages
from epruner.cluster.gpu.clusters import decode
from epruner.cluster.gpu.engine import card, load_cupy
from epruner.cluster.gpu.problems import (
    Array,
    Engine,
    Features,
    Matrices,
    medians,
    problem_table,
    require,
)
from epruner.cluster.outcome import Clustering, Options

_INVALID, _LINKS_DIFFER, _PREFERENCES_DIFFER, _PREFERENCE_INVALID = 1, 2, 4, 8
_FEWER = "cluster fewer problems at a time, or from features"


def on_device(x: object) -> bool:
    """Tell whether `x` is an array or tensor on a CUDA device, without importing what made it."""
    if hasattr(type(x), "is_cuda"):  # a torch tensor, whose array interface fails on a CPU
        return bool(x.is_cuda)  # type: ignore[attr-defined]
    return hasattr(type(x), "__cuda_array_interface__")


def wanted(problems: Sequence[object], backend: str) -> bool:
    """Tell whether these are to be clustered on a device: they are there, or `backend` says so."""
    there = any(on_device(S) for S in problems)
    if there and backend not in ("auto", "cupy"):
        raise ValueError(
            f"backend={backend!r} works on the CPU and the similarities are on a device: use "
            "backend='cupy', or move them first"
        )
    return there or backend == "cupy"


def refuse_gradient(x: object, name: str) -> None:
    """Raise `ValueError` for a tensor that requires grad: no gradient flows through exemplars."""
    if getattr(x, "requires_grad", False):
        raise ValueError(f"{name} requires grad; clustering has no gradient: pass {name}.detach()")


def adopt(x: Any, name: str) -> Array:
    """Return `x` as a C-contiguous float32 or float64 CuPy array, copied only where needed.

    Torch tensors come by DLPack, which makes CuPy's current stream wait for torch's.
    """
    refuse_gradient(x, name)
    cupy = load_cupy()
    if str(getattr(x, "dtype", "")).endswith("bfloat16"):
        raise TypeError(f"{name} holds bfloat16, which NumPy and CuPy lack: pass {name}.float()")
    if not on_device(x):
        array = np.asarray(x)
    elif hasattr(x, "__dlpack__"):
        array = cupy.from_dlpack(x)
    else:
        array = cupy.asarray(x)
    if array.dtype not in (np.float32, np.float64):
        if array.dtype.kind not in "iufb":
            raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.float64)
    return cupy.ascontiguousarray(cupy.asarray(array))


@contextmanager
def engine_for(arrays: Sequence[object]) -> Iterator[Engine]:
    """Enter the device that all device arrays among `arrays` share, else CuPy's current one.

    Raises
    ------
    ValueError
        If they are on two devices.
    """
    cupy = load_cupy()
    where = {_device_of(x) for x in arrays if on_device(x)}
    if len(where) > 1:
        raise ValueError(f"arrays are on devices {sorted(where)}: move them to one")
    device = where.pop() if where else cupy.cuda.Device().id
    with cupy.cuda.Device(device):
        yield card(device)


def _device_of(x: Any) -> int:
    if hasattr(x, "__dlpack_device__"):
        return int(x.__dlpack_device__()[1])
    return int(load_cupy().asarray(x).device.id)


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
    for q, S in enumerate(problems):
        refuse_gradient(S, _name(q, problems))
    with engine_for([*problems, *preference]) as engine:
        names = [_name(q, problems) for q in range(len(problems))]
        matrices = [_square(adopt(S, name), name) for S, name in zip(problems, names, strict=True)]
        own = [_preference(p, S, engine.xp) for p, S in zip(preference, matrices, strict=True)]
        found: list[Clustering | None] = [None] * len(matrices)
        for dtype in (np.float32, np.float64):
            which = [q for q, S in enumerate(matrices) if S.dtype == dtype]
            if which:
                clusterings = cluster_matrices(
                    engine, [matrices[q] for q in which], [own[q] for q in which], options
                )
                for q, clustering in zip(which, clusterings, strict=True):
                    found[q] = clustering
        return [clustering for clustering in found if clustering is not None]


def _name(q: int, problems: Sequence[Any]) -> str:
    return "S" if len(problems) == 1 else f"problems[{q}]"


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
    """Cluster matrices of one dtype on the engine's device; `preference` has one array for each.

    Raises
    ------
    ValueError
        If similarities or preferences are not valid; the message names the problem.
    """
    problems = Matrices(engine, matrices)
    preferences = engine.xp.concatenate(preference)
    flags = _inspect(problems, preferences)
    found: dict[int, Clustering] = {}
    for q, flag in enumerate(flags):
        if flag & _INVALID:
            raise ValueError(
                f"problem {q} holds NaN or +inf: similarities must be finite, or -inf for pairs "
                "that must not be linked"
            )
        if flag & _PREFERENCE_INVALID:
            raise ValueError(f"the preference of problem {q} holds NaN or infinite values")
        if matrices[q].shape[0] == 1 or not flag & (_LINKS_DIFFER | _PREFERENCES_DIFFER):
            found[q] = _all_alike(engine, matrices[q], preference[q])
    rest = [q for q in range(len(matrices)) if q not in found]
    if rest:
        if len(rest) < len(matrices):
            problems = Matrices(engine, [matrices[q] for q in rest])
            preferences = engine.xp.concatenate([preference[q] for q in rest])
        passed = pass_messages(problems, preferences, options, regime)
        found.update(zip(rest, decode(problems, passed, preferences, options), strict=True))
    return [found[q] for q in range(len(matrices))]


def _inspect(problems: Matrices, preferences: Array) -> NDArray[np.int32]:
    engine = problems.engine
    flags = engine.xp.zeros(len(problems.sizes), dtype=np.int32)
    engine.launch(
        f"inspect_{problems.number}",
        -(-32 * problems.points // engine.threads),
        engine.threads,
        problem_table(problems),
        problems.source,
        preferences,
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
        points = _rows(adopt(X, "X"), "X", engine.xp)
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


def _rows(X: Array, name: str, xp: Any) -> Array:
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"{name} must hold rows of features, got shape {X.shape}")
    if not bool(xp.isfinite(X).all()):
        raise ValueError(f"{name} holds NaN or infinite values")
    return X


class FilterBatch:
    """Filters of many layers on a device: compared once, clustered at any preference.

    Parameters
    ----------
    filters : sequence of arrays of shape (n_i, d_i)
        CuPy arrays or torch CUDA tensors of one dtype, a row a filter.

    Attributes
    ----------
    medians : list of ndarray of shape (n_i,)
        Median of each filter's similarities, its own zero included.
    """

    def __init__(self, filters: Sequence[Any]) -> None:
        for q, X in enumerate(filters):
            refuse_gradient(X, f"filters[{q}]")
        with engine_for(filters) as engine:
            self._engine = engine
            rows = [
                _rows(adopt(X, f"filters[{q}]"), f"filters[{q}]", engine.xp)
                for q, X in enumerate(filters)
            ]
            if len({X.dtype for X in rows}) != 1:
                raise TypeError(f"filters mix {sorted({str(X.dtype) for X in rows})}: convert them")
            self._matrices = distances(engine, rows)
            problems = Matrices(engine, self._matrices)
            found = medians(problems)
            bounds = zip(problems.first[:-1], problems.first[1:], strict=True)
            self._medians = [found[begin:end] for begin, end in bounds]
            self.medians = [engine.host(own) for own in self._medians]
        self._filters = filters  # their device is this object's

    def cluster(
        self,
        betas: Sequence[float],
        *,
        damping: float = 0.5,
        max_iter: int = 200,
        convergence_iter: int = 15,
        random_state: validate.RandomState = None,
    ) -> list[Clustering]:
        """Cluster every layer with preference ``betas[i] * medians[i]``, all in one batch."""
        options = validate.options(damping, max_iter, convergence_iter, random_state)
        if len(betas) != len(self._matrices):
            raise ValueError(f"{len(betas)} betas for {len(self._matrices)} layers")
        own = [m * m.dtype.type(beta) for m, beta in zip(self._medians, betas, strict=True)]
        with engine_for(self._filters[:1]):
            return cluster_matrices(self._engine, self._matrices, own, options)


def distances(engine: Engine, filters: Sequence[Array]) -> list[Array]:
    """Return S = -||x_i - x_k||² (n, n) for each X (n, d) of one dtype, as similarity.py does."""
    xp = engine.xp
    item = filters[0].dtype.itemsize
    sizes = [X.shape[0] for X in filters]
    needed = item * (sum(n * n for n in sizes) + max(n * n for n in sizes))
    require(engine, needed, f"similarities of {len(sizes)} layers", _FEWER)
    number = "f32" if filters[0].dtype == np.float32 else "f64"
    found = []
    for X in filters:
        n, d = X.shape
        centred = xp.ascontiguousarray(X - X.mean(axis=0, dtype=np.float64).astype(X.dtype))
        product = centred @ centred.T
        S = xp.empty((n, n), dtype=X.dtype)
        blocks = min(-(-n * n // engine.threads), 1 << 16)
        engine.launch(f"distances_{number}", blocks, engine.threads, product, centred, n, d, S)
        found.append(S)
    return found
