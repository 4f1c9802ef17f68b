"""The search for a common preference that gives a wanted number of clusters.

The fewer clusters, the larger the gap between the largest similarity and the preference. Over the
logarithm of that gap, the logit of the share of exemplars is nearly a line, so trials interpolate.
A trial need only tell whether there are more or fewer clusters than wanted, and is stopped once it
does. That can be wrong, so whole runs repeat it before the search relies on it; what is returned
is always a whole run from the start.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, exp, log, sqrt

import numpy as np

from epruner.cluster.progress import Progress
from epruner.cluster.solve import Trials
from epruner.cluster.types import Clustering, Floats

_DAMPINGS = (0.7, 0.9, 0.5, 0.8, 0.95)  # in the order in which a number is looked for
_ROUNDS = (9, 6, 12, 20)  # trials with each damping before the next damping has its turn
_APPROACH = 12  # trials that go on from each other's messages
_LEAP = 1.0  # gaps this far apart, as logarithms of ratios, have too little in common for that
_PROBES = 12  # runs of one iteration
_SWINGING = 0.2  # share of exemplars above which their number swings for long: no trial is stopped
_NEAR = 0.15  # numbers this close, as logarithms of ratios, are told apart by whole runs only
_ZONE = 1.0  # logits this close are looked through for a number that interpolation skips,
_STRIDE = 0.2  # first in steps of this,
_BLUR = 0.1  # numbers whose logits are closer than this first
_NARROW = 0.02  # and last between gaps this close, as logarithms of ratios
_SLOPE = 0.75  # logarithm of the number of clusters lost per logarithm of the gap, at a guess


@dataclass(frozen=True)
class _Trial:
    x: float  # logarithm of the gap
    count: int  # clusters; 0 where the run oscillates
    certain: bool  # whether the run converged


@dataclass
class _Curve:
    """The trials with one damping, by their gaps, ascending."""

    trials: list[_Trial] = field(default_factory=list)

    def add(self, trial: _Trial) -> None:
        others = [t for t in self.trials if t.x != trial.x]
        self.trials = sorted([*others, trial], key=lambda t: t.x)

    def steady(self) -> list[_Trial]:
        return [t for t in self.trials if t.count > 0]

    @property
    def oscillates(self) -> bool:
        """Whether this damping is too low here."""
        steady = len(self.steady())
        return len(self.trials) - steady >= max(3, steady + 1)


class Search:
    """A search over trials of one problem.

    Parameters
    ----------
    trials : Trials
    n_clusters : int
    start : float
        A preference that tells the scale of the gap.
    top : float
        The largest similarity, or more.
    damping : float
        The least allowed. The search begins with 0.7, where `damping` is less: fewer runs
        oscillate.
    guess : bool
        Whether to guess from `n_clusters` where to begin, rather than to begin at `start`.
    progress : Progress
        Gets a report when a trial begins.
    """

    def __init__(
        self,
        trials: Trials,
        n_clusters: int,
        *,
        start: float,
        top: float,
        damping: float,
        guess: bool,
        progress: Progress,
    ) -> None:
        self._trials = trials
        self._n = trials.n
        self._k = n_clusters
        self._top = top
        self._progress = progress
        scale = top - start if start < top else max(1.0, abs(top))
        self._least = log(1e-7 * max(scale, abs(top)))
        self._most = (
            log(max(scale, abs(top))) + log(self._n) + 15
        )  # one cluster is best long before
        self._start = log(scale)
        if guess:
            self._start += log(1.2 * sqrt(self._n) / n_clusters) / _SLOPE
        allowed = {max(damping, _DAMPINGS[0]): None}  # a set in order
        allowed.update(dict.fromkeys(d for d in (*_DAMPINGS, damping) if d >= damping))
        self._dampings = list(allowed)
        self._swinging = n_clusters > _SWINGING * self._n
        self._best: tuple[tuple[int, bool], Clustering, Floats, float] | None = None
        self._numbers: dict[int, float] = {}  # a preference for each that a whole run gave
        self._closest: int | None = None  # number of clusters of any trial

    def run(self) -> tuple[Clustering, Floats, float]:
        """Return the clustering, its preferences (n,) and its damping.

        Where no trial gives the number asked for, they are those of the closest number found;
        converged ones are preferred.
        """
        for trial in self._steps():
            counts = [c for c in (trial.count, self._closest) if c]
            self._closest = min(counts, key=lambda c: abs(c - self._k), default=None)
            if self._best is not None and self._best[0] == (0, False):
                break
        if self._best is None:
            self._try(self._start, self._dampings[0], whole=True)
        assert self._best is not None
        return self._best[1:]

    def neighbours(self) -> list[tuple[int, float]]:
        """Return the closest numbers below and above that were found, with their preferences."""
        below = max((c for c in self._numbers if c < self._k), default=None)
        above = min((c for c in self._numbers if c > self._k), default=None)
        return [(c, self._numbers[c]) for c in (below, above) if c is not None]

    def _steps(self) -> Iterator[_Trial]:
        """Make one trial after the other."""
        if self._k == self._n:
            yield self._all_alone()
        x, first = self._start, self._dampings[0]
        if self._trials.stepwise and self._swinging:
            x = self._probe()
        elif self._trials.stepwise:
            x, first = yield from self._approach()
        dampings = [first, *(d for d in self._dampings if d != first)]
        curves = {damping: _Curve() for damping in dampings}
        for played, turns in enumerate(_ROUNDS):
            for damping, curve in curves.items():
                for _ in range(turns):
                    step = self._next(curve, x, played)
                    if step is None:
                        break
                    trial = self._try(step[0], damping, whole=step[1])
                    curve.add(trial)
                    yield trial
                steady = curve.steady()
                if steady:
                    x = min(steady, key=lambda t: abs(self._logit(t.count))).x

    def _all_alone(self) -> _Trial:
        """Try a preference above all similarities."""
        margin = max(1e-3 * exp(self._start), 1e-6 * max(1.0, abs(self._top)))
        return self._try_preference(self._top + margin, log(margin), self._dampings[0], whole=True)

    def _probe(self) -> float:
        """Where about the number is, if it is large.

        After one iteration, exemplars are the points whose preferences exceed their similarities.
        In the end half of the others are, too: pairs that are each other's nearest split.
        """
        wanted = 2 * self._k - self._n
        low, high = self._least, self._start + 3
        for _ in range(_PROBES if wanted > 0 else 0):
            x = (low + high) / 2
            count = next(self._trials.counts(self._preference(x), self._dampings[0]))
            if abs(count - wanted) <= 0.02 * self._n:
                return x
            low, high = (x, high) if count > wanted else (low, x)
        return self._start if wanted <= 0 else (low + high) / 2

    def _approach(self) -> Generator[_Trial, None, tuple[float, float]]:
        """Come near by trials that go on from the last one's messages, which adapt soon.

        Returns where, and a damping that is high enough there. The numbers differ a little from
        those of runs from the start.
        """
        x, damping = self._start, self._dampings[0]
        more = fewer = last = None
        side, onwards = 0, False
        for _ in range(_APPROACH):
            trial = self._try(x, damping, onwards=onwards)
            yield trial
            if trial.count == self._k:
                break
            if trial.count == 0 and onwards:
                onwards = False
                continue
            higher = sorted(d for d in self._dampings if damping < d <= 0.9)
            if trial.count == 0 or 2 * trial.count > self._n:
                if not higher:
                    break
                damping = higher[0]
                more = fewer = last = None
                side, onwards = 0, False
                continue
            last_side, side = side, 1 if trial.count > self._k else -1
            if side > 0:
                more = trial
                fewer = None if fewer is not None and fewer.x <= x else fewer
            else:
                fewer = trial
                more = None if more is not None and more.x >= x else more
            if more is not None and fewer is not None:
                if fewer.x - more.x < _NARROW / 2:
                    break
                x = self._between(more, fewer, halve=side == last_side, margin=0.1)
            else:
                slope = 1.0
                if last is not None and abs(last.x - x) > 1e-3:
                    drop = self._logit(last.count) - self._logit(trial.count)
                    slope = float(np.clip(drop / (x - last.x), 0.5, 2.5))
                step = 1.1 * abs(self._logit(trial.count)) / slope
                x += side * float(np.clip(step, 0.05, 3.4))
            last = trial
            onwards = abs(x - trial.x) < _LEAP
        return x, damping

    def _next(self, curve: _Curve, x: float, played: int) -> tuple[float, bool] | None:
        """Where to try next, and whether by a whole run; None where nothing is left to try."""
        if not curve.trials:
            return x, self._swinging
        steady = curve.steady()
        if not steady or curve.oscillates:
            return None
        counts = [t.count for t in steady]
        if min(counts) > self._k or max(counts) < self._k:
            return self._beyond(steady)
        resolution = 2e-3 if played == 0 else 1e-5
        crossings = [
            (a, b)
            for a, b in pairwise(steady)
            if (a.count - self._k) * (b.count - self._k) < 0 and self._divisible(a, b, resolution)
        ]
        widest = max(crossings, key=lambda pair: pair[1].x - pair[0].x, default=None)
        elsewhere, worth = self._unexplored(steady) if played > 1 else (None, 0.0)
        if widest is not None:
            a, b = widest
            if b.x - a.x < _NARROW:
                for t in widest:
                    if not t.certain:
                        return t.x, True
            if 4 * (b.x - a.x) / _BLUR > worth:
                halve = len(steady) % 3 == 0
                return self._between(a, b, halve=halve, margin=0.15), self._swinging
        for t in steady:
            if not t.certain and self._near(t.count):
                return t.x, True
        return None if elsewhere is None else (elsewhere, True)

    def _unexplored(self, steady: list[_Trial]) -> tuple[float | None, float]:
        """Where else the number may be, as numbers do not always fall; and how promising that is.

        Promising are wide gaps between numbers that are close to the one wanted.
        """
        places: list[tuple[float, float]] = []
        for end, away in ((steady[0], -_STRIDE), (steady[-1], _STRIDE)):
            miss = abs(self._logit(end.count))
            if miss < _ZONE and self._least < end.x + away < self._most:
                places.append((2 * _STRIDE / (_BLUR + miss), end.x + away))
        for a, b in pairwise(steady):
            if self._divisible(a, b, _NARROW):
                miss = min(abs(self._logit(t.count)) for t in (a, b))
                places.append(((b.x - a.x) / (_BLUR + miss), (a.x + b.x) / 2))
        worth, place = max(places, default=(0.0, None))
        return place, worth

    def _beyond(self, steady: list[_Trial]) -> tuple[float, bool] | None:
        """Further out, where all trials lie on one side of the number."""
        more = steady[0].count > self._k
        edge = steady[-1] if more else steady[0]
        step = max(0.02, abs(self._logit(edge.count))) * 2.0 ** (len(steady) - 1)
        x = edge.x + (1 if more else -1) * min(step, 2.5)
        return (x, self._swinging) if self._least < x < self._most else None

    def _between(self, a: _Trial, b: _Trial, *, halve: bool, margin: float) -> float:
        """Interpolate, or half-way between that and the middle."""
        rise, fall = self._logit(a.count), self._logit(b.count)
        part = rise / (rise - fall)
        if halve:
            part = (part + 0.5) / 2
        return a.x + float(np.clip(part, margin, 1 - margin)) * (b.x - a.x)

    def _divisible(self, a: _Trial, b: _Trial, resolution: float) -> bool:
        if b.x - a.x <= resolution:
            return False
        between = self._preference((a.x + b.x) / 2)[0]
        return bool(between != self._preference(a.x)[0] and between != self._preference(b.x)[0])

    def _preference(self, x: float) -> Floats:
        return self._trials.common(self._top - exp(x))

    def _logit(self, count: int) -> float:
        """Positive where there are more clusters than wanted; of `count` > 0."""
        half = 0.5
        odds, wanted = ((c / (self._n - c + half)) for c in (count, self._k))
        return log(odds / wanted)

    def _near(self, count: int) -> bool:
        return abs(count - self._k) <= 1 or abs(log(max(count, 1) / self._k)) < _NEAR

    def _try(
        self, x: float, damping: float, *, whole: bool = False, onwards: bool = False
    ) -> _Trial:
        p = self._top - exp(x)
        return self._try_preference(p, x, damping, whole=whole, onwards=onwards)

    def _try_preference(
        self, p: float, x: float, damping: float, *, whole: bool = False, onwards: bool = False
    ) -> _Trial:
        preference = self._trials.common(p)
        self._progress.trial(float(preference[0]), damping, self._k, self._closest)
        history: list[int] = []
        verdict: int | None = None
        for count in self._trials.counts(preference, damping, onwards=onwards):
            history.append(count)
            if not whole:
                verdict = self._verdict(history, damping, onwards)
                if verdict is not None:
                    break
        if verdict is None:
            return self._finished(x, preference, damping, history[-1], onwards)
        return _Trial(x, verdict, False)

    def _finished(
        self, x: float, preference: Floats, damping: float, count: int, onwards: bool
    ) -> _Trial:
        """Keep what a run that went to its end gave, if it is the best so far."""
        converged = self._trials.converged
        if onwards:
            return _Trial(x, count, False)
        rank = (abs(count - self._k), not converged)
        better = self._best is None or rank < self._best[0]
        if better or (converged and count not in self._numbers):
            clustering = self._trials.clustering()
            if (clustering.labels < 0).any():  # a high damping held still what was on its way
                rank, converged = (self._n, True), False
            if self._best is None or rank < self._best[0]:
                self._best = (rank, clustering, preference, damping)
            if converged:
                self._numbers[count] = float(preference[0])
        return _Trial(x, count if converged else 0, converged)

    def _verdict(self, history: list[int], damping: float, onwards: bool) -> int | None:
        """The number that a trial is going to, as far as it matters; 0 where it oscillates.

        None as long as this cannot be told, and where only a whole run can. Messages change at a
        rate of 1 - damping.
        """
        pace = 1 / (1 - damping)
        # Where nearly all points became exemplars first, their number falls in steps.
        swollen = not onwards and 2 * max(history) > self._n
        window = ceil((2.4 if swollen else 1.2) * pace)
        recent = history[-window:]
        least, most = min(recent), max(recent)
        if len(history) >= (window if onwards else 3 * pace) and least > 0:
            if onwards and history[-window - 2 :] == [self._k] * (window + 2):
                return self._k
            side = (least > self._k) - (most < self._k)
            miss = min(abs(least - self._k), abs(most - self._k))
            swells = swollen and 2 * most > self._n
            told = onwards or not self._near(history[-1])
            comes = side * (recent[0] - recent[-1]) > 0  # nearer to the number wanted
            still = most - least <= miss / (16 if comes else 4)
            if side and still and told and not swells:
                return history[-1]
        if len(history) < (4 if onwards else 20) * pace:
            return None
        late = history[len(history) // 2 :]
        if max(late) >= 2 * min(late):
            return 0
        return round(sum(late) / len(late)) if onwards else None
