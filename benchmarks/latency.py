"""Budgets of time: are they met, and is the error smaller than at the same time by multiply-adds?

    python benchmarks/latency.py                     # every row that is not there yet
    python benchmarks/latency.py --only "encoder 1"  # one
    python benchmarks/latency.py --clock cpu         # on a machine that others use

By the public functions. The network that `prune(..., latency=share)` gives is timed anew, in turn
with the whole one and with that of a budget of multiply-adds which takes as long: its share is
corrected by what is measured, once or twice. Errors are squared errors of the output over
its variance, on inputs that nothing has seen, at batch 1. At batch 32, and for ResNet-50, whose
weights are random, it is the time only, with the same share of all layers.

With ``--clock cpu`` all that is measured, inside `prune`, too, is the processor's time, of the one
thread that computes. On a quiet machine that is the time on the wall; on one that others use it
does not count their turns.

Needs the wheels of tests/pruning/wheels.py and benchmarks/sentences.py, and images (EPRUNER_DATA).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "pruning")]

from wheels import trained  # noqa: E402

import epruner  # noqa: E402
from benchmarks import cifar, sentences  # noqa: E402
from benchmarks.measuring import RESULTS, machine, milliseconds, table, write  # noqa: E402
from epruner.pruning.latency import layers, stopwatch  # noqa: E402

SECONDS, LEAST, TURN = 6.0, 7, 0.2  # of a comparison, rounds, and seconds of a turn
Case = tuple[nn.Module, Tensor | None, Tensor]  # network, inputs to learn from, held out


def resnet50() -> Case:
    """Images of half the usual side, for the sake of the larger batch."""
    from pytorchcv.model_provider import get_model

    torch.manual_seed(0)
    model = get_model("resnet50").eval()
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)
    return model, None, torch.randn(32, 3, 112, 112)


def mobilenetv2() -> Case:
    """CIFAR-10's images, enlarged fourfold, as in benchmarks/methods.py."""
    images, _ = cifar.lossless("train", 200)
    images = F.interpolate(images, scale_factor=4, mode="bicubic")
    return trained("mobilenetv2")[0], images[:100], images[100:]


def encoder() -> Case:
    first, second = (sentences.tokens(part) for part in sentences.docstrings(128, 300))
    return sentences.encoder(), first, second


CASES: dict[str, tuple[Callable[[], Case], int]] = {
    f"{load.__name__} {batch}": (load, batch)
    for batch in (1, 32)
    for load in (resnet50, mobilenetv2, encoder)
}
SHARE = 0.6


@torch.no_grad()
def in_turn(networks: Sequence[nn.Module], inputs: Tensor) -> list[float]:
    """Median seconds of a pass of each, run again and again as it will be where it is used.

    The first of each turn does not count: it finds the caches full of another network's weights.
    """
    taken: list[list[float]] = [[] for _ in networks]
    start = stopwatch.clock()
    while len(taken[0]) <= LEAST or stopwatch.clock() - start < SECONDS:
        for network, seconds in zip(networks, taken, strict=True):
            network(inputs)
            passes, begun = 0, stopwatch.clock()
            while not passes or stopwatch.clock() - begun < TURN:
                network(inputs)
                passes += 1
            seconds.append((stopwatch.clock() - begun) / passes)
    return [statistics.median(seconds[1:]) for seconds in taken]


@torch.no_grad()
def error(model: nn.Module, small: nn.Module, held_out: Tensor) -> float:
    """Squared error of the outputs over their variance."""
    whole, other = (torch.cat([m(b) for b in held_out.split(50)]) for m in (model, small))  # type: ignore[no-untyped-call]
    return float((other - whole).square().sum() / (whole - whole.mean(0)).square().sum())


