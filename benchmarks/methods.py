"""The table by which the default method is decided: trained networks x budgets x methods x inputs.

    python benchmarks/methods.py                          # everything that is not there yet
    python benchmarks/methods.py theo --macs 0.6          # one network, one budget
    python benchmarks/methods.py encoder --methods auto l1 --inputs 32   # a try, nothing written

By the public functions only. "auto" and "exemplar" are tried without any input (noise), with
synthetic ones, and with unlabelled ones; "auto" also distilled after that. All is judged on inputs
that nothing has seen: top-1 accuracy where these have labels, otherwise what is kept of the whole
network's answers (its first class, or the ten nearest neighbours), and always the squared error of
the output over its variance. Images for networks of ImageNet are CIFAR-10's, enlarged fourfold:
natural, if not sharp.

Each row is one choice of filters and one repair of it. Rows go to results/methods.json as they
come, and the table to results/methods.md; rows that are there are skipped. All of it takes two
hours on two cores of their own. Needs checkpoints and images (EPRUNER_DATA) and the wheels of
tests/pruning/wheels.py and benchmarks/sentences.py.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "pruning")]

from wheels import trained  # noqa: E402

import epruner  # noqa: E402
from benchmarks import cifar, sentences  # noqa: E402
from epruner import Method  # noqa: E402
from epruner.pruning import Analysis  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
REPAIRS = ("none", "merge", "batchnorm", "least_squares")
USUAL = 400
Inputs = int | str  # how many, or what was made up
METHODS: dict[str, str | Method] = {
    "auto": "auto",
    "reconstruction": "reconstruction",
    "uniform, reconstruction": Method("uniform", "reconstruction"),
    "exemplar": "exemplar",
    "l1": "l1",
    "fisher": "fisher",  # the only one that looks at labels
}
Score = Callable[[Tensor], float]


@dataclass(frozen=True)
class Case:
    """A trained network with inputs to learn from and others to be judged on."""

    model: nn.Module
    pool: Tensor  # inputs to learn from
    held_out: Tensor
    judge: Callable[[Tensor], Score]  # from the whole network's outputs
    all_repairs: bool = False
    labels: Tensor | None = None  # of the pool

    @property
    def calibration(self) -> Tensor:
        """The usual number of them."""
        return self.pool[:USUAL]

    @cached_property
    def analysis(self) -> Analysis:
        """Made once, for all budgets and methods."""
        return epruner.analyse(self.model, self.calibration[:1])

    @cached_property
    def synthetic(self) -> tuple[Tensor, Tensor]:
        """Synthetic inputs, made once, and the time that it took."""
        start = clock()
        return epruner.synthesise(self.model, self.calibration[:1]), clock() - start  # type: ignore[return-value]


def image_case(name: str, count: int) -> Case:
    """A CIFAR-10 ResNet: accuracy on 1,000 test images."""
    published = {"theo": 93.8, "akamaster": 92.6, "resnet20": 91.5}[name]  # on these images
    images, labels = cifar.lossless("test", 1000)

    def judge(whole: Tensor) -> Score:
        found = top1(whole, labels)
        expect(abs(found - published) < 0.11, f"{name}: {found} % instead of {published} %")
        return lambda outputs: top1(outputs, labels)

    calibration, its = cifar.lossless("train", count)
    return Case(cifar.network(name), calibration, images, judge, name == "theo", its)


def imagenet_case(name: str, count: int) -> Case:
    """A mobile network of ImageNet: its classes, or the nearest neighbours by its features."""
    images, labels = cifar.lossless("train", 400)
    if name == "efficientnet-lite0":  # trained on another range than the others
        images = (images * cifar.STD + cifar.MEAN) * 2 - 1
    images = F.interpolate(images, scale_factor=4, mode="bicubic")

    def judge(whole: Tensor) -> Score:
        if whole.shape[1] == 1000:
            taken = whole[labels[-200:] == 5].argmax(1)
            dogs = 100 * float(((taken >= 151) & (taken <= 268)).double().mean())
            expect(dogs > 50, f"{name} takes {dogs:.0f} % of the dogs for dogs")
            return lambda outputs: top1(outputs, whole.argmax(1))
        classes = labels[-200:][neighbours(whole, 1)[:, 0]]
        alike = 100 * float((classes == labels[-200:]).double().mean())
        expect(alike > 50, f"{name}: {alike:.0f} % have a nearest neighbour of their class")
        return lambda outputs: kept(outputs, whole)

    return Case(trained(name)[0], images[: min(count, 200)], images[-200:], judge)


def sentence_case(_: str, count: int) -> Case:
    """The sentence encoder: nearest neighbours among 300 sentences."""
    model = sentences.encoder()
    # the example of its authors, and the similarities that they print
    weather = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    published = torch.tensor([0.6660, 0.1046, 0.1411])
    vectors = outputs(model, sentences.tokens(weather))
    found = vectors @ vectors.T
    expect(
        torch.allclose(found[[0, 0, 1], [1, 2, 2]], published, atol=1e-4),
        f"other similarities than published: {found}",
    )
    first, second = (sentences.tokens(part) for part in sentences.docstrings(min(count, 128), 300))
    return Case(model, first, second, lambda whole: lambda outputs: kept(outputs, whole))


@dataclass(frozen=True)
class Grid:
    """What is tried on a network.

    Parameters
    ----------
    load : callable
        From the network's name and the number of inputs to learn from.
    budgets : tuple of float
    methods : tuple of str
        Fewer where each takes a minute.
    inputs : tuple
        That "auto" learns from.
    distilled : tuple
        Of these or others, at the two smallest budgets.
    """

    load: Callable[[str, int], Case]
    budgets: tuple[float, ...]
    methods: tuple[str, ...]
    inputs: tuple[Inputs, ...] = ("noise", "synthetic", USUAL)
    distilled: tuple[Inputs, ...] = ()


SOME = ("auto", "uniform, reconstruction", "exemplar", "l1")
CASES = {
    "theo": Grid(
        image_case,
        (0.7, 0.6, 0.4),
        tuple(METHODS),
        ("noise", "synthetic", 128, USUAL, 2000),
        ("synthetic", USUAL, 7728),
    ),
    "akamaster": Grid(image_case, (0.7, 0.6, 0.4), (*SOME, "fisher"), distilled=("synthetic",)),
    "resnet20": Grid(image_case, (0.6, 0.4), SOME),
    "mobilenetv2": Grid(imagenet_case, (0.7, 0.5), SOME, ("noise", USUAL)),
    "efficientnet-lite0": Grid(imagenet_case, (0.7, 0.5), SOME, ("noise", USUAL)),
    "encoder": Grid(sentence_case, (0.8, 0.6), SOME, ("noise", USUAL)),
}


def top1(outputs: Tensor, labels: Tensor) -> float:
    """Percent of inputs whose largest output is at their label."""
    return 100 * float((outputs.argmax(1) == labels).double().mean())


def neighbours(outputs: Tensor, count: int) -> Tensor:
    """The most similar others by cosine, (n, count)."""
    unit = F.normalize(outputs, dim=1)
    return (unit @ unit.T).fill_diagonal_(-2).topk(count).indices


def kept(outputs: Tensor, whole: Tensor) -> float:
    """Percent of the ten nearest neighbours that are still among the ten nearest."""
    ours, theirs = neighbours(outputs, 10), neighbours(whole, 10)
    return 100 * float((ours[:, :, None] == theirs[:, None]).any(2).double().mean())


def expect(true: bool, otherwise: str) -> None:
    """Stop before any number is written."""
    if not true:
        raise SystemExit(otherwise)


@torch.no_grad()
def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    """All outputs, batch by batch."""
    batches: Iterable[Tensor] = inputs.split(100)  # type: ignore[no-untyped-call]
    return torch.cat([model(batch) for batch in batches])


@torch.no_grad()
def multiply_adds(model: nn.Module, inputs: Tensor) -> int:
    """Of convolutions and linear layers, by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        model(inputs)
    layers = ("convolution", "addmm", "mm")
    flops = counter.get_flop_counts()["Global"]
    return sum(int(flops[op]) for op in flops if str(op).removeprefix("aten.") in layers) // 2


