"""A network for the gallery: scikit-learn's handwritten digits, read by a small residual network.

Trained anew in every process, in some seconds on one core; nothing is downloaded or kept::

    from examples.digits import accuracy, trained_network

    model = trained_network()
    accuracy(model)  # on images it has not seen
"""

from __future__ import annotations

import copy
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.pruning.threads import torch_threads

SHAPE = (1, 1, 8, 8)  # of one image, as the network takes it
_TEST = 597


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added onto what they read."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsResNet(nn.Module):
    """A stem, two blocks of 24 channels, two of 48, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(24)
        self.stage1 = nn.Sequential(Block(24, 24, 1), Block(24, 24, 1))
        self.stage2 = nn.Sequential(Block(24, 48, 2), Block(48, 48, 1))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, 8, 8) -> (n, 10)."""
        x = F.relu(self.bn(self.stem(x)))
        x = self.stage2(self.stage1(x))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


@cache
def split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1,200 images (n, 1, 8, 8) to learn from and their labels, and 597 to judge by."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:_TEST], order[_TEST:]
    return images[train], labels[train], images[test], labels[test]


def trained_network() -> DigitsResNet:
    """The network in eval mode, a copy for each caller."""
    return copy.deepcopy(_trained())


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Share of the images to judge by whose digit the model names."""
    _, _, images, labels = split()
    return float((model(images).argmax(1) == labels).double().mean())


def train(model: nn.Module, *, epochs: int, rate: float = 3e-3) -> None:
    """On the images to learn from, in batches of 64; leaves the model in eval mode."""
    images, labels, _, _ = split()
    steps = epochs * (len(images) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images))[: len(images) // 64 * 64]
        for batch in order.view(-1, 64):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(images[batch]), labels[batch]))
            optimizer.step()
            schedule.step()
    model.eval()


@cache
def _trained() -> DigitsResNet:
    with torch_threads(1), torch.random.fork_rng(devices=[]):  # layers this small gain from no more
        torch.manual_seed(0)
        model = DigitsResNet()
        train(model, epochs=8)
    return model
