"""Orthonormal filters: the term, what it leaves of a network, and what it is worth."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import epruner
from epruner.companions.orthoreg import OrthoReg
from examples import orthoreg as example


def chain() -> Any:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),  # more filters than weights of one: columns
        nn.ReLU(),
        nn.Conv2d(12, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def by_hand(matrices: list[np.ndarray[Any, Any]], strength: float) -> float:
    """The formula, one pair of rows (or columns, if they are fewer) after the other."""
    sides, terms = [], []
    for matrix in matrices:
        vectors = matrix if len(matrix) <= matrix.shape[1] else matrix.T
        term = 0.0
        for i in range(len(vectors)):
            for j in range(len(vectors)):
                term += abs(math.fsum(vectors[i] * vectors[j]) - (i == j))
        terms.append(term)
        sides.append(len(vectors))
    total = sum(math.sqrt(side) for side in sides)
    return strength * sum(math.sqrt(s) / total * t for s, t in zip(sides, terms, strict=True))


def rows_of(layer: Any) -> np.ndarray[Any, Any]:
    """Filters of a layer without groups, one after the other, each with its bias."""
    weight = layer.weight.detach().double().numpy()
    biases = [[]] * len(weight) if layer.bias is None else layer.bias.detach()[:, None].tolist()
    return np.array([[*row.ravel(), *bias] for row, bias in zip(weight, biases, strict=True)])


def test_the_term_is_the_formula() -> None:
    model = chain()
    term = OrthoReg(model, 0.03)
    assert term.layers == ("0", "2", "6")  # the last linear layer gives the answers
    expected = by_hand([rows_of(model[i]) for i in (0, 2, 6)], 0.03)
    assert float(term(model).detach()) == pytest.approx(expected, rel=1e-5)
    in_doubles = model.double()
    assert float(term(in_doubles).detach()) == pytest.approx(expected, rel=1e-12)
    assert float(OrthoReg(model, 0.06)(model).detach()) == pytest.approx(2 * expected, rel=1e-12)
    nothing = torch.zeros(1)
    assert torch.equal(term(model), term(model, nothing, nothing))


def test_its_gradient_is_that_of_its_values() -> None:
    model = chain().double()
    term = OrthoReg(model)
    torch.autograd.backward(term(model))
    generator = torch.Generator().manual_seed(1)
    for index, name in ((0, "weight"), (0, "bias"), (2, "weight"), (6, "weight"), (6, "bias")):
        parameter = getattr(model[index], name)
        step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            value = []
            for sign in (1, -1):
                parameter.add_(sign * 1e-7 * step)
                value.append(float(term(model).detach()))
                parameter.sub_(sign * 1e-7 * step)
        slope = (value[0] - value[1]) / 2e-7
        assert slope == pytest.approx(float((parameter.grad * step).sum()), rel=1e-4), (index, name)
    assert model[8].weight.grad is None
    assert model[3].weight.grad is None


def test_orthonormal_filters_cost_nothing() -> None:
    model = chain()
    for module in (model[0], model[2], model[6]):
        nn.init.orthogonal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    # the column of biases has no length, where columns are looked at
    found = float(OrthoReg(model)(model).detach())
    assert found == pytest.approx(by_hand([rows_of(model[i]) for i in (0, 2, 6)], 0.01))
    model[0].register_parameter("bias", None)
    assert float(OrthoReg(model)(model).detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("layer", "slices"),
    [
        pytest.param(
            nn.Conv2d(8, 12, 3, groups=2),
            lambda w: [w[:6].reshape(6, -1), w[6:].reshape(6, -1)],
            id="grouped: rows within a group",
        ),
        pytest.param(
            nn.Conv2d(4, 24, 1, groups=2, bias=False),
            lambda w: [w[:12].reshape(12, -1), w[12:].reshape(12, -1)],
            id="grouped: columns within a group",
        ),
        pytest.param(
            nn.Conv2d(16, 16, 3, groups=16, bias=False),
            lambda w: [w.reshape(16, 9)],
            id="depthwise: all together",
        ),
        pytest.param(
            nn.ConvTranspose2d(5, 4, 3),
            lambda w: [np.stack([w[:, i].ravel() for i in range(4)])],
            id="transposed",
        ),
        pytest.param(
            nn.ConvTranspose1d(6, 4, 3, groups=2, bias=False),
            lambda w: [
                np.stack([w[3 * group : 3 * group + 3, i].ravel() for i in range(2)])
                for group in range(2)
            ],
            id="transposed and grouped",
        ),
        pytest.param(nn.Conv1d(3, 4, 5), lambda w: [w.reshape(4, -1)], id="1d"),
        pytest.param(nn.Conv3d(2, 4, 2), lambda w: [w.reshape(4, -1)], id="3d"),
        pytest.param(nn.Linear(7, 4), lambda w: [w], id="linear"),
    ],
)
def test_each_kind_of_layer(layer: Any, slices: Any) -> None:
    model = nn.Sequential(layer, nn.Linear(2, 2))
    parts = slices(layer.weight.detach().double().numpy())
    if layer.bias is not None:
        biases = np.split(layer.bias.detach().double().numpy(), len(parts))
        parts = [np.c_[part, bias] for part, bias in zip(parts, biases, strict=True)]
    # one layer has all the weight: the groups' terms add up
    expected = sum(by_hand([part], 0.01) for part in parts)
    assert float(OrthoReg(model)(model).detach()) == pytest.approx(expected, rel=1e-5)


def test_a_grouped_layer_weighs_as_much_as_its_filters() -> None:
    grouped, other = nn.Conv2d(8, 12, 3, groups=2, bias=False), nn.Conv2d(12, 3, 1)
    model = nn.Sequential(grouped, other, nn.Linear(2, 2))
    weight = grouped.weight.detach().double().numpy().reshape(2, 6, -1)
    first = sum(by_hand([part], 1.0) for part in weight)
    second = by_hand([rows_of(other)], 1.0)
    shares = np.sqrt([12, 3]) / np.sqrt([12, 3]).sum()
    expected = 0.01 * (shares @ [first, second])
    assert float(OrthoReg(model)(model).detach()) == pytest.approx(expected, rel=1e-5)


def test_autocast_does_not_coarsen_it() -> None:
    model = chain()
    term = OrthoReg(model)
    expected = term(model)
    with torch.autocast("cpu"):
        found = term(model)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    halves = chain().bfloat16()
    assert term(halves).dtype == torch.float32


def batches() -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    return [(x, (x[:, 0, 0, 0] > 0).long())] * 8


def test_finetune_makes_filters_orthonormal() -> None:
    model = chain()
    model[0].register_parameter("bias", None)  # so that nothing is left at the end
    plain = copy.deepcopy(model)
    term = OrthoReg(model, 0.1)
    before = float(term(model).detach())
    epruner.finetune(model, batches(), epochs=20, lr=0.02, regularizer=term)
    epruner.finetune(plain, batches(), epochs=20, lr=0.02)
    assert float(term(model).detach()) < 0.25 * before
    assert float(term(plain).detach()) > 0.5 * before


def test_it_is_there_for_the_pruned_network_too() -> None:
    model = chain().eval()
    term = OrthoReg(model)
    small = epruner.prune(model, (1, 1, 6, 6), params=0.6, method="l1", repair="none").model
    layers = [small.get_submodule(name) for name in term.layers]
    expected = by_hand([rows_of(layer) for layer in layers], 0.01)
    assert float(term(small).detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("model", "strength", "error", "message"),
    [
        ("resnet", 0.01, TypeError, "model must be a torch.nn.Module, got str"),
        (chain(), "much", TypeError, "strength must be a number, got 'much'"),
        (chain(), True, TypeError, "strength must be a number, got True"),
        (chain(), 0, ValueError, "strength must be positive and finite, got 0"),
        (chain(), -1e-2, ValueError, "strength must be positive and finite, got -0.01"),
        (chain(), math.inf, ValueError, "strength must be positive and finite, got inf"),
        (chain(), math.nan, ValueError, "strength must be positive and finite, got nan"),
        (nn.Sequential(nn.ReLU()), 0.01, ValueError, "Sequential has no convolution or linear"),
        (nn.Linear(3, 2), 0.01, ValueError, "Linear has no convolution or linear layer before"),
    ],
)
def test_what_cannot_be_is_said(
    model: Any, strength: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        OrthoReg(model, strength)


def test_another_network_is_refused() -> None:
    term = OrthoReg(chain())
    with pytest.raises(ValueError, match="ReLU has no layer '0'"):
        term(nn.ReLU())
    with pytest.raises(ValueError, match="Sequential has no layer '2'"):
        term(nn.Sequential(nn.Conv2d(1, 2, 3)))


def test_it_says_what_it_is() -> None:
    assert repr(OrthoReg(chain(), 1e-3)) == "OrthoReg(strength=0.001, layers=3)"


@pytest.mark.slow
def test_the_importance_of_several_filters_adds_up() -> None:
    outcomes = [example.run(seed) for seed in range(3)]
    without = [outcome.without for outcome in outcomes]
    regularized = [outcome.regularized for outcome in outcomes]
    gain = fmean(side.correlation for side in regularized) - fmean(s.correlation for s in without)
    assert gain > 0.1
    assert max(side.cosine for side in regularized) < 0.02 < min(side.cosine for side in without)
    worse = fmean(side.accuracy for side in without) - fmean(s.accuracy for s in regularized)
    assert worse < 0.01


def test_the_example_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(example, "EPOCHS", 1)
    monkeypatch.setattr(example, "GROUPS", 5)
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["orthoreg", "--picture", str(picture)])
    state = torch.get_rng_state()
    example.main()
    assert torch.equal(torch.get_rng_state(), state)
    header, without, regularized = capsys.readouterr().out.splitlines()
    assert "rank correlation" in header
    assert (without.split()[0], regularized.split()[0]) == ("without", "regularized")
    assert picture.stat().st_size > 5_000
