"""Filters ranked by the gradient of a loss: the method "fisher"."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from digits import SHAPE, Digits
from torch import Tensor, nn
from torch.func import functional_call
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


def test_scores_are_the_derivative_by_a_gate_on_each_filter() -> None:
    model, pairs = Grouped().eval(), classes(labelled())
    groups = epruner.analyse(model, (1, 2, 7, 7)).groups
    calibration = calibration_inputs(model, pairs, ((pairs[0][0],), {}), labelled=True)
    found = fisher_scores(model, groups, calibration, cross_entropy)
    x = torch.cat([args[0] for args, _ in calibration.fit])
    y = torch.cat(calibration.labels)
    assert len(x) == 32  # the others are held back
    for name, scaled in {"first": "first", "second": "norm"}.items():
        weights: dict[str, Tensor] = dict(model.named_parameters())
        gate = torch.ones(len(weights[f"{name}.weight"]), requires_grad=True)
        for part in ("weight", "bias"):
            whole = weights[f"{scaled}.{part}"].detach()
            weights[f"{scaled}.{part}"] = whole * gate.view(-1, *[1] * (whole.dim() - 1))
        loss = F.cross_entropy(functional_call(model, weights, (x,)), y)
        (slope,) = torch.autograd.grad(loss, gate)
        np.testing.assert_allclose(found[name], slope.double() ** 2, rtol=1e-4)
    assert all(p.grad is None for p in model.parameters())


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
    with_dicts = [{"x": x, "labels": y} for x, y in pairs]
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
    ({"loss": "mse"}, TypeError, "loss must be a function"),
    ({"loss": lambda outputs, labels: outputs}, ValueError, "loss must return a scalar"),
    ({"loss": F.cross_entropy, "method": "l1"}, ValueError, "this method looks at none"),
]


@pytest.mark.parametrize(("options", "kind", "message"), BAD)
def test_what_is_wrong(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    given = {"method": "fisher", "calibrate": classes(labelled()), **options}
    with pytest.raises(kind, match=message):
        epruner.prune(Grouped().eval(), (1, 2, 7, 7), macs=0.5, **given)
