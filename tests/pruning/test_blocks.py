"""Residual blocks that go as a whole: found by trial, weighed against filters, made good for."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from networks import stirred
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import epruner
from epruner.pruning import Plan
from epruner.pruning.graph.blocks import find_blocks
from epruner.pruning.latency import stopwatch
from epruner.pruning.network.batches import Batches
from epruner.pruning.network.inputs import Arguments
from epruner.pruning.network.outputs import output_error
from epruner.pruning.report.report import Report
from epruner.pruning.select.blocks import block_losses
from examples.cifar_resnet import CifarResNet

if TYPE_CHECKING:
    from digits import Digits


class Branch(nn.Module):
    """Reads x, returns x and something of it, or what is not quite that."""

    def __init__(self, kind: str, width: int = 8) -> None:
        super().__init__()
        self.kind = kind
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, 16)
        self.down, self.short = nn.Linear(16, width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.kind == "before":  # the norm
            return x + self.down(F.gelu(self.up(self.norm(x))))  # type: ignore[no-any-return]
        y = self.down(F.gelu(self.up(x)))
        if self.kind == "after":
            return self.norm(x + y)  # type: ignore[no-any-return]
        if self.kind == "scaled":
            return x.add_(self.scale * y)
        if self.kind == "projected":
            return self.short(x) + y  # type: ignore[no-any-return]
        if self.kind == "gated":
            return x * torch.sigmoid(y)
        if self.kind == "rectified":
            return F.relu(x + y)
        return y  # type: ignore[no-any-return]


class Row(nn.Module):
    """Branches one after the other."""

    def __init__(self, *kinds: str) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(map(Branch, kinds))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, mask=None)
        return self.head(x)  # type: ignore[no-any-return]


class Peeking(Row):
    """Needs a tensor of its first block beside what the block returns."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.blocks[0].scale.sum()  # type: ignore[operator]


X = torch.linspace(-2, 2, 40).sin().view(5, 8)


@pytest.mark.parametrize("kind", ["before", "scaled"])
def test_a_module_that_adds_to_what_it_reads_is_a_block(kind: str) -> None:
    found, refused = find_blocks(Row(kind, "plain").eval(), (X,), {})
    assert found == ["blocks.0"]
    assert [skipped.name for skipped in refused] == ["blocks.1"]


@pytest.mark.parametrize("kind", ["after", "projected", "gated", "rectified", "plain"])
def test_others_are_none_and_the_reason_is_said(kind: str) -> None:
    found, (refused,) = find_blocks(Row(kind).eval(), (X,), {})
    assert found == []
    assert refused.name == "blocks.0"
    assert "returns something else than what it reads" in refused.reason


def test_a_rectifier_after_the_addition_does_nothing_to_what_is_rectified() -> None:
    net = stirred(CifarResNet(2))
    names = ["layer1.0", "layer1.1", "layer2.1", "layer3.1"]  # the others change the shape
    assert find_blocks(net, (torch.randn(2, 3, 32, 32),), {}) == (names, [])


def test_a_block_of_which_something_else_is_read_stays() -> None:
    found, (refused,) = find_blocks(Peeking("before", "before").eval(), (X,), {})
    assert found == ["blocks.1"]
    assert refused.name == "blocks.0"
    assert "does not run without it" in refused.reason
    assert "scale" in refused.reason