def measure(name: str) -> dict[str, Any]:
    """One row."""
    load, batch = CASES[name]
    model, shown, held_out = load()
    judged = shown is not None and batch == 1
    inputs = held_out[:batch]
    start = time.perf_counter()
    given: dict[str, Any] = {"calibrate": shown} if judged else {"method": "l1", "repair": "none"}
    result = epruner.prune(model, inputs, latency=SHARE, **given)
    row: dict[str, Any] = {
        "network": load.__name__,
        "batch": batch,
        "latency": SHARE,
        "seconds": time.perf_counter() - start,
        "macs": result.report.after.macs / result.report.before.macs,
        "reported": result.report.timing.share if result.report.timing else None,
    }
    if not judged:
        whole, ours = in_turn((model, result.model), inputs)
        return row | {"whole_s": whole, "latency_s": ours, "share": ours / whole}
    analysis, macs, plans = epruner.analyse(model, inputs), row["macs"], []
    for _ in range(2):
        plan = analysis.select(macs=macs, calibrate=shown)
        ours, theirs = in_turn((result.model, plan.apply(model)), inputs)
        plans.append((abs(theirs / ours - 1), macs, plan))
        if plans[-1][0] < 0.03:
            break
        macs = min(macs * ours / theirs, 1.0)
    _, macs, plan = min(plans, key=lambda each: each[0])
    rival, _ = epruner.repair(model, plan.apply(model), plan, calibrate=shown, inputs=inputs)
    whole, ours, theirs = in_turn((model, result.model, rival), inputs)
    return row | {
        "whole_s": whole,
        "latency_s": ours,
        "share": ours / whole,
        "error": error(model, result.model, held_out),
        "rival_macs": macs,
        "rival_s": theirs,
        "rival_share": theirs / whole,
        "rival_error": error(model, rival, held_out),
    }


def page(results: dict[str, Any]) -> str:
    head = [
        "network", "batch", "budget", "whole (ms)", "measured", "MACs", "error",
        "by MACs: measured", "MACs", "error", "took (s)",
    ]  # fmt: skip

    def optional(row: dict[str, Any], key: str) -> str:
        return f"{row[key]:.3f}" if key in row else "–"

    return table(
        head,
        [
            [
                row["network"], str(row["batch"]), f"{row['latency']:g}",
                milliseconds(row["whole_s"]), f"{row['share']:.3f}", f"{row['macs']:.3f}",
                *(optional(row, k) for k in ("error", "rival_share", "rival_macs", "rival_error")),
                f"{row['seconds']:.0f}",
            ]
            for row in results["rows"]
        ],
    )  # fmt: skip


def fill(
    stem: str,
    about: str,
    cases: Sequence[str],
    name_of: Callable[[dict[str, Any]], str],
    measured: Callable[[str], dict[str, Any]],
    page: Callable[[dict[str, Any]], str],
) -> None:
    """Measure the cases that the command line asks for and a results file lacks.

    Parameters
    ----------
    stem : str
        Of the script and of its results.
    about : str
        What the script does, in a line.
    cases : sequence of str
    name_of : callable
        From a row to its case.
    measured : callable
        From a case to its row.
    page : callable
        From results to their Markdown.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--only", nargs="+", choices=cases, default=cases)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    if args.clock == "cpu":
        stopwatch.clock = time.process_time
        stopwatch.SECONDS = layers.SECONDS = SECONDS / 2
    file = RESULTS / f"{stem}.json"
    chosen = "".join(
        f" --{name} {value}"
        for name, value in vars(args).items()
        if name != "only" and value != parser.get_default(name)
    )

    def there() -> list[dict[str, Any]]:
        return json.loads(file.read_text())["rows"] if file.exists() else []

    for case in args.only:
        if case in map(name_of, there()):
            continue
        row = measured(case)
        rows = [*there(), row]
        print(page({"rows": [row]}), flush=True)
        results = {
            "command": f"python benchmarks/{stem}.py{chosen}",  # that of all rows, not of this one
            "machine": machine()
            | {"threads": args.threads, "clock": args.clock, "torch": torch.__version__},
            "rows": rows,
        }
        write(stem, results, page(results))


def main() -> None:
    """All rows that are asked for and not there yet."""
    fill(
        "latency",
        __doc__.splitlines()[0],
        tuple(CASES),
        lambda row: f"{row['network']} {row['batch']}",
        measure,
        page,
    )


if __name__ == "__main__":
    main()