class Table:
    """Rows, and the files of results that grow with them."""

    KEY = ("network", "macs", "method", "repair", "inputs")

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.rows: list[dict[str, Any]] = []
        if file is not None and file.exists():
            self.rows = json.loads(file.read_text(encoding="utf-8"))["rows"]

    def lacks(self, *key: object) -> bool:
        """Whether there is no row that starts like this."""
        return not any(tuple(row[k] for k in self.KEY[: len(key)]) == key for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Show it, and write all."""
        print(json.dumps(row), flush=True)
        self.rows.append(row)
        if self._file is not None:
            document = {
                "command": "python benchmarks/methods.py",
                "machine": f"{platform.machine()}, {torch.get_num_threads()} torch threads",
                "torch": torch.__version__,
                "rows": self.rows,
            }
            self._file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            self._file.with_suffix(".md").write_text(page(document) + "\n", encoding="utf-8")


def clock() -> Tensor:
    """Seconds on the wall, and of all cores together: the second bears a busy machine."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def smaller(
    case: Case, macs: float, label: str, grid: Grid
) -> Iterator[tuple[str, Inputs, nn.Module, Tensor]]:
    """What a method makes: the repair, what it learnt from, the network, its times."""
    if label in ("auto", "exemplar"):  # as a whole, the others station by station
        distilled = grid.distilled if macs in grid.budgets[-2:] else ()
        inputs = dict.fromkeys((*grid.inputs, *distilled))
        for given in inputs if label == "auto" else ("noise", USUAL):
            yield from whole_way(case, macs, label, given, given in distilled)
        return
    model, data, example = case.model, case.calibration, case.calibration[:1]
    needs_data = "reconstruction" in label or label == "fisher"
    repairs = ["least_squares"] if needs_data else ["none", "merge", "least_squares"]
    shown: Any = data if needs_data else None
    if label == "fisher":
        assert case.labels is not None
        shown, repairs = [(data, case.labels[: len(data)])], ["none", "least_squares"]
    start = clock()
    plan = case.analysis.select(macs=macs, method=METHODS[label], calibrate=shown)
    sliced = plan.apply(model)
    selected = clock() - start
    for repair in REPAIRS if case.all_repairs else repairs:
        shown = data if repair in ("batchnorm", "least_squares") else None
        start = clock()
        small = sliced
        if repair != "none":
            small, _ = epruner.repair(
                model, sliced, plan, calibrate=shown, repair=repair, inputs=example
            )
        count = len(data) if needs_data or shown is not None else 0
        yield repair, count, small, selected + clock() - start


