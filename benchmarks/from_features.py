"""Affinity propagation from features, without the similarity matrix, beside its matrix products.

The yardstick is the products of one triangle of S: tiles of the sweep's size, as many threads, BLAS
on one thread each, measured in the same run. Every case has a fresh process, whose peak memory
is its own.

    python benchmarks/from_features.py                 10,000 to 100,000 points; 100,000 with beta
    python benchmarks/from_features.py --million       1,000,000 points, d = 32, with progress
    python benchmarks/from_features.py --only "50,000" --repeats 1     some of it; writes nothing

Writes benchmarks/results/clustering_scale.* and clustering_million.*.
"""

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from threading import local
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.measuring import (
    fresh,
    machine,
    options,
    reset_peak,
    resident,
    select,
    table,
    timed,
    write,
    yes,
)
from epruner import AffinityPropagation
from epruner.cluster.candidates import FeatureSource
from epruner.cluster.resources import effective_n_threads

Points = NDArray[np.float32]
TILE = 1024
PHASES = {  # method of FeatureSource: phase
    "start_with_ranks": "sweep",
    "start_with_medians": "sweep",
    "refill": "refills",
    "decode": "decode",
}


@dataclass(frozen=True)
class Case:
    """Gaussian points clustered to convergence; targets are multiples of the triangle's products.

    The preference is the median of all similarities or, with `beta`, that multiple of each
    point's own median; both are found in the sweep.
    """

    n: int
    d: int = 64
    damping: float = 0.8
    beta: float | None = None
    sweep_target: float | None = None
    fit_target: float | None = None
    max_iter: int = 500
    repeats: int = 3
    compared: bool = True  # with matrix products

    @property
    def name(self) -> str:
        return f"{self.n:,}" + ("" if self.beta is None else f", beta={self.beta:g}")


CASES = [
    Case(10_000, repeats=5),
    Case(20_000, repeats=5),
    Case(50_000, sweep_target=1.4),
    Case(100_000, sweep_target=1.4, fit_target=2.2),
    Case(100_000, beta=1.0, fit_target=3.0),
]
MILLION = Case(1_000_000, d=32, damping=0.95, max_iter=2000, repeats=1, compared=False)


def points(n: int, d: int) -> Points:
    return np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)


def whole_product(X: Points) -> None:
    """The matrix product that would make S, both triangles, a strip at a time."""
    out = np.empty((TILE, X.shape[0]), dtype=X.dtype)
    for first in range(0, X.shape[0], TILE):
        rows = X[first : first + TILE]
        np.matmul(rows, X.T, out=out[: rows.shape[0]])


def triangle(X: Points) -> None:
    """The products of the tiles of one triangle, thrown away."""
    starts = range(0, X.shape[0], TILE)
    scratch = local()

    def tile(pair: tuple[int, int]) -> None:
        left, right = (X[first : first + TILE] for first in pair)
        if not hasattr(scratch, "dots"):
            scratch.dots = np.empty(TILE * TILE, dtype=X.dtype)
        dots = scratch.dots[: left.shape[0] * right.shape[0]]
        np.matmul(left, right.T, out=dots.reshape(left.shape[0], right.shape[0]))

    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(effective_n_threads(None)) as pool,
    ):
        list(pool.map(tile, combinations_with_replacement(starts, 2)))