def test_nothing_is_left_behind_by_the_trial() -> None:
    net = Row("before", "after").eval()
    state = copy.deepcopy(net.state_dict())
    expected = net(X)
    find_blocks(net, (X,), {})
    assert torch.equal(net(X), expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def silenced(net: nn.Module, names: tuple[str, ...], x: Tensor) -> Tensor:
    """What a CIFAR ResNet answers where the last norm of some blocks gives zeros."""
    hooks = [
        net.get_submodule(f"{name}.bn2").register_forward_hook(lambda *a: torch.zeros_like(a[2]))
        for name in names
    ]
    with torch.no_grad():
        answer: Tensor = net(x)
    for hook in hooks:
        hook.remove()
    return answer


def test_passing_by_is_silencing_and_survives_files(tmp_path: Path) -> None:
    net, x = stirred(CifarResNet(2)), torch.randn(3, 3, 32, 32)
    plan = Plan({}, passed=("layer1.1", "layer3.1"))
    assert Plan.from_json(plan.to_json()) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert "layer3.1  passed by" in str(plan)
    small = plan.apply(net)
    with torch.no_grad():
        answer = small(x)
    torch.testing.assert_close(answer, silenced(net, plan.passed, x), rtol=1e-5, atol=1e-5)
    assert not any(name.startswith("layer3.1.") for name in small.state_dict())
    epruner.save((small, plan), tmp_path / "small.safetensors")
    loaded = epruner.load(CifarResNet(2), tmp_path / "small.safetensors").eval()
    for other in (loaded, pickle.loads(pickle.dumps(small))):
        with torch.no_grad():
            assert torch.equal(other(x), answer)


@pytest.mark.parametrize("passed", ["layer1.1", [1], {}])
def test_a_damaged_list_is_refused(passed: Any) -> None:
    record = json.loads(Plan({}).to_json()) | {"passed": passed}
    with pytest.raises(ValueError, match="'passed' must list names"):
        Plan.from_json(json.dumps(record))


def test_a_block_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"passes 'layer1\.7' by, which this model has not"):
        Plan({}, passed=("layer1.7",)).apply(CifarResNet(2))


def test_the_loss_is_the_share_of_the_variance_that_a_block_adds() -> None:
    net, x = stirred(CifarResNet(1)), torch.randn(6, 3, 32, 32)
    seen: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}

    def keep(_: nn.Module, args: Any, output: Tensor) -> None:
        for key, tensor in (("read", args[0]), ("written", output)):
            seen[key] = tensor.double().movedim(1, -1).flatten(0, -2).numpy()

    hook = net.layer1[0].register_forward_hook(keep)
    with torch.no_grad():
        net(x)
    hook.remove()
    expected = (seen["written"] - seen["read"]).var(0).sum() / seen["written"].var(0).sum()
    batches: list[Arguments] = [((part,), {}) for part in (x[:4], x[4:])]
    assert block_losses(net, ["layer1.0"], Batches(batches))["layer1.0"] == pytest.approx(expected)


def faint(digits: Digits, *names: str) -> nn.Module:
    """The trained network, of which some blocks add next to nothing."""
    net = digits.network()
    for name in names:
        norm = net.get_submodule(f"{name}.bn2")
        assert isinstance(norm, nn.BatchNorm2d)
        norm.weight.data *= 0.01
        norm.bias.data *= 0.01
    return net


