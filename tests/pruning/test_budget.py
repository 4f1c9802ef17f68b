"""Budgets: met within 1 % from below, or said why not."""

from __future__ import annotations

import itertools
from pathlib import Path

import networks
import pytest
import torch
import wheels
from networks import stirred, trained_resnet
from pytorchcv.model_provider import get_model
from torch import nn

import epruner
from epruner.pruning import Budget, BudgetWarning, Constraints, prune
from epruner.pruning.graph.costs import measure
from epruner.pruning.select.allocation import Sizes

IMAGE = (1, 3, 16, 16)
SHARES = (0.7, 0.5, 0.3)
METHODS = ("auto", "paper")


def check(model: nn.Module, shape: tuple[int, ...], share: float, method: str) -> None:
    """The budget is met within 1 %, from below, by the network itself."""
    result = prune(model, shape, macs=share, method=method, repair="none")
    met = measure(result.model, (torch.randn(shape),)).macs / result.report.before.macs
    assert 0.99 * share <= met <= share
    assert not [note for note in result.report.notes if "cannot be measured for" not in note]


@pytest.mark.parametrize("method", ["paper", pytest.param("auto", marks=pytest.mark.slow)])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("which", ["theo", "akamaster"])
def test_trained_residual_networks(which: str, share: float, method: str, data_dir: Path) -> None:
    check(trained_resnet(data_dir, which), (1, 3, 32, 32), share, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_w1", "resnext50_32x4d", "densenet121"])
def test_public_networks(name: str, share: float, method: str) -> None:
    torch.manual_seed(0)
    check(stirred(get_model(name)), (1, 3, 224, 224), share, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", wheels.networks("mobilenetv2", "efficientnet-lite0"))
def test_trained_networks_from_wheels(name: str, share: float, method: str) -> None:
    model, shape = wheels.trained(name)
    check(model, shape, share, method)


@pytest.mark.parametrize("method", METHODS)
def test_parameters(method: str) -> None:
    model = stirred(networks.Vgg())
    result = prune(model, IMAGE, params=0.4, method=method)
    share = result.report.after.params / result.report.before.params
    assert 0.396 <= share <= 0.4
    assert result.report.settings["params"] == 0.4


@pytest.mark.parametrize("method", METHODS)
def test_any_measure(method: str) -> None:
    model = stirred(networks.Vgg())
    calls = []

    def memory(network: nn.Module) -> float:
        calls.append(network)
        return float(sum(p.numel() * p.element_size() for p in network.parameters()))

    result = prune(model, IMAGE, budget=Budget(memory, 0.4), method=method)
    assert 0.39 * memory(model) <= memory(result.model) <= 0.4 * memory(model)
    assert len(calls) < 70
    with pytest.raises(ValueError, match="measure must return a finite number"):
        prune(model, IMAGE, budget=Budget(lambda _: float("nan"), 0.4), method=method)


@pytest.mark.filterwarnings("ignore:the budget is")  # fours are coarse in so small a network
@pytest.mark.parametrize("method", ["paper", "exemplar", "l1"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_rounding_within_a_budget(method: str, round_to: int) -> None:
    torch.manual_seed(0)
    model = stirred(networks.Vgg())
    constraints = Constraints(min_filters=0, round_to=round_to)
    result = prune(model, IMAGE, macs=0.5, method=method, constraints=constraints)
    assert all(x.after % round_to == 0 for x in result.report.layers)
    assert result.report.after.macs <= 0.5 * result.report.before.macs


@pytest.mark.parametrize("method", METHODS)
def test_given_numbers_stay_as_asked_within_a_budget(method: str) -> None:
    model = stirred(networks.Vgg())
    constraints = Constraints(n_filters={"features.3": 11})
    result = prune(model, IMAGE, macs=0.5, method=method, constraints=constraints)
    assert {x.name: x.after for x in result.report.layers}["features.3"] == 11
    assert 0.495 <= result.report.after.macs / result.report.before.macs <= 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_out_of_reach_says_the_closest_and_the_floors(method: str) -> None:
    model = stirred(networks.Vgg())
    message = (
        r"budget is 0.05 .* closest met is 0\.\d+, with these layers at their floors: features.0"
    )
    with pytest.warns(BudgetWarning, match=message):
        result = prune(
            model, IMAGE, macs=0.05, method=method, constraints=Constraints(min_filters=0.5)
        )
    assert "a lower min_filters" in result.report.notes[0]
    assert all(x.after * 2 == x.before for x in result.report.layers)


@pytest.mark.parametrize("method", METHODS)
def test_steps_too_coarse_for_a_budget_still_give_the_best_of_all(method: str) -> None:
    torch.manual_seed(0)
    model = stirred(networks.Vgg())
    net = epruner.analyse(model, IMAGE)
    sizes = Sizes(net.costs, net.groups)
    whole = sizes.totals({}).macs
    names = [group.name for group in net.groups]
    possible = [
        sizes.totals(dict(zip(names, numbers, strict=True))).macs
        for numbers in itertools.product(*(sorted({16, group.channels}) for group in net.groups))
    ]
    best = max(macs for macs in possible if macs <= 0.8 * whole)
    assert best < 0.99 * 0.8 * whole
    sixteens = Constraints(round_to=16)
    message = rf"budget is 0\.8 .* closest met is {best / whole:.4g}; the steps .* are too coarse"
    with pytest.warns(BudgetWarning, match=message):
        result = prune(model, IMAGE, macs=0.8, method=method, constraints=sixteens)
    assert result.report.after.macs == best
    met = prune(model, IMAGE, macs=0.9, method=method, constraints=sixteens)  # by an exchange
    assert 0.891 <= met.report.after.macs / whole <= 0.9


def test_the_whole_network_is_a_budget() -> None:
    model = stirred(networks.Vgg())
    result = prune(model, IMAGE, macs=1.0)
    assert result.report.after == result.report.before
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(result.model.eval()(x), model.eval()(x))
