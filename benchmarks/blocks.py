"""Whole residual blocks or filters: which costs less error at equal time?

    python benchmarks/blocks.py                          # every row that is not there yet
    python benchmarks/blocks.py --only "theo 32 0.6"     # one
    python benchmarks/blocks.py --clock cpu              # on a machine that others use

By the public function: `prune(..., latency=share)` as it is, and with ``scope="blocks"``, which
passes blocks by where the repaired network is nearer to the original. Both and the whole network
are then timed anew, in turn. Errors are squared errors of the output over its variance, on inputs
that nothing has seen; of the ResNets also the accuracy there. ``--clock`` as in
`benchmarks/latency.py`.

Needs images and networks (EPRUNER_DATA), and a wheel of tests/pruning/wheels.py.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "pruning")]

import epruner  # noqa: E402
from benchmarks import cifar, latency  # noqa: E402
from benchmarks.measuring import milliseconds, table  # noqa: E402
from epruner.pruning.graph.blocks import find_blocks  # noqa: E402
from epruner.pruning.network.copies import tracing_copy  # noqa: E402

CASES = [
    *(f"{name} 32 {share}" for name in ("resnet20", "theo", "akamaster") for share in (0.75, 0.6)),
    "theo 1 0.6",
    "mobilenetv2 32 0.6",
]


def load(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor | None]:
    """Network, inputs to learn from, held out, and their labels."""
    if name == "mobilenetv2":
        model, shown, held_out = latency.mobilenetv2()
        assert shown is not None
        return model, shown, held_out, None
    return cifar.network(name), cifar.lossless("train", 200)[0], *cifar.lossless("test", 1000)


def measure(case: str) -> dict[str, Any]:
    """One row."""
    name, batch, share = case.split()
    model, shown, held_out, labels = load(name)
    inputs = held_out[: int(batch)]
    analysis = epruner.analyse(model, inputs)
    results, seconds = [], []
    for scope in ("inner", "blocks"):
        start = time.perf_counter()
        results.append(
            epruner.prune(model, analysis, latency=float(share), calibrate=shown, scope=scope)
        )
        seconds.append(time.perf_counter() - start)
    networks = [result.model for result in results]
    whole, *taken = latency.in_turn((model, *networks), inputs)
    row: dict[str, Any] = {
        "network": name,
        "batch": int(batch),
        "latency": float(share),
        "whole_s": whole,
        "blocks": len(find_blocks(tracing_copy(model)[0], (inputs[:1],), {})[0]),
        "passed": len(results[1].plan.passed),
    }
    for kind, result, spent, took in zip(("filters", "both"), results, taken, seconds, strict=True):
        row[f"{kind}_share"] = spent / whole
        row[f"{kind}_macs"] = result.report.after.macs / result.report.before.macs
        row[f"{kind}_error"] = latency.error(model, result.model, held_out)
        row[f"{kind}_seconds"] = took
        if labels is not None:
            row[f"{kind}_accuracy"] = cifar.accuracy(result.model, held_out, labels)
    return row


def page(results: dict[str, Any]) -> str:
    head = ["network", "batch", "budget", "whole (ms)", "blocks passed by"]
    for kind in ("filters", "with blocks"):
        head += [f"{kind}: measured", "MACs", "error", "accuracy", "took (s)"]
    lines = []
    for row in results["rows"]:
        line = [
            row["network"], str(row["batch"]), f"{row['latency']:g}", milliseconds(row["whole_s"]),
            f"{row['passed']} of {row['blocks']}",
        ]  # fmt: skip
        for kind in ("filters", "both"):
            accuracy = row.get(f"{kind}_accuracy")
            line += [
                f"{row[f'{kind}_share']:.3f}",
                f"{row[f'{kind}_macs']:.3f}",
                f"{row[f'{kind}_error']:.3f}",
                "–" if accuracy is None else f"{accuracy:.1f}",
                f"{row[f'{kind}_seconds']:.0f}",
            ]
        lines.append(line)
    return table(head, lines)


def main() -> None:
    """All rows that are asked for and not there yet."""
    latency.fill(
        "blocks",
        __doc__.splitlines()[0],
        CASES,
        lambda row: f"{row['network']} {row['batch']} {row['latency']:g}",
        measure,
        page,
    )


if __name__ == "__main__":
    main()
