"""Message passing for many problems at once, in three regimes with one answer.

Small problems run in a block's shared memory, from start to end in one launch. Larger ones hold
messages only for listed pairs; all problems of a batch share their launches. A problem whose lists
get long starts again with dense passes over memory.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epruner.cluster.gpu.batch import CONVERGED, FEWER, ITERATIONS, RUNNING, Batch
from epruner.cluster.gpu.engine import Array, require
from epruner.cluster.gpu.lists import run_lists
from epruner.cluster.gpu.problems import Problems
from epruner.cluster.outcome import Options

_BANDS = 256  # of rows whose sums are added in order: a function of n alone, so are the bits
_SEGMENTS = 8  # as in messages.cu


@dataclass(frozen=True)
class BatchMessages:
    """The end of the messages of all problems."""

    is_exemplar: Array  # (points) int32, on the device
    n_iter: NDArray[np.int32]  # (problems)
    converged: NDArray[np.bool_]  # (problems)
    preference: Array  # (points) float64 with jitter, on the device
    longest_list: int  # 0 where no problem used lists


def pass_messages(
    problems: Problems, preference: Array, options: Options, regime: str = "auto"
) -> BatchMessages:
    """Pass messages on all problems.

    Parameters
    ----------
    problems : Problems
    preference : array of shape (points,)
        In the dtype of the problems.
    options : Options
    regime : {"auto", "small", "lists", "dense"}
        Anything but "auto" is for tests and measurements.
    """
    engine, sizes = problems.engine, problems.sizes
    batch = Batch(problems, preference, options)
    everyone = np.arange(len(sizes))
    fits = small_bytes(sizes) <= engine.max_shared
    if problems.kind != "matrix" or regime in ("lists", "dense"):
        fits = np.zeros(len(sizes), dtype=bool)
    elif regime == "small" and not fits.all():
        raise ValueError(f"{sizes.max()} points do not fit in the shared memory of a block")
    run_small(batch, everyone[fits])

    def dense_is_possible(p: int) -> bool:
        needed = dense_bytes(int(sizes[p]), problems.dtype)
        return regime == "auto" and problems.kind == "matrix" and needed <= engine.free_bytes()

    dense, longest = everyone[~fits], 0
    if regime != "dense":
        dense, longest = run_lists(batch, everyone[~fits], dense_is_possible)
    n_iter, state = engine.host(batch.t), engine.host(batch.state)
    for p in dense:
        own = slice(problems.first[p], problems.first[p + 1])
        one = Batch(problems.alone(p), preference[own], options)
        run_dense(one)
        batch.is_exemplar[own] = one.is_exemplar
        n_iter[p], state[p] = engine.host(one.t)[0], engine.host(one.state)[0]
    return BatchMessages(batch.is_exemplar, n_iter, state == CONVERGED, batch.preference, longest)


def small_bytes(n: Any) -> Any:
    """Shared memory of a block that holds S, R and A of `n` points."""
    return 8 * (3 * n * n + n + _SEGMENTS * n) + 4 * 2 * n


def dense_bytes(n: int, dtype: np.dtype[Any]) -> int:
    """Memory that dense passes on `n` points take beside the similarities."""
    return 3 * n * n * dtype.itemsize + min(n, _BANDS) * n * 8


def run_small(batch: Batch, which: NDArray[np.int_]) -> None:
    """Run these problems to their end, a block each."""
    if which.size == 0:
        return
    engine, problems = batch.engine, batch.problems
    sizes = problems.sizes
    which = which[np.argsort(-sizes[which], kind="stable")].astype(np.int32)  # longest first
    engine.launch(
        f"small_{problems.number}",
        which.size,
        engine.wide,
        batch.table,
        problems.source,
        engine.xp.asarray(which),
        shared=int(small_bytes(sizes[which[0]])),
    )


def run_dense(batch: Batch) -> None:
    """Run the batch's only problem with messages between all pairs."""
    engine, problems = batch.engine, batch.problems
    xp, n = engine.xp, problems.points
    number, dtype = problems.number, problems.dtype
    require(engine, dense_bytes(n, dtype), f"dense affinity propagation on {n} points", FEWER)
    s = xp.empty((n, n), dtype=dtype)
    r, a = xp.zeros((n, n), dtype=dtype), xp.zeros((n, n), dtype=dtype)
    bands = min(n, _BANDS)
    partial = xp.empty((bands, n))
    batch.launch(f"dense_begin_{number}", min(n * n, 1 << 20), batch.table, problems.source, s)
    threads = engine.wide if n >= 4096 else engine.threads

    def iterate() -> None:
        engine.launch(
            f"dense_rows_{number}",
            bands,
            threads,
            batch.table,
            s,
            r,
            a,
            partial,
            shared=2 * 8 * threads // 32,
        )
        batch.launch("dense_columns", n, batch.table, partial, bands)
        batch.launch("conclude", 1, batch.table)

    run = engine.repeater(iterate, ITERATIONS)
    while engine.host(batch.state)[0] == RUNNING:
        run()
