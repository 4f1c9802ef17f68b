"""Clusterings of what is on a device: similarities, features, the filters of many layers."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from epruner.cluster import validate
from epruner.cluster.backends.cuda.device import (
    Array,
    Engine,
    as_device_array,
    cover,
    engine_for,
    on_device,
    pack,
    refuse_gradient,
)
from epruner.cluster.backends.cuda.problems import (
    Features,
    Matrices,
    Problems,
    distances,
    jitter_fields,
    medians,
    problem_table,
)
from epruner.cluster.backends.cuda.solver import BatchMessages, pass_messages
from epruner.cluster.types import Clustering, Options

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
        matrices = [
            _square(as_device_array(S, name), name) for S, name in zip(problems, names, strict=True)
        ]
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
        preference = as_device_array(preference, "preference")
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
        points = require_rows(as_device_array(X, "X"), "X", engine.xp)
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


class FilterBatch:
    """Similarities of the filters of many layers, and the medians that preferences come from.

    Parameters
    ----------
    filters : sequence of arrays of shape (n_i, d_i)
        CuPy arrays, torch CUDA tensors or NumPy arrays, a row a filter. Device arrays are on one
        device.

    Raises
    ------
    MemoryError
        If the similarities do not fit on the device; the message holds the figure.
    """

    def __init__(self, filters: Sequence[Any]) -> None:
        names = [f"filters[{q}]" for q in range(len(filters))]
        for X, name in zip(filters, names, strict=True):
            refuse_gradient(X, name)
        with engine_for(filters) as engine:
            rows = [
                require_rows(as_device_array(X, name), name, engine.xp)
                for X, name in zip(filters, names, strict=True)
            ]
            self._similarities = distances(engine, rows)
            self._medians: list[Array] = [None] * len(rows)
            for dtype in {X.dtype for X in rows}:
                which = [q for q, X in enumerate(rows) if X.dtype == dtype]
                problems = Matrices(engine, [self._similarities[q] for q in which])
                parts = engine.xp.split(medians(problems), problems.first[1:-1].tolist())
                for q, part in zip(which, parts, strict=True):
                    self._medians[q] = part

    def __len__(self) -> int:
        return len(self._similarities)

    def similarities(self, layer: int) -> NDArray[np.floating[Any]]:
        """Return negative squared distances between the filters of a layer, (n, n), on the host."""
        with engine_for(self._similarities[:1]) as engine:
            return engine.host(self._similarities[layer])

    def medians(self, layer: int) -> NDArray[np.floating[Any]]:
        """Return the median of each filter's similarities, its own zero included, on the host."""
        with engine_for(self._similarities[:1]) as engine:
            return engine.host(self._medians[layer])

    def cluster(
        self,
        betas: Mapping[int, float],
        *,
        damping: float = 0.5,
        max_iter: int = 200,
        convergence_iter: int = 15,
        random_state: validate.RandomState = None,
    ) -> dict[int, Clustering]:
        """Cluster some layers, all in one batch.

        Parameters
        ----------
        betas : mapping of int to float
            By number of the layer. The preference of filter k is beta times the median of its
            similarities.
        damping, max_iter, convergence_iter, random_state
            As for `affinity_propagation`.
        """
        options = validate.options(damping, max_iter, convergence_iter, random_state)
        with engine_for(self._similarities[:1]) as engine:
            matrices = [self._similarities[layer] for layer in betas]
            preferences = []
            for layer, beta in betas.items():
                medians = self._medians[layer]
                preferences.append(medians * medians.dtype.type(beta))
            found = cluster_matrices(engine, matrices, preferences, options)
        return dict(zip(betas, found, strict=True))


