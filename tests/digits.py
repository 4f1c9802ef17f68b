"""A network trained here and now: scikit-learn's handwritten digits, seconds on one core."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.pruning.threads import torch_threads

SHAPE = (1, 1, 8, 8)
_TEST = 500


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added onto a projection of their input."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return torch.relu(y + self.short(x))


class DigitsResNet(nn.Module):
    """(n, 1, 8, 8) -> (n, 10): a stem and four residual blocks on two residual streams."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(24)
        self.blocks = nn.Sequential(
            Block(24, 24, 1), Block(24, 48, 2), Block(48, 48, 1), Block(48, 48, 1)
        )
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.bn(self.stem(x)).relu())
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Digits:
    """The trained network, its weights in a file, and images it was trained on or never saw."""

    weights: Path
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def network(self) -> DigitsResNet:
        """A copy of its own for each test, in eval mode."""
        network = DigitsResNet()
        network.load_state_dict(torch.load(self.weights, weights_only=True))
        return network.eval()

    @torch.no_grad()
    def accuracy(self, network: nn.Module) -> float:
        """On the images that no network was trained on."""
        found = network.eval()(self.test_images).argmax(1)
        return float((found == self.test_labels).double().mean())


def train(file: Path) -> Digits:
    """Train the network on 1,297 of the 1,797 images and write its weights to `file`."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target).long()
    # One thread: the same weights on any machine of a kind, and no slower.
    with torch_threads(1), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        order = torch.randperm(len(images))
        test, rest = order[:_TEST], order[_TEST:]
        network = DigitsResNet()
        _fit(network, images[rest], labels[rest], epochs=8)
    torch.save(network.state_dict(), file)
    return Digits(file, images[rest], labels[rest], images[test], labels[test])


def _fit(network: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    network.train()
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - epoch / epochs)
        for batch in torch.randperm(len(images)).split(64)[:-1]:  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(images[batch]), labels[batch]))
            optimizer.step()
    network.eval()
