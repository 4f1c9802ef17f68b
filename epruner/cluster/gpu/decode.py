"""From exemplar flags to clusterings, for all problems of a batch at once."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from epruner.cluster.gpu.engine import Array, cover, pack
from epruner.cluster.gpu.messages import BatchMessages
from epruner.cluster.gpu.problems import Problems, problem_table
from epruner.cluster.outcome import Clustering, Options


def decode(
    problems: Problems, passed: BatchMessages, preference: Array, options: Options
) -> list[Clustering]:
    """Assign, move each exemplar to its cluster's best member, assign; as cluster/decode.py does.

    Exemplars of all problems are numbered through; such a number is a slot.
    """
    engine, xp, points = problems.engine, problems.engine.xp, problems.points
    batch = problem_table(problems, {"preference": passed.preference, "seed": options.seed})
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
