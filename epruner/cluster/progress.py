"""What a run reports while it lasts, to be shown or not."""

from __future__ import annotations

from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from epruner._progress import Display, Row, open_display

if TYPE_CHECKING:
    from epruner.cluster.types import Clustering

_REPORT_EVERY = 0.1  # seconds
_AT_FIRST = 100_000  # points times iterations that take about as long


class Progress:
    """Takes facts and shows none of them. Callers report from one thread."""

    silent = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def stage(self, name: str, done: int = 0, total: int | None = None) -> None:
        """There is a stage, `done` of whose `total` parts are done."""

    def part(self, name: str, done: int = 0, total: int | None = None) -> None:
        """The present stage has come to a part of its own, which may take long."""

    def over(self) -> None:
        """The part is over; the stage goes on."""

    def attempt(self, damping: float, number: int, total: int) -> None:
        """A run begins with a damping, the so-manieth of several."""

    def preference(self, preference: float, number: int, total: int) -> None:
        """A run begins with a preference, the so-manieth of several."""

    def trial(self, preference: float, damping: float, wanted: int, closest: int | None) -> None:
        """A trial for a number of clusters begins; the closest number so far."""

    def messages(self) -> None:
        """The stage begins in which messages are passed, from the first iteration."""

    def iteration(self, t: int, is_exemplar: NDArray[np.bool_], candidates: int = 0) -> None:
        """Iteration `t` left these exemplars (n,) and so many listed candidates in all."""

    def batch(self, n: int, most: int) -> int:
        """Return after how many iterations on n points, at most `most`, a report is welcome."""
        return most

    def finish(self, clustering: Clustering) -> None:
        """The run is at its end."""


class _Shown(Progress):
    """Shows what is reported by a bar, or lines.

    Parameters
    ----------
    max_iter, convergence_iter : int
        When a run ends.
    """

    silent = False

    def __init__(self, max_iter: int, convergence_iter: int) -> None:
        self._max_iter = max_iter
        self._convergence_iter = convergence_iter

    def __enter__(self) -> Self:
        self._begun = monotonic()
        self._display: Display = open_display()
        self._run: Row | None = None  # an attempt or a trial
        self._stage: Row | None = None
        self._part: Row | None = None
        self._trials = 0
        return self

    def __exit__(self, *error: object) -> None:
        self._display.close()

    def stage(self, name: str, done: int = 0, total: int | None = None) -> None:
        self._stage, self._part = _row(self._stage, name, done, total), None
        self._show()

    def part(self, name: str, done: int = 0, total: int | None = None) -> None:
        self._part = _row(self._part, name, done, total)
        self._show()

    def over(self) -> None:
        self._part = None
        self._show()

    def attempt(self, damping: float, number: int, total: int) -> None:
        self._run = Row(f"damping {damping:g}", facts=(f"attempt {number} of at most {total}",))
        self._show()

    def preference(self, preference: float, number: int, total: int) -> None:
        self._run = Row("preferences", number - 1, total, facts=(f"now {preference:.6g}",))
        self._show()

    def trial(self, preference: float, damping: float, wanted: int, closest: int | None) -> None:
        self._trials += 1
        so_far = () if closest is None else (f"closest {closest}",)
        facts = (f"{wanted} wanted", *so_far, f"preference {preference:.6g}")
        self._run = Row(f"trial {self._trials}", facts=(*facts, f"damping {damping:g}"))
        self._show()

    def messages(self) -> None:
        self._t, self._then, self._batch = 0, monotonic(), 0
        self._was: NDArray[np.bool_] | None = None
        self._changed = 1
        self.stage("messages")

    def iteration(self, t: int, is_exemplar: NDArray[np.bool_], candidates: int = 0) -> None:
        now = monotonic()
        done, since = t - self._t, now - self._then
        if done == 0:  # candidates were missing
            return
        self._batch = max(1, int(done * _REPORT_EVERY / max(since, _REPORT_EVERY / 4)))
        if since < _REPORT_EVERY / 2:
            return
        if self._was is None or (is_exemplar != self._was).any():
            self._was, self._changed = is_exemplar.copy(), t
        self._t, self._then = t, now
        stable = f"stable for {t - self._changed + 1} of {self._convergence_iter}"
        facts = [f"{np.count_nonzero(is_exemplar)} clusters", stable]
        if candidates:
            facts.append(f"lists of {candidates / is_exemplar.size:.1f}")
        row = _row(self._stage, "messages", t, self._max_iter)
        self._stage, self._part = replace(row, at_most=True, facts=tuple(facts)), None
        self._show()

    def batch(self, n: int, most: int) -> int:
        return min(self._batch or max(1, _AT_FIRST // n), most)

    def finish(self, clustering: Clustering) -> None:
        self._display.close(
            f"affinity propagation: {clustering.exemplars.size} clusters, "
            f"{clustering.n_iter} iterations, "
            f"{'converged' if clustering.converged else 'not converged'}, "
            f"{monotonic() - self._begun:.2f} s"
        )

    def _show(self) -> None:
        rows = [row for row in (self._run, self._stage) if row is not None]
        self._display.show(rows, self._part)


def _row(before: Row | None, name: str, done: int, total: int | None) -> Row:
    """Return a row that goes on from the one `before`, if that has the same name."""
    if done == 0 or before is None or before.name != name:
        return Row(name, done, total)
    return Row(name, done, total, begun=before.begun)


SILENT = Progress()


def reporter(verbose: bool, max_iter: int, convergence_iter: int) -> Progress:
    """Return what shows the progress of a run if that is asked for."""
    return _Shown(max_iter, convergence_iter) if verbose else SILENT
