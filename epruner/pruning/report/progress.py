"""Timing of the stages of a run, and its progress on request."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from epruner._progress import Row, open_display

# What a run goes through, whatever its options.
STAGES = ("analysis", "trial", "inputs", "ranking", "selection", "surgery", "repair")


class Stages:
    """Times the stages, and shows them if asked to."""

    def __init__(self, show: bool, stages: Sequence[str] = STAGES) -> None:
        self.seconds: dict[str, float] = {}
        self._display = open_display(show)
        self._count = len(stages)
        self._done = 0

    @contextmanager
    def run(self, stage: str) -> Iterator[None]:
        place = (f"stage {self._done + 1} of {self._count}",) if self._count > 1 else ()
        self._row = Row(stage, facts=place)
        self._display.show([self._row])
        start = time.perf_counter()
        try:
            yield
        except BaseException:
            self.close()
            raise
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        self._done += 1

    def advance(self, done: int, total: int) -> None:
        """Show how far a long stage is, and how long it will take."""
        self._display.show([replace(self._row, done=done, total=total)])

    def close(self) -> None:
        self._display.close()