def decode(
    problems: Problems, passed: BatchMessages, preference: Array, options: Options
) -> list[Clustering]:
    """Assign, move each exemplar to its cluster's best member, assign, as on the CPU.

    Exemplars of all problems are numbered through; such a number is a slot.
    """
    engine, xp, points = problems.engine, problems.engine.xp, problems.points
    batch = problem_table(
        problems, {"preference": passed.preference, **jitter_fields(options.seed)}
    )
    exemplar = xp.flatnonzero(passed.is_exemplar).astype(np.int32)
    count = int(exemplar.size)
    first = xp.searchsorted(exemplar, problems.first_device.astype(np.int32)).astype(np.int64)
    label = xp.full(points, -1, dtype=np.int32)
    clusters = {
        "first": first,
        "exemplar": exemplar,
        "slot": _slots_of(problems, exemplar),
        "label": label,
    }
    _assign(problems, batch, clusters)

    labelled = xp.flatnonzero(label >= 0)
    order = xp.argsort(label[labelled] * np.int64(points) + labelled)
    member = labelled[order].astype(np.int32)
    best, net = xp.zeros(count, dtype=np.int32), xp.zeros(len(problems.sizes))
    clusters |= {
        "member_first": xp.searchsorted(label[member], xp.arange(count + 1)).astype(np.int64),
        "member": member,
        "support": xp.zeros(points),
        "best": best,
        "net": net,
    }
    table, threads = _table(problems, clusters), engine.threads
    if count > 0:
        refine = problems.row_kernel("refine")
        engine.launch(refine, cover(points, threads), threads, batch, table, problems.source)
        engine.launch("best_members", cover(count, threads), threads, table, count)
    clusters |= {"exemplar": best, "slot": _slots_of(problems, best)}
    _assign(problems, batch, clusters)
    engine.launch(
        problems.row_kernel("net_similarity"),
        len(problems.sizes),
        threads,
        batch,
        _table(problems, clusters),
        problems.source,
        preference,
        shared=8 * threads // 32,
    )
    found = [engine.host(array) for array in (first, best, label, net)]
    return _clusterings(problems, passed, *found)


CLUSTERS_FIELDS = (
    *("first", "exemplar", "slot", "label"),
    *("member_first", "member", "support", "best", "net"),
)


def _table(problems: Problems, clusters: Mapping[str, Array]) -> Array:
    """Return the kernels' ``Clusters``; what is not known yet is zero."""
    return pack(problems.engine, [clusters.get(name, 0) for name in CLUSTERS_FIELDS])


def _slots_of(problems: Problems, exemplar: Array) -> Array:
    xp = problems.engine.xp
    slot = xp.full(problems.points, -1, dtype=np.int32)
    slot[exemplar] = xp.arange(exemplar.size, dtype=np.int32)
    return slot


def _assign(problems: Problems, batch: Array, clusters: Mapping[str, Array]) -> None:
    engine, table = problems.engine, _table(problems, clusters)
    rows = engine.xp.arange(problems.points)
    for some, tile in problems.tiles(rows, clusters["exemplar"]):
        count = some.stop - some.start
        engine.launch(
            problems.row_kernel("assign"),
            cover(32 * count, engine.threads),
            engine.threads,
            batch,
            table,
            problems.source,
            some.start,
            count,
            tile,
        )


def _clusterings(
    problems: Problems,
    passed: BatchMessages,
    first: NDArray[np.int64],
    exemplar: NDArray[np.int32],
    label: NDArray[np.int32],
    net: NDArray[np.float64],
) -> list[Clustering]:
    order = np.argsort(exemplar, kind="stable")  # numbers ascend with the problems
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    rank = np.append(rank, -1)  # where a label of -1 points to
    found = []
    for p, begin in enumerate(problems.first[:-1]):
        own = label[begin : problems.first[p + 1]]
        found.append(
            Clustering(
                exemplars=(exemplar[order[first[p] : first[p + 1]]] - begin).astype(np.intp),
                labels=np.where(own >= 0, rank[own] - first[p], -1).astype(np.intp),
                n_iter=int(passed.n_iter[p]),
                converged=bool(passed.converged[p]),
                net_similarity=float(net[p]),
            )
        )
    return found
