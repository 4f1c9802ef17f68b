"""What `verbose` shows: a bar on terminals, lines elsewhere, on standard error and if asked for."""

from __future__ import annotations

import re
import sys
import threading
import warnings
from time import sleep
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from terminal import terminal

from epruner import AffinityPropagation, _progress, affinity_propagation
from epruner.cluster import problem
from epruner.cluster.candidates import MatrixSource
from epruner.cluster.similarity import negative_squared_distances

DIGITS = load_digits().data[:300].astype(np.float32)
TILED = np.random.default_rng(0).normal(size=(5000, 4)).astype(np.float32)
SUMMARY = r"affinity propagation: (\d+) clusters, (\d+) iterations, converged, \d+\.\d\d s\n"
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"

WAYS: list[dict[str, Any]] = [
    {},
    {"memory": "tiles"},
    {"memory": "tiles", "beta": 1.0},
    {"n_clusters": 12},
    {"n_clusters": 12, "memory": "tiles"},
    {"n_clusters": 12, "backend": "reference"},
    {"damping": "auto"},
    {"ties": "scikit-learn", "random_state": 0},
    {"backend": "dense"},
]


@pytest.fixture
def every_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines for all that is reported, however soon."""
    monkeypatch.setattr(_progress, "_BETWEEN_LINES", 0)
    monkeypatch.setattr(_progress, "_SHARE_BETWEEN_LINES", 0)
    monkeypatch.setattr(_progress, "_BETWEEN_STAGES", 0)
    monkeypatch.setattr("epruner.cluster.progress._REPORT_EVERY", 1e-9)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_one_line_tells_how_a_short_run_ended(
    way: dict[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause in ("_BETWEEN_LINES", "_BETWEEN_STAGES"):  # on a slow machine it takes longer
        monkeypatch.setattr(_progress, pause, 1e9)
    quiet = AffinityPropagation(**{"damping": 0.7, **way}).fit(DIGITS)
    assert capfd.readouterr() == ("", "")
    fit = AffinityPropagation(**{"damping": 0.7, **way}, verbose=True).fit(DIGITS)
    out, err = capfd.readouterr()
    assert out == ""
    found = re.fullmatch(SUMMARY, err)
    assert found is not None, err
    assert [int(number) for number in found.groups()] == [len(fit.cluster_centers_), fit.n_iter_]
    np.testing.assert_array_equal(fit.labels_, quiet.labels_)
    assert fit.n_iter_ == quiet.n_iter_


@pytest.mark.parametrize("backend", ["native", "dense", "numba", "reference"])
def test_the_function_and_every_solver(backend: str, capfd: pytest.CaptureFixture[str]) -> None:
    if backend == "numba":
        pytest.importorskip("numba", reason="the numba solver needs its extra")
    S = negative_squared_distances(DIGITS[:100])
    n_iter = affinity_propagation(
        S, damping=0.7, backend=backend, verbose=True, return_n_iter=True
    )[-1]
    out, err = capfd.readouterr()
    assert out == ""
    assert f", {n_iter} iterations, converged, " in err
    affinity_propagation(S, damping=0.7, backend=backend)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("every_report")
@pytest.mark.parametrize("n_threads", [1, 3])
def test_lines_tell_stages_in_order(n_threads: int, capfd: pytest.CaptureFixture[str]) -> None:
    model = AffinityPropagation(preference=-20.0, damping=0.8, n_threads=n_threads, verbose=True)
    model.fit(TILED)
    *lines, last = capfd.readouterr().err.splitlines()
    assert re.fullmatch(SUMMARY, last + "\n")
    shares = [int(line.split()[1]) for line in lines if re.match(r"similarities: \d+ %", line)]
    assert list(dict.fromkeys(shares)) == [0, 16, 33, 50, 66, 83, 100]
    stages = [re.match(r"\w+", line).group() for line in lines]  # type: ignore[union-attr]
    assert list(dict.fromkeys(stages)) == ["similarities", "messages"]
    turns = re.compile(
        r"messages: (\d+) of at most 200, \d+ clusters, stable for \d+ of 15, lists of \d+\.\d"
    )
    iterations = [int(found[1]) for found in map(turns.fullmatch, lines) if found]
    assert len(iterations) > 5
    assert iterations == sorted(iterations)
    assert any(line.endswith("; candidates") for line in lines)
    assert lines[-1].endswith("; decoding")


@pytest.mark.usefixtures("every_report")
def test_trials_tell_what_is_wanted_and_found(capfd: pytest.CaptureFixture[str]) -> None:
    AffinityPropagation(n_clusters=7, verbose=True).fit(DIGITS)
    said = capfd.readouterr().err
    first = re.search(r"^trial 1: 7 wanted, preference -[\d.]+, damping 0.7", said, re.MULTILINE)
    assert first is not None
    assert re.search(r"^trial 3: 7 wanted, closest \d+, preference -", said, re.MULTILINE)
    assert re.search(r"^trial 1: .*; messages: \d+ of at most 200, \d+ cl", said, re.MULTILINE)


@pytest.mark.usefixtures("every_report")
def test_attempts_tell_their_damping(capfd: pytest.CaptureFixture[str]) -> None:
    S = np.full((30, 30), -1.0)
    S[np.arange(30), np.arange(30) ^ 1] = -0.5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        AffinityPropagation(
            affinity="precomputed", damping="auto", max_iter=20, verbose=True, preference=-0.75
        ).fit(S)
    said = capfd.readouterr().err
    assert "damping 0.5: attempt 1 of at most 5" in said


def test_a_line_comes_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(_progress, "monotonic", lambda: now)
    lines = _progress.Lines()
    for step in range(1000):
        now = step / 10  # seconds
        lines.show([_progress.Row("similarities", step, 1000, begun=0.0)])
    shares = [int(share) for share in re.findall(r"(\d+) %", capsys.readouterr().err)]
    assert shares[:3] == [1, 6, 11]
    assert len(shares) == 20


def test_lines_get_rare_in_long_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(_progress, "monotonic", lambda: now)
    lines = _progress.Lines()
    for minute in range(24 * 60):
        now = 60.0 * minute
        lines.show([_progress.Row("messages", minute, 2000, at_most=True)])
    assert len(capsys.readouterr().err.splitlines()) < 120


def test_the_bar_moves(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "_FRAMES_PER_SECOND", 200)
    with terminal() as screen:
        AffinityPropagation(preference=-20.0, damping=0.8, n_threads=1, verbose=True).fit(TILED)
    sent = screen.getvalue()
    shares = [int(share) for share in re.findall(r"similarities .*?(\d+) %", sent)]
    assert len(set(shares)) > 2
    assert shares == sorted(shares)
    iterations = [int(t) for t in re.findall(r"messages .*?(\d+)/200, \d+ clusters", sent)]
    assert len(set(iterations)) > 2
    assert iterations == sorted(iterations)
    assert sent.index(HIDE_CURSOR) < sent.index(SHOW_CURSOR)
    assert re.search(SUMMARY + r"\Z", sent)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_rows_fit_the_terminal(width: int) -> None:
    with terminal(COLUMNS=str(width)):
        console = _progress._console()
        assert console is not None
        bar = _progress.Bar(console)
        facts = ("12345 clusters", "stable for 12 of 15", "lists of 123.4")
        for total in (None, 0, 200):
            bar.show([_progress.Row("messages", 63, total, at_most=True, facts=facts)])
            line = str(bar._drawn())
            assert len(line) <= width
            assert ("63/200" in line) == (total == 200)
            assert (", lists of 123.4" in line) == (width == 200 or (total != 200 and width == 80))
        bar.close()


def test_a_short_part_has_no_row() -> None:
    with terminal():
        console = _progress._console()
        assert console is not None
        bar = _progress.Bar(console)
        row, part = _progress.Row("messages"), _progress.Row("candidates")
        bar.show([row], part)
        assert "candidates" not in str(bar._drawn())
        bar.show([row], _progress.Row("candidates", begun=part.begun - 1))
        assert "candidates" in str(bar._drawn())
        bar.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_errors_put_the_bar_away(error: type[BaseException]) -> None:
    def affinity(X: Any) -> Any:
        print("seen above the bar", file=sys.stderr)
        raise error("as asked for")

    before = threading.active_count()
    with terminal() as screen:
        with pytest.raises(error, match="as asked for"):
            AffinityPropagation(affinity=affinity, verbose=True).fit(DIGITS)
        sent = screen.getvalue()
        AffinityPropagation(damping=0.7, verbose=True).fit(DIGITS)  # as if nothing had been
    while threading.active_count() > before:  # it is told to end, and does
        sleep(0.01)
    assert sent.index(HIDE_CURSOR) < sent.index("seen above the bar\n") < sent.index(SHOW_CURSOR)
    assert "affinity propagation:" not in sent
    assert re.search(SUMMARY + r"\Z", screen.getvalue())


@pytest.mark.parametrize("theirs", [True, False])
def test_within_a_bar_there_are_lines(theirs: bool) -> None:
    from rich.console import Console
    from rich.progress import Progress

    def affinity(X: Any) -> Any:
        AffinityPropagation(damping=0.7, verbose=True).fit(DIGITS)
        return negative_squared_distances(X)

    with terminal() as screen:
        if theirs:
            with Progress(console=Console(stderr=True)):
                affinity(DIGITS)
        else:
            AffinityPropagation(damping=0.7, affinity=affinity, verbose=True).fit(DIGITS)
    sent = screen.getvalue()
    assert sent.count(HIDE_CURSOR) == 1
    assert len(re.findall(SUMMARY, sent)) == (1 if theirs else 2)


@pytest.mark.parametrize("why", ["dumb", "no rich", "forced", "notebook without widgets"])
def test_where_no_bar_can_be_there_are_lines(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(TERM="dumb" if why == "dumb" else "xterm") as screen:
        if why == "no rich":
            monkeypatch.setitem(sys.modules, "rich.console", None)
        elif why == "forced":
            monkeypatch.setenv("FORCE_COLOR", "1")
            monkeypatch.setattr(screen, "isatty", lambda: False)
        elif why == "notebook without widgets":
            monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
            monkeypatch.setattr(_progress, "find_spec", lambda name: None)
        AffinityPropagation(damping=0.7, verbose=True).fit(DIGITS)
    assert re.fullmatch(SUMMARY, screen.getvalue())


def test_silent_runs_make_the_same_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("a silent run on a matrix is one call into the compiled code")

    monkeypatch.setattr(problem, "cluster_candidates", refuse)
    monkeypatch.setattr(_progress, "open_display", refuse)
    AffinityPropagation(damping=0.7).fit(DIGITS)


def test_quick_iterations_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    iterate = MatrixSource.iterate

    def counting(self: MatrixSource, active_set: Any, iterations: int) -> str:
        asked.append(iterations)
        return iterate(self, active_set, iterations)

    monkeypatch.setattr(MatrixSource, "iterate", counting)
    AffinityPropagation(damping=0.7, verbose=True).fit(DIGITS)
    assert asked == [200]
