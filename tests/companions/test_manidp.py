"""ManiDP: gates, what they learn, what inputs cost, inference that skips, what is never on."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import epruner
from epruner.companions import manidp
from examples.manidp import Batches, Network, Trained, draw, run, times

SHAPE = (1, 1, 8, 8)


def images(count: int = 12) -> Tensor:
    return torch.randn(count, *SHAPE[1:], generator=torch.Generator().manual_seed(1))


def trained(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> nn.Module:
    """As if trained: BatchNorm remembers what it read and has weights of its own."""
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    model.train()(torch.randn(64, *shape[1:]))
    return model.eval()


def opened(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> manidp.GatedNetwork:
    """With gates that differ from input to input, as if trained."""
    gated = manidp.gate(model, shape)
    for gate in gated.gates().values():
        nn.init.normal_(gate.excite.weight)
        gate.tau.fill_(0.8)
    return gated


class Plain(nn.Sequential):
    """Pooled and flattened before a linear layer, which reads several entries per channel."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(16),
            nn.LeakyReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip


class Joined(nn.Module):
    """Channels of two convolutions and of the input, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(1, 8, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(6), nn.BatchNorm2d(8)
        self.both = nn.Conv2d(15, 10, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(10)
        self.head = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.bn1(self.left(x)), x, self.bn2(self.right(x)).relu()], 1)
        return self.head(self.bn3(self.both(y)).relu().mean((2, 3)))  # type: ignore[no-any-return]


class Signal(nn.Sequential):
    """One dimension."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv1d(2, 90, 5, padding=2, bias=False), nn.BatchNorm1d(90), nn.ReLU(),
            nn.Conv1d(90, 4, 3), nn.Flatten(), nn.Linear(40, 3),
        )  # fmt: skip


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "residual": (Network, SHAPE),
    "plain": (Plain, SHAPE),
    "joined": (Joined, SHAPE),
    "signal": (Signal, (1, 2, 12)),
}


@pytest.fixture(params=list(NETWORKS))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...], Tensor]:
    kind, shape = NETWORKS[request.param]
    return trained(kind(), shape), shape, torch.randn(12, *shape[1:])


@torch.no_grad()
def test_starts_as_the_network_itself(case: Any) -> None:
    model, shape, x = case
    before = copy.deepcopy(model.state_dict())
    gated = manidp.gate(model, shape)
    torch.testing.assert_close(gated(x), model(x))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert list(gated.plain().state_dict()) == list(before)
    found = manidp.multiply_adds(gated, x)
    assert len(set(found.per_input.tolist())) == 1
    assert found.whole == epruner.analyse(model, shape).costs.totals().macs
    assert found.share > 1  # the gates'


def test_gates_stand_where_one_convolution_makes_what_can_be_pruned() -> None:
    model = trained(Network())
    gated = manidp.gate(model, SHAPE)
    groups = {g.name for g in epruner.analyse(model, SHAPE).groups if not g.stream}
    assert set(gated.gates()) == groups == {f"blocks.{i}.conv1" for i in range(3)}
    assert {"stem", "head"} < {layer.name for layer in gated.skipped}
    wide = manidp.gate(trained(Signal(), (1, 2, 12)), (1, 2, 12)).gates()["0"]
    assert wide.squeeze.weight.shape == (45, 2)  # half of 90
    assert wide.excite.bias.tolist() == [1] * 90


@torch.no_grad()
def test_masks_and_outputs_follow_the_formula() -> None:
    model = trained(Plain())
    gated = opened(model)
    x = images()
    gate, later = gated.gates().values()
    later.tau.fill_(0)
    nn.init.zeros_(later.excite.weight)
    u, v, b = (
        t.numpy().astype(float) for t in (gate.squeeze.weight, gate.excite.weight, gate.excite.bias)
    )
    pooled = x.numpy().astype(float).mean((2, 3))
    saliency = np.maximum(np.maximum(pooled @ u.T, 0) @ v.T + b, 0)
    mask = np.where(saliency >= 0.8, saliency, 0)
    assert 0 < (mask > 0).mean() < 1
    np.testing.assert_allclose(gated.masks(x)["0"].numpy(), mask, rtol=1e-5)
    rows = list(model)  # type: ignore[call-overload]
    behind = rows[2](rows[1](rows[0](x))) * torch.from_numpy(mask).float()[:, :, None, None]
    torch.testing.assert_close(gated(x), nn.Sequential(*rows[3:])(behind))


