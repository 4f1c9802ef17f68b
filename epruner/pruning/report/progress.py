"""Timing of the stages of a run, with a progress bar on request."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# What a run goes through, whatever its options.
STAGES = ("analysis", "trial", "inputs", "ranking", "selection", "surgery", "repair")


class Stages:
    """Times the stages, and shows them if asked to."""

    def __init__(self, show: bool, stages: Sequence[str] = STAGES) -> None:
        self.seconds: dict[str, float] = {}
        self._bar = None
        self._part: Any = None  # of the stage that runs
        if show:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("pruning", total=len(stages))
            self._bar.start()

    @contextmanager
    def run(self, stage: str) -> Iterator[None]:
        if self._bar:
            self._bar.update(self._task, description=stage)
        start = time.perf_counter()
        try:
            yield
        except BaseException:
            self.close()
            raise
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        if self._bar:
            self._bar.advance(self._task)
            if self._part is not None:
                self._bar.remove_task(self._part)
                self._part = None

    def advance(self, done: int, total: int) -> None:
        """Show how far a long stage is; its first call tells how long it will take."""
        if self._bar:
            self._part = self._part or self._bar.add_task("", total=total)
            stage = self._bar.tasks[self._task].description
            self._bar.update(self._part, completed=done, total=total, description=f"  {stage}")

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
