"""Exemplars as an importance, inside Torch-Pruning's own pruner."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch_pruning as tp
from digits import SHAPE, Digits
from networks import stirred
from torch import Tensor, nn

from epruner import affinity_propagation_many
from epruner.cluster.similarity import negative_squared_distances
from epruner.integrations.torch_pruning import ExemplarImportance
from epruner.pruning.select.importance import rank_by_exemplars, resize_exemplars

IMAGE = torch.zeros(1, 3, 8, 8)


def plain() -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def pruner(model: nn.Module, example: Tensor, last: nn.Module, **options: Any) -> Any:
    """A pruner that leaves the last layer whole; its dictionaries are its own."""
    mine: dict[str, Any] = {
        name: {} for name in ("in_channel_groups", "out_channel_groups", "num_heads")
    }
    importance = options.pop("importance", ExemplarImportance())
    return tp.pruner.MagnitudePruner(
        model, example, importance, ignored_layers=[last], **(mine | options)
    )


def group_of(model: nn.Module, layer: nn.Module, example: Tensor) -> tp.Group:
    graph = tp.DependencyGraph().build_dependency(model, example)
    channels = list(range(graph.get_out_channels(layer)))
    kind = (
        tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
    )
    return graph.get_pruning_group(layer, kind, channels)


def exemplars_of(rows: Tensor, beta: float = 1.0) -> npt.NDArray[np.intp]:
    """The published rule, step by step."""
    S = negative_squared_distances(rows.detach().flatten(1).numpy())
    return affinity_propagation_many([S], preference=[beta * np.median(S, axis=0)])[0].exemplars


def kept(before: Tensor, after: Tensor) -> set[int]:
    """Rows of a matrix that are in a smaller one."""
    same = (before.flatten(1)[:, None] == after.flatten(1)).all(dim=2)
    return set(same.any(dim=1).nonzero().flatten().tolist())


@pytest.mark.parametrize("beta", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("at", [0, 3, 7])
def test_exemplars_score_above_one_and_all_others_below(at: int, beta: float) -> None:
    model = stirred(plain())
    scores = ExemplarImportance(beta)(group_of(model, model[at], IMAGE))
    assert scores is not None
    assert scores.dtype == torch.float32
    assert len(set(scores.tolist())) == len(scores) == len(model[at].weight)
    assert 0 < float(scores.min()) < float(scores.max()) < 2
    found = (scores > 1).nonzero().flatten().numpy()
    np.testing.assert_array_equal(found, exemplars_of(model[at].weight, beta))


def test_every_ratio_keeps_what_this_projects_own_selection_keeps() -> None:
    model = stirred(plain())
    rows = model[3].weight.detach().flatten(1).numpy()
    S = negative_squared_distances(rows)
    exemplars = exemplars_of(model[3].weight)
    scores = ExemplarImportance()(group_of(model, model[3], IMAGE))
    order = rank_by_exemplars(S, exemplars)
    assert scores is not None
    np.testing.assert_array_equal(scores.argsort(descending=True), order)
    for count in range(1, 25):
        np.testing.assert_array_equal(np.sort(order[:count]), resize_exemplars(S, exemplars, count))


def test_the_order_without_exemplars() -> None:
    S = negative_squared_distances(np.random.default_rng(0).normal(size=(9, 2)))
    none = np.empty(0, np.intp)
    assert sorted(rank_by_exemplars(S, none).tolist()) == list(range(9))
    assert rank_by_exemplars(S, none)[0] == S.sum(axis=0).argmax()


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_a_plain_network_keeps_its_exemplars(ratio: float) -> None:
    model = stirred(plain())
    before = copy.deepcopy(model)
    pruner(model, IMAGE, model[-1], pruning_ratio=ratio).step()
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    exemplars = set(exemplars_of(before[0].weight).tolist())
    stay = kept(before[0].weight, model[0].weight)
    assert len(stay) == len(model[0].weight) == int(16 * (1 - ratio))
    assert exemplars <= stay or stay <= exemplars


def test_repeatable_and_nested() -> None:
    whole, found = stirred(plain()), []
    for ratio in (0.6, 0.6, 0.3):
        model = copy.deepcopy(whole)
        pruner(model, IMAGE, model[-1], pruning_ratio=ratio).step()
        found.append(kept(whole[0].weight, model[0].weight))
    assert found[0] == found[1]
    assert found[0] < found[2]


@pytest.mark.parametrize("ratio", [0.1, 0.3])
def test_a_residual_network(digits: Digits, ratio: float) -> None:
    network: Any = digits.network()
    before: Any = digits.network()
    pruner(network, torch.zeros(SHAPE), network.head, pruning_ratio=ratio).step()
    assert len(network.stem.weight) == int(24 * (1 - ratio))
    assert network(digits.test_images[:3]).shape == (3, 10)
    # what the stem and the first block write is added: both choose
    joint = torch.cat([before.stem.weight.flatten(1), before.blocks[0].conv2.weight.flatten(1)], 1)
    exemplars = set(exemplars_of(joint).tolist())
    stay = kept(before.stem.weight, network.stem.weight)
    assert exemplars <= stay or stay <= exemplars


def test_one_ranking_for_all_layers_leaves_each_its_exemplars(digits: Digits) -> None:
    network = digits.network()
    exemplars, channels = {}, 0

    def importance(group: tp.Group) -> Tensor | None:
        scores = ExemplarImportance()(group)
        assert scores is not None
        exemplars[group[0].dep.target.module] = int((scores > 1).sum())
        return scores

    asked = {"importance": importance, "global_pruning": True}
    graph = pruner(network, torch.zeros(SHAPE), network.head, **asked).DG
    for group in graph.get_all_groups(ignored_layers=[network.head]):
        importance(group)
        channels += len(group[0].idxs)
    share = 1 - sum(exemplars.values()) / channels
    pruner(network, torch.zeros(SHAPE), network.head, pruning_ratio=share, **asked).step()
    assert {layer: len(layer.weight) for layer in exemplars} == exemplars
    assert network(digits.test_images[:3]).shape == (3, 10)


@pytest.mark.parametrize(
    "options",
    [
        {"iterative_steps": 3},
        {"round_to": 8},
        {"global_pruning": True, "isomorphic": True},
        {"pruning_ratio_dict": {}},
        {"max_pruning_ratio": 0.4, "global_pruning": True},
    ],
)
def test_whatever_else_the_pruner_is_asked_for(options: dict[str, Any]) -> None:
    model = stirred(plain())
    steps = pruner(model, IMAGE, model[-1], **options)
    while steps.current_step < steps.iterative_steps:
        steps.step()
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    assert 2 <= len(model[0].weight) <= 12


def test_grouped_convolutions_lose_the_same_places_of_each_group() -> None:
    model: Any = stirred(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(16, 32, 3, padding=1, groups=4),
            nn.Conv2d(32, 32, 3, groups=32),
            nn.Conv2d(32, 8, 1),
        )
    )
    scores = ExemplarImportance()(group_of(model, model[1], IMAGE))
    assert scores is not None
    np.testing.assert_array_equal(scores.view(4, 8), scores[:8].expand(4, 8))
    places = model[1].weight.view(4, 8, -1).movedim(0, 1).flatten(1)
    found = (scores[:8] > 1).nonzero().flatten().numpy()
    np.testing.assert_array_equal(found, exemplars_of(places))
    pruner(model, IMAGE, model[-1]).step()
    assert [len(layer.weight) for layer in model] == [8, 16, 16, 8]
    assert model(IMAGE).shape == (1, 8, 6, 6)


def test_transposed_convolutions() -> None:
    model: Any = stirred(
        nn.Sequential(nn.ConvTranspose2d(3, 12, 2, 2), nn.ReLU(), nn.Conv2d(12, 4, 3))
    )
    filters = model[0].weight.detach().movedim(1, 0)
    exemplars = set(exemplars_of(filters).tolist())
    pruner(model, IMAGE, model[-1]).step()
    stay = kept(filters, model[0].weight.movedim(1, 0))
    assert len(stay) == 6
    assert exemplars <= stay or stay <= exemplars
    assert model(IMAGE).shape == (1, 4, 14, 14)


def test_equal_filters_have_one_exemplar() -> None:
    model = stirred(plain())
    with torch.no_grad():
        model[0].weight[4:14] = model[0].weight[3]
        model[3].weight.zero_()
    scores = ExemplarImportance()(group_of(model, model[0], IMAGE))
    dead = ExemplarImportance()(group_of(model, model[3], IMAGE))
    assert scores is not None
    assert dead is not None
    assert int((scores[3:14] > 1).sum()) == 1
    alone = {0, 1, 2, 14, 15}
    assert alone < set(scores.topk(6).indices.tolist())  # and one of the others
    assert int((dead > 1).sum()) == 1
    pruner(model, IMAGE, model[-1], global_pruning=True).step()
    assert model(IMAGE).shape == (1, 10)


class Attention(nn.Module):
    """One layer of self-attention with four heads, on a residual stream."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        widths = [96] if fused else [32, 32, 32]
        self.parts = nn.ModuleList([nn.Linear(32, width) for width in widths])
        self.project = nn.Linear(32, 32)
        self.head = nn.Linear(32, 5)
        self.heads = 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        made = [part(x) for part in self.parts]
        q, k, v = (
            t.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for t in (made[0].chunk(3, -1) if len(made) == 1 else made)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.head((x + self.project(y.reshape(*x.shape[:2], -1))).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("whole_heads", [True, False])
def test_attention(fused: bool, whole_heads: bool) -> None:
    model: Any = Attention(fused)
    x = torch.randn(2, 6, 8)
    heads = dict.fromkeys(model.parts, 4)
    options: dict[str, Any] = {
        "prune_num_heads": True,
        "prune_head_dims": False,
        "head_pruning_ratio": 0.5,
    }
    pruner(model, x, model.head, num_heads=heads, **(options if whole_heads else {})).step()
    model.heads = next(iter(heads.values()))
    assert model.heads == (2 if whole_heads else 4)
    assert (model.project.in_features, model.project.out_features) == (16, 16)
    assert model(x).shape == (2, 5)


class Concatenation(nn.Module):
    """A concatenation that something is added to: one layer makes a part of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(16, 16, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x).relu()
        y = torch.cat([a, self.b(a)], 1)
        return self.head(y + self.c(y))  # type: ignore[no-any-return]


def test_a_layer_that_makes_some_of_the_channels() -> None:
    model: Any = Concatenation().eval()
    pruner(model, IMAGE, model.head).step()
    assert model.a.out_channels + model.b.out_channels == model.c.out_channels == 8
    assert model(IMAGE).shape == (1, 4, 8, 8)


def test_a_group_without_filters_has_no_scores() -> None:
    graph = tp.DependencyGraph().build_dependency(nn.LSTM(8, 16), torch.zeros(1, 5, 8))
    (group,) = graph.get_all_groups(root_module_types=[nn.LSTM])
    assert ExemplarImportance()(group) is None


def test_a_group_of_some_channels_has_as_many_scores() -> None:
    model = stirred(plain())
    graph = tp.DependencyGraph().build_dependency(model, IMAGE)
    group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [2, 6, 9])
    scores = ExemplarImportance()(group)
    assert scores is not None
    assert scores.shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_other_types(dtype: torch.dtype) -> None:
    model = stirred(plain()).to(dtype)
    scores = ExemplarImportance()(group_of(model, model[0], IMAGE.to(dtype)))
    assert scores is not None
    assert scores.shape == (16,)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": 0}, ValueError, "beta=0 must be positive"),
        ({"beta": "1"}, TypeError, "beta='1' must be a number"),
        ({"n_threads": 0}, ValueError, "n_threads"),
    ],
)
def test_wrong_values(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ExemplarImportance(**options)
