"""Messages between listed pairs only: every row's most similar points, in a pool that grows."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from epruner.cluster.gpu.batch import (
    EXHAUSTED,
    FEWER,
    ITERATIONS,
    RESUMED,
    STARVED,
    Batch,
)
from epruner.cluster.gpu.engine import Array, pack, packed_words, require

FIRST_WANT = 16  # candidates a row asks for, as in messages.cu
_ROOM = 32  # entries a row gets at first: candidates come a few more than asked for
_CROWDED_SHARE = 8  # dense passes win once lists hold more than n / 8 columns ...
_ALWAYS_SPARSE = 48  # ... but never below this length
_ENTRY_BYTES = 3 * 8 + 4
# An index by column is sorted with 64-bit keys: about seven words an entry for a moment.
_SORTING_BYTES = 7 * 8


def run_lists(
    batch: Batch, which: NDArray[np.int_], give_up: Callable[[int], bool]
) -> tuple[NDArray[np.int_], int]:
    """Run these problems on lists.

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
    lists = Lists(batch, which)

    def iterate() -> None:
        batch.launch("list_rows", 32 * problems.points, batch.table, lists.table)
        batch.launch("list_columns", 32 * problems.points, batch.table, lists.table)
        batch.launch("conclude", len(problems.sizes), batch.table)

    run = engine.repeater(iterate, ITERATIONS)
    crowded: list[int] = []
    while True:
        run()
        state = engine.host(batch.state)
        starved = np.flatnonzero(state == STARVED)
        if starved.size == 0:
            if (state[which] > STARVED).all():
                return np.array(crowded, dtype=np.int_), lists.longest()
            continue
        given_up = [p for p in starved[lists.crowded(starved)] if give_up(p)]
        crowded += given_up
        state[given_up] = EXHAUSTED
        state[state == STARVED] = RESUMED
        batch.state[:] = engine.xp.asarray(state)
        batch.starving[:] = 0
        lists.serve_pending()


class Lists:
    """The kernels' ``Lists``.

    Parameters
    ----------
    batch : Batch
    which : array of int
        The problems that get lists.
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
        self.column_first = xp.zeros(points + 1, dtype=np.int64)
        self.column_entry = xp.zeros(1, dtype=np.int32)
        self._grow(int(np.minimum(problems.sizes[which] - 1, _ROOM) @ problems.sizes[which]))
        self.table = pack(batch.engine, self._words())
        chosen = xp.zeros(len(problems.sizes), dtype=bool)
        chosen[xp.asarray(which)] = True
        self._serve(xp.flatnonzero(chosen[problems.problem]))

    def longest(self) -> int:
        """Return the length of the longest list that holds messages."""
        return int(self.active.max())

    def crowded(self, which: NDArray[np.int_]) -> NDArray[np.bool_]:
        """Tell which problems would, once served, have lists longer than dense passes cost."""
        xp, problems = self.batch.engine.xp, self.batch.problems
        listed = self.listed + self.pending * xp.maximum(self.listed, FIRST_WANT)
        before = xp.concatenate([xp.zeros(1, dtype=np.int64), xp.cumsum(listed, dtype=np.int64)])
        sums = np.diff(self.batch.engine.host(before[problems.first_device]))
        sizes = problems.sizes
        limit = sizes * np.maximum(_ALWAYS_SPARSE, sizes // _CROWDED_SHARE)
        return np.asarray((sums > limit)[which])

    def serve_pending(self) -> None:
        """Give more candidates to the rows that wait for them."""
        resumed = self.batch.state[self.batch.problems.problem] == RESUMED
        self._serve(self.batch.engine.xp.flatnonzero(resumed & (self.pending != 0)))

    def _serve(self, rows: Array) -> None:
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
        require(engine, capacity * (_ENTRY_BYTES + _SORTING_BYTES), what, FEWER)
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
        return [getattr(self, name) for name in LISTS_FIELDS]

    def _refresh(self) -> None:  # in place: a recorded graph knows the table's address
        words = packed_words(self.batch.engine, self._words())
        self.table[:] = self.batch.engine.xp.asarray(words)


LISTS_FIELDS = (
    *("capacity", "used", "s", "r", "a", "column", "start", "listed", "active", "unlisted"),
    *("mu", "pending", "column_first", "column_entry"),
)
