"""Trained with OrthoReg or without: does the importance of filters add up, and what is left?

Two networks that read handwritten digits, from the same weights and with the images in the same
order; the one's loss has the term that makes filters orthonormal::

    python -m examples.orthoreg
    python -m examples.orthoreg --seeds 3 --picture orthoreg.png

Random groups of filters are removed from each: how well does the sum of their importances tell by
how much the loss grows, on images that neither has seen? Then half of the multiply-adds go at
once, by the same importance, without repair.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import epruner
from epruner.companions.orthoreg import OrthoReg
from epruner.pruning.threads import torch_threads

WIDTHS = (1, 16, 32, 32)
EPOCHS, RATE, BATCH = 12, 0.1, 64  # and an epoch at a tenth of the rate
TEST = 500
GROUPS, TOGETHER = 60, 16  # of the 80 filters


@dataclass(frozen=True)
class Side:
    """One of the two networks; accuracies and losses are those of held-out images.

    Parameters
    ----------
    accuracy, pruned : float
        As trained; with half of the multiply-adds.
    cosine : float
        Mean absolute cosine of two filters of a layer, from the second layer on.
    predicted, measured : tuple of float
        For every random group: the sum of its importances, and what the loss grows by without it.
    """

    accuracy: float
    pruned: float
    cosine: float
    predicted: tuple[float, ...]
    measured: tuple[float, ...]

    @property
    def correlation(self) -> float:
        """Spearman's, of what was predicted and what was measured."""
        return float(spearmanr(self.predicted, self.measured).statistic)


@dataclass(frozen=True)
class Outcome:
    """The comparison of one seed."""

    without: Side
    regularized: Side


