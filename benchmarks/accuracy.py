"""One-shot accuracy of pruned CIFAR ResNet-56: no labels, no gradient step.

    python benchmarks/accuracy.py                    # everything
    python benchmarks/accuracy.py --only theo:0.6    # one network and cut

Each row is one choice of filters (whose numbers and which members), its columns the accuracy on
1,000 lossless test images of the sliced network and of each repair of it. 400 lossless training
images, unlabelled, calibrate. Rows go to results/accuracy.json as they come, and the table to
results/accuracy.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.cifar import accuracy, lossless, network
from epruner.pruning.pipeline import prune
from epruner.pruning.repair.calibration import calibration_batches
from epruner.pruning.repair.least_squares import reestimate, refit
from epruner.pruning.repair.merge import merge
from epruner.pruning.select.elimination import by_elimination, eliminations

RESULTS = Path(__file__).parent / "results"
CALIBRATION = 400
# network and share of the multiply-adds that goes, the most telling first
CASES = [
    ("theo", 0.6), ("theo", 0.4), ("akamaster", 0.6), ("theo", 0.3), ("akamaster", 0.3),
    ("theo", 0.45), ("akamaster", 0.45), ("theo", 0.15), ("akamaster", 0.15),
]  # fmt: skip
CHOICES = [
    ("exemplar", "exemplar"), ("exemplar", "reconstruction"),
    ("reconstruction", "reconstruction"), ("uniform", "reconstruction"),
    ("exemplar", "fpgm"), ("exemplar", "l1"), ("uniform", "fpgm"), ("exemplar", "random"),
    ("uniform", "l1"), ("reconstruction", "fpgm"), ("reconstruction", "exemplar"),
]  # fmt: skip
COLUMNS = ("plain", "merge", "batchnorm", "least_squares")


def case(name: str, cut: float, rows: list[dict[str, Any]], choices: int) -> None:
    """Measure all choices of filters of one network at one cut."""
    model = network(name)
    calibration, _ = lossless("train", CALIBRATION)
    test = lossless("test", 1000)
    batches = calibration_batches(model, calibration, ((calibration[:1],), {}))
    base = accuracy(model, *test)
    found = prune(model, calibration[:1], macs=1 - cut, compensate="none")
    ranked, _ = eliminations(copy.deepcopy(model), found.groups, batches)
    widths_by_error: dict[str, int | float] | None = None
    for widths, members in CHOICES[:choices]:
        options: dict[str, Any] = {"macs": 1 - cut, "widths": widths, "compensate": "none"}
        if widths == "reconstruction":
            if widths_by_error is None:
                options |= {"calibrate": calibration, "criterion": members}
            else:
                options = {"keep": widths_by_error, "compensate": "none", "criterion": members}
        else:
            options["criterion"] = (
                by_elimination(ranked) if members == "reconstruction" else members
            )
        result = prune(model, calibration[:1], **options)
        if widths == "reconstruction":
            widths_by_error = {layer.name: layer.after for layer in result.report.layers}
        merged = copy.deepcopy(result.model)
        merge(model, merged, result.groups, result.kept)
        start = time.perf_counter()
        repaired, repair, _ = refit(model, result.model, result.plan, batches)
        seconds = time.perf_counter() - start
        rows.append(
            {
                "network": name,
                "base": round(base, 1),
                "cut": cut,
                "macs": round(result.report.after.macs / result.report.before.macs, 4),
                "params": round(result.report.after.params / result.report.before.params, 4),
                "widths": widths,
                "members": members,
                "plain": round(accuracy(result.model, *test), 1),
                "merge": round(accuracy(merged, *test), 1),
                "batchnorm": round(accuracy(reestimate(result.model, batches), *test), 1),
                "least_squares": round(accuracy(repaired, *test), 1),
                "output_error": None if repair is None else round(repair.after, 5),
                "repair_seconds": round(seconds, 1),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        write(rows)


def write(rows: list[dict[str, Any]]) -> None:
    """The rows as JSON and as Markdown."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} torch threads"
    document = {"calibration_images": CALIBRATION, "test_images": 1000, "machine": machine}
    (RESULTS / "accuracy.json").write_text(
        json.dumps(document | {"rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    head = ("network", "cut", "widths", "members", *COLUMNS)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    ordered = sorted(rows, key=lambda r: (r["network"] != "theo", r["cut"]))
    for row in ordered:
        alike = [r for r in rows if (r["network"], r["cut"]) == (row["network"], row["cut"])]
        best = {column: max(r[column] for r in alike) for column in COLUMNS}
        shown = [
            f"**{row[column]}**" if row[column] == best[column] else f"{row[column]}"
            for column in COLUMNS
        ]
        what = (f"{row['network']} ({row['base']})", f"{100 * row['cut']:.0f} %")
        lines.append("| " + " | ".join((*what, row["widths"], row["members"], *shown)) + " |")
    (RESULTS / "accuracy.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="network:cut, e.g. theo:0.6")
    parser.add_argument("--choices", type=int, default=len(CHOICES), help="how many rows a case")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for name, cut in CASES:
        if args.only in (None, f"{name}:{cut}"):
            case(name, cut, rows, args.choices)


if __name__ == "__main__":
    main()
