"""The published rule at one beta on two trained CIFAR-10 ResNet-56: what it leaves of each.

    python benchmarks/paper_rule.py

Writes benchmarks/results/paper_rule.json. Needs the checkpoints (EPRUNER_DATA).
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.cifar import network  # noqa: E402
from benchmarks.measuring import command  # noqa: E402
from epruner import prune  # noqa: E402

BETA = 0.76


def main() -> None:
    rows = []
    for name in ("theo", "akamaster"):
        report = prune(network(name), (1, 3, 32, 32), beta=BETA).report
        rows.append(
            {
                "network": name,
                "macs_before": report.before.macs,
                "macs_after": report.after.macs,
                "params_before": report.before.params,
                "params_after": report.after.params,
                "totals": report.totals().to_text(),
            }
        )
        print(name, rows[-1]["totals"], sep="\n")
    document = {
        "command": command(),
        "beta": BETA,
        "machine": platform.machine(),
        "rows": rows,
    }
    target = ROOT / "benchmarks" / "results" / "paper_rule.json"
    target.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
