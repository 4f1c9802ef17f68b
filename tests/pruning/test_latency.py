"""Budgets of time: on a device whose clock is a formula, and once on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import epruner
from epruner.pruning import BudgetWarning, Constraints, prune
from epruner.pruning.latency import layers as layers_of_time
from epruner.pruning.latency import stopwatch
from epruner.pruning.latency.target import meet_measured
from epruner.pruning.report.records import Timing
from epruner.pruning.select.allocation import Choice

Work = Callable[[int, int], float]  # what a layer takes, by its outputs and inputs

DEVICE = SimpleNamespace(now=0.0, work=lambda outputs, inputs: 0.0)
INPUT = (3, 40)


class Chain(nn.Module):
    """Four layers, and something that takes time beside them."""

    def __init__(self, rest: float = 0.0) -> None:
        super().__init__()
        sizes = (40, 128, 96, 64, 10)
        self.layers = nn.ModuleList(map(nn.Linear, sizes, sizes[1:]))
        self.rest = rest

    def forward(self, x: Tensor) -> Tensor:
        DEVICE.now += self.rest
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)  # type: ignore[no-any-return]


class Heads(nn.Module):
    """Attention of sixteen heads, whose inside takes time by the head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], -1, 4) for layer in (self.q, self.k, self.v))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        DEVICE.now += 2.0 * q.shape[1]
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def straight(outputs: int, inputs: int) -> float:
    return 1e-3 * (50 + 2 * outputs + inputs + 0.1 * outputs * inputs)


def stairs(step: int) -> Work:
    """A device that pads channels to a multiple."""

    def work(outputs: int, inputs: int) -> float:
        return 1e-2 * math.ceil(outputs / step) * math.ceil(inputs / step)

    return work


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Callable[[Work], None]:
    """Let a formula be the clock."""

    linear = F.linear

    def timed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        DEVICE.now += DEVICE.work(*weight.shape)
        return linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", timed)
    monkeypatch.setattr(stopwatch, "clock", lambda: DEVICE.now)
    DEVICE.now = 0.0

    def use(work: Work) -> None:
        DEVICE.work = work

    return use


def taken(model: nn.Module) -> float:
    """Seconds of a pass by the device's clock."""
    start = DEVICE.now
    model(torch.zeros(INPUT))
    return float(DEVICE.now - start)


def widths(model: nn.Module) -> list[int]:
    return [layer.out_features for layer in model.layers[:-1]]  # type: ignore[index]


@pytest.mark.parametrize("method", ["l1", "exemplar", "paper"])
@pytest.mark.parametrize("share", [0.8, 0.5])
def test_a_budget_is_met_in_time(device: Callable[[Work], None], method: str, share: float) -> None:
    device(straight)
    model = Chain(rest=0.1)
    result = prune(model, INPUT, latency=share, method=method, repair="none")
    assert 0.99 * share <= taken(result.model) / taken(model) <= share
    timing = result.report.timing
    assert timing is not None
    assert timing.before == pytest.approx(taken(model))
    assert timing.after == pytest.approx(taken(result.model))
    assert (timing.batch, timing.device) == (3, "cpu")
    assert timing.threads == torch.get_num_threads()
    assert result.report.settings["latency"] == share
    assert not result.report.notes


def test_the_inside_of_attention_takes_time(device: Callable[[Work], None]) -> None:
    device(straight)
    model = Heads()
    x = torch.zeros(3, 5, 64)
    result = prune(model, x, latency=0.5, method="l1", repair="none")
    assert len(result.model.get_parameter("q.weight")) == 32
    times = result.report.timing
    assert times is not None
    assert times.share == pytest.approx(0.5, rel=0.03)
    assert times.before - times.after == pytest.approx(
        2.0 * 8 + 3 * (straight(64, 64) - straight(32, 64)) + straight(64, 64) - straight(64, 32)
    )


def test_time_and_not_multiply_adds_says_which_layers_give(
    device: Callable[[Work], None],
) -> None:
    device(lambda outputs, inputs: 1e-3 * (5 * outputs if inputs == 40 else 96))
    model = Chain()
    prune_by = partial(
        prune, model, INPUT, method="reconstruction", calibrate=torch.randn(1000, 40)
    )
    ours = widths(prune_by(latency=0.8, repair="none").model)
    theirs = widths(prune_by(macs=0.8, repair="none").model)
    assert ours[0] < theirs[0]
    assert ours[1] > theirs[1]


@pytest.mark.filterwarnings("ignore:the budget is")  # in steps so large it can hardly be met
@pytest.mark.parametrize("step", [8, 16])
def test_widths_are_multiples_where_the_device_pads(
    device: Callable[[Work], None], step: int
) -> None:
    device(stairs(step))
    model = Chain()
    result = prune(model, INPUT, latency=0.5, method="l1", repair="none")
    first, second, last = widths(result.model)
    # the last is too narrow for steps of 16
    assert (first % step, second % step, last % 8) == (0, 0, 0)
    assert 0.45 <= taken(result.model) / taken(model) <= 0.525
    given = Constraints(n_filters={"layers.1": 37})
    result = prune(model, INPUT, latency=0.5, method="l1", repair="none", constraints=given)
    assert widths(result.model)[1] == 37
    assert widths(result.model)[0] % step == 0