def whole_way(
    case: Case, macs: float, method: str, given: Inputs, distilled: bool
) -> Iterator[tuple[str, Inputs, nn.Module, Tensor]]:
    """One call of `prune`, and what distillation makes of its network."""
    example, taken = case.calibration[:1], torch.zeros(2, dtype=torch.float64)
    calibrate: Any = given
    if given == "synthetic":
        calibrate, taken = case.synthetic
    elif given == "noise":
        calibrate = None
    elif isinstance(given, int):
        calibrate = case.pool[:given]
        given = len(calibrate)
    # least squares gain little from more than two thousand inputs
    fitted = calibrate[:USUAL] if given == 7728 else calibrate
    start = clock()
    small = epruner.prune(case.model, example, macs=macs, method=method, calibrate=fitted).model
    taken = taken + clock() - start
    if given != 7728:
        yield "auto", given, small, taken
    if distilled and method == "auto":
        start = clock()
        small, _ = epruner.distill(case.model, small, calibrate)
        yield "distill", given, small, taken + clock() - start


def measure(
    table: Table,
    name: str,
    case: Case,
    grid: Grid,
    budgets: Sequence[float],
    methods: Sequence[str],
) -> None:
    """All rows of one network."""
    whole = outputs(case.model, case.held_out)
    score, spread = case.judge(whole), float((whole - whole.mean(0)).double().square().sum())
    full = multiply_adds(case.model, case.calibration[:1])
    for macs, label in product(budgets, methods):
        if not table.lacks(name, macs, label):
            continue
        for repair, inputs, small, took in smaller(case, macs, label, grid):
            share = multiply_adds(small, case.calibration[:1]) / full
            expect(0.99 * macs <= share <= macs, f"{name}: {share:.4f} instead of {macs}")
            got = outputs(small, case.held_out)
            error = float((got - whole).double().square().sum()) / spread
            table.add(
                {
                    **dict(zip(Table.KEY, (name, macs, label, repair, inputs), strict=True)),
                    "base": round(score(whole), 1),
                    "score": round(score(got), 1),
                    "error": float(f"{error:.3g}"),
                    "seconds": round(float(took[0]), 1),
                    "cpu_seconds": round(float(took[1]), 1),
                }
            )


