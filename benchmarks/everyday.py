"""Affinity propagation as most people call it, against scikit-learn, with the aims of each case.

The exemplars must be scikit-learn's. Both sides run in turn in one process: medians and least
times, and by how much the memory of a fresh process grows at its peak. A search for a number of
clusters stands beside one run at the preference it finds and R's apclusterK.

    python benchmarks/everyday.py                              everything
    python benchmarks/everyday.py --only fit --repeats 3       some of it; writes nothing

Writes benchmarks/results/clustering_everyday.json and .md.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import AffinityPropagation as ScikitLearn
from sklearn.cluster import affinity_propagation as scikit_learn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.clustering import features, run_r
from benchmarks.measuring import (
    Calls,
    both_sides,
    fresh,
    in_turn,
    peak_of,
    peaks,
    run,
    table,
    timed,
    times,
    yes,
)
from epruner import AffinityPropagation, affinity_propagation
from epruner.cluster.similarity import negative_squared_distances

MAX_ITER = 200  # the default of both


@dataclass(frozen=True)
class Everyday:
    """A call as users make it, at scikit-learn's defaults but for what is said here."""

    name: str
    data: str
    n: int
    target: int  # x scikit-learn
    damping: float = 0.5
    medians: float | None = None  # preference in medians of S; where given, not timed
    preference: float | None = None
    fit: bool = False  # the estimator on features, else the function on similarities
    rounds: int = 7


EVERYDAY = [
    Everyday("function", "gaussian, 16-d", 64, 15, damping=0.7, rounds=40),
    Everyday("function", "gaussian, 16-d", 150, 12, damping=0.7, rounds=40),
    Everyday("function", "gaussian, 16-d", 300, 20, damping=0.7, rounds=20),
    Everyday("fit(X)", "gaussian, 16-d", 150, 8, damping=0.7, fit=True, rounds=40),
    Everyday("fit(X)", "gaussian, 16-d", 300, 12, damping=0.7, fit=True, rounds=20),
    Everyday("p = median", "digits", 1797, 150, medians=1),
    Everyday("p = 10 medians", "digits", 1797, 50, medians=10),
    Everyday("p = 30 medians", "digits", 1797, 30, medians=30, damping=0.7),
    Everyday("p = -50", "blobs, 10 centres", 3000, 80, preference=-50),
    Everyday("p = median", "blobs, 60 centres", 8192, 300, medians=1, damping=0.7, rounds=3),
]


def everyday_calls(case: Everyday) -> Calls:
    """Both return exemplars, labels and the number of iterations."""
    X = features(case.data, case.n)
    settings: dict[str, Any] = {"damping": case.damping, "preference": case.preference}

    def fitted(model: Any) -> tuple[Any, Any, int]:
        model.fit(X)
        return model.cluster_centers_indices_, model.labels_, model.n_iter_

    if case.fit:
        return (
            lambda: fitted(AffinityPropagation(**settings)),
            lambda: fitted(ScikitLearn(random_state=0, **settings)),
        )
    S = negative_squared_distances(X)
    if case.medians is not None:
        settings["preference"] = case.medians * float(np.median(S))
    settings["return_n_iter"] = True
    return (
        lambda: affinity_propagation(S, **settings),
        lambda: scikit_learn(S, random_state=0, **settings),
    )


def everyday(case: Everyday, repeats: int | None) -> dict[str, Any]:
    clocks, mine, theirs = in_turn(*everyday_calls(case), repeats or case.rounds)
    exemplars, labels, n_iter = mine
    return {
        "case": case.name,
        "data": case.data,
        "n": case.n,
        "damping": case.damping,
        "target": case.target,
        "clusters": len(exemplars),
        "n_iter": n_iter,
        "scikit_learn_n_iter": theirs[2],
        "same_exemplars": bool(np.array_equal(exemplars, theirs[0])),
        "labels_that_differ": int((labels != theirs[1]).sum()),
        "converged": n_iter < MAX_ITER,
        **clocks,
        **peaks(everyday_calls, case),
    }


