"""Easy digits take fewer channels than hard ones: ManiDP beside static pruning.

A small residual network learns scikit-learn's handwritten digits. From there two ways lead down to
the same multiply-adds, with as many epochs and the same optimiser each: gates that let every image
switch off channels, and `epruner.prune`. Half of the images are never seen before the end::

    python -m examples.manidp
    python -m examples.manidp --seed 3 --picture digits.png
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import epruner
from epruner.companions import manidp

SHAPE = (1, 1, 8, 8)


class Block(nn.Module):
    """Two 3x3 convolutions with many channels between them, added onto what they read."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return torch.relu(y + self.short(x))


class Network(nn.Module):
    """(n, 1, h, w) -> (n, 10): a stem and three blocks, four times as wide inside."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            Block(width, 4 * width, width, 1),
            Block(width, 4 * width, 2 * width, 2),
            Block(2 * width, 8 * width, 2 * width, 1),
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes."""
        x = self.blocks(self.bn(self.stem(x)).relu())
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Batches:
    """Labelled images in an order drawn anew each epoch, 64 at a time; what is left over waits."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images) // 64

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(self._images)).split(64)[: len(self)]:  # type: ignore[no-untyped-call]
            yield self._images[chosen], self._labels[chosen]
