"""Standard error as a terminal of 80 columns."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class Terminal(io.StringIO):
    """What it was sent."""

    def isatty(self) -> bool:
        return True


@contextmanager
def terminal(**environment: str) -> Iterator[Terminal]:
    """Let standard error be one. No fixture: pytest puts its own there before every test."""
    pytest.importorskip("rich", reason="a bar needs its extra")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            patch.delenv(name, raising=False)
        told = {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", **environment}
        for name, value in told.items():
            patch.setenv(name, value)
        made = Terminal()
        patch.setattr(sys, "stderr", made)
        yield made
        assert sys.stderr is made
