"""Multiply-adds and parameters: the published baselines, torch's own counter, exact scaling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import CifarResNet, ConvNext, GroupedSqueezeExcite, Upsampler, Vgg, cut, resnet56
from pytorchcv.model_provider import get_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from epruner.pruning.graph.costs import measure


class Vgg16(nn.Module):
    """The published CIFAR VGG16: 13 convolutions with BatchNorm, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3):
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.Linear(512, 10))

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x).flatten(1))


@pytest.mark.parametrize(
    ("network", "size", "published"),
    [
        (Vgg16, 32, 314.31e6),
        (resnet56, 32, 127.62e6),
        (lambda: CifarResNet(18), 32, 257.08e6),
        (lambda: get_model("resnet50b"), 224, 4133.64e6),
        pytest.param(lambda: get_model("resnet152b"), 224, 11603.84e6, marks=pytest.mark.slow),
    ],
    ids=["vgg16", "resnet56", "resnet110", "resnet50", "resnet152"],
)
def test_published_baselines(network: type[nn.Module], size: int, published: float) -> None:
    with torch.device("meta"):
        totals = measure(network(), (torch.empty(1, 3, size, size),))
    assert totals.macs_with_norm == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize("network", [Vgg, GroupedSqueezeExcite, ConvNext, Upsampler, resnet56])
def test_torch_counts_the_same(network: type[nn.Module]) -> None:
    model, x = network().eval(), torch.randn(2, 3, 32 if network is resnet56 else 16, 16)
    if network is resnet56:
        x = torch.randn(2, 3, 32, 32)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(x)
    totals = measure(model, (x,))
    assert totals.macs == counter.get_total_flops() / 2
    assert totals.params == sum(p.numel() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:the budget is")  # too coarse, some of them
@pytest.mark.parametrize("network", [Vgg, GroupedSqueezeExcite, ConvNext, Upsampler])
def test_arithmetic_agrees_with_counting_the_pruned_network(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 16, 16)
    result = cut(network(), x, macs=0.6, scope="all")
    assert measure(result.model, (x,)) == result.report.after


def test_measuring_leaves_modes_alone() -> None:
    model = Vgg().train()
    model.features[1].eval()
    before = [m.training for m in model.modules()]
    measure(model, (torch.randn(1, 3, 16, 16),))
    assert [m.training for m in model.modules()] == before
