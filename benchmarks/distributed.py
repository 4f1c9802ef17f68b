"""Clustering over ranks on this machine: the same labels, and what each works, sends and holds.

    python benchmarks/distributed.py                             # all cases
    python benchmarks/distributed.py --only "50,000" --repeats 1     # some; writes nothing

Each row is a run by fresh processes: one process alone with two threads, then 1, 2 and 4 ranks of
one thread each. Labels must be those of the one process. Times are medians of rounds in turn, of
the slowest rank; processor seconds, bytes and peaks of memory are of the rank that has most. The
peak is by how much a process grows from before it reads its rows until the fit ends.

Writes benchmarks/results/distributed.*.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.distributed_ranks import Case, Measured, inputs, over_ranks
from benchmarks.measuring import run, table, yes

RUNS = [(0, 2), (1, 1), (2, 1), (4, 1)]  # ranks, of which 0 are one process alone, and threads
CASES = {"features, 50,000": Case(50_000), "graph, 100,000": Case(100_000, d=0, max_iter=200)}
TARGETS: dict[str, dict[int, float]] = {  # of rows with so many ranks
    "vs_alone": {2: 1.25},
    "memory_vs_alone": {4: 0.4},
    "reduction_per_8n": {2: 2.2, 4: 2.2},
    "feature_sends": {2: 2, 4: 3},
}


def summary(case: Case, ranks: int, threads: int, rounds: list[list[Measured]]) -> dict[str, Any]:
    """A row; of the rounds the one of median length tells what else there is to tell."""

    def longest(found: list[Measured]) -> float:
        return max(float(rank["seconds"]) for rank in found)

    found = sorted(rounds, key=longest)[len(rounds) // 2]
    first = found[0]
    row = {
        "n": case.n,
        "d": case.d,
        "damping": case.damping,
        "ranks": ranks,
        "threads": threads,
        "clusters": first["clusters"],
        "n_iter": first["n_iter"],
        "converged": first["converged"],
        "seconds": longest(found),
        "min_s": min(map(longest, rounds)),
        "repeats": len(rounds),
        "cpu_s": max(rank["cpu_s"] for rank in found),
        "peak_mb": max(rank["peak_bytes"] for rank in found) / 1e6,
    }
    if not ranks:
        return row

    def most(phase: str, key: str) -> float:
        return max(float(rank["phases"][phase][key]) for rank in found)

    reductions = most("reduction", "calls")
    row |= {
        "sweep_s": most("sweep", "s"),
        "sweep_cpu_s": most("sweep", "cpu_s"),
        "sweep_mb": most("sweep", "bytes") / 1e6,
        "iteration_cpu_s": most("iterations", "cpu_s") / reductions,
        "iteration_mb": most("iterations", "bytes") / reductions / 1e6,
        "reduction_per_8n": most("reduction", "bytes") / reductions / (8 * case.n),
    }
    if case.d:  # points are dealt in a random order, then blocks of them go round
        row["feature_sends"] = max(
            sum(rank["phases"][phase]["feature_bytes"] for phase in ("deal", "sweep"))
            / (4 * case.d * rank["rows"])
            for rank in found
        )
    return row


def measure(case: Case, repeats: int) -> list[dict[str, Any]]:
    """A row for each of RUNS."""
    rounds: list[list[list[Measured]]] = [[] for _ in RUNS]
    same = [True] * len(RUNS)
    with inputs(case) as folder:
        labels = None
        for _ in range(repeats):
            for k, (ranks, threads) in enumerate(RUNS):
                found, theirs = over_ranks(case, folder, ranks, threads)
                labels = theirs if labels is None else labels
                same[k] &= bool((theirs == labels).all())
                rounds[k].append(found)
    rows = [
        summary(case, ranks, threads, some) | {"same_labels": alike}
        for (ranks, threads), some, alike in zip(RUNS, rounds, same, strict=True)
    ]
    alone = rows[0]
    for row in rows:
        row["vs_alone"] = row["seconds"] / alone["seconds"]
        row["memory_vs_alone"] = row["peak_mb"] / alone["peak_mb"]
        for key, targets in TARGETS.items():
            if key in row and row["ranks"] in targets:
                row[f"{key}_target"] = targets[row["ranks"]]
    return rows


def number(row: dict[str, Any], key: str, digits: int) -> str:
    if key not in row:
        return "–"
    target = f" (≤ {row[f'{key}_target']:g})" if f"{key}_target" in row else ""
    return f"{row[key]:.{digits}f}{target}"


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "points": lambda r: f"{r['n']:,}" + (f" x {r['d']}" if r["d"] else ", graph"),
    "ranks x threads": lambda r: f"{r['ranks'] or 'alone'} x {r['threads']}",
    "clusters": lambda r: f"{r['clusters']:,}",
    "iterations": lambda r: str(r["n_iter"]),
    "same labels": lambda r: yes(r["same_labels"]),
    "s": lambda r: number(r, "seconds", 1),
    "/ alone": lambda r: number(r, "vs_alone", 2),
    "CPU s": lambda r: number(r, "cpu_s", 1),
    "sweep CPU s": lambda r: number(r, "sweep_cpu_s", 1),
    "iteration CPU ms": lambda r: (
        f"{1e3 * r['iteration_cpu_s']:.1f}" if "iteration_cpu_s" in r else "–"
    ),
    "sweep sent MB": lambda r: number(r, "sweep_mb", 1),
    "block sent, times": lambda r: number(r, "feature_sends", 2),
    "sum sent / 8n": lambda r: number(r, "reduction_per_8n", 2),
    "iteration sent MB": lambda r: number(r, "iteration_mb", 2),
    "peak MB": lambda r: number(r, "peak_mb", 0),
    "peak / alone": lambda r: number(r, "memory_vs_alone", 2),
}


def ranks_table(cases: list[list[dict[str, Any]]]) -> str:
    rows = [[column(row) for column in COLUMNS.values()] for case in cases for row in case]
    return table(list(COLUMNS), rows)


def groups(repeats: int | None) -> dict[str, Any]:
    cases = {name: partial(measure, case, repeats or 3) for name, case in CASES.items()}
    return {"cases": (cases, ranks_table)}


def main() -> None:
    run(__doc__, "distributed", groups)


if __name__ == "__main__":
    main()