def macs_of(net: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    return int(counter.get_total_flops()) // 2


@pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning")
def test_a_block_that_adds_next_to_nothing_goes_first(digits: Digits, tmp_path: Path) -> None:
    net, images = faint(digits, "blocks.2"), digits.train_images[:100]
    result = epruner.prune(net, images[:1], macs=0.6, calibrate=images, scope="blocks")
    assert result.plan.passed == ("blocks.2",)
    assert result.report.passed == ("blocks.2",)
    assert "passed by: blocks.2" in str(result.report)
    assert Report.from_dict(result.report.to_dict()) == result.report
    assert {row.name: row.after for row in result.report.layers}["blocks.2.conv1"] == 0
    assert result.report.after.macs == macs_of(result.model, images[:1])
    assert result.report.after.macs <= 0.6 * result.report.before.macs
    assert result.report.after.params == sum(p.numel() for p in result.model.parameters())
    other = epruner.prune(net, images[:1], macs=0.6, calibrate=images)
    with torch.no_grad():
        wanted, ours, theirs = ([[m(digits.test_images)]] for m in (net, result.model, other.model))
    assert output_error(ours, wanted) < output_error(theirs, wanted)
    epruner.save(result, tmp_path / "small.safetensors")
    loaded = epruner.load(digits.network(), tmp_path / "small.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(digits.test_images), ours[0][0])


@pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning")
def test_what_a_block_added_is_made_good(digits: Digits) -> None:
    net, images = digits.network(), digits.train_images[:100]
    plan = Plan({}, passed=("blocks.2",))
    small = plan.apply(net)
    repaired, record = epruner.repair(net, small, plan, calibrate=images)
    assert record is not None
    assert record.after < 0.3 * record.before
    assert "blocks.3.conv2" in {layer.name for layer in record.layers}
    assert digits.accuracy(small) < digits.accuracy(repaired)
    with torch.no_grad():
        wanted, before, after = ([[m(digits.test_images)]] for m in (net, small, repaired))
    assert output_error(after, wanted) < 0.3 * output_error(before, wanted)


def test_blocks_stay_where_filters_lose_less(digits: Digits) -> None:
    images = digits.train_images[:50]
    net = epruner.analyse(digits.network(), images[:1])
    plan = net.select(macs=0.97, calibrate=images, scope="blocks")
    assert plan.modules
    assert plan.passed == ()


def test_layers_that_shall_stay_keep_their_block(digits: Digits) -> None:
    images = digits.train_images[:50]
    net = epruner.analyse(faint(digits, "blocks.2", "blocks.3"), images[:1])
    some: dict[str, Any] = {"calibrate": images, "scope": "blocks"}
    assert net.select(macs=0.5, **some).passed == ("blocks.2", "blocks.3")
    assert net.select(macs=0.6, **some, ignore=["blocks.2.conv2"]).passed == ("blocks.3",)
    assert net.select(macs=0.75, **some, layers=["blocks.2"]).passed == ("blocks.2",)
    fixed = epruner.Constraints(n_filters={"blocks.3.conv1": 40})
    assert net.select(macs=0.6, **some, constraints=fixed).passed == ("blocks.2",)


@pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning")
def test_a_budget_of_time_takes_what_a_block_takes(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device where a layer takes the same time whatever its width, only blocks help."""
    now = 0.0
    convolve: Callable[..., Tensor] = F.conv2d

    def timed(*args: Any) -> Tensor:
        nonlocal now
        now += 1.0
        return convolve(*args)

    monkeypatch.setattr(F, "conv2d", timed)
    monkeypatch.setattr(stopwatch, "clock", lambda: now)
    net, images = faint(digits, "blocks.2", "blocks.3"), digits.train_images[:50]
    result = epruner.prune(net, images[:1], latency=0.8, calibrate=images, scope="blocks")
    assert result.plan.passed in (("blocks.2",), ("blocks.3",))  # 2 of 10 convolutions
    assert result.report.timing is not None
    assert result.report.timing.share == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"macs": 0.5}, "needs calibrate"),
        ({"macs": 0.5, "calibrate": "noise"}, "needs calibrate"),
        ({"params": 0.5, "calibrate": X}, r"needs a budget of macs= or latency=, got params="),
        ({"beta": 1.0, "calibrate": X}, r"got beta="),
        ({"macs": 0.5, "calibrate": X, "method": "l1"}, "got allocation='uniform'"),
        ({"macs": 0.5, "calibrate": X, "repair": "none"}, "needs repair='least_squares'"),
    ],
)
def test_what_it_needs_is_said(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"scope='blocks'.*{reason}"):
        epruner.prune(Row("before"), X[:1], scope="blocks", **given)


def test_a_network_without_blocks_is_refused() -> None:
    x = torch.randn(64, 8)
    with pytest.raises(ValueError, match=r"no residual block that may go: blocks\.0: .*norm after"):
        epruner.prune(Row("after").eval(), x[:1], macs=0.8, calibrate=x, scope="blocks")
