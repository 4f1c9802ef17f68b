"""The CIFAR-10 residual networks (He et al. 2015, section 4.2) with parameter-free shortcuts.

Published checkpoints name the modules alike but for the stem; on the command line::

    epruner prune --model examples.cifar_resnet:resnet56 --input-shape 1,3,32,32 \\
        --weights resnet56-4bfd9763.th --prefix-strip module. --beta 0.76 --out pruned.safetensors
    epruner prune --model examples.cifar_resnet:resnet56 --input-shape 1,3,32,32 \\
        --weights theo-obadiah_resnet56.pth --key-map conv=conv1 --key-map bn=bn1 \\
        --beta 0.76 --out pruned.safetensors
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; where the shape changes the shortcut subsamples and pads with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride != 1 or self.padding:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """6n + 2 layers: a stem, three stages of n blocks at 16, 32 and 64 channels, a linear head."""

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 32, 32) -> (n, classes)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def resnet20(classes: int = 10) -> CifarResNet:
    """20 layers, 0.27 M parameters."""
    return CifarResNet(3, classes)


def resnet56(classes: int = 10) -> CifarResNet:
    """56 layers, 0.85 M parameters."""
    return CifarResNet(9, classes)


def resnet110(classes: int = 10) -> CifarResNet:
    """110 layers, 1.7 M parameters."""
    return CifarResNet(18, classes)
