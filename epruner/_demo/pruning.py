"""Digits, a small network that reads them, pruned and fine-tuned."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from epruner._tables import Table, amount, change, percent
from epruner.pruning.graph.costs import Totals
from epruner.pruning.pipeline import prune, repair
from epruner.pruning.plan.plan import Plan
from epruner.pruning.report.report import Report
from epruner.pruning.threads import torch_threads

_TRAIN_EPOCHS = 12
_TUNE_EPOCHS = 6
_BATCH = 64
_CALIBRATION = 300
_TEST = 500


@dataclass(frozen=True)
class Stage:
    """The network at one moment."""

    name: str
    accuracy: float
    totals: Totals


@dataclass(frozen=True)
class Outcome:
    """What this half of the demo shows; printing it gives two tables."""

    model: nn.Module
    plan: Plan
    report: Report
    stages: tuple[Stage, ...]
    test_images: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        stages = [
            {
                "name": stage.name,
                "accuracy": stage.accuracy,
                "params": stage.totals.params,
                "macs": stage.totals.macs,
            }
            for stage in self.stages
        ]
        return {
            "stages": stages,
            "test_images": self.test_images,
            "report": self.report.to_dict(),
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        first = self.stages[0].totals
        rows = [
            (
                stage.name,
                percent(stage.accuracy),
                amount(stage.totals.params),
                change(first.params, stage.totals.params) if stage.totals != first else "",
                amount(stage.totals.macs),
                change(first.macs, stage.totals.macs) if stage.totals != first else "",
            )
            for stage in self.stages
        ]
        header = ("digits", "accuracy", "parameters", "", "multiply-adds", "")
        return (
            f"{self.report.table().to_text()}\n\n{Table(header, rows).to_text()}\n\n"
            f"accuracy on {self.test_images} test images the network never saw; "
            f"{self.seconds:.0f} s in all"
        )


class DigitsNet(nn.Module):
    """Four 3x3 convolutions with BatchNorm and a linear head, for 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 32, 64, 64)
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            if i == 1:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, 8, 8) -> (n, 10)."""
        return self.head(self.features(x).mean((2, 3)))  # type: ignore[no-any-return]


def run(
    *, seed: int = 0, n_threads: int | None = None, say: Callable[[str], None] = print
) -> Outcome:
    """Train, prune and fine-tune a small network on scikit-learn's digits.

    Parameters
    ----------
    seed : int
        Of the split, the weights and the order of the images.
    n_threads : int, optional
        One by default: layers this small gain little from more, and on a busy machine threads
        that wait for each other take ten times as long.
    say : callable
        Receives one line a stage.
    """
    start = time.perf_counter()
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target).long()
    n_threads = n_threads or 1
    with torch.random.fork_rng(devices=[]), torch_threads(n_threads):
        torch.manual_seed(seed)
        order = torch.randperm(len(images))
        test, rest = order[:_TEST], order[_TEST:]

        say(f"training on {len(rest)} images of handwritten digits ...")
        model = DigitsNet()
        _train(model, images[rest], labels[rest], epochs=_TRAIN_EPOCHS, rate=3e-3)
        trained = _accuracy(model, images[test], labels[test])

        say("pruning: the exemplar filters of every layer stay ...")
        sliced = prune(
            model, images[:1], beta=0.73, repair="none", random_state=seed, n_threads=n_threads
        )
        pruned = _accuracy(sliced.model, images[test], labels[test])

        say(f"repairing it by least squares on {_CALIBRATION} images without their labels ...")
        small, repair_report = repair(
            model, sliced.model, sliced.plan, calibrate=images[rest[:_CALIBRATION]]
        )
        repaired = _accuracy(small, images[test], labels[test])

        say("fine-tuning the pruned network ...")
        _train(small, images[rest], labels[rest], epochs=_TUNE_EPOCHS, rate=1e-3)
        tuned = _accuracy(small, images[test], labels[test])
    method = {**sliced.report.settings["method"], "repair": "least_squares"}
    settings = {**sliced.report.settings, "method": method}
    report = replace(sliced.report, repair=repair_report, settings=settings)
    return Outcome(
        model=small,
        plan=sliced.plan,
        report=report,
        stages=(
            Stage("trained", trained, report.before),
            Stage("pruned", pruned, report.after),
            Stage("repaired", repaired, report.after),
            Stage("fine-tuned", tuned, report.after),
        ),
        test_images=_TEST,
        seconds=time.perf_counter() - start,
    )


def _train(model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    steps = epochs * (len(images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        # the last, short batch is left out: its BatchNorm statistics would be noisy
        order = torch.randperm(len(images))
        for first in range(0, len(images) - _BATCH + 1, _BATCH):
            batch = order[first : first + _BATCH]
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(images[batch]), labels[batch]))
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    return float((model(images).argmax(1) == labels).float().mean())
