"""How many pairs must hold an availability, counted by a dense simulation that checks the rule.

Exits with 1 where a pair i ≠ k that never had R > max(0, b[k]) has not its column's A to the last
bit, or one that was never its row's maximum not its row's R. See docs/clustering/mathematics.md.

    python benchmarks/storage_rule.py     two minutes; writes benchmarks/results/storage_rule.*
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.clustering import features
from benchmarks.measuring import table, write
from epruner.cluster.similarity import negative_squared_distances

CASES = [  # data, n, preference in medians of S, damping
    ("digits", 1797, 1, 0.5),
    ("digits", 1797, 3, 0.5),
    ("digits", 1797, 10, 0.5),
    ("digits", 1797, 30, 0.7),
    ("gaussian", 2000, 10, 0.8),
    ("digits", 1797, 100, 0.9),
]


def simulate(S: NDArray[np.floating[Any]], damping: float, max_iter: int = 200) -> dict[str, Any]:
    """Pass messages over `S` (n, n), preferences on its diagonal, all of them stored."""
    n = S.shape[0]
    own, others = np.arange(n), ~np.eye(n, dtype=bool)
    R, A, mu, abar = np.zeros((n, n)), np.zeros((n, n)), np.zeros((n, 1)), np.zeros(n)
    was_maximum, was_positive, stored = (np.zeros((n, n), dtype=bool) for _ in range(3))
    most, unchanged, exemplar, t = 0.0, 0, np.zeros(n, dtype=bool), 0
    while t < max_iter and not (unchanged >= 15 and exemplar.any()):
        t += 1
        V = A + S
        second, first = np.partition(V, -2, axis=1)[:, -2:].T[:, :, None]
        was_maximum |= first == V
        R = damping * R + (1 - damping) * (S - np.where(first == V, second, first))
        mu = damping * mu + (1 - damping) * first
        P = np.where(others, np.maximum(R, 0), 0)
        b = P.sum(axis=0) + R[own, own]
        most = max(most, np.count_nonzero(P) / n)
        was_positive |= P > 0
        stored |= np.maximum(b, 0) < P
        A_own = damping * A[own, own] + (1 - damping) * P.sum(axis=0)
        A = damping * A + (1 - damping) * np.minimum(0, b - P)
        A[own, own] = A_own
        abar = damping * abar + (1 - damping) * np.minimum(0, b)
        if (abar != A)[others & ~stored].any():
            sys.exit(f"iteration {t}: A of a pair that never had R > max(0, b) is not its column's")
        error = np.abs(R - ((1 - damping**t) * S - mu))[~was_maximum].max(initial=0)
        if error > 1e-12 * np.abs(S).max():
            sys.exit(
                f"iteration {t}: R of a pair that was no maximum is {error} off its row's form"
            )
        before, exemplar = exemplar, A_own + R[own, own] > 0
        unchanged = unchanged + 1 if (exemplar == before).all() else 0
    counts = {"ever_positive": np.count_nonzero(was_positive) / n, "most_positive": most}
    return {"clusters": int(exemplar.sum()), **counts, "stored": np.count_nonzero(stored) / n}


def rule_table(rows: list[dict[str, Any]]) -> str:
    head = ["data", "n", "p / median", "λ", "clusters", "R > 0 at once", "R > 0 ever", "stored"]
    keys = ("data", "n", "medians", "damping", "clusters")
    counts = ("most_positive", "ever_positive", "stored")
    return table(
        head, [[*(str(r[k]) for k in keys), *(f"{r[c]:.0f}" for c in counts)] for r in rows]
    )


def page(results: dict[str, Any]) -> str:
    return rule_table(results["rows"])


if __name__ == "__main__":
    results: dict[str, Any] = {"rows": []}
    for data, n, medians, damping in CASES:
        S = negative_squared_distances(features(data, n).astype(np.float64))
        np.fill_diagonal(S, medians * np.median(S))
        row = {"data": data, "n": n, "medians": medians, "damping": damping}
        results["rows"].append(row | simulate(S, damping))
    write("storage_rule", results, page(results))
