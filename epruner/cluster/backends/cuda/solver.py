"""Message passing for many problems at once, in three regimes with one answer.

Small problems run in a block's shared memory, from start to end in one launch. Larger ones hold
messages in an active set only; all problems of a batch share their launches. A problem whose lists
get long starts again with dense passes over memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epruner.cluster.backends.cuda.device import (
    Array,
    as_device_array,
    cover,
    engine_for,
    pack,
    packed_words,
    require_memory,
)
from epruner.cluster.backends.cuda.problems import Matrices, Problems, jitter_fields, problem_table
from epruner.cluster.types import Floats, Messages, Options

RUNNING, RESUMED, NEEDS_CANDIDATES, CONVERGED, EXHAUSTED = range(5)  # as in kernels.cu
ITERATIONS = 16  # between two looks at the state of the problems
FEWER = "raise the preference (shorter lists), or cluster fewer points"
FIRST_WANT = 16  # candidates a row asks for, as in kernels.cu
_ROOM = 32  # entries a row gets at first: candidates come a few more than asked for
_CROWDED_SHARE = 8  # dense passes win once lists hold more than n / 8 columns ...
_ALWAYS_SPARSE = 48  # ... but never below this length
_ENTRY_BYTES = 3 * 8 + 4
# An index by column is sorted with 64-bit keys: about seven words an entry for a moment.
_SORTING_BYTES = 7 * 8
_BANDS = 256  # of rows whose sums are added in order: a function of n alone, so are the bits
_SEGMENTS = 8  # as in kernels.cu
_BURST_BANDS = 16  # as in kernels.cu
_MOST_BURSTS = 8  # reads of a row that cost less than one more look at it from the host


def solve(S: Floats, preference: Floats, options: Options) -> Messages:
    """Pass messages on CuPy's current device, or on that of `S`."""
    return _run(S, preference, options, "auto")


def solve_active_set(S: Floats, preference: Floats, options: Options) -> Messages:
    """Pass messages in the active set only, however long its lists get."""
    return _run(S, preference, options, "active_set")


def solve_dense(S: Floats, preference: Floats, options: Options) -> Messages:
    """Pass messages between all pairs, one pass over memory per iteration."""
    return _run(S, preference, options, "dense")


def _run(S: Floats, preference: Floats, options: Options, regime: str) -> Messages:
    with engine_for([S, preference]) as engine:
        problem = Matrices(engine, [as_device_array(S, "S")])
        own = as_device_array(preference, "preference").astype(problem.dtype)
        passed = pass_messages(problem, own, options, regime)
        is_exemplar = engine.host(passed.is_exemplar).astype(bool)
        return Messages(is_exemplar, int(passed.n_iter[0]), bool(passed.converged[0]))


