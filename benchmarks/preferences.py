"""A path of preferences beside single fits with each of them, in turn in one process.

How many entries of the path are the single fits: labels and iterations.

    python benchmarks/preferences.py
    python benchmarks/preferences.py --only digits --repeats 1     some of it; writes nothing

Writes benchmarks/results/preferences.json and .md.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.clustering import features
from benchmarks.measuring import run, table, timed
from epruner import AffinityPropagation, preference_path


@dataclass(frozen=True)
class Case:
    """Preferences as a number gives them, or, from features, from medians of the similarities."""

    data: str
    n: int
    preferences: int
    damping: float | str = 0.9
    medians: tuple[float, float] | None = None  # from, to; else what the number gives
    max_iter: int = 200
    rounds: int = 3

    @property
    def name(self) -> str:
        return f"{self.data} {self.n:,} {self.preferences} {self.damping}"


CASES = [
    Case("digits", 1797, 10),
    Case("digits", 1797, 20),
    Case("digits", 1797, 20, "auto"),
    Case("gaussian", 20_000, 10, medians=(2, 0.6), max_iter=500),
]


def singly(X: Any, preferences: Any, **options: Any) -> list[AffinityPropagation]:
    return [AffinityPropagation(preference=p, **options).fit(X) for p in preferences]


def spent(call: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Seconds that a call takes, of a clock and of processors; its answer."""
    used = time.process_time()
    seconds, answer = timed(call)
    return (seconds, time.process_time() - used), answer


def measure(case: Case, repeats: int | None) -> dict[str, Any]:
    X = features(case.data, case.n)
    preferences: Any = case.preferences
    if case.medians is not None:
        rows, columns = np.random.default_rng(0).integers(case.n, size=(2, 1 << 16))
        median = -np.median(np.square(X[rows] - X[columns]).sum(axis=1))
        preferences = median * np.geomspace(*case.medians, case.preferences)
    options: dict[str, Any] = {"damping": case.damping, "max_iter": case.max_iter}
    together, alone = [], []
    for _ in range(repeats or case.rounds):
        cost, path = spent(partial(preference_path, X, preferences, **options))
        together.append(cost)
        cost, fits = spent(partial(singly, X, path.preferences, **options))
        alone.append(cost)
    same = [
        np.array_equal(fit.labels_, c.labels) and fit.n_iter_ == c.n_iter
        for fit, c in zip(fits, path.clusterings, strict=True)
    ]
    return {
        "data": case.data,
        "n": case.n,
        "d": X.shape[1],
        "preferences": case.preferences,
        "damping": case.damping,
        "clusters": [int(path.n_clusters.min()), int(path.n_clusters.max())],
        "converged": int(path.converged.sum()),
        "same": sum(same),
        **dict(zip(("path_s", "path_cpu_s"), np.median(together, axis=0).tolist(), strict=True)),
        **dict(zip(("singles_s", "singles_cpu_s"), np.median(alone, axis=0).tolist(), strict=True)),
        "ratio": float(np.median(alone, axis=0)[1] / np.median(together, axis=0)[1]),
    }


def path_table(rows: list[dict[str, Any]]) -> str:
    head = ["data", "n", "d", "preferences", "damping", "clusters", "converged", "as single fits"]
    head += ["path s (CPU)", "single fits s (CPU)", "ratio of CPU"]
    body = [
        [
            r["data"],
            f"{r['n']:,}",
            str(r["d"]),
            str(r["preferences"]),
            str(r["damping"]),
            "{:,} to {:,}".format(*r["clusters"]),
            str(r["converged"]),
            str(r["same"]),
            f"{r['path_s']:.2f} ({r['path_cpu_s']:.2f})",
            f"{r['singles_s']:.2f} ({r['singles_cpu_s']:.2f})",
            f"{r['ratio']:.1f}x",
        ]
        for r in rows
    ]
    return table(head, body)


def groups(repeats: int | None) -> dict[str, Any]:
    return {"rows": ({c.name: partial(measure, c, repeats) for c in CASES}, path_table)}


if __name__ == "__main__":
    run(__doc__, "preferences", groups)
