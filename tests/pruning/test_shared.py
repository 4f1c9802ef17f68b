"""Layers that are used more than once in a forward pass are refit once, for all their uses."""

from __future__ import annotations

import pytest
import torch
from networks import stirred
from test_repair import inputs
from torch import Tensor, nn
from torch.nn import functional as F

import epruner
from epruner.pruning import Plan
from epruner.pruning.network.outputs import output_error
from epruner.pruning.plan.parts import ModulePlan
from epruner.pruning.trace.record import record
from epruner.pruning.trace.replay import Replay
from epruner.pruning.trace.schedule import Schedule
from epruner.pruning.trace.targets import find_sites


class Siamese(nn.Module):
    """One residual backbone for both inputs; activations in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.wide, self.wide_norm = nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.back = nn.Conv2d(24, 12, 1)
        self.head = nn.Linear(24, 5)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu_(self.norm(self.stem(x)))
        x += self.back(F.relu_(self.wide_norm(self.wide(x))))
        return F.relu_(x).mean((2, 3))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.features(a), self.features(b)], 1))  # type: ignore[no-any-return]


class Pyramid(nn.Module):
    """A head of two layers over maps of three sizes; its first layer's weights are another's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.hidden, self.out = nn.Conv2d(16, 20, 3, padding=1), nn.Conv2d(20, 4, 1)
        self.strided = nn.Conv2d(16, 20, 3, stride=2, padding=1)
        self.strided.weight, self.strided.bias = self.hidden.weight, self.hidden.bias

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.stem(x))
        maps = [F.relu(self.hidden(F.avg_pool2d(x, size))) for size in (1, 2, 4)]
        return [self.out(y).mean((2, 3)) for y in (*maps, F.relu(self.strided(x)))]