def test_single_filters_go_where_the_device_does_not_pad(device: Callable[[Work], None]) -> None:
    device(straight)
    small = prune(Chain(), INPUT, latency=0.63, method="l1", repair="none").model
    assert any(width % 8 for width in widths(small))


def test_select_gives_the_same_plan(device: Callable[[Work], None]) -> None:
    device(straight)
    model = Chain()
    plan = epruner.analyse(model, INPUT).select(latency=0.5, method="l1")
    assert plan == prune(model, INPUT, latency=0.5, method="l1", repair="none").plan


def test_a_budget_out_of_reach_says_what_was_measured(device: Callable[[Work], None]) -> None:
    device(straight)
    model = Chain(rest=1.0)
    with pytest.warns(
        BudgetWarning, match=r"0\.2 of the time; the closest measured is 0\.\d+, with"
    ):
        result = prune(model, INPUT, latency=0.2, method="l1", repair="none")
    assert max(widths(result.model)) == 7
    with pytest.raises(ValueError, match=r"latency must be in \(0, 1\].*got 20"):
        prune(model, INPUT, latency=20)
    with pytest.raises(ValueError, match="macs and latency exclude each other"):
        prune(model, INPUT, macs=0.5, latency=0.5)


def test_the_whole_network_is_a_budget(device: Callable[[Work], None]) -> None:
    device(straight)
    assert widths(prune(Chain(), INPUT, latency=1.0).model) == [128, 96, 64]


def test_the_user_s_network_keeps_its_mode_and_has_no_hooks(
    device: Callable[[Work], None],
) -> None:
    device(straight)
    model = Chain().train()
    prune(model, INPUT, latency=0.5, method="l1", repair="none")
    for module in model.modules():
        assert module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def timing_of(share: float) -> Timing:
    return Timing(1.0, share, 0.1, 0.1, 5, 1, "cpu", 1)


def test_what_was_predicted_too_low_is_corrected() -> None:
    asked = []

    def search(share: float) -> Choice:
        asked.append(share)
        return Choice({"a": round(1000 * share)}, {}, {}, ("of the prediction",), "; as predicted")

    choice, timing = meet_measured(0.6, search, lambda c: timing_of(0.2 + 0.8 * c["a"] / 1000))
    assert abs(timing.share / 0.6 - 1) <= 0.03
    assert 2 <= len(asked) <= 4
    assert not choice.notes
    choice, timing = meet_measured(0.6, search, lambda _: timing_of(0.7))
    note = "the budget is 0.6 of the time; the closest measured is 0.7; as predicted"
    assert choice.notes == (note,)


def test_a_search_that_cannot_go_on_is_not_repeated() -> None:
    calls = []

    def search(share: float) -> Choice:
        calls.append(share)
        return Choice({"a": 1}, {}, {})

    choice, _ = meet_measured(0.1, search, lambda _: timing_of(0.3))
    assert len(calls) == 2
    assert choice.counts == {"a": 1}


def test_the_report_shows_the_time() -> None:
    report = prune(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), (1, 8), macs=1.0).report
    assert "time" not in str(report.totals().to_text())
    report = replace(report, timing=Timing(0.0123, 0.00615, 0.001, 0.0005, 9, 32, "cpu", 2))
    assert "12.3 ms  6.15 ms  -50.0 %" in report.totals().to_text()
    assert "medians of 9 rounds of both in turn, batch 32, cpu, threads: 2" in str(report)
    assert type(report).from_dict(report.to_dict()) == report


@torch.no_grad()
def seconds(network: nn.Module, x: Tensor) -> float:
    start = time.process_time()
    network(x)
    return time.process_time() - start


@pytest.mark.filterwarnings("ignore:the budget is")
def test_time_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide bounds, the processor's time of one thread, the fastest pass: others use the machine.

    Of several threads a waiting one counts too, to whichever network is running just then.
    """
    monkeypatch.setattr(stopwatch, "clock", time.process_time)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for module in (stopwatch, layers_of_time):
        monkeypatch.setattr(module, "SECONDS", 0.2)
    monkeypatch.setattr(stopwatch, "TURN", 0.02)
    layers = [
        nn.Conv2d(16, 96, 3),
        nn.ReLU(),
        nn.Conv2d(96, 96, 3),
        nn.ReLU(),
        nn.Conv2d(96, 16, 3),
    ]
    model = nn.Sequential(*layers).eval()
    x = torch.randn(2, 16, 24, 24)
    try:
        result = prune(model, x, latency=0.5, method="l1", repair="none")
        before, after = (
            min(seconds(network, x) for _ in range(30)) for network in (model, result.model)
        )
    finally:
        torch.set_num_threads(threads)
    timing = result.report.timing
    assert timing is not None
    assert 0.25 < timing.share < 0.8
    assert 0.2 < after / before < 0.9