@torch.no_grad()
def test_skipping_answers_alike_and_costs_what_is_counted(case: Any) -> None:
    model, shape, x = case
    gated = opened(model, shape)
    silent = next(iter(gated.gates().values()))
    wanted, counted = gated(x), manidp.multiply_adds(gated, x)
    network = manidp.skipping(gated)
    assert len(set(counted.per_input.tolist())) > 3
    for one, answer, macs in zip(x.split(1), wanted, counted.per_input.tolist(), strict=True):
        with FlopCounterMode(display=False) as flops:
            found = network(one)
        assert (found[0] - answer).abs().max() <= 1e-5
        assert flops.get_total_flops() == 2 * macs
    on = sum((mask > 0).sum(1) for mask in gated.masks(x).values())
    assert isinstance(on, Tensor)
    assert counted.channels.tolist() == on.tolist()
    silent.tau.fill_(1e9)  # nothing is on behind it
    with FlopCounterMode(display=False) as flops:
        found = manidp.skipping(gated)(x[:1])
    assert (found - gated(x[:1])).abs().max() <= 1e-5
    assert flops.get_total_flops() == 2 * int(manidp.multiply_adds(gated, x[:1]).per_input)


class Scaled(nn.Module):
    """Behind a sigmoid what is off is no zero; the second norm does not read the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.a(x)).sigmoid()
        x = self.bn2(self.b(x).relu())
        x = self.bn3(self.c(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_what_is_no_zero_when_off_gets_no_gate() -> None:
    gated = manidp.gate(trained(Scaled()), SHAPE)
    assert set(gated.gates()) == {"c"}
    reasons = {layer.name: layer.reason for layer in gated.skipped}
    assert "read as something else" in reasons["a"]
    assert "read as something else" in reasons["b"]


def labelled(count: int = 96) -> list[tuple[Tensor, Tensor]]:
    x = images(count)
    return list(zip(x.split(32), x.mean((1, 2, 3)).gt(0).long().split(32), strict=True))  # type: ignore[no-untyped-call]


def test_the_term_is_the_formula() -> None:
    gated = opened(trained(Network())).train()
    term = manidp.Regularizer(gated, epochs=4, sparsity=0.3, similarity=0.7)
    gated.easy_below.fill_(2.0)
    (x, labels), *_ = labelled()
    gates = gated.gates().values()
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [g.register_forward_hook(lambda g, *_: seen.append(g.seen)) for g in gates]
    scores = gated(x)
    for hook in hooks:
        hook.remove()
    value = term(gated, scores, labels)
    expected = 0.0
    p = scores.detach().double().softmax(1).numpy()
    losses = [-math.log(p[i, k]) for i, k in enumerate(labels.tolist())]
    assert min(losses) < 2 < max(losses)
    for means, saliency in seen:
        a, b = means.detach().double().numpy(), saliency.detach().double().numpy()
        for i, loss in enumerate(losses):
            expected += 0.3 * max(0, (2 - loss) / 2) * b[i].mean() / len(x)
            for j in range(len(x)):
                cosines = [
                    m[i] @ m[j] / (np.linalg.norm(m[i]) * np.linalg.norm(m[j])) for m in (a, b)
                ]
                expected += 0.7 * (cosines[0] - cosines[1]) ** 2 / len(x) ** 2
    assert value.item() == pytest.approx(expected, rel=1e-4)
    alone = torch.autograd.grad(value, [g.excite.weight for g in gates])
    assert all(gradient.abs().max() > 0 for gradient in alone)


def test_thresholds_come_from_the_last_epoch() -> None:
    gated = opened(trained(Network())).train()
    term = manidp.Regularizer(gated, epochs=5, share=0.3)
    batches = labelled()
    term.set_epoch(0)
    assert not gated.easy_below
    for done in range(1, 7):
        saliencies: dict[str, list[Tensor]] = {name: [] for name in gated.gates()}
        losses = []
        for x, labels in batches:
            scores = gated(x)
            for name, gate in gated.gates().items():
                assert gate.seen is not None
                saliencies[name].append(gate.seen[1].detach())
            losses.append(F.cross_entropy(scores, labels).item())
            term(gated, scores, labels)
        term.set_epoch(done)
        assert gated.easy_below.item() == pytest.approx(np.mean(losses) / 2)
        rho = 0.3 + 0.7 * (1 + math.cos(math.pi * min(done, 4) / 4)) / 2
        for name, gate in gated.gates().items():
            means = torch.cat(saliencies[name]).mean(0)
            k = math.ceil(rho * len(means) - 1e-9)
            assert gate.tau.item() == pytest.approx(np.sort(means.numpy())[::-1][k - 1])


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    model = trained(Network())

    class Stops(list[Any]):
        passes = 0

        def __iter__(self) -> Any:
            type(self).passes += 1
            if type(self).passes == 3:
                raise KeyboardInterrupt
            return super().__iter__()

    def train(batches: list[Any], **options: Any) -> manidp.GatedNetwork:
        torch.manual_seed(0)
        gated = manidp.gate(model, SHAPE)
        term = manidp.Regularizer(gated, epochs=4)
        epruner.finetune(gated, batches, epochs=4, regularizer=term, **options)
        return gated

    whole = train(labelled())
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(Stops(labelled()), checkpoint=path)
    resumed = train(labelled(), checkpoint=path)
    assert any(gate.tau > 0 for gate in resumed.gates().values())
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key]), key
    again = pickle.loads(pickle.dumps(copy.deepcopy(resumed)))
    assert torch.equal(again(images()), resumed(images()))


def test_copies_in_the_middle_of_a_step() -> None:
    gated = manidp.gate(trained(Network()), SHAPE).train()
    gated(images())
    other = copy.deepcopy(gated)
    assert all(gate.seen is None for gate in other.gates().values())


@torch.no_grad()
def test_what_is_never_on_becomes_a_plan(case: Any, tmp_path: Path) -> None:
    model, shape, x = case
    gated = opened(model, shape)
    gates = gated.gates()
    for gate in gates.values():
        gate.excite.bias[1:4] = -1e9
        gate.excite.bias[5] = 1e9
    first = next(iter(gates))
    static = manidp.to_static(gated, x)
    for name, mask in gated.masks(x).items():
        assert static.never[name].tolist() == np.flatnonzero(~(mask > 0).any(0)).tolist()
        assert static.always[name].tolist() == np.flatnonzero((mask > 0).all(0)).tolist()
        assert {1, 2, 3} <= set(static.never[name].tolist())
        assert 5 in static.always[name]
    scale = gated(x).abs().max()
    assert (static.network(x) - gated(x)).abs().max() <= 1e-5 * scale
    assert static.network.state_dict().keys() == gated.state_dict().keys()
    found = manidp.multiply_adds(static.network, x)
    assert (found.per_input < manidp.multiply_adds(gated, x).per_input).all()
    skips = manidp.skipping(static.network)
    assert (skips(x[:1]) - gated(x[:1])).abs().max() <= 1e-5 * scale

    small = static.plan.apply(model)
    gone = len(static.never[first])
    assert len(small.get_submodule(first).weight) == len(model.get_submodule(first).weight) - gone  # type: ignore[arg-type]
    epruner.save((small, static.plan), tmp_path / "small.safetensors")
    kind = type(model)
    loaded = epruner.load(kind().eval(), tmp_path / "small.safetensors")
    assert torch.equal(loaded(x), small(x))


@torch.no_grad()
def test_of_a_convolution_that_no_input_uses_one_channel_stays() -> None:
    gated = opened(trained(Network()))
    gate = gated.gates()["blocks.1.conv1"]
    gate.tau.fill_(1e9)
    static = manidp.to_static(gated, images())
    conv: Any = static.plan.apply(trained(Network())).get_submodule("blocks.1.conv1")
    assert conv.out_channels == 1
    torch.testing.assert_close(static.network(images()), gated(images()))


def test_bad_networks() -> None:
    with pytest.raises(ValueError, match=r"Sequential has no channels to gate: 0: .* BatchNorm"):
        manidp.gate(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 3)), SHAPE)
    with pytest.raises(TypeError, match=r"gated must come from manidp\.gate, got Network"):
        manidp.Regularizer(Network(), epochs=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1}, "epochs must be an integer of at least 2.*got 1"),
        ({"epochs": 3, "share": 0}, "share must be in .*got 0"),
        ({"epochs": 3, "sparsity": -1.0}, "sparsity must not be negative, got -1.0"),
        ({"epochs": 3, "similarity": float("nan")}, "similarity must not be negative, got nan"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    gated = manidp.gate(trained(Network()), SHAPE)
    with pytest.raises(ValueError, match=message):
        manidp.Regularizer(gated, **options)


def test_bad_batches() -> None:
    gated = manidp.gate(trained(Network()), SHAPE).train()
    term = manidp.Regularizer(gated, epochs=2)
    with pytest.raises(TypeError, match=r"a batch must be a pair \(inputs, labels\)"):
        epruner.finetune(gated, [images()], epochs=2, regularizer=term)
    scores = gated(images())
    with pytest.raises(TypeError, match="labels must be a tensor"):
        term(gated, scores, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"12 scores and labels of shape \(3,\)"):
        term(gated, scores, torch.zeros(3).long())
    with pytest.raises(ValueError, match="two or more classes"):
        term(gated, scores[:, :1], torch.zeros(12).long())
    one = [(images(), torch.full((12,), 3))]
    with pytest.raises(ValueError, match="every label of the last epoch is 3"):
        epruner.finetune(gated, one, epochs=2, regularizer=term)
    other = manidp.gate(trained(Network()), SHAPE).train()
    with pytest.raises(ValueError, match="the network it was made with"):
        term(other, other(images()), torch.zeros(12).long())


def test_bad_inputs() -> None:
    gated = opened(trained(Network()))
    for call in (manidp.multiply_adds, manidp.to_static):
        with pytest.raises(TypeError, match="inputs must be a tensor"):
            call(gated, [1, 2])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"at least one, got shape \(0, 1, 8, 8\)"):
            call(gated, images()[:0])
    with pytest.raises(ValueError, match="all 5 inputs are equal"):
        manidp.to_static(gated, images(1).expand(5, -1, -1, -1))
    with pytest.raises(ValueError, match=r"one input at a time: a layer read \(12, "):
        manidp.skipping(gated)(images())


def test_gates_close_in_training_and_the_network_learns_to_live_with_it() -> None:
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target).long()
    batches = Batches(pixels[:1200], labels[:1200])
    gated = manidp.gate(Network(), SHAPE)
    term = manidp.Regularizer(gated, epochs=3, share=0.3)
    epruner.finetune(gated, batches, epochs=5, optimizer="adamw", lr=1e-2, regularizer=term)
    cost = manidp.multiply_adds(gated.eval(), pixels[1200:])
    assert cost.share < 0.5
    assert len(set(cost.per_input.tolist())) > 10
    with torch.no_grad():
        assert (gated(pixels[1200:]).argmax(1) == labels[1200:]).double().mean() > 0.85


@pytest.mark.slow
def test_not_below_static_pruning_and_easy_images_get_fewer_channels() -> None:
    found = [run(seed) for seed in (0, 1, 2)]

    def mean(name: str) -> float:
        return float(np.mean([getattr(each, name) for each in found]))

    # 0.3 points: the standard error of one accuracy on three times 898 images
    assert mean("gated") >= mean("static") - 0.3
    assert all(abs(each.gated_macs - each.static_macs) < 0.01 for each in found)
    assert mean("gated_macs") < 0.3
    assert all(each.easy_channels < each.hard_channels for each in found)
    assert mean("hard_channels") > 1.05 * mean("easy_channels")
    assert mean("wrong_channels") > mean("right_channels")


def test_times_and_pictures(tmp_path: Path) -> None:
    before, after, macs = times(Network(), torch.rand(5, 1, 8, 8), 0.5)
    assert before > 0 < after
    assert 0.3 < macs < 0.7
    gated = opened(trained(Network()))
    shown = Trained(Network(), gated, Network(), images(), torch.zeros(12).long())
    draw(shown, str(tmp_path / "digits.png"))
    assert (tmp_path / "digits.png").stat().st_size > 5000
