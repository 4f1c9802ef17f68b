"""How long runs are shown on standard error: by a bar where one can be, else by lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_FRAMES_PER_SECOND = 5
_WIDEST_NAME = 12
_LEAST_BAR, _MOST_BAR = 10, 30  # columns
_YOUNG = 0.5  # seconds before a part is worth a row of the bar
_BETWEEN_LINES, _SHARE_BETWEEN_LINES = 5.0, 0.05  # seconds; of the time so far, if that is more
_BETWEEN_STAGES = 1.0  # seconds before a line says that there is another stage

_starting = Lock()


@dataclass(frozen=True)
class Row:
    """Something that is `done` of `total` parts, where that is known.

    Attributes
    ----------
    name : str
    done : int
    total : int or None
        None where there is nothing to count.
    at_most : bool
        Whether it may end before `total`: then counts are shown, else a share and the time left.
    facts : tuple of str
        What else is to be said; a bar that is too narrow leaves out the last.
    begun : float
        When, by `time.monotonic`.
    """

    name: str
    done: int = 0
    total: int | None = None
    at_most: bool = False
    facts: tuple[str, ...] = ()
    begun: float = field(default_factory=monotonic)

    def time_left(self) -> str:
        """Return how long it will take at the pace so far, or nothing where that is not known."""
        if self.total is None or self.at_most or not 0 < self.done < self.total:
            return ""
        so_far = monotonic() - self.begun
        return f", {_clock(so_far / self.done * (self.total - self.done))} left"


class Display:
    """Shows nothing; the others show the rows of the last call. All calls come from one thread."""

    def show(self, rows: Sequence[Row], part: Row | None = None) -> None:
        """Show what goes on; `part`, of the last row, only where it takes long."""

    def close(self, summary: str = "") -> None:
        """Put away what should not stay, and say how it ended."""


class Bar(Display):
    """Rows that a thread of rich draws again and again. They leave nothing behind."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._begun = monotonic()
        self._shown: tuple[Sequence[Row], Row | None] = ((), None)  # replaced as a whole
        self._live = Live(
            console=console,
            get_renderable=self._drawn,
            refresh_per_second=_FRAMES_PER_SECOND,
            transient=True,
            # What is printed meanwhile goes above the bar, but where standard output is a file.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._live.start()

    def show(self, rows: Sequence[Row], part: Row | None = None) -> None:
        self._shown = rows, part

    def close(self, summary: str = "") -> None:
        self._live.stop()
        if summary:
            self._console.print(summary, markup=False, highlight=False, soft_wrap=True)

    def _drawn(self) -> Text:
        from rich.text import Text

        rows, part = self._shown
        now = monotonic()
        if part is not None and now - part.begun > _YOUNG:
            rows = [*rows, part]
        spinner = "|/-\\"[int(now * _FRAMES_PER_SECOND) % 4]
        head = f"{_clock(now - self._begun)} {spinner} "
        margins = [head, *(" " * len(head) for _ in rows[1:])]
        lines = [self._line(margin, row) for margin, row in zip(margins, rows, strict=False)]
        return Text("\n", no_wrap=True, overflow="crop").join(lines)

    def _line(self, margin: str, row: Row) -> Text:
        from rich.text import Text

        line = Text(f"{margin}{row.name:{_WIDEST_NAME}} ", no_wrap=True, overflow="crop")
        room = self._console.width - len(line) - 1
        said = ""
        if row.total:
            room -= _LEAST_BAR + 1
            share = f"{100 * row.done // row.total:3} %"
            said = f"{row.done}/{row.total}" if row.at_most else share + row.time_left()
        for fact in row.facts:
            longer = f"{said}, {fact}" if said else fact
            if len(longer) > room:
                break
            said = longer
        if row.total:
            width = min(_MOST_BAR, _LEAST_BAR + max(0, room - len(said)))
            done = min(width, width * row.done // row.total)
            heavy, light = "#-" if self._console.options.ascii_only else "━─"
            line.append(heavy * done, "bar.complete").append(light * (width - done), "bar.back")
            line.append(" ")
        return line.append(said)


class Lines(Display):
    """A line every few seconds, and where one stage follows another."""

    def __init__(self) -> None:
        self._begun = self._last = monotonic()
        self._names: list[str] = []

    def show(self, rows: Sequence[Row], part: Row | None = None) -> None:
        now = monotonic()
        since, names = now - self._last, [row.name for row in rows]
        long = max(_BETWEEN_LINES, _SHARE_BETWEEN_LINES * (now - self._begun))
        if since < (long if names == self._names else _BETWEEN_STAGES):
            return
        self._last, self._names = now, names
        self._say("; ".join(_sentence(row) for row in [*rows, *([part] if part else [])]))

    def close(self, summary: str = "") -> None:
        if summary:
            self._say(summary)

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def open_display(show: bool = True) -> Display:
    """Return a bar for a terminal or notebook that has none yet; else, and without rich, lines.

    With `show` false return what shows nothing.
    """
    if not show:
        return Display()
    with _starting:
        console = _console()
        return Lines() if console is None else Bar(console)


def _console() -> Console | None:
    """Return rich's console on standard error if a bar can live there."""
    if hasattr(sys.stderr, "rich_proxied_file"):  # one does: rich guards its lines
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    console = Console(stderr=True)
    if console.is_jupyter:
        return console if find_spec("ipywidgets") else None
    # FORCE_COLOR makes rich take a file for a terminal.
    return console if console.is_interactive and console.file.isatty() else None


def _sentence(row: Row) -> str:
    facts = list(row.facts)
    if row.total and row.at_most:
        facts.insert(0, f"{row.done} of at most {row.total}")
    elif row.total:
        facts.insert(0, f"{100 * row.done // row.total} %{row.time_left()}")
    return f"{row.name}: {', '.join(facts)}" if facts else row.name


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
