"""The active-set solver compiled by numba, for platforms where the extension is missing.

The algorithm of csrc/active_set.hpp: only pairs that were ever their row's maximum or ever had
R > 0 hold messages. Every other pair satisfies R = (1 - damping^t) S - mu[i] and A = abar[k], so
its messages are rebuilt exactly when it becomes interesting. All messages are float64. There is no
dense continuation: lists that have grown to whole rows cost about a quarter more than one would.

Threads are Python's, running kernels without the GIL over fixed blocks of rows: numba's own
threading layers abort when two threads enter them, or after a fork, and cannot be interrupted.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from epruner import _install
from epruner.cluster import jitter
from epruner.cluster.types import Messages, Options

try:
    from numba import njit
except ImportError as error:
    raise ImportError(
        f"backend='numba' needs numba, which is not installed: {_install.command('numba')}"
    ) from error

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Function = TypeVar("Function", bound=Callable[..., Any])

_FIRST_WANT = 16  # candidates a row starts with
_MOST_BLOCKS = 16
_SERIAL_BELOW = 1 << 17  # entries; handing out a pass costs about as much as this many
_TILE = 1 << 18  # similarities made float64 at once; they stay in cache


def _compiled(function: Function) -> Function:
    return cast(Function, njit(cache=True, nogil=True)(function))


_mix = cast(Callable[[np.uint64], np.uint64], _compiled(jitter._mix))
_uniform = cast(Callable[[np.uint64, np.uint64], float], _compiled(jitter._uniform))
_GOLDEN = jitter._GOLDEN


class _Noise(NamedTuple):
    """What the jitter depends on besides the position; see jitter.py."""

    seed: np.uint64
    relative: float
    absolute: float


class _Candidates(NamedTuple):
    """Row i's candidates, most similar first: entries start[i] .. start[i] + listed[i] of the pool.

    The first `active[i]` hold messages. Nothing that row i does not list exceeds `unlisted[i]`.
    """

    start: Integers  # (n,)
    active: Integers
    listed: Integers
    unlisted: Floats
    s: Floats  # (capacity,)
    r: Floats
    a: Floats
    column: NDArray[np.uint32]


class _Points(NamedTuple):
    """What each point has once, all (n,): its own entries of S, R and A, and its totals."""

    preference: Floats
    r: Floats
    a: Floats
    mu: Floats  # damped row maxima: R of a pair without messages is (1 - damping^t) S - mu
    abar: Floats  # A of a pair without messages
    total: Floats  # support + R[k,k] of the last iteration
    streak: Integers  # iterations since the point last changed its role
    is_exemplar: NDArray[np.bool_]
    waiting: NDArray[np.bool_]  # the row has not finished this iteration


@_compiled
def _jitter(s: float, i: np.int64, k: np.int64, noise: _Noise) -> float:
    if np.isinf(s):
        return s
    row = _mix((np.uint64(i) + noise.seed) * _GOLDEN + _GOLDEN)
    u = _uniform(row >> np.uint64(32), np.uint64(k))
    return s + (noise.relative * abs(s) + noise.absolute) * u


@_compiled
def _select(
    tile: Floats, rows: Integers, listed: Integers, below: Floats, lowest: float, noise: _Noise
) -> tuple[Integers, NDArray[np.uint32], Floats]:
    """Find the next most similar columns of `rows`, at least as many again as they list.

    `tile` holds the similarities of `rows`, and loses their own entries. Lowers `below[i]` to the
    smallest similarity found, or to `lowest` if nothing is left. Returns compressed rows (offsets,
    columns, jittered similarities) in descending order of similarity.
    """
    n = tile.shape[1]
    offsets = np.zeros(rows.size + 1, dtype=np.int64)
    columns = np.empty(n + 2 * _FIRST_WANT * rows.size, dtype=np.uint32)
    for q in range(rows.size):
        x, i, first = tile[q], rows[q], offsets[q]
        x[i] = -np.inf
        low, high = _threshold(x, below[i], max(_FIRST_WANT, listed[i]), lowest), below[i]
        if first + n > columns.size:
            larger = np.empty(2 * columns.size + n, dtype=np.uint32)
            larger[:first] = columns[:first]
            columns = larger
        last = first
        for k in range(n):
            columns[last] = k
            last += (x[k] >= low) & (x[k] < high)
        offsets[q + 1] = last
        below[i] = low

    values = np.empty(offsets[-1])
    for q in range(rows.size):
        first, last = offsets[q], offsets[q + 1]
        for e in range(first, last):
            values[e] = _jitter(tile[q, columns[e]], rows[q], np.int64(columns[e]), noise)
        order = first + np.argsort(-values[first:last])
        values[first:last] = values[order]
        columns[first:last] = columns[order]
    return offsets, columns[: values.size], values


@_compiled
def _threshold(x: Floats, below: float, want: int, lowest: float) -> float:
    """Return a value that at least `want` of the entries below `below` reach, and not many more."""
    width = 4 * want
    if 2 * width >= x.size:
        return lowest
    # At least as many entries as lanes reach the want-th largest lane maximum. Lanes are strided
    # because neighbours in memory are often neighbours in space.
    lanes = np.full(width, -np.inf)
    for first in range(0, x.size, width):
        for j in range(min(width, x.size - first)):
            if x[first + j] < below and x[first + j] > lanes[j]:
                lanes[j] = x[first + j]
    return max(lowest, float(np.sort(lanes)[width - want]))


@_compiled
def _append(
    rows: Integers,
    offsets: Integers,
    columns: NDArray[np.uint32],
    values: Floats,
    candidates: _Candidates,
    end: int,
) -> int:
    """Move `rows` to the end of the pool with their new candidates; return the pool's new end."""
    for q in range(rows.size):
        i = rows[q]
        old, kept, found = candidates.start[i], candidates.listed[i], offsets[q + 1] - offsets[q]
        for e in range(kept):
            candidates.s[end + e] = candidates.s[old + e]
            candidates.r[end + e] = candidates.r[old + e]
            candidates.a[end + e] = candidates.a[old + e]
            candidates.column[end + e] = candidates.column[old + e]
        for e in range(found):
            candidates.s[end + kept + e] = values[offsets[q] + e]
            candidates.column[end + kept + e] = columns[offsets[q] + e]
        candidates.start[i] = end
        candidates.listed[i] = kept + found
        end += kept + found
    return end