@dataclass(frozen=True)
class BatchMessages:
    """The end of the messages of all problems."""

    is_exemplar: Array  # (points) int32, on the device
    n_iter: NDArray[np.int32]  # (problems)
    converged: NDArray[np.bool_]  # (problems)
    preference: Array  # (points) float64 with jitter, on the device
    longest_list: int  # 0 where no problem had an active set


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
    regime : {"auto", "small", "active_set", "dense"}
        Anything but "auto" is for tests and measurements.
    """
    options.progress.messages()
    engine, sizes = problems.engine, problems.sizes
    batch = Batch(problems, preference, options)
    everyone = np.arange(len(sizes))
    fits = small_bytes(sizes) <= engine.max_shared
    if problems.kind != "matrix" or regime in ("active_set", "dense"):
        fits = np.zeros(len(sizes), dtype=bool)
    elif regime == "small" and not fits.all():
        raise ValueError(f"{sizes.max()} points do not fit in the shared memory of a block")
    run_small(batch, everyone[fits])

    def dense_is_possible(p: int) -> bool:
        needed = dense_bytes(int(sizes[p]), problems.dtype)
        return regime == "auto" and problems.kind == "matrix" and needed <= engine.free_bytes()

    dense, longest = everyone[~fits], 0
    if regime != "dense":
        dense, longest = run_active_set(batch, everyone[~fits], dense_is_possible)
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


class Batch:
    """The kernels' ``Batch``: points and problems with what an iteration keeps about them.

    Parameters
    ----------
    problems : Problems
    preference : array of shape (points,)
        In the dtype of the problems.
    options : Options

    Attributes
    ----------
    is_exemplar : array of shape (points,)
    preference : array of shape (points,)
        float64, with the jitter.
    state, t, needs_candidates : array of shape (problems,)
        Where each problem is, its iterations so far, and whether a row of it waits for candidates.
    table : array
        The struct as it is on the device.
    """

    def __init__(self, problems: Problems, preference: Array, options: Options) -> None:
        engine = self.engine = problems.engine
        xp = engine.xp
        points, count = problems.points, len(problems.sizes)
        self.problems = problems
        self.is_exemplar = xp.zeros(points, dtype=np.int32)
        self.preference = xp.zeros(points)
        self.state = xp.zeros(count, dtype=np.int32)
        self.t = xp.zeros(count, dtype=np.int32)
        self.needs_candidates = xp.zeros(count, dtype=np.int32)
        self.kept = {
            **{name: xp.zeros(points) for name in ("a", "r", "total", "abar")},
            "streak": xp.zeros(points, dtype=np.int32),
            **{name: xp.zeros(count, dtype=np.int32) for name in ("unstable", "any")},
            "decay": xp.ones(count),
            "abar_max": xp.zeros(count),
            "abar_next": ~xp.zeros(count, dtype=np.uint64),
        }
        self.table = problem_table(
            problems,
            {
                **self.kept,
                "is_exemplar": self.is_exemplar,
                "preference": self.preference,
                "state": self.state,
                "t": self.t,
                "needs_candidates": self.needs_candidates,
                "damping": options.damping,
                "max_iter": options.max_iter,
                "convergence_iter": options.convergence_iter,
                **jitter_fields(options.seed),
            },
        )
        self.launch(f"begin_{problems.number}", points, self.table, preference)

    def launch(self, kernel: str, work: int, *args: Array | int) -> None:
        """Start a kernel with a thread for each of `work`."""
        threads = self.engine.threads
        self.engine.launch(kernel, cover(work, threads), threads, *args)


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
    require_memory(
        engine, dense_bytes(n, dtype), f"dense affinity propagation on {n} points", FEWER
    )
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


def run_active_set(
    batch: Batch, which: NDArray[np.int_], give_up: Callable[[int], bool]
) -> tuple[NDArray[np.int_], int]:
    """Run these problems with an active set.

    Parameters
    ----------
    batch : Batch
    which : array of int
    give_up : callable
        Whether a problem, by its number, is better left once its lists are crowded.

    Returns
    -------
    crowded : array of int
        The problems that were left; they have to start again in another way.
    longest : int
        The length of the longest list.
    """
    if which.size == 0:
        return which, 0
    engine, problems = batch.engine, batch.problems
    active_set = ActiveSet(batch, which)

    bursts = problems.kind == "matrix"

    def iterate() -> None:
        tables = batch.table, active_set.table
        if bursts:
            kernel = f"unbalanced_{problems.number}"
            batch.launch(kernel, 32 * problems.points, *tables, problems.source)
        batch.launch("active_rows", 32 * problems.points, *tables)
        if bursts:
            kernel = f"burst_{problems.number}"
            batch.launch(kernel, _BURST_BANDS * problems.points, *tables, problems.source)
        batch.launch("active_columns", 32 * problems.points, *tables)
        batch.launch("conclude", len(problems.sizes), batch.table)

    run = engine.repeater(iterate, ITERATIONS)
    crowded: list[int] = []
    while True:
        run()
        state = engine.host(batch.state)
        short = np.flatnonzero(state == NEEDS_CANDIDATES)
        if short.size == 0:
            if (state[which] > NEEDS_CANDIDATES).all():
                return np.array(crowded, dtype=np.int_), active_set.longest()
            continue
        given_up = [p for p in short[active_set.crowded(short)] if give_up(p)]
        crowded += given_up
        state[given_up] = EXHAUSTED
        state[state == NEEDS_CANDIDATES] = RESUMED
        batch.state[:] = engine.xp.asarray(state)
        batch.needs_candidates[:] = 0
        active_set.refill_pending()


class ActiveSet:
    """The kernels' ``ActiveSet``.

    Parameters
    ----------
    batch : Batch
    which : array of int
        The problems that are in it.
    """

    def __init__(self, batch: Batch, which: NDArray[np.int_]) -> None:
        xp = batch.engine.xp
        problems = batch.problems
        points = problems.points
        self.batch = batch
        self.start = xp.zeros(points, dtype=np.int64)
        self.listed = xp.zeros(points, dtype=np.int32)
        self.active = xp.zeros(points, dtype=np.int32)
        self.unlisted = xp.full(points, np.inf)
        self.mu = xp.zeros(points)
        self.pending = xp.zeros(points, dtype=np.int32)
        self.used = xp.zeros(1, dtype=np.uint64)
        self.below = xp.full(points, np.inf)
        self.want = xp.zeros(points, dtype=np.int32)
        # Features have no rows to read again.
        self.most_bursts = _MOST_BURSTS if problems.kind == "matrix" else 0
        self.bursts = xp.zeros(points, dtype=np.int32)
        self.burst_at = xp.full(points, -1, dtype=np.int32)
        self.problem_burst_at = xp.full(len(problems.sizes), -1, dtype=np.int32)
        self.burst_support = xp.empty((_BURST_BANDS if self.most_bursts else 0, points))
        self.column_first = xp.zeros(points + 1, dtype=np.int64)
        self.column_entry = xp.zeros(1, dtype=np.int32)
        self._grow(int(np.minimum(problems.sizes[which] - 1, _ROOM) @ problems.sizes[which]))
        self.table = pack(batch.engine, self._words())
        chosen = xp.zeros(len(problems.sizes), dtype=bool)
        chosen[xp.asarray(which)] = True
        self._refill(xp.flatnonzero(chosen[problems.problem]))

    def longest(self) -> int:
        """Return the length of the longest list that holds messages."""
        return int(self.active.max())

    def crowded(self, which: NDArray[np.int_]) -> NDArray[np.bool_]:
        """Tell which problems would, once refilled, have lists longer than dense passes cost."""
        xp, problems = self.batch.engine.xp, self.batch.problems
        more = xp.maximum(xp.maximum(self.listed, self.want), FIRST_WANT)
        listed = self.listed + self.pending * more
        before = xp.concatenate([xp.zeros(1, dtype=np.int64), xp.cumsum(listed, dtype=np.int64)])
        sums = np.diff(self.batch.engine.host(before[problems.first_device]))
        sizes = problems.sizes
        limit = sizes * np.maximum(_ALWAYS_SPARSE, sizes // _CROWDED_SHARE)
        return np.asarray((sums > limit)[which])

    def refill_pending(self) -> None:
        """Give more candidates to the rows that wait for them."""
        resumed = self.batch.state[self.batch.problems.problem] == RESUMED
        self._refill(self.batch.engine.xp.flatnonzero(resumed & (self.pending != 0)))

    def _refill(self, rows: Array) -> None:
        """Give these rows their next candidates and index the lists by column again."""
        engine, xp, problems = self.batch.engine, self.batch.engine.xp, self.batch.problems
        rows = rows.astype(np.int32)
        while rows.size > 0:
            refilled = xp.zeros(rows.size, dtype=np.int32)
            for some, tile in problems.tiles(rows):
                engine.launch(
                    problems.row_kernel("select"),
                    some.stop - some.start,
                    engine.threads,
                    self.batch.table,
                    self.table,
                    problems.source,
                    rows[some],
                    tile,
                    refilled[some],
                    shared=80 + 8 * engine.threads,
                )
            rows = rows[refilled == 0]
            if rows.size > 0:
                wanted = int(engine.host(self.used)[0])
                self.used[:] = (self.start + self.listed).max().astype(np.uint64)
                self._grow(wanted + wanted // 4)
                self._refresh()
        self._index_columns()
        self._refresh()

    def _index_columns(self) -> None:
        xp, points = self.batch.engine.xp, self.batch.problems.points
        ends = xp.cumsum(self.listed, dtype=np.int64)
        entry = xp.arange(int(ends[-1]))
        row = xp.searchsorted(ends, entry, side="right")
        place = self.start[row] + entry - (ends[row] - self.listed[row])
        column = self.column[place]
        order = xp.argsort(column * np.int64(points) + row)
        self.column_entry = place[order].astype(np.int32)
        self.column_first = xp.searchsorted(column[order], xp.arange(points + 1)).astype(np.int64)

    def _grow(self, capacity: int) -> None:
        engine, xp = self.batch.engine, self.batch.engine.xp
        what = f"lists of {capacity} similar points"
        require_memory(engine, capacity * (_ENTRY_BYTES + _SORTING_BYTES), what, FEWER)
        if capacity >= 2**31:
            raise MemoryError(f"{what} are more than an index of 32 bits can hold; {FEWER}")
        fresh: dict[str, Array] = {name: xp.empty(capacity) for name in ("s", "r", "a")}
        fresh["column"] = xp.empty(capacity, dtype=np.int32)
        if hasattr(self, "column"):
            kept = int(engine.host(self.used)[0])
            for name, array in fresh.items():
                array[:kept] = getattr(self, name)[:kept]
        self.s, self.r, self.a = fresh["s"], fresh["r"], fresh["a"]
        self.column = fresh["column"]
        self.capacity = capacity

    def _words(self) -> list[Array | int]:
        return [getattr(self, name) for name in ACTIVE_SET_FIELDS]

    def _refresh(self) -> None:  # in place: a recorded graph knows the table's address
        words = packed_words(self.batch.engine, self._words())
        self.table[:] = self.batch.engine.xp.asarray(words)


ACTIVE_SET_FIELDS = (
    *("capacity", "used", "s", "r", "a", "column", "start", "listed", "active", "unlisted"),
    *("mu", "below", "want", "pending", "column_first", "column_entry", "most_bursts", "bursts"),
    *("burst_at", "problem_burst_at", "burst_support"),
)