def search_calls(n_clusters: int) -> Calls:
    """The search on digits; its second call is one run at the preference and damping it finds."""
    S = negative_squared_distances(features("digits", 1797))
    model = AffinityPropagation(n_clusters=n_clusters, affinity="precomputed")
    model.fit(S)
    found: dict[str, Any] = {"preference": float(model.preference_[0]), "damping": model.damping_}
    return lambda: model.fit(S), lambda: affinity_propagation(S, **found)


def search(n_clusters: int, repeats: int | None) -> dict[str, Any]:
    """Digits: the exemplars must be scikit-learn's at the preference that was found."""
    ours, one_run = search_calls(n_clusters)
    rounds = repeats or 7
    seconds, models = zip(*(timed(ours) for _ in range(rounds)), strict=True)
    once = [timed(one_run)[0] for _ in range(rounds)]
    model = models[-1]
    S = negative_squared_distances(features("digits", 1797))
    reference = scikit_learn(
        S, preference=model.preference_[0], damping=model.damping_, random_state=0
    )[0]
    call = f"apclusterK(S, K = {n_clusters}, prc = 0, maxits = 200, convits = 15, verbose = FALSE)"
    by_r = run_r(call, S, np.zeros(1))
    row = {
        "data": "digits",
        "n": S.shape[0],
        "n_clusters": n_clusters,
        "target_s": 0.3,
        "target_vs_one_run": 5,
        "clusters": len(model.cluster_centers_indices_),
        "preference": float(model.preference_[0]),
        "damping": model.damping_,
        "same_exemplars": bool(np.array_equal(model.cluster_centers_indices_, reference)),
        "converged": model.converged_,
        "epruner_s": float(np.median(seconds)),
        "epruner_min_s": min(seconds),
        "one_run_s": float(np.median(once)),
        "apcluster_s": by_r[0] if by_r else None,
        "apcluster_clusters": by_r[1] if by_r else None,
        "epruner_peak_mb": fresh(peak_of, search_calls, n_clusters, 0) / 1e6,
    }
    row["vs_one_run"] = row["epruner_s"] / row["one_run_s"]
    row["vs_apcluster"] = row["apcluster_s"] / row["epruner_s"] if by_r else None
    return row


def everyday_table(rows: list[dict[str, Any]]) -> str:
    head = ["data", "n", "call", "damping", "clusters", "iterations (scikit-learn)"]
    head += ["same exemplars", "labels that differ", "epruner ms (least)"]
    head += ["scikit-learn ms (least)", "ratio", "target", "epruner MB", "scikit-learn MB"]
    body = [
        [
            r["data"],
            str(r["n"]),
            r["case"],
            f"{r['damping']:g}",
            str(r["clusters"]),
            f"{r['n_iter']} ({r['scikit_learn_n_iter']})",
            yes(r["same_exemplars"]),
            str(r["labels_that_differ"]),
            *both_sides(r),
        ]
        for r in rows
    ]
    return table(head, body)


def search_table(rows: list[dict[str, Any]]) -> str:
    head = ["data", "n", "n_clusters", "clusters", "preference", "damping"]
    head += ["scikit-learn's exemplars there", "epruner s (least)", "target", "one run there, s"]
    head += ["ratio", "target", "R apclusterK s (clusters)", "epruner MB"]
    body = [
        [
            r["data"],
            str(r["n"]),
            str(r["n_clusters"]),
            str(r["clusters"]),
            f"{r['preference']:.0f}",
            f"{r['damping']:g}",
            yes(r["same_exemplars"]),
            f"{r['epruner_s']:.3f} ({r['epruner_min_s']:.3f})",
            f"{r['target_s']:g}",
            f"{r['one_run_s']:.3f}",
            f"{r['vs_one_run']:.1f}x",
            times(r["target_vs_one_run"]),
            "–" if r["apcluster_s"] is None else f"{r['apcluster_s']} ({r['apcluster_clusters']})",
            f"{r['epruner_peak_mb']:.1f}",
        ]
        for r in rows
    ]
    return table(head, body)


def groups(repeats: int | None) -> dict[str, Any]:
    cases = {f"{c.data} {c.n} {c.name}": partial(everyday, c, repeats) for c in EVERYDAY}
    searches = {"digits 1797 n_clusters=10": partial(search, 10, repeats)}
    return {"rows": (cases, everyday_table), "searches": (searches, search_table)}


if __name__ == "__main__":
    run(__doc__, "clustering_everyday", groups)
