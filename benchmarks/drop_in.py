"""scikit-learn's estimator as it is and under `epruner.accel`, whole fits on features in float64.

With scikit-learn's noise all attributes must be equal, with fast ties the exemplars. Both sides run
in turn in one process. Noise takes time with the square of n: the rows show from where it is more
than its worth.

    python benchmarks/drop_in.py                              everything
    python benchmarks/drop_in.py --only digits --repeats 3    some of it; writes nothing

Writes benchmarks/results/drop_in.json and .md.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import AffinityPropagation
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.clustering import features
from benchmarks.measuring import Cases, Floats, best, in_turn, run, table, times
from epruner import accel

# data, n, damping, rounds; without rounds scikit-learn is left out
CASES = [
    ("digits as they are", 1797, 0.5, 7),
    ("gaussian", 500, 0.5, 9),
    ("gaussian", 1000, 0.5, 7),
    ("gaussian", 2000, 0.5, 5),
    ("gaussian", 5000, 0.7, 1),
    ("gaussian", 10_000, 0.8, 1),
    ("gaussian", 20_000, 0.8, None),
]
TIES = ("scikit-learn", "fast")


def points(data: str, n: int) -> Floats:
    if data == "digits as they are":
        digits: Floats = load_digits().data  # integers: many ties
        return digits
    return features(data, n).astype(np.float64)


def fit(X: Floats, damping: float, ties: str | None) -> AffinityPropagation:
    """A fit under `epruner.accel` with `ties`, or without it (None)."""
    if ties is None:
        accel.uninstall()
    else:
        accel.install(ties)
    return AffinityPropagation(damping=damping, random_state=0).fit(X)


def measured(data: str, n: int, damping: float, rounds: int | None) -> dict[str, Any]:
    X = points(data, n)
    row: dict[str, Any] = {"data": data, "n": n, "damping": damping}
    for ties in TIES:
        ours = partial(fit, X, damping, ties)
        if rounds is None:
            row[ties], answer = {"epruner_s": best(ours, 3)[0]}, ours()
        else:
            row[ties], answer, reference = in_turn(ours, partial(fit, X, damping, None), rounds)
            same = ["cluster_centers_indices_", "n_iter_"]
            if ties == "scikit-learn":
                same += ["labels_", "affinity_matrix_"]
            for name in same:
                np.testing.assert_array_equal(getattr(answer, name), getattr(reference, name))
        row["clusters"] = len(answer.cluster_centers_indices_)
    return row


def tabulate(rows: list[dict[str, Any]]) -> str:
    head = ["data", "n", "damping", "clusters", "scikit-learn, s"]
    head += ["its noise, s", "", "fast ties, s", ""]
    lines = []
    for row in rows:
        exact, fast = (row[ties] for ties in TIES)
        theirs = exact.get("scikit_learn_s")
        lines.append(
            [
                row["data"],
                f"{row['n']:,}",
                str(row["damping"]),
                str(row["clusters"]),
                "–" if theirs is None else f"{theirs:.2f}",
                f"{exact['epruner_s']:.3f}",
                times(exact.get("vs_scikit_learn")),
                f"{fast['epruner_s']:.3f}",
                times(fast.get("vs_scikit_learn")),
            ]
        )
    return table(head, lines)


def groups(repeats: int | None) -> dict[str, tuple[Cases, Any]]:
    cases: Cases = {
        f"{data} {n}": partial(measured, data, n, damping, rounds and (repeats or rounds))
        for data, n, damping, rounds in CASES
    }
    return {"rows": (cases, tabulate)}


if __name__ == "__main__":
    run(__doc__ or "", "drop_in", groups)
