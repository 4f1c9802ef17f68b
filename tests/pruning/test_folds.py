"""Groups a channel of which is several filters: the rows of a head, both halves of a gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from networks import difference, silenced
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.pruning.graph.groups import Group, Member, plan_of
from epruner.pruning.network.batches import Batches
from epruner.pruning.network.filters import joint_rows
from epruner.pruning.plan.plan import Plan
from epruner.pruning.repair.merge import merge
from epruner.pruning.select.elimination import eliminate
from epruner.pruning.select.features import features_of, folded_matrix
from epruner.pruning.select.importance import Matrix
from epruner.pruning.select.problems import make_layers
from epruner.pruning.select.readers import Reader, measured
from epruner.pruning.select.substitution import substitution_losses

WIDTH, HEADS = 12, 4
KEPT = np.array([0, 3])


def member(module: str, entries: Any, size: int) -> Member:
    """A side of a module, of which `entries` (channels, fold) are the group's."""
    entries = np.asarray(entries)
    root = np.repeat(np.arange(len(entries)), entries.shape[1])
    return Member(module, entries.reshape(-1), root, size)


class Attention(nn.Module):
    """Self-attention with separate projections and the numbers that BERT's has."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.heads, self.head_size, self.all_head_size = HEADS, WIDTH // HEADS, WIDTH

    def forward(self, x: Tensor) -> Any:
        q, k, v = (
            part(x).view(*x.shape[:-1], self.heads, self.head_size).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(y.reshape(*x.shape[:-1], self.all_head_size))


def heads() -> tuple[nn.Module, Group]:
    """Attention with separate projections, and the group of its heads."""
    model = nn.Sequential(Attention()).eval()
    rows = np.arange(WIDTH).reshape(HEADS, -1)
    producers = tuple(member(f"0.{name}", rows, WIDTH) for name in ("query", "key", "value"))
    group = Group("0.query", HEADS, 1, False, producers, (), (member("0.out", rows, WIDTH),))
    return model, group


class Gated(nn.Module):
    """A convolution, BatchNorm, and the gated linear unit of their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)
        self.norm = nn.BatchNorm2d(10)
        self.head = nn.Conv2d(5, 2, 1)
        for parameter in (*self.conv.parameters(), *self.norm.parameters()):
            nn.init.normal_(parameter)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.glu(self.norm(self.conv(x)), 1))


def gates() -> tuple[Gated, Group]:
    """The network, and the group of its gated channels."""
    halves = np.arange(10).reshape(2, 5).T
    group = Group(
        "conv", 5, 1, False,
        (member("conv", halves, 10),),
        (member("norm", halves, 10),),
        (member("head", np.arange(5)[:, None], 5),),
    )  # fmt: skip
    return Gated().eval(), group


def test_entries_are_by_channel_in_the_order_of_the_index() -> None:
    side = Member("x", np.array([0, 1, 2, 5, 4, 3]), np.array([0, 1, 2, 2, 1, 0]), 6)
    assert side.fold == 2
    assert side.entries.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_rows_of_a_head_are_side_by_side() -> None:
    model, group = heads()
    modules: dict[str, Any] = dict(model.named_modules())
    rows = joint_rows((modules[m.module], m.entries) for m in group.producers)
    assert rows.shape == (HEADS, 3 * 3 * WIDTH)
    for head in range(HEADS):
        own = [modules[m.module].weight[3 * head : 3 * head + 3] for m in group.producers]
        assert torch.equal(rows[head], torch.cat(own).flatten())
    (layer,), _ = make_layers(
        modules, [group], min_filters=None, round_to=1, described={}, n_threads=1
    )
    assert layer.channels == HEADS
    assert np.array_equal(layer.features[0], rows.numpy())


@torch.no_grad()
def test_heads_are_dropped_and_numbers_change() -> None:
    model, group = heads()
    numbers = {"0": {"heads": (HEADS, 2), "all_head_size": (WIDTH, 6)}}
    plan = Plan(plan_of([group], {group.name: KEPT}).modules, numbers)
    x = torch.randn(2, 5, WIDTH)
    assert plan.modules["0.key"].out == (0, 1, 2, 9, 10, 11)

    small = plan.apply(model)
    assert difference(small(x), silenced(model, plan)(x)) <= 1e-5
    assert torch.equal(Plan.from_json(plan.to_json()).apply(model)(x), small(x))


def test_features_of_ones_own_are_by_filter() -> None:
    model, group = heads()

    def sums(layer: Any) -> Matrix:
        found: Matrix = layer.weight.detach().numpy().sum(1, keepdims=True)
        return found

    found = features_of(sums, model, [group], Batches())[group.name]
    modules: dict[str, Any] = dict(model.named_modules())
    expected = [sums(modules[m.module]).reshape(HEADS, 3) for m in group.producers]
    assert np.array_equal(found, np.concatenate(expected, 1))
    with pytest.raises(ValueError, match=r"shape \(4, 1\) for '0.query'; .* its 12 filters"):
        features_of(lambda layer: sums(layer)[:4], model, [group], Batches())


