"""Exemplars as an importance inside Torch-Pruning's own pruners."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import networks
import numpy as np
import pytest
import sklearn.cluster
import torch
import torch_pruning
from digits import Digits
from networks import stirred
from sklearn.metrics import euclidean_distances
from torch import nn

from epruner.integrations.torch_pruning import ExemplarImportance

IMAGE = (1, 3, 16, 16)


def groups_of(model: nn.Module, shape: tuple[int, ...] = IMAGE) -> list[Any]:
    graph = torch_pruning.DependencyGraph().build_dependency(model, torch.randn(shape))
    return list(graph.get_all_groups())


def group_of(model: nn.Module, name: str) -> Any:
    """The group that begins with a layer."""
    layer = model.get_submodule(name)
    return next(g for g in groups_of(model) if g[0].dep.target.module is layer)


def pruned(model: nn.Module, shape: tuple[int, ...], last: nn.Module, **options: Any) -> nn.Module:
    pruner = torch_pruning.pruner.BasePruner(
        model,
        torch.randn(shape),
        importance=ExemplarImportance(),
        ignored_layers=[last],
        **options,
    )
    pruner.step()
    return model


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_at_one_price_scores_of_one_are_scikit_learns_exemplars(beta: float) -> None:
    model = stirred(networks.Vgg())
    group = group_of(model, "features.3")
    layer = group[0].dep.target.module
    rows = layer.weight.detach().flatten(1).double().numpy()
    S = -euclidean_distances(rows, squared=True)
    exemplars, labels = sklearn.cluster.affinity_propagation(
        S, preference=beta * np.median(S, axis=0), damping=0.7, max_iter=1000, random_state=0
    )
    scores = ExemplarImportance((beta,))(group)
    assert scores is not None
    np.testing.assert_array_equal(np.flatnonzero(scores == 1), exemplars)
    parts = S[np.arange(len(S)), exemplars[labels]] / (beta * np.median(S, axis=0))
    others = np.setdiff1d(np.arange(len(S)), exemplars)
    np.testing.assert_allclose(scores[others], parts[others], rtol=1e-4)


def test_of_equal_filters_all_but_one_go_first() -> None:
    model = stirred(networks.Vgg())
    with torch.no_grad():
        weight = model.get_parameter("features.0.weight")
        weight[8:] = weight[:8]
    scores = ExemplarImportance()(group_of(model, "features.0"))
    assert scores is not None
    pairs = torch.stack([scores[:8], scores[8:]])
    assert pairs.min(0).values.max() < 0.5 * pairs.max(0).values.min()


@pytest.mark.parametrize("global_pruning", [False, True])
def test_a_trained_residual_network_is_pruned_the_same_each_time(
    digits: Digits, global_pruning: bool
) -> None:
    shape = (1, 1, 8, 8)
    small = digits.network()
    options = {"pruning_ratio": 0.3, "global_pruning": global_pruning}
    pruned(small, shape, small.head, **options)
    assert small(torch.randn(3, 1, 8, 8)).shape == (3, 10)
    widths = [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)]
    whole = [m.out_channels for m in digits.network().modules() if isinstance(m, nn.Conv2d)]
    assert sum(widths) < 0.8 * sum(whole)
    again = digits.network()
    pruned(again, shape, again.head, **options)
    for one, other in zip(small.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_plain_network_is_pruned_in_steps() -> None:
    model = stirred(networks.Vgg())
    before = copy.deepcopy(model)
    importance = ExemplarImportance((0.5, 1.0))
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    pruner = torch_pruning.pruner.BasePruner(
        model, torch.randn(IMAGE), importance, pruning_ratio=0.5, iterative_steps=2,
        ignored_layers=[last],
    )  # fmt: skip
    for _ in range(2):
        pruner.step()
    first = model.get_parameter("features.0.weight")
    assert 2 * len(first) == len(before.get_parameter("features.0.weight"))
    assert model(torch.randn(2, 3, 16, 16)).isfinite().all()


class Odd(nn.Module):
    """Grouped and transposed convolutions, a sum, a concatenation and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.c = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) -> (n, 5)."""
        x = self.a(x)
        x = x + self.b(x)
        parts = [self.up(x).mean((2, 3)), self.c(x).mean((2, 3))]
        return self.head(torch.cat(parts, 1))  # type: ignore[no-any-return]


def test_layers_of_all_kinds() -> None:
    model = Odd()
    importance = ExemplarImportance(n_threads=1)
    sizes = {}
    for group in groups_of(model, (1, 3, 8, 8)):
        scores = importance(group)
        assert scores is not None
        assert scores.shape == (len(group[0].idxs),)
        assert ((scores >= 0) & (scores <= 1)).all()
        sizes[group[0].dep.target.name.split(" ")[0]] = len(scores)
    assert sorted(sizes.values()) == [5, 6, 6, 8]
    pruned(model, (1, 3, 8, 8), model.head, pruning_ratio=0.5)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)


def test_wrong_input_is_said() -> None:
    with pytest.raises(ValueError, match=r"betas=\(0, 1\) must be one or more positive numbers"):
        ExemplarImportance((0, 1))
    model = networks.Vgg()
    nn.init.constant_(model.get_parameter("features.0.weight"), float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        ExemplarImportance()(group_of(model, "features.0"))


def test_without_torch_pruning_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['torch_pruning'] = None\nimport epruner.integrations.torch_pruning"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'epruner[prune]"' in done.stderr or '[prune]"' in done.stderr
