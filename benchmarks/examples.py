"""Accuracy of the examples on trained networks, and their pictures for the documentation.

    python benchmarks/examples.py                  # all three
    python benchmarks/examples.py text_reader

Writes results/examples.json and docs/pictures/*.png. Needs the wheels that the examples name.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.measuring import RESULTS, machine
from epruner import analyse, prune

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
NAMES = ("sentence_encoder", "text_reader", "pitch_tracker")
FURTHER = {"sentence_encoder": (0.6, 0.15)}  # budgets beside that of the example


def measure(name: str) -> list[dict[str, Any]]:
    """The original; cut by norms alone; pruned and repaired, which is drawn; and further."""
    example = import_module(f"examples.{name}")
    model = example.network()
    calibration, held_out = example.inputs()
    net = analyse(model, calibration[:2])
    rows = [{"network": "original", "macs": 1.0} | example.accuracy(model, held_out)]
    budgets = (example.MACS, *FURTHER.get(name, ()))
    small = []
    for which, macs, options in (
        ("cut", example.MACS, {"method": "l1", "repair": "none"}),
        *(("pruned", macs, {"calibrate": calibration}) for macs in budgets),
    ):
        start = time.process_time()
        result = prune(model, net, macs=macs, **options)
        seconds = time.process_time() - start
        report = result.report
        row = {
            "network": which,
            "macs": report.after.macs / report.before.macs,
            "cpu_seconds": round(seconds, 1),
        }
        rows.append(row | example.accuracy(result.model, held_out))
        print(name, rows[-1], flush=True)
        small.append(result.model)
    example.draw(model, small[1], held_out, str(PICTURES / f"{name.replace('_', '-')}.png"))
    return rows


def main() -> None:
    """Measure the examples named, or all, and write what they gave beside the others."""
    file = RESULTS / "examples.json"
    for name in sys.argv[1:] or NAMES:
        results = {
            "command": f"python benchmarks/examples.py {name}",
            "machine": machine() | {"torch": torch.__version__},
            "rows": measure(name),
        }
        found = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(found | {name: results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
