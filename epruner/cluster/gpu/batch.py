"""Message passing for many problems at once, in three regimes with one answer.

Small problems run in a block's shared memory, from start to end in one launch. Larger ones hold
messages only for listed pairs; all problems of a batch share their launches. A problem whose lists
get long starts again with dense passes over memory.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epruner.cluster.gpu.problems import (
    Array,
    Problems,
    pack,
    packed_words,
    problem_table,
    require,
)
from epruner.cluster.outcome import Options

REGIMES = ("auto", "small", "lists", "dense")

_RUNNING, _RESUMED, _STARVED, _CONVERGED, _EXHAUSTED = range(5)
_ITERATIONS = 16  # between two looks at the state of the problems
_FIRST_WANT = 16  # candidates a row asks for, as in messages.cu
_ROOM = 32  # entries a row gets at first: candidates come a few more than asked for
_CROWDED_SHARE = 8  # dense passes win once lists hold more than n / 8 columns ...
_ALWAYS_SPARSE = 48  # ... but never below this length
_BANDS = 256  # of rows whose sums are added in order: a function of n alone, so are the bits
_SEGMENTS = 8  # as in messages.cu
_ENTRY_BYTES = 3 * 8 + 4


@dataclass(frozen=True)
class Passed:
    """The end of the messages of all problems."""

    is_exemplar: Array  # (points) int32, on the device
    n_iter: NDArray[np.int32]  # (problems)
    converged: NDArray[np.bool_]  # (problems)
    preference: Array  # (points) float64 with jitter, on the device
    longest_list: int  # 0 where no problem used lists


def pass_messages(
    problems: Problems, preference: Array, options: Options, regime: str = "auto"
) -> Passed:
    """Pass messages on all problems; `preference` (points,) has their dtype."""
    batch = Batch(problems, preference, options)
    sizes = problems.sizes
    everyone = np.arange(len(sizes))
    fits = small_bytes(sizes) <= problems.engine.max_shared
    if problems.kind != "matrix" or regime in ("lists", "dense"):
        fits = np.zeros(len(sizes), dtype=bool)
    elif regime == "small" and not fits.all():
        raise ValueError(f"{sizes.max()} points do not fit in the shared memory of a block")
    batch.run_small(everyone[fits])
    longest = 0
    crowded = everyone[~fits]
    if regime != "dense":
        crowded, longest = batch.run_lists(everyone[~fits], may_turn_dense=regime == "auto")
    n_iter, state = problems.engine.host(batch.t), problems.engine.host(batch.state)
    for p in crowded:
        own = slice(problems.first[p], problems.first[p + 1])
        one = Batch(problems.alone(p), preference[own], options)
        one.run_dense()
        batch.is_exemplar[own] = one.is_exemplar
        n_iter[p], state[p] = problems.engine.host(one.t)[0], problems.engine.host(one.state)[0]
    return Passed(batch.is_exemplar, n_iter, state == _CONVERGED, batch.preference, longest)


def small_bytes(n: Any) -> Any:
    """Shared memory of a block that holds S, R and A of `n` points."""
    return 8 * (3 * n * n + n + _SEGMENTS * n) + 4 * 2 * n


class Batch:
    """The kernels' ``Batch``: points and problems with what an iteration keeps about them."""

    def __init__(self, problems: Problems, preference: Array, options: Options) -> None:
        engine = self.engine = problems.engine
        xp = engine.xp
        points, count = problems.points, len(problems.sizes)
        self.problems = problems
        self.options = options
        self.is_exemplar = xp.zeros(points, dtype=np.int32)
        self.preference = xp.zeros(points)
        self.state = xp.zeros(count, dtype=np.int32)
        self.t = xp.zeros(count, dtype=np.int32)
        self.starving = xp.zeros(count, dtype=np.int32)
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
                "starving": self.starving,
                "keep": options.damping,
                "max_iter": options.max_iter,
                "convergence_iter": options.convergence_iter,
                "seed": options.seed,
            },
        )
        self.launch(f"begin_{problems.number}", points, self.table, preference)

    def launch(self, kernel: str, work: int, *args: Array | int) -> None:
        """Start a kernel with a thread for each of `work`."""
        threads = self.engine.threads
        self.engine.launch(kernel, -(-work // threads), threads, *args)

    def run_small(self, which: NDArray[np.int_]) -> None:
        """Run these problems to their end, a block each."""
        if which.size == 0:
            return
        sizes = self.problems.sizes
        which = which[np.argsort(-sizes[which], kind="stable")].astype(np.int32)  # longest first
        self.engine.launch(
            f"small_{self.problems.number}",
            which.size,
            self.engine.wide,
            self.table,
            self.problems.source,
            self.engine.xp.asarray(which),
            shared=int(small_bytes(sizes[which[0]])),
        )

    def run_lists(
        self, which: NDArray[np.int_], *, may_turn_dense: bool
    ) -> tuple[NDArray[np.int_], int]:
        """Run these problems on lists; return those that got crowded, and the longest list."""
        if which.size == 0:
            return which, 0
        lists = Lists(self, which)

        def iterate() -> None:
            self.launch("list_rows", 32 * self.problems.points, self.table, lists.table)
            self.launch("list_columns", 32 * self.problems.points, self.table, lists.table)
            self.launch("conclude", len(self.problems.sizes), self.table)

        run = self.engine.repeater(iterate, _ITERATIONS)
        crowded: list[int] = []
        while True:
            run()
            state = self.engine.host(self.state)
            starved = np.flatnonzero(state == _STARVED)
            if starved.size == 0:
                if (state[which] > _STARVED).all():
                    return np.array(crowded, dtype=np.int_), lists.longest()
                continue
            if may_turn_dense:
                given_up = [p for p in starved[lists.crowded(starved)] if self._dense_fits(p)]
                crowded += given_up
                state[given_up] = _EXHAUSTED
            state[state == _STARVED] = _RESUMED
            self.state[:] = self.engine.xp.asarray(state)
            self.starving[:] = 0
            lists.serve_pending()

    def _dense_fits(self, p: int) -> bool:
        return self.problems.kind == "matrix" and (
            dense_bytes(int(self.problems.sizes[p]), self.problems.dtype)
            <= self.engine.free_bytes()
        )

    def run_dense(self) -> None:
        """Run the batch's only problem with messages between all pairs."""
        engine, xp, n = self.engine, self.engine.xp, self.problems.points
        number, dtype = self.problems.number, self.problems.dtype
        require(engine, dense_bytes(n, dtype), f"dense affinity propagation on {n} points", _FEWER)
        s = xp.empty((n, n), dtype=dtype)
        r, a = xp.zeros((n, n), dtype=dtype), xp.zeros((n, n), dtype=dtype)
        bands = min(n, _BANDS)
        partial = xp.empty((bands, n))
        self.launch(
            f"dense_begin_{number}", min(n * n, 1 << 20), self.table, self.problems.source, s
        )
        threads = engine.wide if n >= 4096 else engine.threads

        def iterate() -> None:
            engine.launch(
                f"dense_rows_{number}",
                bands,
                threads,
                self.table,
                s,
                r,
                a,
                partial,
                shared=2 * 8 * threads // 32,
            )
            self.launch("dense_columns", n, self.table, partial, bands)
            self.launch("conclude", 1, self.table)

        run = engine.repeater(iterate, _ITERATIONS)
        while engine.host(self.state)[0] == _RUNNING:
            run()


_FEWER = "raise the preference (shorter lists), or cluster fewer points"


def dense_bytes(n: int, dtype: np.dtype[Any]) -> int:
    """Memory that dense passes on `n` points take beside the similarities."""
    return 3 * n * n * dtype.itemsize + min(n, _BANDS) * n * 8


class Lists:
    """The kernels' ``Lists``: every row's most similar points in a pool that grows."""

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
        self.column_first = xp.zeros(points + 1, dtype=np.int64)
        self.column_entry = xp.zeros(1, dtype=np.int32)
        self._resize(int(np.minimum(problems.sizes[which] - 1, _ROOM) @ problems.sizes[which]))
        self.table = pack(batch.engine, self._words())
        chosen = xp.zeros(len(problems.sizes), dtype=bool)
        chosen[xp.asarray(which)] = True
        self.serve(xp.flatnonzero(chosen[problems.problem]))

    def longest(self) -> int:
        """Return the length of the longest list that holds messages."""
        return int(self.active.max())

    def crowded(self, which: NDArray[np.int_]) -> NDArray[np.bool_]:
        """Tell which problems would, once served, have lists longer than dense passes cost."""
        xp, problems = self.batch.engine.xp, self.batch.problems
        listed = self.listed + self.pending * xp.maximum(self.listed, _FIRST_WANT)
        before = xp.concatenate([xp.zeros(1, dtype=np.int64), xp.cumsum(listed, dtype=np.int64)])
        sums = np.diff(self.batch.engine.host(before[problems.first_device]))
        sizes = problems.sizes
        limit = sizes * np.maximum(_ALWAYS_SPARSE, sizes // _CROWDED_SHARE)
        return np.asarray((sums > limit)[which])

    def serve_pending(self) -> None:
        """Give more candidates to the rows that wait for them."""
        resumed = self.batch.state[self.batch.problems.problem] == _RESUMED
        self.serve(self.batch.engine.xp.flatnonzero(resumed & (self.pending != 0)))

    def serve(self, rows: Array) -> None:
        """Give these rows their next candidates and index the lists by column again."""
        engine, xp, problems = self.batch.engine, self.batch.engine.xp, self.batch.problems
        rows = rows.astype(np.int32)
        while rows.size > 0:
            served = xp.zeros(rows.size, dtype=np.int32)
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
                    served[some],
                    shared=80 + 8 * engine.threads,
                )
            rows = rows[served == 0]
            if rows.size > 0:
                wanted = int(engine.host(self.used)[0])
                self.used[:] = (self.start + self.listed).max().astype(np.uint64)
                self._resize(wanted + wanted // 4)
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

    def _resize(self, capacity: int) -> None:
        engine, xp = self.batch.engine, self.batch.engine.xp
        what = f"lists of {capacity} similar points"
        # Their index by column is sorted with 64-bit keys: about seven words an entry for a moment.
        require(engine, capacity * (_ENTRY_BYTES + 56), what, _FEWER)
        if capacity >= 2**31:
            raise MemoryError(f"{what} are more than an index of 32 bits can hold; {_FEWER}")
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
        return [
            self.capacity,
            self.used,
            self.s,
            self.r,
            self.a,
            self.column,
            self.start,
            self.listed,
            self.active,
            self.unlisted,
            self.mu,
            self.pending,
            self.column_first,
            self.column_entry,
        ]

    def _refresh(self) -> None:  # in place: a recorded graph knows the table's address
        words = packed_words(self.batch.engine, self._words())
        self.table[:] = self.batch.engine.xp.asarray(words)