class Chain(nn.Sequential):
    """(n, 1, 8, 8) -> (n, 10): three 3x3 convolutions without BatchNorm, and a linear layer."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
            layer = nn.Conv2d(inputs, outputs, 3, stride=2 if i == 0 else 1, padding=1)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            layers += [layer, nn.ReLU()]
        layers.insert(4, nn.MaxPool2d(2))
        super().__init__(*layers, nn.Flatten(), nn.Linear(4 * WIDTHS[-1], 10))

    def convolutions(self) -> list[nn.Conv2d]:
        """In the order in which they are done."""
        return [layer for layer in self if isinstance(layer, nn.Conv2d)]


def run(seed: int, strength: float = 1e-2) -> Outcome:
    """Train both networks, remove groups of filters from each, and prune each.

    Parameters
    ----------
    seed : int
        Of the split, the weights, the order of the images and the groups.
    strength : float
        Of the term.
    """
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target).long()
    with torch.random.fork_rng(devices=[]), torch_threads(1):
        torch.manual_seed(seed)
        order = torch.randperm(len(images))
        seen, unseen = ((images[part], labels[part]) for part in (order[TEST:], order[:TEST]))
        model, state = Chain(), torch.get_rng_state()
        sides = []
        for given in (0.0, strength):
            torch.set_rng_state(state)  # the same order of images, the same groups
            sides.append(_side(_trained(copy.deepcopy(model), *seen, given), seen, unseen))
    return Outcome(*sides)


def _trained(model: Chain, images: Tensor, labels: Tensor, strength: float) -> Chain:
    term = OrthoReg(model, strength) if strength else None
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    for epoch in range(EPOCHS + 1):
        optimizer.param_groups[0]["lr"] = RATE if epoch < EPOCHS else RATE / 10
        for batch in torch.randperm(len(images)).split(BATCH):  # type: ignore[no-untyped-call]
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            if term is not None:
                loss = loss + term(model)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return model.eval()


def _side(model: Chain, seen: tuple[Tensor, Tensor], unseen: tuple[Tensor, Tensor]) -> Side:
    importance = _importance(model, *seen)
    before = _loss(model, *unseen)
    predicted, measured = [], []
    for _ in range(GROUPS):
        chosen = torch.zeros(len(importance), dtype=torch.bool)
        chosen[torch.randperm(len(importance))[:TOGETHER]] = True
        predicted.append(float(importance[chosen].sum()))
        measured.append(_loss(_without(model, chosen), *unseen) - before)
    batches = list(zip(*(part.split(BATCH) for part in seen), strict=True))  # type: ignore[no-untyped-call]
    small = epruner.prune(
        model, seen[0][:1], macs=0.5, method="fisher", calibrate=batches, repair="none"
    ).model
    return Side(
        accuracy=_accuracy(model, *unseen),
        pruned=_accuracy(small, *unseen),
        cosine=fmean(map(_cosine, model.convolutions()[1:])),
        predicted=tuple(predicted),
        measured=tuple(measured),
    )


def _importance(model: Chain, images: Tensor, labels: Tensor) -> Tensor:
    """Of each filter of the network, (sum of weights and bias times their mean gradients)^2."""
    weights = [tensor for layer in model.convolutions() for tensor in layer.parameters()]
    slopes = torch.autograd.grad(F.cross_entropy(model(images), labels), weights)
    parts = [
        (w * g).flatten(1).sum(1) if w.dim() > 1 else w * g
        for w, g in zip(weights, slopes, strict=True)
    ]
    found = [weight + bias for weight, bias in zip(parts[::2], parts[1::2], strict=True)]
    return torch.cat(found).detach().square()


@torch.no_grad()
def _without(model: Chain, chosen: Tensor) -> Chain:
    """The network with some of its filters silent."""
    silent = copy.deepcopy(model)
    parts: Any = chosen.split(WIDTHS[1:])  # type: ignore[no-untyped-call]
    for layer, rows in zip(silent.convolutions(), parts, strict=True):
        for tensor in layer.parameters():
            tensor[rows] = 0
    return silent


@torch.no_grad()
def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float(F.cross_entropy(model(images), labels))


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((model(images).argmax(1) == labels).double().mean())


@torch.no_grad()
def _cosine(layer: nn.Conv2d) -> float:
    rows = F.normalize(layer.weight.flatten(1))
    upper = torch.triu_indices(len(rows), len(rows), 1)
    return float((rows @ rows.T).abs()[*upper].mean())


def draw(outcome: Outcome, path: str) -> None:
    """What was predicted against what was measured, for both networks."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(8, 3.8), layout="constrained")
    pairs = (("without OrthoReg", outcome.without), ("with OrthoReg", outcome.regularized))
    for axes, (name, side) in zip(figure.subplots(1, 2, sharey=True), pairs, strict=True):
        axes.semilogx(side.predicted, side.measured, ".", color="#1b7837")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(
            xlabel=f"sum of the importances of {TOGETHER} filters", ylabel="growth of the loss"
        )
        axes.set_title(f"{name}: rank correlation {side.correlation:.2f}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Compare, print a table, draw."""
    parser = argparse.ArgumentParser(description="Networks trained with OrthoReg and without.")
    parser.add_argument("--seeds", type=int, default=1, help="mean over so many")
    parser.add_argument("--strength", type=float, default=1e-2, help="of the term")
    parser.add_argument("--picture", help="file to draw the first seed in")
    chosen = parser.parse_args()
    outcomes = [run(seed, chosen.strength) for seed in range(chosen.seeds)]
    print(
        "                rank correlation  accuracy  at half the multiply-adds  cosine of filters"
    )
    for name in ("without", "regularized"):
        sides = [getattr(outcome, name) for outcome in outcomes]
        correlation, accuracy, pruned, cosine = (
            fmean(getattr(side, what) for side in sides)
            for what in ("correlation", "accuracy", "pruned", "cosine")
        )
        print(f"{name:11} {correlation:21.2f} {accuracy:9.1%} {pruned:26.1%} {cosine:18.3f}")
    if chosen.picture:
        draw(outcomes[0], chosen.picture)


if __name__ == "__main__":
    main()