@_compiled
def _begin_iteration(damping: float, points: _Points) -> float:
    """Update the availability of all pairs without messages; return the largest."""
    most = -np.inf
    for k in range(points.abar.size):
        points.abar[k] = damping * points.abar[k] + (1 - damping) * min(0.0, points.total[k])
        most = max(most, points.abar[k])
        points.waiting[k] = True
    return most


@_compiled
def _pass_rows(
    first: int,
    last: int,
    fresh: bool,
    damping: float,
    decay: float,
    abar_max: float,
    points: _Points,
    candidates: _Candidates,
    support: Floats,
) -> None:
    """Bring the waiting rows among [first, last) to this iteration and add to `support` (n,).

    `fresh` says that their availabilities are still the last iteration's. A row that runs out of
    candidates keeps waiting.
    """
    start, active, listed, unlisted, s, r, a, column = candidates
    total, mu, abar = points.total, points.mu, points.abar
    renew = 1 - damping
    grown = 1 - decay * damping
    for i in range(first, last):
        if not points.waiting[i]:
            continue
        begin = start[i]
        own = points.a[i] + points.preference[i]
        best, second = own, -np.inf
        if fresh:
            for e in range(begin, begin + active[i]):
                a[e] = damping * a[e] + renew * min(0.0, total[column[e]] - max(0.0, r[e]))
        for e in range(begin, begin + active[i]):
            v = a[e] + s[e]
            second = max(second, min(best, v))
            best = max(best, v)

        # A candidate is harmless if it and all below it are no row maximum and have no R > 0.
        end = begin + listed[i]
        e = begin + active[i]
        while e < end and not (
            s[e] + abar_max <= second and grown * s[e] <= damping * mu[i] + renew * best
        ):
            r[e] = (1 - decay) * s[e] - mu[i]
            a[e] = abar[column[e]]
            v = a[e] + s[e]
            second = max(second, min(best, v))
            best = max(best, v)
            e += 1
        active[i] = e - begin
        rest = unlisted[i]
        if e == end and not (
            rest == -np.inf
            or (rest + abar_max <= second and grown * rest <= damping * mu[i] + renew * best)
        ):
            continue

        mu[i] = damping * mu[i] + renew * best
        rival = second if own == best else best
        points.r[i] = damping * points.r[i] + renew * (points.preference[i] - rival)
        for e in range(begin, begin + active[i]):
            rival = second if a[e] + s[e] == best else best
            r[e] = damping * r[e] + renew * (s[e] - rival)
            if r[e] > 0:
                support[column[e]] += r[e]
        points.waiting[i] = False


@_compiled
def _finish_iteration(damping: float, support: Floats, points: _Points) -> tuple[bool, int]:
    """Update totals and exemplars from `support` (blocks, n).

    Returns whether there is an exemplar, and the shortest streak.
    """
    some = False
    shortest = points.streak[0] + 1
    for k in range(points.total.size):
        c = 0.0
        for block in range(support.shape[0]):
            c += support[block, k]
            support[block, k] = 0.0
        points.total[k] = c + points.r[k]
        points.a[k] = damping * points.a[k] + (1 - damping) * c
        now = points.a[k] + points.r[k] > 0
        points.streak[k] = points.streak[k] + 1 if now == points.is_exemplar[k] else 1
        points.is_exemplar[k] = now
        some |= now
        shortest = min(shortest, points.streak[k])
    return some, shortest


def solve(S: NDArray[np.floating], preference: NDArray[np.floating], options: Options) -> Messages:
    """Pass messages between listed pairs only."""
    with ThreadPoolExecutor(options.n_threads) as workers:  # threads start with the first task
        try:
            return _ActiveSet(S, preference, options, workers).run()
        except SystemError as error:  # Ctrl-C while numba wrapped a kernel's results
            cause: BaseException | None = error
            while isinstance(cause, SystemError):  # one for each result
                cause = cause.__cause__
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise


