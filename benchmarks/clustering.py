"""Affinity propagation against scikit-learn, naffprop and R's apcluster, on the same similarities.

Answers are checked before clocks: on every case the exemplars must be scikit-learn's. Rivals run in
the same process run, turn by turn. Times are messages and decoding, similarities given in float32,
the best of several; beside them the time of one read of S, which nothing can beat. Layers of
networks include similarities and preferences, and have medians, least times and peaks of memory.

    python benchmarks/clustering.py                               everything, about five minutes
    python benchmarks/clustering.py --only digits --repeats 1     some of it; writes nothing

Writes benchmarks/results/clustering.json and .md.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import affinity_propagation as scikit_learn
from sklearn.datasets import load_digits, make_blobs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.measuring import (
    Calls,
    Floats,
    best,
    both_sides,
    in_turn,
    milliseconds,
    peaks,
    run,
    table,
    times,
)
from epruner import affinity_propagation, affinity_propagation_many
from epruner.cluster.similarity import median_preference, negative_squared_distances

Answer = tuple[Any, int]  # exemplars, iterations
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
    elif kind == "blobs, 10 centres":
        X = make_blobs(n, n_features=8, centers=10, random_state=0)[0]
    elif kind == "blobs, 60 centres":
        X = make_blobs(n, n_features=16, centers=60, random_state=0)[0]
    elif kind == "filters":  # log-normal norms, as trained filters have
        X = rng.normal(size=(n, 64)) * np.exp(0.5 * rng.normal(size=(n, 1)))
    else:
        X = rng.normal(size=(n, 16 if kind == "gaussian, 16-d" else 64))
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


def run_r(call: str, S: Floats, p: Floats) -> tuple[float, int] | None:
    """Seconds and number of clusters of a call of R's apcluster; None where R has it not."""
    found = ask_r(call, S, p, "length(r@exemplars)")
    return None if found is None else (found[0], int(found[1]))


def ask_r(call: str, S: Floats, p: Floats, *shown: str) -> list[float] | None:
    """Seconds of a call of R's apcluster, and numbers of its result; None where R has it not.

    `call` is R that knows `S` and `p`; it is timed inside R. `shown` knows its result `r`, too.
    """
    if shutil.which("Rscript") is None:
        return None
    script = f"""
        suppressMessages(library(apcluster)); a <- commandArgs(TRUE); n <- as.integer(a[3])
        S <- matrix(readBin(a[1], "double", n * n, size = 4), n, n, byrow = TRUE)
        p <- readBin(a[2], "double", n, size = 4)
        t <- system.time(r <- {call})
        options(digits = 15)
        cat(t[["elapsed"]], {", ".join(shown)})
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
    return [float(word) for word in done.stdout.split()] if done.returncode == 0 else None


def compare(
    kind: str, n: int, factor: float, damping: float, target: int | None, repeats: int | None
) -> dict[str, Any]:
    settings = {"damping": damping, **SETTINGS}
    X = features(kind, n)
    S = negative_squared_distances(X)
    p = median_preference(S, factor)
    large = n > 4096
    ours_repeats, their_repeats = (5, 1) if large else (9, 3)
    if repeats is not None:
        ours_repeats = their_repeats = repeats

    def ours() -> Any:
        return affinity_propagation(S, preference=p, return_n_iter=True, **settings)

    def theirs() -> Any:
        return scikit_learn(S, preference=p, return_n_iter=True, random_state=0, **settings)

    row: dict[str, Any] = {"data": kind, "n": n, "factor": factor, "damping": damping}
    row["target"] = target
    ours()
    row["epruner_s"], (exemplars, labels, n_iter) = best(ours, ours_repeats)
    row["scikit_learn_s"], (reference, their_labels, their_iter) = best(theirs, their_repeats)
    row["clusters"], row["n_iter"], row["scikit_learn_n_iter"] = len(exemplars), n_iter, their_iter
    row["same_exemplars"] = bool(np.array_equal(exemplars, reference))
    row["labels_that_differ"] = int((labels != their_labels).sum())
    row["converged"] = n_iter < SETTINGS["max_iter"]
    try:
        row["naffprop_s"], _ = best(lambda: run_naffprop(S, p, damping), their_repeats)
    except ImportError:
        row["naffprop_s"] = None
    call = f"apcluster(S, p = p, lam = {damping}, maxits = 200, convits = 15)"
    found = None if large else run_r(call, S, p)
    row["apcluster_s"] = found[0] if found else None
    again, _ = best(ours, ours_repeats)  # the machine may have been busy the first time
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


NETWORKS = {"theo-obadiah_resnet56.pth": 40, "resnet56-4bfd9763.th": 25}  # x scikit-learn


def layer_calls(file: str) -> Calls:
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

    return ours, recipe


def compare_layers(file: str, repeats: int | None) -> dict[str, Any]:
    clocks, mine, theirs = in_turn(*layer_calls(file), repeats or 20)
    same = sum(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
    row: dict[str, Any] = {"file": file, "layers": len(mine), "same_exemplars": same}
    return row | {"target": NETWORKS[file]} | clocks | peaks(layer_calls, file)


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


def layers_table(rows: list[dict[str, Any]]) -> str:
    head = ["ResNet-56", "layers with the same exemplars", "epruner ms (least)"]
    head += ["scikit-learn ms (least)", "ratio", "target", "epruner MB", "scikit-learn MB"]
    body = [[r["file"], f"{r['same_exemplars']} of {r['layers']}", *both_sides(r)] for r in rows]
    return table(head, body)


def groups(repeats: int | None) -> dict[str, Any]:
    comparisons = {f"{c[0]} {c[1]} x{c[2]:g}": partial(compare, *c, repeats) for c in CASES}
    layers = {
        f"layers {f}": partial(compare_layers, f, repeats)
        for f in NETWORKS
        if (DATA / "cifar_resnets" / f).exists()
    }
    return {"rows": (comparisons, comparison_table), "layers": (layers, layers_table)}


if __name__ == "__main__":
    run(__doc__, "clustering", groups)
