"""Affinity propagation against scikit-learn, naffprop and R's apcluster, on the same similarities.

Answers are checked before clocks: on every case the exemplars must be scikit-learn's. Rivals run in
the same process run, turn by turn. Times are messages and decoding, similarities given in float32,
the best of several; beside them the time of one read of S, which nothing can beat.

    python benchmarks/clustering.py              everything but the scale runs, about five minutes
    python benchmarks/clustering.py --scale      100,000 points from features
    python benchmarks/clustering.py --million    1,000,000 points, d = 32, with progress

Writes benchmarks/results/clustering*.json and .md.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.cluster import affinity_propagation as scikit_learn
from sklearn.datasets import load_digits, make_blobs

from epruner import AffinityPropagation, affinity_propagation, affinity_propagation_many
from epruner.cluster.similarity import median_preference, negative_squared_distances

Floats = NDArray[np.floating[Any]]
Answer = tuple[Any, int]  # exemplars, iterations
RESULTS = Path(__file__).resolve().parent / "results"
DATA = Path(os.environ.get("EPRUNER_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
SETTINGS: dict[str, Any] = {"max_iter": 200, "convergence_iter": 15}


def features(kind: str, n: int) -> Floats:
    """Points (n, d), float32."""
    rng = np.random.default_rng(0)
    if kind == "digits":
        X = load_digits().data
        X = X[rng.permutation(X.shape[0])[:n]]
        X = X + rng.normal(size=X.shape) * 1e-3  # pixels are integers: break their exact ties
    elif kind == "blobs":
        X = make_blobs(n, n_features=16, centers=max(8, n // 100), random_state=0)[0]
    elif kind == "filters":  # log-normal norms, as trained filters have
        X = rng.normal(size=(n, 64)) * np.exp(0.5 * rng.normal(size=(n, 1)))
    else:
        X = rng.normal(size=(n, 64))
    points: Floats = X.astype(np.float32)
    return points


CASES = [  # data, n, factor on every point's median similarity, damping, target: x scikit-learn
    ("digits", 256, 1.0, 0.5, None),
    ("digits", 512, 1.0, 0.5, 25),
    ("filters", 512, 1.0, 0.5, 25),
    ("digits", 1024, 1.0, 0.5, None),
    ("digits", 1797, 1.0, 0.5, 80),
    ("gaussian", 2048, 1.0, 0.5, 80),
    ("filters", 2048, 1.0, 0.5, 80),
    ("digits", 1797, 10.0, 0.5, 8),
    ("gaussian", 8192, 1.0, 0.5, 200),
    ("blobs", 8192, 1.0, 0.7, 200),  # at 0.5 it oscillates, and answers cannot be compared
]


def best(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        answer = run()
        times.append(time.perf_counter() - start)
    return min(times), answer


def read_once(S: Floats) -> float:
    """Seconds to read S from memory with all cores."""
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as pool:
        parts = np.array_split(S, cores)
        return best(lambda: list(pool.map(np.max, parts)), 5)[0]


def run_naffprop(S: Floats, p: Floats, damping: float) -> Answer:
    import naffprop

    result = naffprop.apcluster(
        S, p=p, lam=damping, maxits=200, convits=15, seed=0, dtype=np.float32
    )
    return np.asarray(result.exemplars), result.iterations


def run_r(S: Floats, p: Floats) -> tuple[float, int] | None:
    """Seconds and number of clusters of R's apcluster, timed inside R; None where R has it not."""
    if shutil.which("Rscript") is None:
        return None
    script = """
        suppressMessages(library(apcluster)); a <- commandArgs(TRUE); n <- as.integer(a[3])
        S <- matrix(readBin(a[1], "double", n * n, size = 4), n, n, byrow = TRUE)
        p <- readBin(a[2], "double", n, size = 4)
        t <- system.time(r <- apcluster(S, p = p, lam = 0.5, maxits = 200, convits = 15))
        cat(t[["elapsed"]], length(r@exemplars))
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("S", "p")]
        S.tofile(files[0])
        p.astype(np.float32).tofile(files[1])
        done = subprocess.run(
            ["Rscript", "-e", script, *files, str(S.shape[0])],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        return None
    seconds, clusters = done.stdout.split()
    return float(seconds), int(clusters)


def compare(kind: str, n: int, factor: float, damping: float, target: int | None) -> dict[str, Any]:
    settings = {"damping": damping, **SETTINGS}
    X = features(kind, n)
    S = negative_squared_distances(X)
    p = median_preference(S, factor)
    large = n > 4096

    def ours() -> Any:
        return affinity_propagation(S, preference=p, return_n_iter=True, **settings)

    def theirs() -> Any:
        return scikit_learn(S, preference=p, return_n_iter=True, random_state=0, **settings)

    row: dict[str, Any] = {"data": kind, "n": n, "factor": factor, "damping": damping}
    row["target"] = target
    ours()
    row["epruner_s"], (exemplars, labels, n_iter) = best(ours, 5 if large else 9)
    row["scikit_learn_s"], (reference, their_labels, their_iter) = best(theirs, 1 if large else 3)
    row["clusters"], row["n_iter"], row["scikit_learn_n_iter"] = len(exemplars), n_iter, their_iter
    row["same_exemplars"] = bool(np.array_equal(exemplars, reference))
    row["labels_that_differ"] = int((labels != their_labels).sum())
    row["converged"] = n_iter < SETTINGS["max_iter"]
    try:
        row["naffprop_s"], _ = best(lambda: run_naffprop(S, p, damping), 1 if large else 3)
    except ImportError:
        row["naffprop_s"] = None
    found = None if large else run_r(S, p)
    row["apcluster_s"] = found[0] if found else None
    again, _ = best(ours, 5 if large else 9)  # the machine may have been busy the first time
    row["epruner_s"] = min(row["epruner_s"], again)
    row["read_s"] = read_once(S)
    for rival in ("scikit_learn", "naffprop", "apcluster"):
        seconds = row[f"{rival}_s"]
        row[f"vs_{rival}"] = seconds / row["epruner_s"] if seconds else None
    row["vs_read"] = row["epruner_s"] / row["read_s"]
    return row


def resnet_layers(file: str) -> list[Floats]:
    """Filter matrices of the first convolution of every residual block."""
    import torch

    state = torch.load(DATA / "cifar_resnets" / file, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    names = [k for k in state if k.endswith("conv1.weight") and "layer" in k]
    return [state[k].flatten(1).numpy().astype(np.float32) for k in names]


def compare_layers(file: str) -> dict[str, Any]:
    """All layers of a network, similarities and preferences included."""
    layers = resnet_layers(file)

    def recipe() -> list[Any]:
        answers = []
        for F in layers:
            S = -((F[:, None] - F[None]) ** 2).sum(axis=2)
            p = 0.76 * np.median(S, axis=0)
            answers.append(
                scikit_learn(S, preference=p, damping=0.5, random_state=0, **SETTINGS)[0]
            )
        return answers

    def ours() -> list[Any]:
        S = [negative_squared_distances(F) for F in layers]
        p = [median_preference(s, 0.76) for s in S]
        solved = affinity_propagation_many(S, preference=p, damping=0.5, **SETTINGS)
        return [clustering.exemplars for clustering in solved]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours()
        seconds, mine = best(ours, 20)
        theirs_s, theirs = best(recipe, 3)
        seconds = min(seconds, best(ours, 20)[0])
    same = sum(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
    return {
        "file": file,
        "layers": len(layers),
        "same_exemplars": same,
        "epruner_s": seconds,
        "scikit_learn_s": theirs_s,
        "vs_scikit_learn": theirs_s / seconds,
    }


def product_seconds(X: Floats) -> float:
    """Seconds of the matrix product that would make S, both triangles, in tiles."""
    start = time.perf_counter()
    out = np.empty((1024, X.shape[0]), dtype=X.dtype)
    for first in range(0, X.shape[0], 1024):
        rows = X[first : first + 1024]
        np.matmul(rows, X.T, out=out[: rows.shape[0]])
    return time.perf_counter() - start


def from_features(
    n: int, d: int, damping: float, max_iter: int = 500, verbose: bool = False
) -> dict[str, Any]:
    """Cluster Gaussian points to convergence without their similarity matrix.

    The preference is the default, the median of all similarities, found in the same sweep.
    """
    X = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    product = None if n > 200_000 else product_seconds(X)
    model = AffinityPropagation(damping=damping, memory="tiles", max_iter=max_iter, verbose=verbose)
    start, used = time.perf_counter(), time.process_time()
    model.fit(X)
    seconds, used = time.perf_counter() - start, time.process_time() - used
    return {
        "n": n,
        "d": d,
        "damping": damping,
        "seconds": seconds,
        "cpu_s": used,
        "product_s": product,
        "vs_product": seconds / product if product else None,
        "clusters": len(model.cluster_centers_indices_),
        "n_iter": model.n_iter_,
        "converged": model.converged_,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


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


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def comparison_table(rows: list[dict[str, Any]]) -> str:
    head = [
        "data",
        "n",
        "p / median",
        "damping",
        "clusters",
        "iterations (scikit-learn)",
        "same exemplars",
    ]
    head += ["epruner ms", "scikit-learn ms", "naffprop ms", "R apcluster ms"]
    head += ["vs scikit-learn", "vs naffprop", "one read of S, ms", "epruner / read"]
    body = [
        [
            r["data"],
            str(r["n"]),
            f"{r['factor']:g}",
            f"{r['damping']:g}",
            str(r["clusters"]),
            f"{r['n_iter']} ({r['scikit_learn_n_iter']})",
            "yes" if r["same_exemplars"] else "no",
            *(milliseconds(r[f"{k}_s"]) for k in ("epruner", "scikit_learn", "naffprop")),
            milliseconds(r["apcluster_s"]),
            times(r["vs_scikit_learn"]),
            times(r["vs_naffprop"]),
            f"{1e3 * r['read_s']:.2f}",
            f"{r['vs_read']:.1f}",
        ]
        for r in rows
    ]
    return table(head, body)


def write(name: str, results: dict[str, Any], text: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text + "\n")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", action="store_true", help="100,000 points from features")
    parser.add_argument("--million", action="store_true", help="1,000,000 points, d = 32")
    arguments = parser.parse_args()
    if arguments.million:
        rows = [from_features(1_000_000, 32, 0.9, max_iter=300, verbose=True)]
        write("clustering_million", {"machine": machine(), "rows": rows}, scale_table(rows))
        return
    if arguments.scale:
        rows = [from_features(n, 64, 0.8) for n in (10_000, 20_000, 50_000, 100_000)]
        write("clustering_scale", {"machine": machine(), "rows": rows}, scale_table(rows))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = []
        for case in CASES:
            rows.append(compare(*case))
            print(rows[-1], flush=True)
    files = ("theo-obadiah_resnet56.pth", "resnet56-4bfd9763.th")
    layers = [compare_layers(f) for f in files if (DATA / "cifar_resnets" / f).exists()]
    body = [
        [
            r["file"],
            f"{r['same_exemplars']} of {r['layers']}",
            milliseconds(r["epruner_s"]),
            milliseconds(r["scikit_learn_s"]),
            times(r["vs_scikit_learn"]),
        ]
        for r in layers
    ]
    head = ["ResNet-56", "layers with the same exemplars", "epruner ms", "scikit-learn ms", "ratio"]
    text = comparison_table(rows) + "\n\n" + table(head, body)
    write("clustering", {"machine": machine(), "rows": rows, "layers": layers}, text)


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
            "yes" if r["converged"] else "no",
            f"{r['seconds']:.1f}",
            "–" if r["product_s"] is None else f"{r['product_s']:.1f}",
            "–" if r["vs_product"] is None else f"{r['vs_product']:.2f}",
            f"{r['peak_gb']:.2f}",
        ]
        for r in rows
    ]
    return table(head, body)


if __name__ == "__main__":
    main()
