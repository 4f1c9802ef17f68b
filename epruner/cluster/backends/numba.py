"""The active-set solver compiled by numba, for platforms where the extension is missing.

The algorithm of csrc/active_set.hpp: only pairs that were ever their row's maximum or ever had
R > max(0, b[k]) hold messages. Every other pair satisfies R = (1 - damping^t) S - mu[i] and
A = abar[k], so its messages are rebuilt exactly when it becomes interesting. All messages are
float64, and there is no dense continuation.

What a row does not list may have R > 0, or be so similar that no bound tells it from the row's
maximum. Then one read of its row of S settles that for this iteration; where such reads of the row
have been as much work as to list what they are for, it is listed.

Threads are Python's, running kernels without the GIL over fixed blocks of rows: numba's own
threading layers abort when two threads enter them, or after a fork, and cannot be interrupted.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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

# As plain numbers these would be types of their own to numba, and functions of them compiled again.
_FIRST_WANT = cast(int, np.int64(16))  # candidates a row starts with
_ZERO = cast(int, np.int64(0))
_MOST_BLOCKS = 16
_SERIAL_BELOW = 1 << 17  # entries; handing out a pass costs about as much as this many
_READ_SHARE = 8
_MOST_EXACT = 64  # candidates whose threshold is worth more than a guess from a sample
_TILE = 1 << 16  # similarities made float64 at once; they stay in cache


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
    lowest: float  # finite similarity


class _Candidates(NamedTuple):
    """Row i's most similar points: entries start[i] .. start[i] + listed[i] of the pool.

    The first `active[i]` hold messages, in any order; the others follow in descending order. Listed
    are those with a similarity of at least `below[i]`, before its jitter. Nothing that row i does
    not list exceeds `unlisted[i]`.
    """

    start: Integers  # (n,)
    active: Integers
    listed: Integers
    below: Floats
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
    abar_before: Floats  # the same before this iteration
    total: Floats  # support + R[k,k] of the last iteration
    streak: Integers  # iterations since the point last changed its role
    is_exemplar: NDArray[np.bool_]
    waiting: NDArray[np.bool_]  # the row has not finished this iteration
    second: Floats  # of the row's A + S, where it waits
    reach: Floats  # of what the row does not list, no A + S exceeds this in this iteration
    bursting: NDArray[np.bool_]  # what the row does not list may have R > 0
    reads: Integers  # of the row of S, to settle an iteration


class _State(NamedTuple):
    points: _Points
    candidates: _Candidates
    noise: _Noise


@_compiled
def _row_key(i: np.int64, noise: _Noise) -> np.uint64:
    return _mix((np.uint64(i) + noise.seed) * _GOLDEN + _GOLDEN) >> np.uint64(32)


@_compiled
def _jitter(s: float, row_key: np.uint64, k: int, noise: _Noise) -> float:
    """Return a finite similarity with its jitter."""
    size = noise.relative * abs(s) + noise.absolute
    return s + size * _uniform(row_key, np.uint64(k))


@_compiled
def _ceiling(s: float, noise: _Noise) -> float:
    """Return at least the jittered value of anything up to `s`."""
    return s + (noise.relative * abs(s) + noise.absolute) if s > -np.inf else s


# Kernels that look at a tile, the similarities of `rows` without their own entries, and say from
# which similarity down, before its jitter, each row shall list its points; inf asks for nothing.


@_compiled
def _first(tile: Floats, rows: Integers, state: _State) -> Floats:
    """Ask for the candidates that a row starts with."""
    low = np.empty(rows.size)
    for q in range(rows.size):
        low[q] = _threshold(tile[q], np.inf, _FIRST_WANT, state.noise.lowest)
    return low


@_compiled
def _rivals(tile: Floats, rows: Integers, abar_max: float, state: _State) -> Floats:
    """Ask for what may be one of the two largest of a waiting row; bound the rest."""
    points, candidates, noise = state
    low = np.full(rows.size, np.inf)
    for q in range(rows.size):
        x, i = tile[q], rows[q]
        key, high, second = _row_key(i, noise), candidates.below[i], points.second[i]
        close, least, most = _ZERO, np.inf, -np.inf
        for k in range(x.size):
            if noise.lowest <= x[k] < high:
                most = max(most, x[k])
                if _ceiling(x[k], noise) + abar_max > second:
                    close += 1
                    least = min(least, x[k])
                    if _jitter(x[k], key, k, noise) + points.abar[k] > second:
                        low[q] = min(low[q], x[k])
        points.reach[i] = second
        low[q] = min(low[q], _list_or_read(x, i, close, least, most, state))
    return low


@_compiled
def _positives(
    tile: Floats,
    rows: Integers,
    again: bool,
    grown: float,
    cuts: Integers,
    supports: Floats,
    state: _State,
) -> Floats:
    """Add R > 0 of what the rows do not list to the support of their blocks, as _pass_rows does.

    With `again`, after the iteration, ask for what had R > max(0, b) in it instead.
    """
    points, candidates, noise = state
    low = np.full(rows.size, np.inf)
    block = 0
    for q in range(rows.size):
        x, i = tile[q], rows[q]
        while cuts[block + 1] <= i:
            block += 1
        support = supports[block]
        key, high, mu = _row_key(i, noise), candidates.below[i], points.mu[i]
        count, least, most = _ZERO, np.inf, -np.inf
        for k in range(x.size):
            if noise.lowest <= x[k] < high:
                most = max(most, x[k])
                if grown * _ceiling(x[k], noise) <= mu:
                    continue
                r = grown * _jitter(x[k], key, k, noise) - mu
                if r > 0 and not (again and r <= points.total[k]):
                    count += 1
                    least = min(least, x[k])
                    if not again:
                        support[k] += r
        if again:
            low[q] = least
        else:
            low[q] = _list_or_read(x, i, count, least, most, state)
            points.bursting[i] = count > 0 and low[q] == np.inf
    return low


@_compiled
def _list_or_read(x: Floats, i: int, count: int, least: float, most: float, state: _State) -> float:
    """Return from where row i shall list its points, or inf to read its similarities `x` again.

    A read found that the list lacks `count`, down to `least`; the most similar of all that is not
    listed is `most`.
    """
    points, candidates, noise = state
    points.reads[i] += 1
    want = max(_FIRST_WANT, candidates.listed[i])
    if count == 0 or count > max(want, points.reads[i] * x.size // _READ_SHARE):
        candidates.unlisted[i] = _ceiling(most, noise)
        return np.inf
    if count >= want:
        return least
    return min(least, _threshold(x, candidates.below[i], want, noise.lowest))


@_compiled
def _threshold(x: Floats, below: float, want: int, lowest: float) -> float:
    """Return a value that about `want` or a few more of the entries below `below` reach."""
    n, width = x.size, 4 * want
    if 2 * width < n and want <= _MOST_EXACT:
        # At least as many entries as lanes reach the want-th largest lane maximum. Lanes are
        # strided because neighbours in memory are often neighbours in space.
        some, rank = np.full(width, -np.inf), want
        for first in range(0, n, width):
            for j in range(min(width, n - first)):
                if x[first + j] < below and x[first + j] > some[j]:
                    some[j] = x[first + j]
    else:
        stride = 1 + want // 16
        some, rank = np.full(n // stride, -np.inf), want // stride + 1
        for j in range(some.size):
            if x[j * stride] < below:
                some[j] = x[j * stride]
    return max(lowest, float(np.sort(some)[max(0, some.size - rank)]))


@_compiled
def _select(
    tile: Floats, rows: Integers, low: Floats, state: _State
) -> tuple[Integers, NDArray[np.uint32], Floats]:
    """Find the columns of `rows` that are not listed and have a similarity of at least `low`.

    Returns compressed rows (offsets, columns, jittered similarities) in descending order of
    similarity.
    """
    _, candidates, noise = state
    n = tile.shape[1]
    offsets = np.zeros(rows.size + 1, dtype=np.int64)
    columns = np.empty(n + 2 * _FIRST_WANT * rows.size, dtype=np.uint32)
    for q in range(rows.size):
        x, i, last = tile[q], rows[q], offsets[q]
        if low[q] < np.inf:
            if last + n > columns.size:
                larger = np.empty(2 * columns.size + n, dtype=np.uint32)
                larger[:last] = columns[:last]
                columns = larger
            high = candidates.below[i]
            for k in range(n):
                columns[last] = k
                last += (x[k] >= low[q]) & (x[k] < high)
            candidates.below[i] = low[q]
            some = low[q] > noise.lowest
            candidates.unlisted[i] = _ceiling(low[q], noise) if some else -np.inf
        offsets[q + 1] = last

    values = np.empty(offsets[-1])
    for q in range(rows.size):
        first, last = offsets[q], offsets[q + 1]
        key = _row_key(rows[q], noise)
        for e in range(first, last):
            values[e] = _jitter(tile[q, columns[e]], key, columns[e], noise)
        order = first + np.argsort(-values[first:last])
        values[first:last] = values[order]
        columns[first:last] = columns[order]
    return offsets, columns[: values.size], values


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
        if found == 0:
            continue
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
        points.abar_before[k] = points.abar[k]
        points.abar[k] = damping * points.abar[k] + (1 - damping) * min(0.0, points.total[k])
        most = max(most, points.abar[k])
        points.reach[k] = np.inf
        points.waiting[k] = True
    return most


@_compiled
def _store_availabilities(i: int, e: int, damping: float, grown: float, state: _State) -> None:
    """Make the listed pairs of row i active that had R > max(0, b) in the last iteration.

    The first of them is entry `e` of the pool.
    """
    points = state.points
    start, active, listed, _, _, s, r, a, column = state.candidates
    mu, total = points.mu[i], points.total
    first, end, last = start[i] + active[i], start[i] + listed[i], e
    while last < end and grown * s[last] > mu:
        last += 1
    similarities, columns = s[first:last].copy(), column[first:last].copy()
    other = last  # backwards: those that stay, then those found, whose order does not matter
    for e in range(last - first - 1, -1, -1):
        if grown * similarities[e] - mu <= max(0.0, total[columns[e]]):
            other -= 1
            s[other], column[other] = similarities[e], columns[e]
    found = first
    for e in range(last - first):
        k = columns[e]
        fresh = grown * similarities[e] - mu
        if fresh > max(0.0, total[k]):
            s[found], column[found], r[found] = similarities[e], k, fresh
            balance = min(0.0, total[k] - fresh)
            a[found] = damping * points.abar_before[k] + (1 - damping) * balance
            found += 1
    active[i] += found - first


@_compiled
def _pass_rows(
    cuts: Integers,
    fresh: bool,
    damping: float,
    decay: float,
    abar_max: float,
    supports: Floats,
    state: _State,
) -> None:
    """Bring waiting rows to this iteration; block [cuts[q], cuts[q + 1]) adds to supports[q] (n,).

    `fresh` says that their availabilities are still the last iteration's. A row that runs out of
    candidates keeps waiting.
    """
    points = state.points
    start, active, listed, _, unlisted, s, r, a, column = state.candidates
    total, mu, abar = points.total, points.mu, points.abar
    renew = 1 - damping
    grown = 1 - decay * damping
    for q in range(cuts.size - 1):
        support = supports[q]
        for i in range(cuts[q], cuts[q + 1]):
            if not points.waiting[i]:
                continue
            begin, end = start[i], start[i] + listed[i]
            own = points.a[i] + points.preference[i]
            best, second = own, -np.inf
            if fresh:
                for e in range(begin, begin + active[i]):
                    a[e] = damping * a[e] + renew * min(0.0, total[column[e]] - max(0.0, r[e]))
                for e in range(begin + active[i], end):
                    last = (1 - decay) * s[e] - mu[i]
                    if last <= 0:
                        break
                    if last > total[column[e]]:
                        _store_availabilities(i, e, damping, 1 - decay, state)
                        break
            inactive = begin + active[i]
            for e in range(begin, inactive):
                v = a[e] + s[e]
                if v > second:
                    second, best = min(best, v), max(best, v)
            champion = -1
            for e in range(inactive, end):
                if s[e] + abar_max <= second:
                    break
                v = abar[column[e]] + s[e]
                if v > second:
                    if v > best:
                        champion = e
                    second, best = min(best, v), max(best, v)
            if min(unlisted[i] + abar_max, points.reach[i]) > second:
                points.second[i] = second
                continue

            if champion >= 0:  # it leaves the closed form of R
                similarity, k = s[champion], column[champion]
                for e in range(champion, inactive, -1):
                    s[e], column[e] = s[e - 1], column[e - 1]
                s[inactive], column[inactive] = similarity, k
                r[inactive], a[inactive] = (1 - decay) * similarity - mu[i], abar[k]
                inactive += 1
                active[i] += 1
            mu[i] = damping * mu[i] + renew * best
            rival = second if own == best else best
            points.r[i] = damping * points.r[i] + renew * (points.preference[i] - rival)
            for e in range(begin, inactive):
                rival = second if a[e] + s[e] == best else best
                r[e] = damping * r[e] + renew * (s[e] - rival)
                if r[e] > 0:
                    support[column[e]] += r[e]
            for e in range(inactive, end):
                positive = grown * s[e] - mu[i]
                if positive <= 0:
                    break
                support[column[e]] += positive
            points.bursting[i] = grown * unlisted[i] > mu[i]
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
        noise = _Noise(np.uint64(options.seed or 0), *sizes, float(np.finfo(S.dtype).min))
        own = jitter.jittered(preference, np.arange(n), np.arange(n), options.seed)
        self.state = _State(_points(own), _pool(n, 0), noise)
        self.end = 0  # of the used part of the pool
        # Fixed blocks, summed in fixed order: the same bits for any number of threads.
        blocks = min(_MOST_BLOCKS, -(-n // 64))
        self.cuts = np.arange(blocks + 1) * n // blocks
        self.support = np.zeros((blocks, n))
        self.decay = 1.0  # damping^t

    def run(self) -> Messages:
        options, points = self.options, self.state.points
        damping = options.damping
        self._list(np.arange(self.S.shape[0]), self._first)
        for t in range(options.max_iter):
            abar_max = _begin_iteration(damping, points)
            self._list(self._rows_out_of_balance(), partial(self._positives, True))
            self._pass_rows(True, abar_max)
            waiting = np.flatnonzero(points.waiting)
            if waiting.size > 0:
                self._list(waiting, partial(self._rivals, abar_max))
                self._pass_rows(False, abar_max)
            self.decay *= damping
            self._list(np.flatnonzero(points.bursting), partial(self._positives, False))
            some, shortest = _finish_iteration(damping, self.support, points)
            options.progress.iteration(t + 1, points.is_exemplar)
            if some and min(t, shortest) >= options.convergence_iter:
                return Messages(points.is_exemplar, t + 1, converged=True)
        return Messages(points.is_exemplar, options.max_iter, converged=False)

    def _pass_rows(self, fresh: bool, abar_max: float) -> None:
        damping, decay, state = self.options.damping, self.decay, self.state

        def task(blocks: slice) -> None:
            cuts = self.cuts[blocks.start : blocks.stop + 1]
            _pass_rows(cuts, fresh, damping, decay, abar_max, self.support[blocks], state)

        self._each(task, self.end if fresh else 0)

    def _rows_out_of_balance(self) -> Integers:
        """Return the rows where what is not listed may have had R > max(0, b)."""
        points, candidates, _ = self.state
        rows = np.flatnonzero(points.bursting)
        most = (1 - self.decay) * candidates.unlisted[rows] - points.mu[rows]
        return cast(Integers, rows[most > points.total.min()])

    def _first(self, tile: Floats, rows: Integers) -> Floats:
        return _first(tile, rows, self.state)

    def _rivals(self, abar_max: float, tile: Floats, rows: Integers) -> Floats:
        return _rivals(tile, rows, abar_max, self.state)

    def _positives(self, again: bool, tile: Floats, rows: Integers) -> Floats:
        grown = 1 - self.decay
        return _positives(tile, rows, again, grown, self.cuts, self.support, self.state)

    def _list(self, rows: Integers, ask: Callable[[Floats, Integers], Floats]) -> None:
        """Look at these rows of S and list what `ask` finds that each of them needs."""
        n, candidates = self.S.shape[0], self.state.candidates
        step = max(1, _TILE // n)

        def task(blocks: slice) -> list[tuple[Integers, Integers, NDArray[np.uint32], Floats]]:
            first, last = np.searchsorted(rows, self.cuts[[blocks.start, blocks.stop]])
            found = []
            for begin in range(first, last, step):
                part = rows[begin : min(begin + step, last)]
                tile = self.S[part].astype(np.float64)
                tile[np.arange(part.size), part] = -np.inf
                found.append((part, *_select(tile, part, ask(tile, part), self.state)))
            return found

        found = [part for parts in self._each(task, rows.size * n) for part in parts]
        need = self.end + sum(
            int(candidates.listed[part].sum()) + values.size for part, *_, values in found
        )
        if need > candidates.s.size:
            candidates = self._reserve(max(need, 2 * candidates.s.size))
        for part, offsets, columns, values in found:
            self.end = _append(part, offsets, columns, values, candidates, self.end)

    def _reserve(self, capacity: int) -> _Candidates:
        larger = _pool(self.S.shape[0], capacity)
        for name, values in self.state.candidates._asdict().items():
            getattr(larger, name)[: values.size] = values
        self.state = self.state._replace(candidates=larger)
        return larger

    def _each(self, task: Callable[[slice], Any], entries: int) -> list[Any]:
        """Run `task` on all blocks, on the workers where `entries` are enough to be worth it."""
        blocks = self.cuts.size - 1
        if self.options.n_threads == 1 or entries < _SERIAL_BELOW:
            return [task(slice(0, blocks))]
        return list(self.workers.map(task, [slice(q, q + 1) for q in range(blocks)]))


def _points(preference: Floats) -> _Points:
    n = preference.size
    return _Points(
        preference=preference,
        r=np.zeros(n),
        a=np.zeros(n),
        mu=np.zeros(n),
        abar=np.zeros(n),
        abar_before=np.zeros(n),
        total=np.full(n, np.inf),
        streak=np.zeros(n, dtype=np.int64),
        is_exemplar=np.zeros(n, dtype=bool),
        waiting=np.ones(n, dtype=bool),
        second=np.zeros(n),
        reach=np.zeros(n),
        bursting=np.zeros(n, dtype=bool),
        reads=np.zeros(n, dtype=np.int64),
    )


def _pool(n: int, capacity: int) -> _Candidates:
    return _Candidates(
        start=np.zeros(n, dtype=np.int64),
        active=np.zeros(n, dtype=np.int64),
        listed=np.zeros(n, dtype=np.int64),
        below=np.full(n, np.inf),
        unlisted=np.zeros(n),
        s=np.empty(capacity),
        r=np.empty(capacity),
        a=np.empty(capacity),
        column=np.empty(capacity, dtype=np.uint32),
    )
