"""Which filters can go? Those that do what others do, or those with small weights?

A small network learns scikit-learn's digits. Then as many filters of every layer go by one rule as
by another, nothing is repaired, and images that the network has not seen tell what was lost::

    python -m examples.functionality
    python -m examples.functionality --picture filters.png

The picture shows what the filters of the last layer respond to, by cluster; those that go are
crossed out. Two of the rules are controls: the functional one without clusters, every filter for
itself, and with clusters that mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import epruner
from epruner import Constraints, Method
from epruner.companions.functionality import functional_importance, plot_filters

SHARE = 0.9  # of the filters of every layer stay
WIDTHS = (1, 32, 32, 64, 64)
LAST = "conv4"
CALIBRATION, TEST = 300, 500


@dataclass(frozen=True)
class Comparison:
    """Cross-entropy and accuracy on held-out images, of the whole network and by each rule.

    Parameters
    ----------
    loss, accuracy : float
        Of the whole network.
    losses, accuracies : mapping of str to float
        By rule, of what it leaves.
    """

    loss: float
    accuracy: float
    losses: Mapping[str, float]
    accuracies: Mapping[str, float]

    def __str__(self) -> str:
        rows = [("nothing goes", self.loss, self.accuracy)]
        rows += [(rule, loss, self.accuracies[rule]) for rule, loss in self.losses.items()]
        lines = [f"{'rule':<34}{'loss':>8}{'accuracy':>10}"]
        lines += [f"{rule:<34}{loss:>8.3f}{accuracy:>10.1%}" for rule, loss, accuracy in rows]
        return "\n".join(lines)


def network() -> nn.Sequential:
    """Four 3x3 convolutions with BatchNorm and a linear head: (n, 1, 8, 8) -> (n, 10)."""
    model = nn.Sequential()
    for number, (inputs, outputs) in enumerate(pairwise(WIDTHS), 1):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        model.add_module(f"conv{number}", convolution)
        model.add_module(f"norm{number}", nn.BatchNorm2d(outputs))
        model.add_module(f"relu{number}", nn.ReLU())
        if number == 2:
            model.add_module("halve", nn.MaxPool2d(2))
    model.add_module("mean", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("head", nn.Linear(WIDTHS[-1], 10))
    return model


def trained(images: Tensor, labels: Tensor, epochs: int = 8) -> nn.Sequential:
    """The network after some epochs, in eval mode; torch's random numbers decide the weights."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    batches = len(images) // 64  # without the last, short one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[: 64 * batches].view(batches, 64):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(images[batch]), labels[batch]))
            optimizer.step()
            schedule.step()
    return model.eval()


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to learn from, and others to judge by."""
    found = load_digits()
    images = torch.from_numpy(found.images).float()[:, None] / 16
    labels = torch.from_numpy(found.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    test, rest = order[:TEST], order[TEST:]
    return images[rest], labels[rest], images[test], labels[test]


def rules(model: nn.Module, images: Tensor, net: epruner.pruning.Analysis) -> dict[str, Method]:
    """What is compared: the same number of filters of every layer, others each time."""

    def apart(layer: Any) -> NDArray[Any]:
        return np.eye(len(layer.weight))

    def noise(layer: Any) -> NDArray[Any]:
        return np.random.default_rng(layer.weight.numel()).normal(size=(len(layer.weight), 20))

    functional = functional_importance(model, images, inputs=net)
    return {
        "random": Method("uniform", "random"),
        "least l1": Method("uniform", "l1"),
        "exemplars of weights": Method("uniform", "exemplar"),
        "exemplars of V(F)": Method("uniform", "exemplar", "visual"),
        "functional": Method("uniform", functional, "visual"),
        "functional, no clusters": Method("uniform", functional, apart),
        "functional, meaningless clusters": Method("uniform", functional, noise),
    }


def run(seed: int, picture: str | None = None) -> Comparison:
    """Train once, prune by every rule, judge on images that nothing was learnt from.

    Parameters
    ----------
    seed : int
        Of the split, the weights, the order of the images and what the rules draw.
    picture : path, optional
        Where to draw what the filters of the last layer respond to.
    """
    images, labels, test, expected = digits(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = trained(images, labels)
    net = epruner.analyse(model, images[:1])
    pruned = {
        rule: epruner.prune(
            model,
            net,
            constraints=Constraints(n_filters={"*": SHARE}),
            method=method,
            repair="none",
            random_state=seed,
        )
        for rule, method in rules(model, images[:CALIBRATION], net).items()
    }
    if picture:
        plot_filters(model, net, LAST, picture, result=pruned["functional"], random_state=seed)
    judged = {rule: judge(result.model, test, expected) for rule, result in pruned.items()}
    loss, accuracy = judge(model, test, expected)
    return Comparison(
        loss,
        accuracy,
        {rule: loss for rule, (loss, _) in judged.items()},
        {rule: accuracy for rule, (_, accuracy) in judged.items()},
    )


@torch.no_grad()
def judge(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Cross-entropy and accuracy."""
    scores = model(images)
    hits = (scores.argmax(1) == labels).double().mean()
    return float(F.cross_entropy(scores, labels)), float(hits)


def main() -> None:
    """Compare once, and draw."""
    parser = argparse.ArgumentParser(description="Which filters can go?")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", metavar="FILE", help="draw what filters respond to")
    chosen = parser.parse_args()
    print(f"{1 - SHARE:.1%} of the filters of every layer go, nothing is repaired\n")
    print(run(chosen.seed, chosen.picture))


if __name__ == "__main__":
    main()
