"""Budgets: met within 1 % from below, or said why not."""

from __future__ import annotations

from pathlib import Path

import networks
import pytest
import torch
import wheels
from networks import stirred, trained_resnet
from pytorchcv.model_provider import get_model
from torch import nn

from epruner.pruning import BudgetWarning, prune
from epruner.pruning.graph.costs import measure

IMAGE = (1, 3, 16, 16)
SHARES = (0.7, 0.5, 0.3)


def check(model: nn.Module, shape: tuple[int, ...], share: float, **options: object) -> None:
    """The budget is met within 1 %, from below, by the network itself."""
    result = prune(model, shape, macs=share, **options)  # type: ignore[arg-type]
    met = measure(result.model, (torch.randn(shape),)).macs / result.report.before.macs
    assert 0.99 * share <= met <= share
    assert result.report.notes == ()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("which", ["theo", "akamaster"])
def test_trained_residual_networks(which: str, share: float, data_dir: Path) -> None:
    check(trained_resnet(data_dir, which), (1, 3, 32, 32), share)


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_w1", "resnext50_32x4d", "densenet121"])
def test_public_networks(name: str, share: float) -> None:
    torch.manual_seed(0)
    check(stirred(get_model(name)), (1, 3, 224, 224), share)


@pytest.mark.slow
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", wheels.networks("mobilenetv2", "efficientnet-lite0"))
def test_trained_networks_from_wheels(name: str, share: float) -> None:
    model, shape = wheels.trained(name)
    check(model, shape, share)


def test_parameters() -> None:
    model = stirred(networks.Vgg())
    result = prune(model, IMAGE, params=0.4)
    share = result.report.after.params / result.report.before.params
    assert 0.396 <= share <= 0.4
    assert result.report.settings["params"] == 0.4


def test_any_measure() -> None:
    model = stirred(networks.Vgg())
    calls = []

    def memory(network: nn.Module) -> float:
        calls.append(network)
        return float(sum(p.numel() * p.element_size() for p in network.parameters()))

    result = prune(model, IMAGE, measure=memory, target=0.4)
    assert 0.39 * memory(model) <= memory(result.model) <= 0.4 * memory(model)
    assert len(calls) < 70
    with pytest.raises(ValueError, match="measure must return a finite number"):
        prune(model, IMAGE, measure=lambda _: float("nan"), target=0.4)


@pytest.mark.filterwarnings("ignore:the budget is")  # fours are coarse in so small a network
@pytest.mark.parametrize("widths", ["exemplar", "uniform"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_rounding_within_a_budget(widths: str, round_to: int) -> None:
    torch.manual_seed(0)
    model = stirred(networks.Vgg())
    result = prune(model, IMAGE, macs=0.5, round_to=round_to, widths=widths, min_keep=0)
    assert all(x.after % round_to == 0 for x in result.report.layers)
    assert result.report.after.macs <= 0.5 * result.report.before.macs


def test_kept_layers_stay_as_asked_within_a_budget() -> None:
    model = stirred(networks.Vgg())
    result = prune(model, IMAGE, macs=0.5, keep={"features.3": 11})
    assert {x.name: x.after for x in result.report.layers}["features.3"] == 11
    assert 0.495 <= result.report.after.macs / result.report.before.macs <= 0.5


def test_a_budget_out_of_reach_says_the_closest_and_the_floors() -> None:
    model = stirred(networks.Vgg())
    message = (
        r"budget is 0.05 .* closest met is 0\.\d+, with these layers at their floors: features.0"
    )
    with pytest.warns(BudgetWarning, match=message):
        result = prune(model, IMAGE, macs=0.05, min_keep=0.5)
    assert "lower min_keep" in result.report.notes[0]
    assert all(x.after * 2 == x.before for x in result.report.layers)
    with pytest.warns(BudgetWarning, match="too coarse"):
        prune(model, IMAGE, macs=0.9, round_to=16)


def test_the_whole_network_is_a_budget() -> None:
    model = stirred(networks.Vgg())
    result = prune(model, IMAGE, macs=1.0)
    assert result.report.after == result.report.before
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(result.model.eval()(x), model.eval()(x))