@contextmanager
def clocked() -> Iterator[dict[str, list[float]]]:
    """Seconds of every call, by phase, of the source's methods in PHASES."""
    seconds: dict[str, list[float]] = {phase: [] for phase in PHASES.values()}

    def with_clock(method: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            taken, answer = timed(lambda: method(*arguments, **named))
            seconds[phase].append(taken)
            return answer

        return run

    with ExitStack() as stack:
        for name, phase in PHASES.items():
            method = with_clock(getattr(FeatureSource, name), phase)
            stack.enter_context(mock.patch.object(FeatureSource, name, method))
        yield seconds


def fit(case: Case, X: Points) -> dict[str, Any]:
    model = AffinityPropagation(
        damping=case.damping,
        beta=case.beta,
        memory="tiles",
        max_iter=case.max_iter,
        verbose=not case.compared,
    )
    reset_peak()
    used = time.process_time()
    with clocked() as phases:
        seconds, _ = timed(lambda: model.fit(X))
    used = time.process_time() - used
    spent = {f"{phase}_s": sum(calls) for phase, calls in phases.items()}
    return {
        "seconds": seconds,
        "cpu_s": used,
        **spent,
        "iterations_s": seconds - sum(spent.values()),  # and what little else a fit does
        "refills": len(phases["refills"]),
        "clusters": len(model.cluster_centers_indices_),
        "n_iter": model.n_iter_,
        "converged": model.converged_,
        "peak_gb": resident("VmHWM") / 1e9,
    }


def run(case: Case, repeats: int) -> dict[str, Any]:
    """Products and fits in turn; the fit of median length, and medians of the products."""
    X = points(case.n, case.d)
    products, triangles, fits = [], [], []
    for _ in range(repeats):
        if case.compared:
            products.append(timed(lambda: whole_product(X))[0])
            triangles.append(timed(lambda: triangle(X))[0])
        fits.append(fit(case, X))
    row: dict[str, Any] = {"n": case.n, "d": case.d, "damping": case.damping, "beta": case.beta}
    row |= sorted(fits, key=lambda one: float(one["seconds"]))[len(fits) // 2]
    row |= {"min_s": min(one["seconds"] for one in fits), "repeats": repeats}
    row |= {"sweep_target": case.sweep_target, "fit_target": case.fit_target}
    if not case.compared:
        return row | dict.fromkeys(("product_s", "triangle_s", "sweep_ratio", "fit_ratio"))
    row |= {
        "product_s": float(np.median(products)),
        "triangle_s": float(np.median(triangles)),
        "triangle_min_s": min(triangles),
    }
    row["vs_product"] = row["seconds"] / row["product_s"]
    row["sweep_ratio"] = float(np.median([one["sweep_s"] for one in fits])) / row["triangle_s"]
    row["fit_ratio"] = row["seconds"] / row["triangle_s"]
    return row


def number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def scale_table(rows: list[dict[str, Any]]) -> str:
    head = ["n", "d", "damping", "clusters", "iterations", "converged", "seconds"]
    head += ["matrix product s", "ratio", "peak GB"]
    body = [
        [
            f"{r['n']:,}",
            str(r["d"]),
            f"{r['damping']:g}",
            f"{r['clusters']:,}",
            str(r["n_iter"]),
            yes(r["converged"]),
            f"{r['seconds']:.1f}",
            number(r["product_s"]),
            number(r.get("vs_product"), 2),
            f"{r['peak_gb']:.2f}",
        ]
        for r in rows
    ]
    return table(head, body)


def phases_table(rows: list[dict[str, Any]]) -> str:
    head = ["n", "d", "preference", "triangle's products s", "sweep s", "iterations s"]
    head += ["refills s (calls)", "decode s", "fit s (least)"]
    head += ["sweep / products", "target", "fit / products", "target", "peak GB"]
    body = [
        [
            f"{r['n']:,}",
            str(r["d"]),
            "median" if r["beta"] is None else f"beta={r['beta']:g}",
            number(r["triangle_s"], 2),
            f"{r['sweep_s']:.2f}",
            f"{r['iterations_s']:.2f}",
            f"{r['refills_s']:.2f} ({r['refills']})",
            f"{r['decode_s']:.2f}",
            f"{r['seconds']:.2f} ({r['min_s']:.2f})",
            number(r["sweep_ratio"], 2),
            number(r["sweep_target"]),
            number(r["fit_ratio"], 2),
            number(r["fit_target"]),
            f"{r['peak_gb']:.2f}",
        ]
        for r in rows
    ]
    return table(head, body)


def page(results: dict[str, Any]) -> str:
    default, others = results["rows"], results["with_beta"]
    return f"{scale_table(default)}\n\n{phases_table([*default, *others])}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--million", action="store_true", help="1,000,000 points, d = 32")
    arguments = parser.parse_args()
    cases = {case.name: case for case in ([MILLION] if arguments.million else CASES)}
    chosen = select([*cases], arguments.only)
    about, rows = machine(), []
    for name in chosen:
        rows.append(fresh(run, cases[name], arguments.repeats or cases[name].repeats))
        print(phases_table(rows[-1:]), flush=True)
    default = [row for row in rows if row["beta"] is None]
    others = [row for row in rows if row["beta"] is not None]
    results = {"machine": about, "rows": default, "with_beta": others}
    print(page(results))
    if arguments.only is None:
        file = "clustering_million" if arguments.million else "clustering_scale"
        write(file, results, page(results))


if __name__ == "__main__":
    main()
