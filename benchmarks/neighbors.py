"""Affinity propagation over nearest neighbours: how near to the exact one, and how far it goes.

At 50,000 points every clustering stands beside the exact one with the same preferences: net
similarities and the adjusted Rand index of the two. At 200,000 and 1,000,000 points there is time,
memory, and the index beside the blobs that the points were drawn from, those of noise left out.

    python benchmarks/neighbors.py                      50,000 and 200,000 points
    python benchmarks/neighbors.py --million            1,000,000 points
    python benchmarks/neighbors.py --only "blobs 50,000"     some of it; writes nothing

Writes benchmarks/results/neighbors.* and neighbors_million.*. PyNNDescent finds the neighbours of
100,000 points and more, its compilation (about a minute) included.
"""

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.measuring import (
    Table,
    fresh,
    machine,
    options,
    reset_peak,
    resident,
    select,
    table,
    tables,
    timed,
    write,
    yes,
)
from epruner import AffinityPropagation
from epruner.cluster import neighbors

Points = NDArray[np.float32]
D = 32
NOISE = 20  # one point in so many belongs to no blob


def blobs(n: int, rng: np.random.Generator) -> tuple[Points, NDArray[np.intp]]:
    """200 points a blob on average, of very different sizes and widths, and noise: label -1."""
    count = n // 200
    share = rng.lognormal(size=count)
    labels = rng.choice(count, n, p=share / share.sum())
    centres = rng.normal(scale=4, size=(count, D)).astype(np.float32)
    widths = rng.uniform(0.3, 1.2, count).astype(np.float32)
    X = centres[labels] + rng.standard_normal((n, D), np.float32) * widths[labels, None]
    noise = slice(n // NOISE)
    X[noise] = rng.uniform(-10, 10, X[noise].shape)
    labels[noise] = -1
    return X, labels


def gaussian(n: int, rng: np.random.Generator) -> tuple[Points, None]:
    """One cloud without clusters."""
    return rng.standard_normal((n, D), np.float32), None


def sheet(n: int, rng: np.random.Generator) -> tuple[Points, None]:
    """A curved sheet of three dimensions with a little noise: clusters anywhere, of any size."""
    phase = rng.uniform(size=(n, 3)) @ rng.normal(scale=3, size=(3, D)) + rng.uniform(0, 6, D)
    return (5 * np.sin(phase) + 0.1 * rng.normal(size=(n, D))).astype(np.float32), None


DATA: dict[str, Callable[[int, np.random.Generator], tuple[Points, Any]]] = {
    "blobs": blobs,
    "gaussian": gaussian,
    "sheet": sheet,
}


@dataclass(frozen=True)
class Case:
    data: str
    n: int
    n_neighbors: int = 30
    preference: str = "default"  # or the median of the neighbours' or of all similarities
    damping: float | str = "auto"

    @property
    def name(self) -> str:
        return f"{self.data} {self.n:,} {self.n_neighbors} {self.preference} {self.damping}"


KINDS = (*DATA,)
AGREEMENT = [
    *(Case(data, 50_000) for data in KINDS),
    *(Case(data, 50_000, 10) for data in KINDS),
    *(Case(data, 50_000, 30, rule) for data in KINDS for rule in ("neighbours", "all")),
]
DAMPINGS = [Case("blobs", 50_000, damping=x) for x in (0.5, 0.7, 0.9)]
SCALE = [Case("blobs", 200_000), Case("sheet", 200_000)]
MILLION = [Case("blobs", 1_000_000)]


def median_of_all(X: Points) -> float:
    """Of a million pairs."""
    rows, columns = np.random.default_rng(1).integers(X.shape[0], size=(2, 1_000_000))
    return float(np.median(neighbors.negative_squared_distances_of(X, rows, columns)))


def fit(case: Case) -> tuple[dict[str, Any], AffinityPropagation, Points]:
    warnings.simplefilter("ignore")
    X, truth = DATA[case.data](case.n, np.random.default_rng(0))
    preference: Any = median_of_all(X) if case.preference == "all" else None
    if case.preference == "neighbours":
        preference = float(np.median(neighbors.graph(X, case.n_neighbors, None).data))
    model = AffinityPropagation(
        affinity="nearest_neighbors",
        n_neighbors=case.n_neighbors,
        preference=preference,
        damping=case.damping,
    )
    reset_peak()
    used = time.process_time()
    seconds = timed(lambda: model.fit(X))[0]
    sizes = np.bincount(model.labels_)
    row = {
        "data": case.data,
        "n": case.n,
        "n_neighbors": case.n_neighbors,
        "preference": case.preference,
        "damping": case.damping,
        "damping_used": model.damping_,
        "clusters": sizes.size,
        "alone": float((sizes == 1).sum() / case.n),
        "largest": int(sizes.max()),
        "n_iter": model.n_iter_,
        "converged": model.converged_,
        "seconds": seconds,
        "cpu_s": time.process_time() - used,
        "peak_gb": resident("VmHWM") / 1e9,
    }
    if truth is not None:
        drawn = truth >= 0
        row["rand_of_blobs"] = float(adjusted_rand_score(truth[drawn], model.labels_[drawn]))
    return row, model, X


def scaled(case: Case) -> dict[str, Any]:
    return fit(case)[0]


def compared(case: Case) -> dict[str, Any]:
    row, model, X = fit(case)
    exact = AffinityPropagation(preference=model.preference_, damping=0.9, max_iter=500)
    seconds = timed(lambda: exact.fit(X))[0]
    return row | {
        "exact_clusters": exact.cluster_centers_indices_.size,
        "exact_converged": exact.converged_,
        "exact_s": seconds,
        "net_ratio": model.net_similarity_ / exact.net_similarity_,
        "rand": float(adjusted_rand_score(exact.labels_, model.labels_)),
    }


def fields(r: dict[str, Any]) -> dict[str, str]:
    """What a row of any table starts with."""
    return {
        "data": r["data"],
        "n": f"{r['n']:,}",
        "n_neighbors": str(r["n_neighbors"]),
        "preference": r["preference"],
        "damping": f"{r['damping']}" + f" ({r['damping_used']:g})" * (r["damping"] == "auto"),
        "clusters": f"{r['clusters']:,}",
        "points alone": f"{100 * r['alone']:.1f} %",
        "largest": str(r["largest"]),
        "iterations": str(r["n_iter"]),
        "converged": yes(r["converged"]),
    }


def tabulated(rows: list[dict[str, Any]], more: Callable[[dict[str, Any]], dict[str, str]]) -> str:
    lines = [fields(r) | more(r) for r in rows]
    return table([*lines[0]], [[*line.values()] for line in lines])


def agreement(r: dict[str, Any]) -> dict[str, str]:
    return {
        "exact clusters": f"{r['exact_clusters']:,}",
        "converged (exact)": yes(r["exact_converged"]),
        "net similarity / exact": f"{r['net_ratio']:.4f}",
        "adjusted Rand index": f"{r['rand']:.3f}",
        "s": f"{r['seconds']:.1f}",
        "exact s": f"{r['exact_s']:.1f}",
    }


def cost(r: dict[str, Any]) -> dict[str, str]:
    blobs = r.get("rand_of_blobs")
    return {
        "Rand index, blobs": "–" if blobs is None else f"{blobs:.3f}",
        "s": f"{r['seconds']:.0f}",
        "CPU s": f"{r['cpu_s']:.0f}",
        "peak GB": f"{r['peak_gb']:.2f}",
    }


AGREED: Table = partial(tabulated, more=agreement)
COSTS: Table = partial(tabulated, more=cost)


def page(results: dict[str, Any]) -> str:
    return tables(results, {"agreement": AGREED, "dampings": COSTS, "scale": COSTS})


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--million", action="store_true", help="1,000,000 points, d = 32")
    arguments = parser.parse_args()
    groups = {
        "agreement": (AGREEMENT, compared, AGREED),
        "dampings": (DAMPINGS, scaled, COSTS),
        "scale": (SCALE, scaled, COSTS),
    }
    if arguments.million:
        groups = {"scale": (MILLION, scaled, COSTS)}
    chosen = select([c.name for cases, *_ in groups.values() for c in cases], arguments.only)
    results: dict[str, Any] = {"machine": machine()} | {key: [] for key in groups}
    for key, (cases, measure, tabulate) in groups.items():
        for case in (case for case in cases if case.name in chosen):
            results[key].append(fresh(measure, case))
            print(tabulate(results[key][-1:]), flush=True)
            if arguments.only is None:  # hours: what there is so far
                file = "neighbors_million" if arguments.million else "neighbors"
                write(file, results, page(results))
    print(page(results))


if __name__ == "__main__":
    main()
