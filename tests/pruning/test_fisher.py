"""Filters ranked by the gradient of a loss: the method "fisher"."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from digits import SHAPE, Digits
from torch import Tensor, nn
from torch.nn import functional as F

import epruner
from epruner import Constraints, Method
from epruner.pruning.data.calibration import calibration_inputs
from epruner.pruning.select.fisher import cross_entropy, fisher_scores, ranking_errors


class Grouped(nn.Module):
    """A plain convolution, a grouped one on its channels, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3)
        self.second = nn.Conv2d(8, 12, 3, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.first(x).relu())).relu()
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def labelled(count: int = 40) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(count, 2, 7, 7)
    return list(zip(x.split(10), torch.arange(count).split(10), strict=True))  # type: ignore[no-untyped-call]


def classes(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(x, y % 3) for x, y in pairs]


class Mixed(nn.Module):
    """A depthwise convolution between two norms, a shortcut without norm, and a GRU that reads."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.norm = nn.Conv2d(2, 8, 1), nn.BatchNorm2d(8)
        self.deep, self.again = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8)
        self.narrow, self.last = nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6)
        self.short = nn.Conv2d(2, 6, 3)
        self.read, self.head = nn.GRU(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.deep(self.norm(self.wide(x)).relu())).relu()
        y = (self.last(self.narrow(y)) + self.short(x)).relu()
        return self.head(self.read(y.flatten(2).mT)[0][:, -1])  # type: ignore[no-any-return]


@pytest.mark.parametrize("network", [Grouped, Mixed])
def test_scores_are_the_derivative_by_a_gate_on_what_is_read(network: type[nn.Module]) -> None:
    model, pairs = network().eval(), classes(labelled())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert isinstance(tensor, Tensor)
                nn.init.uniform_(tensor, 0.5, 1.5)
    groups = epruner.analyse(model, (1, 2, 7, 7)).groups
    calibration = calibration_inputs(model, pairs, ((pairs[0][0],), {}), labelled=True)
    found = fisher_scores(model, groups, calibration, cross_entropy)
    x = torch.cat([args[0] for args, _ in calibration.fit])
    y = torch.cat(calibration.labels)
    assert len(x) == 32  # the others are held back
    assert len(found) == len(groups) >= 2
    for group in groups:
        gate = torch.ones(group.channels, requires_grad=True)
        hooks = []
        for member in group.consumers:
            layer = model.get_submodule(member.module)

            def multiply(layer: nn.Module, read: tuple[Tensor, ...]) -> tuple[Tensor]:
                dim = 1 if isinstance(layer, nn.Conv2d) else -1
                shape = [1] * read[0].dim()
                shape[dim] = -1
                return (read[0] * gate.view(shape),)  # noqa: B023

            assert np.array_equal(member.entries[:, 0], np.arange(group.channels))
            hooks.append(layer.register_forward_pre_hook(multiply))
        (slope,) = torch.autograd.grad(F.cross_entropy(model(x), y), gate)
        for hook in hooks:
            hook.remove()
        np.testing.assert_allclose(
            found[group.name], slope.double() ** 2, rtol=1e-3, atol=1e-12, err_msg=group.name
        )
    assert all(p.grad is None for p in model.parameters())


def test_of_each_part_of_a_grouped_layer_its_own_best_stay() -> None:
    model, pairs = Grouped().eval(), classes(labelled())
    analysis = epruner.analyse(model, (1, 2, 7, 7))
    numbers = Constraints(n_filters={"second": 6})
    plan = analysis.select(constraints=numbers, method="fisher", calibrate=pairs)
    calibration = calibration_inputs(model, pairs, analysis.arguments, labelled=True)
    scores = fisher_scores(model, analysis.groups, calibration, cross_entropy)["second"]
    halves = [np.sort(np.argsort(-half)[:3]) for half in scores.reshape(2, 6)]
    assert plan.modules["second"].out == (*halves[0], *(6 + halves[1]))


def test_one_ranking_of_the_whole_network(digits: Digits) -> None:
    model = digits.network()
    pairs = [(digits.train_images[:500], digits.train_labels[:500])]
    analysis = epruner.analyse(model, SHAPE)
    plan = analysis.select(macs=0.5, method="fisher", calibrate=pairs)
    calibration = calibration_inputs(model, pairs, analysis.arguments, labelled=True)
    groups = [g for g in analysis.groups if not g.stream]
    scores = fisher_scores(model, groups, calibration, cross_entropy)
    stays = {}
    for group in groups:
        out = plan.modules[group.name].out if group.name in plan.modules else None
        every = np.arange(group.channels)
        stays[group.name] = np.isin(every, every if out is None else out)
    for name, kept in stays.items():  # within a layer by score
        assert kept.sum() >= np.ceil(0.05 * len(kept))
        if not kept.all():
            assert scores[name][kept].min() >= scores[name][~kept].max()
    # Over the layers by score, too, but for single filters that fill the budget.
    order = np.argsort(np.concatenate([scores[g.name] for g in groups]))
    kept = np.concatenate([stays[g.name] for g in groups])
    gone = int((~kept).sum())
    assert kept[order[:gone]].mean() < 0.1


def test_errors_of_a_ranking_are_places() -> None:
    groups = epruner.analyse(Grouped().eval(), (1, 2, 7, 7)).groups
    scores = {"first": np.arange(8.0), "second": 8 + np.arange(12.0)}
    errors = ranking_errors(groups, scores)
    first = np.cumsum([0, *range(1, 9)])[::-1] / 20
    np.testing.assert_allclose(errors["first"][::2][-1], 0)
    np.testing.assert_allclose(errors["first"][0], first[0])
    # of each half of the twelve channels as many stay
    halves = np.arange(9, 21).reshape(2, 6).sum(0)
    np.testing.assert_allclose(errors["second"][::2], np.cumsum([0, *halves])[::-1] / 20)


def test_a_loss_of_ones_own() -> None:
    model, pairs = Grouped().eval(), labelled()
    seen: list[tuple[int, ...]] = []

    def squares(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(tuple(targets.shape))
        return (outputs.sum(1) - targets.float()).square().mean()

    asked: dict[str, Any] = {
        "constraints": Constraints(n_filters={"*": 0.5}),
        "method": "fisher",
        "loss": squares,
    }
    result = epruner.prune(model, (1, 2, 7, 7), calibrate=pairs, **asked)
    assert seen == [(32,)]
    assert result.report.settings["loss"] == "squares"
    assert result.report.settings["method"]["repair"] == "least_squares"
    with_dicts = [{"labels": y, "file": 7, "x": x} for x, y in pairs]
    again = epruner.prune(model, (1, 2, 7, 7), calibrate=with_dicts, **asked)
    assert again.plan == result.plan


def test_parts_of_it_in_other_methods() -> None:
    pairs = classes(labelled())
    numbers = Constraints(n_filters={"first": 4})
    for method in (Method("uniform", "fisher"), Method("fisher", "l1")):
        result = epruner.prune(
            Grouped().eval(), (1, 2, 7, 7), constraints=numbers, method=method, calibrate=pairs
        )
        assert result.model.first.out_channels == 4  # type: ignore[union-attr]


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"calibrate": None}, ValueError, "calibrate inputs with labels"),
    ({"calibrate": "noise"}, ValueError, "calibrate inputs with labels"),
    ({"calibrate": torch.randn(20, 2, 7, 7)}, ValueError, "batch 0 has no labels"),
    ({"calibrate": [(torch.randn(9, 2, 7, 7), torch.zeros(8))]}, ValueError, "9 inputs and labels"),
    (
        {"calibrate": [(torch.randn(9, 2, 7, 7), torch.full((9,), 3))]},
        ValueError,
        "labels from 3 to 3 for a network of 3 classes",
    ),
    ({"calibrate": [(torch.randn(9, 2, 7, 7), torch.rand(9))]}, TypeError, "class numbers"),
    (
        {"calibrate": [(torch.randn(9, 2, 7, 7), torch.zeros(9, 2).long())]},
        ValueError,
        "one class number for each score",
    ),
    ({"calibrate": [(torch.randn(9, 2, 7, 7), [0] * 9)]}, TypeError, "a tensor, got list"),
    (
        {"calibrate": [{"labels": torch.zeros(9), "x": torch.randn(8, 2, 7, 7)}]},
        ValueError,
        "8 inp",
    ),
    ({"loss": lambda outputs, labels: torch.ones(())}, ValueError, "no gradient reaches"),
    ({"loss": "mse"}, TypeError, "loss must be a function"),
    ({"loss": lambda outputs, labels: outputs}, ValueError, "loss must return a scalar"),
    ({"loss": F.cross_entropy, "method": "l1"}, ValueError, "this method looks at none"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD)
def test_what_is_wrong(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    given = {"method": "fisher", "calibrate": classes(labelled()), **options}
    with pytest.raises(kind, match=message):
        epruner.prune(Grouped().eval(), (1, 2, 7, 7), macs=0.5, **given)