def page(results: dict[str, Any]) -> str:
    """The default by what it learns from, and methods beside each other."""
    rows = results["rows"]
    default = [row for row in rows if row["method"] == "auto"]
    usual = {row["network"]: row["inputs"] for row in rows if row["repair"] == "least_squares"}

    def learned(row: dict[str, Any]) -> str:
        return f"{row['inputs']}{', distilled' if row['repair'] == 'distill' else ''}"

    def method(row: dict[str, Any]) -> str:
        return str(row["method"])

    given = [
        row for row in rows
        if row["repair"] in ("auto", "least_squares") and row["inputs"] == usual[row["network"]]
    ]  # fmt: skip
    unseen = [
        row for row in rows
        if row["inputs"] in ("noise", 0) and row["repair"] in ("auto", "merge")
    ]  # fmt: skip
    return "\n\n".join(
        sheet(f"{title}: {what}", found, what, column)
        for title, found, column, whats in (
            (
                "The default, by what it learns from",
                default,
                learned,
                ("score", "error", "cpu_seconds"),
            ),
            (
                "Methods, from unlabelled inputs (fisher: labelled)",
                given,
                method,
                ("score", "error"),
            ),
            ("Methods, without any input", unseen, method, ("score", "error")),
        )
        for what in whats
    )


def sheet(
    title: str,
    rows: Sequence[dict[str, Any]],
    what: str,
    column: Callable[[dict[str, Any]], str],
) -> str:
    """One table of numbers; the best of a line is bold."""
    columns = list(dict.fromkeys(map(column, rows)))
    lines = [f"| network | MACs | {' | '.join(columns)} |", "|" + "---|" * (2 + len(columns))]
    for network, macs in dict.fromkeys((r["network"], r["macs"]) for r in rows):
        line = {column(r): r for r in rows if (r["network"], r["macs"]) == (network, macs)}
        numbers = [line[name][what] if name in line else None for name in columns]
        best = (max if what == "score" else min)(n for n in numbers if n is not None)
        cells = ["" if n is None else f"**{n}**" if n == best else f"{n}" for n in numbers]
        base = next(iter(line.values()))["base"]
        lines.append(f"| {network} ({base}) | {macs} | {' | '.join(cells)} |")
    return f"{title}\n\n" + "\n".join(lines)


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", default=[], help=", ".join(CASES))
    parser.add_argument("--macs", type=float, nargs="*", help="budgets, instead of the table's")
    parser.add_argument("--methods", nargs="*", help=f"of {', '.join(map(repr, METHODS))}")
    parser.add_argument("--inputs", type=int, help="so few to learn from; nothing is written")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    table = Table(RESULTS / "methods.json" if args.inputs is None else None)
    for name in args.networks or CASES:
        grid = CASES[name]
        most = max(given for given in (*grid.inputs, *grid.distilled) if isinstance(given, int))
        case = grid.load(name, args.inputs or most)
        measure(table, name, case, grid, args.macs or grid.budgets, args.methods or grid.methods)


if __name__ == "__main__":
    main()
