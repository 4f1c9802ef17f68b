"""From exemplar flags to clusterings, for all problems of a batch at once."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from epruner.cluster.gpu.batch import Passed
from epruner.cluster.gpu.problems import Array, Problems, pack, problem_table
from epruner.cluster.outcome import Clustering, Options


@dataclass
class _Slots:
    """Exemplars of all problems, and where each point belongs."""

    first: Array  # (problems + 1) int64
    exemplar: Array  # (slots) int32
    slot: Array  # (points) int32: -1, or the slot whose exemplar the point is
    label: Array  # (points) int32: slot, or -1


def decode(
    problems: Problems, passed: Passed, preference: Array, options: Options
) -> list[Clustering]:
    """Assign, move each exemplar to its cluster's best member, assign; as decode.py does."""
    engine, xp, points = problems.engine, problems.engine.xp, problems.points
    batch = problem_table(problems, {"preference": passed.preference, "seed": options.seed})
    exemplar = xp.flatnonzero(passed.is_exemplar).astype(np.int32)
    count = int(exemplar.size)
    slots = _Slots(
        first=xp.searchsorted(exemplar, problems.first_device.astype(np.int32)).astype(np.int64),
        exemplar=exemplar,
        slot=_slots_of(problems, exemplar),
        label=xp.full(points, -1, dtype=np.int32),
    )
    _assign(problems, batch, slots)

    labelled = xp.flatnonzero(slots.label >= 0)
    order = xp.argsort(slots.label[labelled] * np.int64(points) + labelled)
    member = labelled[order].astype(np.int32)
    member_first = xp.searchsorted(slots.label[member], xp.arange(count + 1)).astype(np.int64)
    support, best = xp.zeros(points), xp.zeros(max(1, count), dtype=np.int32)
    net = xp.zeros(len(problems.sizes))
    clusters = _table(problems, slots, [member_first, member, support, best, net])
    work = -(-points // engine.threads)
    engine.launch(
        problems.row_kernel("refine"), work, engine.threads, batch, clusters, problems.source
    )
    engine.launch(
        "best_members", -(-(count + 1) // engine.threads), engine.threads, clusters, count
    )
    slots.exemplar = best[:count]
    slots.slot = _slots_of(problems, slots.exemplar)
    _assign(problems, batch, slots)
    clusters = _table(problems, slots, [member_first, member, support, best, net])
    engine.launch(
        problems.row_kernel("net_similarity"),
        len(problems.sizes),
        engine.threads,
        batch,
        clusters,
        problems.source,
        preference,
        shared=8 * engine.threads // 32,
    )
    return _clusterings(
        problems,
        passed,
        engine.host(slots.first),
        engine.host(slots.exemplar),
        engine.host(slots.label),
        engine.host(net),
    )


def _slots_of(problems: Problems, exemplar: Array) -> Array:
    xp = problems.engine.xp
    slot = xp.full(problems.points, -1, dtype=np.int32)
    slot[exemplar] = xp.arange(exemplar.size, dtype=np.int32)
    return slot


def _table(problems: Problems, slots: _Slots, rest: list[Array | int]) -> Array:
    known = [slots.first, slots.exemplar, slots.slot, slots.label]
    return pack(problems.engine, known + rest)


def _assign(problems: Problems, batch: Array, slots: _Slots) -> None:
    engine = problems.engine
    clusters = _table(problems, slots, [0] * 5)
    rows = engine.xp.arange(problems.points)
    for some, tile in problems.tiles(rows, slots.exemplar):
        count = some.stop - some.start
        engine.launch(
            problems.row_kernel("assign"),
            -(-32 * count // engine.threads),
            engine.threads,
            batch,
            clusters,
            problems.source,
            some.start,
            count,
            tile,
        )


def _clusterings(
    problems: Problems,
    passed: Passed,
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
