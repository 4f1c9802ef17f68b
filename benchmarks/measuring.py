"""What the clustering benchmarks share: turns, peaks of memory, the machine, tables."""

import argparse
import json
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.cluster import affinity_propagation as scikit_learn

from epruner import affinity_propagation

Floats = NDArray[np.floating[Any]]
Calls = tuple[Callable[[], Any], Callable[[], Any]]  # ours, theirs

RESULTS = Path(__file__).resolve().parent / "results"
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    answer = run()
    return time.perf_counter() - start, answer


def best(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    seconds, answers = zip(*(timed(run) for _ in range(repeats)), strict=True)
    return min(seconds), answers[-1]


def in_turn(
    ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int
) -> tuple[dict[str, float], Any, Any]:
    """Median and least seconds of both, run in turn; the answers.

    Ours, the shorter, runs three times a round. One call of each goes before, unmeasured, where
    there is more than one round.
    """
    if rounds > 1:
        ours(), theirs()
    mine, others = [], []
    for _ in range(rounds):
        for _ in range(3):
            seconds, answer = timed(ours)
            mine.append(seconds)
        seconds, reference = timed(theirs)
        others.append(seconds)
    times = {
        "epruner_s": float(np.median(mine)),
        "epruner_min_s": min(mine),
        "scikit_learn_s": float(np.median(others)),
        "scikit_learn_min_s": min(others),
    }
    times["vs_scikit_learn"] = times["scikit_learn_s"] / times["epruner_s"]
    times["vs_scikit_learn_min"] = times["scikit_learn_min_s"] / times["epruner_min_s"]
    return times, answer, reference


def fresh(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a module in a new process, which has used no memory yet."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def resident(which: str) -> float:
    """Bytes of this process in memory: `VmRSS` now, `VmHWM` at most since `reset_peak`."""
    lines = _STATUS.read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(which))


def reset_peak() -> None:
    """Start a new high-water mark; getrusage's cannot be reset, and a child inherits it (Linux)."""
    _CLEAR.write_text("5")


def growth(run: Callable[[], Any]) -> float:
    """Bytes by which memory grew at the peak of a call."""
    reset_peak()
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def peak_of(make: Callable[[Any], Calls], case: Any, side: int) -> float:
    """Bytes by which one of a case's calls makes memory grow; for a fresh process."""
    warnings.simplefilter("ignore")
    small = -(np.subtract.outer(np.arange(8.0), np.arange(8.0)) ** 2)
    affinity_propagation(small), scikit_learn(small, random_state=0)  # what a first call loads
    return growth(make(case)[side])


def peaks(make: Callable[[Any], Calls], case: Any) -> dict[str, float]:
    names = ("epruner_peak_mb", "scikit_learn_peak_mb")
    return {name: fresh(peak_of, make, case, side) / 1e6 for side, name in enumerate(names)}


def command() -> str:
    """How this script was called, as from the root of the checkout."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), ""
    )
    return {
        "cpu": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit_learn": sklearn.__version__,
    }


def milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.1f}"


def times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.0f}x"


def yes(fact: bool) -> str:
    return "yes" if fact else "no"


def both_sides(r: dict[str, Any]) -> list[str]:
    """Times, ratio and memory of both sides."""
    clocks = [
        f"{1e3 * r[f'{who}_s']:.2f} ({1e3 * r[f'{who}_min_s']:.2f})"
        for who in ("epruner", "scikit_learn")
    ]
    memory = [f"{r[f'{who}_peak_mb']:.1f}" for who in ("epruner", "scikit_learn")]
    return [*clocks, times(r["vs_scikit_learn"]), times(r["target"]), *memory]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


Table = Callable[[list[dict[str, Any]]], str]


def tables(results: dict[str, Any], of: Mapping[str, Table]) -> str:
    """A table of each key of the results that has rows."""
    return "\n\n".join(tabulate(results[key]) for key, tabulate in of.items() if results.get(key))


def write(name: str, results: dict[str, Any], text: str) -> None:
    """Results and their table; the command is this process's unless the results name another."""
    RESULTS.mkdir(exist_ok=True)
    results = {"command": command()} | results
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text + "\n")


def options(description: str) -> argparse.ArgumentParser:
    """What every script of these takes."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--only", help="cases whose name has this; nothing is written")
    parser.add_argument("--repeats", type=int, help="rounds of a case")
    return parser


Cases = dict[str, Callable[[], dict[str, Any]]]  # by name, what measures one


def run(
    description: str,
    file: str,
    groups: Callable[[int | None], dict[str, tuple[Cases, Table]]],
) -> None:
    """Measure the cases that the command line chooses, print them as they come, write all.

    `groups` takes the number of repeats, and returns cases and a table for each key of the results.
    """
    arguments = options(description).parse_args()
    found = groups(arguments.repeats)
    chosen = select([name for cases, _ in found.values() for name in cases], arguments.only)
    results: dict[str, Any] = {"machine": machine()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for key, (cases, tabulate) in found.items():
            results[key] = []
            for name in (name for name in cases if name in chosen):
                results[key].append(cases[name]())
                print(tabulate(results[key][-1:]), flush=True)
    text = tables(results, {key: tabulate for key, (_, tabulate) in found.items()})
    print(text)
    if arguments.only is None:
        write(file, results, text)


def select(names: Sequence[str], only: str | None) -> list[str]:
    """The names that have `only` in them."""
    chosen = [name for name in names if only is None or only in name]
    if not chosen:
        raise SystemExit(f"--only {only!r}: no case has this in its name; there are {names}")
    return chosen
