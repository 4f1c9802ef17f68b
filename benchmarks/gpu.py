"""Everything that one run on a machine with a card should do, in under eight minutes.

Checks answers before clocks: exemplars and iteration counts against the reference and the compiled
CPU solver. Then times whole networks in one batch, pruning on the device, single problems from
lists and from dense passes, and 100,000 and 1,000,000 points from features; beside them the card's
copy bandwidth and matrix product, the CPU solver, the same iteration written in eager torch, and
scikit-learn.

    python benchmarks/gpu.py                    writes benchmarks/results/<card>.json and .md

Each part runs in a process of its own, for as long as its limit and the time left allow, and its
rows are kept as they come: neither an error nor a part that takes too long loses the others.

Works from a checkout; without the compiled extension it leaves that rival out. Times are medians of
several runs over rotating inputs on a warm card: CUDA events where work stays on the device, wall
time where results return to the host.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "cluster")]

from problems import KINDS  # noqa: E402

from benchmarks.gpu_parts import PARTS, Row  # noqa: E402
from epruner.cluster.backends.cuda import load_cupy  # noqa: E402

BUDGET = 460.0  # seconds for everything


def goals(results: dict[str, list[Row]]) -> list[Row]:
    """What was aimed at, and what was found."""

    def found(part: str, column: str, **where: object) -> Any:
        for row in results.get(part, []):
            if column in row and all(row.get(name) == value for name, value in where.items()):
                return row[column]
        return None

    copy, dense = found("ceilings", "copy_gb_s"), found("single", "dense_gb_s", n=20000)
    share = round(dense / copy, 3) if copy and dense else None
    wrong = [w for row in results.get("correctness", []) for w in row.get("wrong", [])]
    complete = len(results.get("correctness", [])) == len(KINDS) + 1
    rows: list[Row] = [
        {"goal": "wrong answers", "at_most": 0, "found": len(wrong) if complete else None},
        {
            "goal": "ResNet-152 in one batch, ms",
            "at_most": 30,
            "found": found("networks", "gpu_ms", network="ResNet-152"),
        },
        {
            "goal": "ResNet-152 against scikit-learn, times",
            "at_least": 100,
            "found": found("networks", "times_sklearn", network="ResNet-152"),
        },
        {"goal": "dense n = 20,000, share of copy", "at_least": 0.6, "found": share},
        {
            "goal": "n = 100,000 from features, s",
            "at_most": 1.5,
            "found": found("features_100k", "seconds"),
        },
        {
            "goal": "n = 1,000,000 from features, s",
            "at_most": 90,
            "found": found("features_1m", "seconds"),
        },
        {
            "goal": "n = 2,048 against eager torch, times",
            "at_least": 20,
            "found": found("single", "times_torch", n=2048),
        },
    ]
    for row in rows:
        value = row["found"]
        if value is not None:
            low, high = row.get("at_least", -np.inf), row.get("at_most", np.inf)
            row["met"] = bool(low <= value <= high)
    return rows


# ---- Output ---------------------------------------------------------------------------------


def table(rows: Iterable[Row]) -> str:
    """Rows as markdown, a column for every name that occurs."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [row.get(name, "") for name in names]
        shown = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def write(results: dict[str, list[Row]], folder: Path) -> None:
    """Write what is there so far; a run that is cut off leaves what it has."""
    folder.mkdir(parents=True, exist_ok=True)
    card = str(results["machine"][0].get("card", "unknown card"))
    name = card.lower().replace(" ", "-").replace("/", "-")
    (folder / f"{name}.json").write_text(json.dumps(results, indent=2, default=str) + "\n")
    text = [f"# {card}\n"]
    for part, rows in results.items():
        text += [f"## {part}\n", table(rows), ""]
    (folder / f"{name}.md").write_text("\n".join(text))


def run_part(name: str, out: Path) -> int:
    """Run one part in this process; its rows are in `out` after each of them."""
    rows: list[Row] = []

    def keep(row: Row) -> None:
        fresh = not rows or next(iter(rows[-1].items())) != next(iter(row.items()))
        rows[len(rows) if fresh else len(rows) - 1 :] = [dict(row)]
        out.write_text(json.dumps(rows, default=str))

    try:
        for row in PARTS[name][0](load_cupy()):
            if row:
                keep(row)
    except Exception as error:  # what came before it is in the file
        traceback.print_exc()
        keep({"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def attempt(name: str, limit: float, out: Path) -> tuple[list[Row], bool]:
    """Run one part in a process of its own; return its rows, and whether it came to its end."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", name, "--out", str(out)]
    try:
        code = subprocess.run(command, timeout=limit, check=False).returncode
        trouble = f"ended with code {code}"
    except subprocess.TimeoutExpired:
        code, trouble = 1, f"stopped after {limit:.0f} s"
    rows: list[Row] = json.loads(out.read_text()) if out.exists() else []
    if code != 0 and not any("error" in row for row in rows):
        rows.append({"error": trouble})
    return rows, code == 0


def main() -> int:
    """Run all parts; exit code 2 without a card, 1 where a part failed or an answer was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts alone")
    parser.add_argument("--seconds", type=float, default=BUDGET, help="for everything")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        return run_part(options.part, options.out)
    begin = time.perf_counter()
    try:
        load_cupy()  # asks the driver, and takes nothing of the card
    except (ImportError, RuntimeError) as error:
        print(f"benchmarks/gpu.py needs a CUDA device: {error}", file=sys.stderr)
        return 2

    results: dict[str, list[Row]] = {}
    complete = True
    with tempfile.TemporaryDirectory() as folder:
        for name, (_, limit) in PARTS.items():
            if options.only and name not in ("machine", *options.only):
                continue
            left = options.seconds - (time.perf_counter() - begin)
            if left < 5:
                results[name], ended = [{"left out": "no time left"}], False
            else:
                out = Path(folder) / f"{name}.json"
                results[name], ended = attempt(name, min(limit, left), out)
            complete &= ended
            write(results, options.results)
            print(f"\n## {name} ({time.perf_counter() - begin:.0f} s)\n")
            print(table(results[name]), flush=True)
    results["goals"] = goals(results)
    results["total"] = [{"seconds": round(time.perf_counter() - begin, 1)}]
    write(results, options.results)
    print(f"\n## goals\n\n{table(results['goals'])}")
    wrong = any(row.get("wrong") for row in results.get("correctness", []))
    return 0 if complete and not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