class _ActiveSet:
    """The candidates, the points, and who works on them."""

    def __init__(
        self,
        S: NDArray[np.floating],
        preference: NDArray[np.floating],
        options: Options,
        workers: ThreadPoolExecutor,
    ) -> None:
        n = S.shape[0]
        self.S, self.options, self.workers = S, options, workers
        sizes = (0.0, 0.0) if options.seed is None else jitter.scale(S.dtype)
        self.noise = _Noise(np.uint64(options.seed or 0), *sizes)
        self.lowest = float(np.finfo(S.dtype).min)
        self.points = _points(jitter.jittered(preference, np.arange(n), np.arange(n), options.seed))
        self.candidates = _pool(n, 0)
        self.end = 0  # of the used part of the pool
        self.below = np.full(n, np.inf)  # candidates with similarities from here up are listed
        # Fixed blocks, summed in fixed order: the same bits for any number of threads.
        blocks = min(_MOST_BLOCKS, -(-n // 64))
        self.cuts = [n * block // blocks for block in range(blocks + 1)]
        self.support = np.zeros((blocks, n))
        self.decay = 1.0  # damping^t

    def run(self) -> Messages:
        options, points = self.options, self.points
        damping = options.damping
        self._refill(np.arange(self.S.shape[0]))
        for t in range(options.max_iter):
            abar_max = _begin_iteration(damping, points)
            self._pass_rows(True, abar_max)
            while points.waiting.any():
                self._refill(np.flatnonzero(points.waiting))
                self._pass_rows(False, abar_max)
            self.decay *= damping
            some, shortest = _finish_iteration(damping, self.support, points)
            if some and min(t, shortest) >= options.convergence_iter:
                return Messages(points.is_exemplar, t + 1, converged=True)
        return Messages(points.is_exemplar, options.max_iter, converged=False)

    def _pass_rows(self, fresh: bool, abar_max: float) -> None:
        damping, points, candidates = self.options.damping, self.points, self.candidates

        def block(q: int) -> None:
            part = self.cuts[q], self.cuts[q + 1]
            own = self.support[q]
            _pass_rows(*part, fresh, damping, self.decay, abar_max, points, candidates, own)

        self._each(block, range(len(self.cuts) - 1), self.end if fresh else 0)

    def _refill(self, rows: Integers) -> None:
        """Give each of these rows its next candidates."""
        n, candidates = self.S.shape[0], self.candidates

        def select(part: Integers) -> tuple[Integers, NDArray[np.uint32], Floats]:
            tile = self.S[part].astype(np.float64)
            return _select(tile, part, candidates.listed, self.below, self.lowest, self.noise)

        step = max(1, _TILE // n)
        parts = [rows[first : first + step] for first in range(0, rows.size, step)]
        found = self._each(select, parts, rows.size * n)
        need = (
            self.end + int(candidates.listed[rows].sum()) + sum(values.size for *_, values in found)
        )
        if need > candidates.s.size:
            candidates = self._reserve(max(need, 2 * candidates.s.size))
        for part, (offsets, columns, values) in zip(parts, found, strict=True):
            self.end = _append(part, offsets, columns, values, candidates, self.end)
        low = self.below[rows]
        ceiling = low + (self.noise.relative * np.abs(low) + self.noise.absolute)
        candidates.unlisted[rows] = np.where(low > self.lowest, ceiling, -np.inf)

    def _reserve(self, capacity: int) -> _Candidates:
        larger = _pool(self.S.shape[0], capacity)
        for field in _Candidates._fields:
            values: NDArray[Any] = getattr(self.candidates, field)
            getattr(larger, field)[: values.size] = values
        self.candidates = larger
        return larger

    def _each(self, task: Callable[[Any], Any], parts: Iterable[Any], entries: int) -> list[Any]:
        """Run `task` on every part, on the workers where `entries` are enough to be worth it."""
        if self.options.n_threads == 1 or entries < _SERIAL_BELOW:
            return [task(part) for part in parts]
        return list(self.workers.map(task, parts))


def _points(preference: Floats) -> _Points:
    n = preference.size
    return _Points(
        preference=preference,
        r=np.zeros(n),
        a=np.zeros(n),
        mu=np.zeros(n),
        abar=np.zeros(n),
        total=np.full(n, np.inf),
        streak=np.zeros(n, dtype=np.int64),
        is_exemplar=np.zeros(n, dtype=bool),
        waiting=np.ones(n, dtype=bool),
    )


def _pool(n: int, capacity: int) -> _Candidates:
    return _Candidates(
        start=np.zeros(n, dtype=np.int64),
        active=np.zeros(n, dtype=np.int64),
        listed=np.zeros(n, dtype=np.int64),
        unlisted=np.zeros(n),
        s=np.empty(capacity),
        r=np.empty(capacity),
        a=np.empty(capacity),
        column=np.empty(capacity, dtype=np.uint32),
    )
