"""The published rows find their layers under the usual names."""

from __future__ import annotations

from pathlib import Path

import networks
import pytest
from networks import CifarResNet, stirred, trained_resnet
from pytorchcv.model_provider import get_model
from test_count import Vgg16
from torch import nn

from epruner.pruning import Constraints, prune
from epruner.pruning.select.recipes import PUBLISHED, published


def test_resnet56_gives_the_known_row(data_dir: Path) -> None:
    result = prune(
        trained_resnet(data_dir, "theo"), (1, 3, 32, 32), recipe="resnet56", repair="none"
    )
    assert result.report.after.params == pytest.approx(0.384e6, abs=0.003e6)
    assert result.report.after.macs == pytest.approx(49.36e6, abs=0.1e6)
    assert all(layer.preference == 0.76 for layer in result.report.layers)


def test_a_recipe_is_its_betas_and_floor() -> None:
    model = stirred(networks.resnet56())
    by_name = prune(model, (1, 3, 32, 32), recipe="resnet56", repair="none")
    by_hand = prune(
        model,
        (1, 3, 32, 32),
        beta=PUBLISHED["resnet56"].beta,
        constraints=Constraints(min_filters=1),
        repair="none",
    )
    assert by_name.plan.modules == by_hand.plan.modules
    assert len(by_name.report.layers) == 27
    assert by_name.report.after.macs < by_name.report.before.macs


@pytest.mark.parametrize(
    ("name", "layers", "late", "first_late"),
    [
        ("resnet18", 8, 2, "features.stage4.unit1.body.conv1.conv"),
        ("resnet34", 16, 2, "features.stage4.unit2.body.conv1.conv"),
        ("resnet50", 32, 3, "features.stage4.unit1.body.conv2.conv"),
        ("resnet101", 66, 10, "features.stage3.unit22.body.conv1.conv"),
        ("resnet152", 100, 10, "features.stage3.unit35.body.conv1.conv"),
    ],
)
def test_imagenet_residual_networks(name: str, layers: int, late: int, first_late: str) -> None:
    import torch

    with torch.device("meta"):
        betas = published(name).betas(get_model(name))
    recipe = PUBLISHED[name]
    assert len(betas) == layers
    later = [layer for layer, beta in betas.items() if beta == recipe.later_beta]
    assert len(later) == late
    assert later[0] == first_late


def test_other_networks() -> None:
    betas = published("vgg16").betas(Vgg16())
    assert list(betas.values()) == [0.73] * 8 + [0.92] * 5
    assert len(published("resnet110").betas(CifarResNet(18))) == 54


def test_googlenet_branches() -> None:
    class Inception(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b1 = nn.Sequential(nn.Conv2d(8, 4, 1))
            self.b2 = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3))
            self.b3 = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 3))
            self.b4 = nn.Sequential(nn.MaxPool2d(3), nn.Conv2d(8, 4, 1))

    betas = published("googlenet").betas(nn.ModuleDict({"a3": Inception()}))
    assert betas == {"a3.b2.0": 0.65, "a3.b3.0": 0.65, "a3.b3.1": 0.65}


def test_recipes_for_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="finds none of its layers in Vgg"):
        prune(networks.Vgg(), (1, 3, 16, 16), recipe="resnet56")
    with pytest.raises(ValueError, match="is for 27 residual blocks, this network has 9"):
        prune(networks.resnet20(), (1, 3, 32, 32), recipe="resnet56")
    with pytest.raises(ValueError, match="there are vgg16, googlenet"):
        published("alexnet")