@torch.no_grad()
def test_what_norms_make_of_both_halves() -> None:
    model, group = gates()
    norm: Any = model.norm
    conv: Any = model.conv
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    rows = conv.weight.flatten(1) * scale[:, None]
    shift = conv.bias * scale + norm.bias
    expected = torch.cat([rows[:5], rows[5:], shift.view(2, 5).T], 1)
    found = folded_matrix(dict(model.named_modules()), group)
    assert np.allclose(found, expected.numpy(), atol=1e-6)


@torch.no_grad()
def test_responses_of_both_halves() -> None:
    model, group = gates()
    x = torch.randn(6, 3, 5, 5)
    found = features_of("activations", model, [group], Batches([((x,), {})]))[group.name]
    assert found.shape == (5, 2 * 6 * 9)
    responses = model.norm(model.conv(x)).movedim(1, 0).flatten(1).numpy()
    for channel in range(5):
        for half, part in enumerate(np.split(found[channel], 2)):
            assert np.allclose(np.sort(part), np.sort(responses[channel + 5 * half]), atol=1e-6)


@torch.no_grad()
def test_heads_are_ranked_by_what_reads_them() -> None:
    model, group = heads()
    attention: Any = model.get_submodule("0")
    attention.out.weight[:, 6:9] = 0  # of head 2, nothing is read
    x = torch.randn(40, 5, WIDTH)

    def keep(readers: Any) -> list[Reader]:
        return list(readers)

    found, notes = measured(model, [group], Batches([((x,), {})]), keep)
    assert not notes
    (reader,) = found[group.name]
    assert reader.channels == HEADS
    assert reader.gram.shape == (WIDTH, WIDTH)
    assert np.array_equal(reader.weights[6:9], np.zeros((3, WIDTH)))
    order = eliminate([reader])
    assert order.order[0] == 2
    assert order.errors[3] <= 1e-12 < order.errors[2]
    losses = substitution_losses([reader])
    assert losses.shape == (HEADS, HEADS)
    assert not losses[2].any()
    read = float((reader.weights[:3] * (reader.gram[:3, :3] @ reader.weights[:3])).sum())
    assert (losses[0, 1:] <= read * (1 + 1e-9)).all()  # at most all that is read of head 0


@torch.no_grad()
@pytest.mark.parametrize("make", [heads, gates])
def test_merging_leaves_them_alone(make: Any) -> None:
    model, group = make()
    plan = plan_of([group], {group.name: KEPT})
    small = plan.apply(model)
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    (note,) = merge(model, small, plan, [group])
    assert note.startswith(f"merge left off for {group.name}: each of its channels is made of")
    assert all(torch.equal(before[name], tensor) for name, tensor in small.state_dict().items())


@torch.no_grad()
def test_merging_where_a_layer_has_two_groups() -> None:
    model = nn.ModuleDict({"up": nn.Linear(3, 6), "read": nn.Linear(3, 2)})
    up: Any = model["up"]
    up.weight[5], up.bias[5] = 2 * up.weight[3], 2 * up.bias[3]
    producer = member("up", np.arange(3, 6)[:, None], 6)
    group = Group("up", 3, 1, False, (producer,), (), (member("read", np.arange(3)[:, None], 3),))
    plan = plan_of([group], {"up": np.array([0, 1])})
    assert plan.modules["up"].out == (0, 1, 2, 3, 4)
    small: Any = plan.apply(model)
    assert merge(model, small, plan, [group]) == []
    x = torch.randn(7, 3)
    assert difference(small["read"](small["up"](x)[:, 3:]), model["read"](up(x)[:, 3:])) <= 1e-5


@torch.no_grad()
def test_merging_leaves_recurrent_layers_alone() -> None:
    model = nn.ModuleDict({"up": nn.Linear(3, 4), "read": nn.GRU(4, 2), "head": nn.Linear(2, 2)})
    column = np.arange(4)[:, None]
    group = Group("up", 4, 1, False, (member("up", column, 4),), (), (member("read", column, 4),))
    plan = plan_of([group], {"up": KEPT})
    small = plan.apply(model)
    (note,) = merge(model, small, plan, [group])
    assert note.startswith("merge left off for up: grouped convolutions or recurrent layers read")
    whole = model.get_parameter("read.weight_ih_l0")
    assert torch.equal(small.get_parameter("read.weight_ih_l0"), whole[:, KEPT])
    units = np.arange(2)[:, None]
    group = Group("read", 2, 1, False, (member("read", units, 2),), (), (member("head", units, 2),))
    plan = plan_of([group], {"read": np.array([1])})
    (note,) = merge(model, plan.apply(model), plan, [group])
    assert note.startswith("merge left off for read: each of its channels")
