"""Clusters merged by exemplars, against aggExCluster of R's apcluster, and at scale.

The merges must be R's. Both sides get a clustering and what it was made of: ours the features, R
their similarities. Every case of our own has a fresh process, whose peak memory is its own.

    python benchmarks/hierarchy.py                       everything, about five minutes
    python benchmarks/hierarchy.py --only digits --repeats 1     some of it; writes nothing

Writes benchmarks/results/clustering_hierarchy.json and .md.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.clustering import ask_r, features
from benchmarks.from_features import points
from benchmarks.measuring import best, fresh, reset_peak, resident, run, table, timed, times, yes
from epruner import AffinityPropagation, merge_exemplars
from epruner.cluster.similarity import negative_squared_distances

BY_R = """local({
    idx <- as.integer(p); own <- sort(unique(idx))
    clusters <- lapply(own, function(e) which(idx == e))
    aggExCluster(S, new("ExClust", l = n, exemplars = own, clusters = clusters, idx = idx))
})"""
COMPARED = [1.0, 0.1]  # preferences in medians of S
SCALE = [20_000, 100_000]  # Gaussian points, 64-d


def compare(factor: float, repeats: int | None) -> dict[str, Any]:
    X = features("digits", 1797)
    S = negative_squared_distances(X)
    model = AffinityPropagation(preference=factor * float(np.median(S))).fit(X)
    exemplars, labels = model.cluster_centers_indices_, model.labels_
    seconds, hierarchy = best(lambda: merge_exemplars(model, X), repeats or 5)
    answer = ask_r(BY_R, S, exemplars[labels] + 1.0, "r@height", "t(r@merge)")
    row: dict[str, Any] = {
        "data": "digits",
        "n": X.shape[0],
        "clusters": exemplars.size,
        "epruner_s": seconds,
        "apcluster_s": None,
        "vs_apcluster": None,
        "same_merges": None,
    }
    if answer is not None:
        merges = np.array(answer[exemplars.size :], dtype=int).reshape(-1, 2)
        merges = np.sort(np.where(merges < 0, -merges - 1, merges + exemplars.size - 1), axis=1)
        row["apcluster_s"] = answer[0]
        row["vs_apcluster"] = answer[0] / seconds
        row["same_merges"] = bool(
            np.array_equal(merges, hierarchy.merges)
            and np.allclose(hierarchy.heights, answer[1 : exemplars.size], rtol=1e-5)
        )
    return row


def scale(n: int) -> dict[str, Any]:
    """Fit and merge; for a fresh process."""
    X = points(n, 64)
    model = AffinityPropagation(damping=0.8, max_iter=500).fit(X)
    before = resident("VmRSS")
    reset_peak()
    seconds, hierarchy = timed(lambda: merge_exemplars(model, X))
    return {
        "n": n,
        "clusters": len(hierarchy.merges) + 1,
        "converged": model.converged_,
        "merge_s": seconds,
        "grown_gb": (resident("VmHWM") - before) / 1e9,
    }


def comparison_table(rows: list[dict[str, Any]]) -> str:
    head = ["data", "n", "clusters", "epruner s", "R aggExCluster s", "ratio", "same merges"]
    body = [
        [
            r["data"],
            f"{r['n']:,}",
            f"{r['clusters']:,}",
            f"{r['epruner_s']:.3f}",
            "–" if r["apcluster_s"] is None else f"{r['apcluster_s']:.2f}",
            times(r["vs_apcluster"]),
            "–" if r["same_merges"] is None else yes(r["same_merges"]),
        ]
        for r in rows
    ]
    return table(head, body)


def scale_table(rows: list[dict[str, Any]]) -> str:
    head = ["n, Gaussian, 64-d", "clusters", "converged", "merge s", "merging adds GB"]
    body = [
        [
            f"{r['n']:,}",
            f"{r['clusters']:,}",
            yes(r["converged"]),
            f"{r['merge_s']:.1f}",
            f"{r['grown_gb']:.2f}",
        ]
        for r in rows
    ]
    return table(head, body)


def groups(repeats: int | None) -> dict[str, Any]:
    compared = {
        f"digits, {factor:g} medians": partial(compare, factor, repeats) for factor in COMPARED
    }
    scaled = {f"{n:,}": partial(fresh, scale, n) for n in SCALE}
    return {"rows": (compared, comparison_table), "scale": (scaled, scale_table)}


if __name__ == "__main__":
    run(__doc__, "clustering_hierarchy", groups)