class Refined(nn.Module):
    """What a layer gives it reads again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.step = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(3):
            x = x + torch.tanh(self.step(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def halved(model: nn.Module, producer: str, *readers: str, more: tuple[str, ...] = ()) -> Plan:
    """Every other channel of a layer goes."""
    layer, reader = model.get_submodule(producer), model.get_submodule(readers[0])
    n = int(layer.weight.shape[0])  # type: ignore[index]
    width = int(reader.weight.shape[1])  # type: ignore[index]
    assert n == width
    kept = tuple(range(0, n, 2))
    out = ModulePlan(out=kept, out_before=n)
    parts = {producer: out, **dict.fromkeys(more, out)}
    parts.update(dict.fromkeys(readers, ModulePlan(in_=kept, in_before=n)))
    return Plan(parts)


def errors(model: nn.Module, plan: Plan, repaired: nn.Module, x: tuple[Tensor, ...]) -> list[float]:
    with torch.no_grad():
        answers = [model(*x), plan.apply(model)(*x), repaired(*x)]
    wanted, cut, got = (list(a) if isinstance(a, list) else [a] for a in answers)
    return [output_error([found], [wanted]) for found in (cut, got)]


def test_siamese_backbone_is_refit_once_for_both_inputs() -> None:
    torch.manual_seed(0)
    model = stirred(Siamese())
    x = inputs((3, 8, 8), 200), 0.5 * inputs((3, 8, 8), 200, seed=1)
    plan = halved(model, "wide", "back", more=("wide_norm",))
    small, done = epruner.repair(model, plan.apply(model), plan, calibrate=[x])
    assert done is not None
    assert [(x.name, x.target) for x in done.layers] == [("back", "stream"), ("head", "output")]
    held = inputs((3, 8, 8), 100, seed=2), 0.5 * inputs((3, 8, 8), 100, seed=3)
    cut, got = errors(model, plan, small, held)
    assert got < 0.5 * cut
    alone, _ = epruner.repair(model, plan.apply(model), plan, calibrate=[(x[0], x[0])])
    assert got < errors(model, plan, alone, held)[1]  # fit to the first input's uses alone


def test_heads_over_a_pyramid_and_tied_layers_stay_one() -> None:
    torch.manual_seed(0)
    model = Pyramid().eval()
    x = inputs((3, 8, 8), 100)
    plan = halved(model, "stem", "hidden", "strided")
    small, done = epruner.repair(model, plan.apply(model), plan, calibrate=x)
    assert done is not None
    assert {"hidden", "out"} == {layer.name for layer in done.layers}
    assert not done.notes
    assert small.hidden.weight is small.strided.weight  # type: ignore[union-attr]
    cut, got = errors(model, plan, small, (inputs((3, 8, 8), 50, seed=1),))
    assert got < 0.5 * cut


def test_uses_that_depend_on_each_other_are_left_alone_and_said_so() -> None:
    torch.manual_seed(0)
    model = Refined().eval()
    plan = halved(model, "stem", "step", more=("step",))
    parts = dict(plan.modules)
    step = parts["stem"].out
    parts["step"] = ModulePlan(out=step, in_=step, out_before=16, in_before=16)
    parts["head"] = ModulePlan(in_=step, in_before=16)
    plan, x = Plan(parts), inputs((3, 8, 8), 100)
    small, done = epruner.repair(model, plan.apply(model), plan, calibrate=x)
    assert done is not None
    assert done.notes == ("not refit (one of its uses depends on another): step",)
    cut, got = errors(model, plan, small, (inputs((3, 8, 8), 50, seed=1),))
    assert got < cut


def test_shared_norms_take_statistics_of_all_uses() -> None:
    torch.manual_seed(0)
    model = stirred(Siamese())
    x = inputs((3, 8, 8), 100), inputs((3, 8, 8), 100, seed=1)
    plan = halved(model, "stem", "wide", more=("norm",))
    parts = dict(plan.modules)
    parts["back"] = ModulePlan(out=parts["stem"].out, out_before=12)
    parts["head"] = ModulePlan(in_=(*range(0, 12, 2), *range(12, 24, 2)), in_before=24)
    plan = Plan(parts)
    small, done = epruner.repair(model, plan.apply(model), plan, calibrate=[x])
    assert done is not None
    assert "wide" in {layer.name for layer in done.layers}
    norm = small.wide_norm
    assert isinstance(norm, nn.BatchNorm2d)
    seen: list[Tensor] = []
    norm.register_forward_pre_hook(lambda _, read: seen.append(read[0]))
    with torch.no_grad():
        small(*x)
    every = torch.cat(seen).movedim(1, 0).flatten(1)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, every.mean(1), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", [Siamese, Pyramid, Refined])
def test_ops_in_another_order_compute_the_same(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = stirred(kind())
    x = [inputs((3, 8, 8), 4, seed=seed) for seed in range(2 if kind is Siamese else 1)]
    trace = record(model, x, {})
    order, sites, _ = find_sites(model, trace)
    assert sorted(order) == list(range(len(trace.ops)))
    assert (order == sorted(order)) == (kind is Refined)
    for site in sites:
        ops = sorted(i for call in site.calls for i in call.ops)
        if len(site.calls) > 1:
            assert ops[-1] - ops[0] == len(set(ops)) - 1  # side by side
    run = Replay([trace.reordered(order)], [(tuple(x), {})])
    run.advance(0, len(order))
    with torch.no_grad():
        expected = model(*x)
    wanted = list(expected) if isinstance(expected, list) else [expected]
    for got, answer in zip(run.outputs(0), wanted, strict=True):
        torch.testing.assert_close(got, answer)


class InPlace(nn.Module):
    """Writes through a view into what both calls of a layer read, between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        first = self.layer(x)
        x[:, 0].zero_()
        return first + self.layer(x)  # type: ignore[no-any-return]


def test_what_is_overwritten_between_two_uses_keeps_them_apart() -> None:
    model = InPlace().eval()
    trace = record(model, (torch.randn(3, 4),), {})
    calls = [index for index, op in enumerate(trace.ops) if op.module == "layer"]
    assert not Schedule(trace).join([[index] for index in calls])
    _, sites, notes = find_sites(model, trace)
    assert not sites
    assert "one of its uses depends on another" in notes[0]
