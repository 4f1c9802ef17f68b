"""Layer kinds at the level of their rules: what resizes them, what they cost, their filters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import difference
from torch import Tensor, nn

from epruner.pruning.data.calibration import Calibration
from epruner.pruning.graph.costs import Recorder, Totals, measure
from epruner.pruning.graph.groups import Group, Member, plan_of
from epruner.pruning.network.batches import Batches
from epruner.pruning.network.filters import filter_rows
from epruner.pruning.network.inputs import Arguments
from epruner.pruning.network.layers import rule_of, sides, ties
from epruner.pruning.plan.parts import ModulePlan
from epruner.pruning.plan.plan import Plan
from epruner.pruning.repair.least_squares import refit
from epruner.pruning.select.readers import measured
from epruner.pruning.select.substitution import substitution_losses

INPUTS, HIDDEN = 5, 6
STAYS, READ = (0, 2, 3, 5), (1, 2, 4)  # hidden units and inputs that are kept
LAYERS: list[tuple[Any, dict[str, Any]]] = [
    (kind, options)
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
    for options in (
        {},
        {"batch_first": True, "bias": False, "bidirectional": True},
        {"num_layers": 3, "bidirectional": True},
    )
]


def units_of(module: Any) -> tuple[tuple[int, ...], int]:
    """Output channels that the kept units are, and how many there are in all."""
    directions = 2 if getattr(module, "bidirectional", False) else 1
    kept = tuple(d * HIDDEN + unit for d in range(directions) for unit in STAYS)
    return kept, directions * HIDDEN


def both_sides(module: nn.Module) -> Plan:
    """The plan that drops hidden units and inputs."""
    kept, size = units_of(module)
    return Plan({"0": ModulePlan(kept, READ, size, INPUTS)})


def deaf(module: Any) -> Any:
    """A recurrent layer or cell that does not hear its own units, and inputs, that go."""
    silent = copy.deepcopy(module)
    gone = sorted(set(range(HIDDEN)) - set(STAYS))
    unread = sorted(set(range(INPUTS)) - set(READ))
    with torch.no_grad():
        for name, weight in silent.named_parameters():
            if "weight_hh" in name:
                weight[:, gone] = 0
            elif name in ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse"):
                weight[:, unread] = 0
            elif "weight_ih" in name:
                weight.view(len(weight), -1, HIDDEN)[:, :, gone] = 0
    return silent


@torch.no_grad()
@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=str)
def test_recurrent_layers_lose_units_of_all_gates_layers_and_directions(
    kind: Any, options: dict[str, Any]
) -> None:
    model = nn.Sequential(kind(INPUTS, HIDDEN, **options)).eval()
    layer: Any = model[0]
    kept, size = units_of(layer)
    assert sides(layer) == (size, INPUTS)
    small: Any = both_sides(layer).apply(model).get_submodule("0")
    assert (small.hidden_size, small.input_size) == (len(STAYS), len(READ))
    x = torch.randn(4, 3, INPUTS)
    expected, states = deaf(layer)(x)
    got, mine = small(x[..., READ])
    assert difference(got, expected[..., kept]) <= 1e-5
    if not isinstance(states, tuple):
        states, mine = (states,), (mine,)
    for state, of_mine in zip(states, mine, strict=True):
        assert difference(of_mine, state[..., STAYS]) <= 1e-5
    packed = nn.utils.rnn.pack_padded_sequence(x[..., READ], torch.tensor([4, 2, 1]))
    assert small(packed)[0].data.shape == (7, len(kept))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_cells_lose_units(kind: Any, bias: bool) -> None:
    model = nn.Sequential(kind(INPUTS, HIDDEN, bias=bias))
    cell: Any = model[0]
    small: Any = both_sides(cell).apply(model).get_submodule("0")
    assert (small.hidden_size, small.input_size) == (len(STAYS), len(READ))
    full, state, mine = deaf(cell), None, None
    for x in torch.randn(3, 2, INPUTS):
        state, mine = full(x, state), small(x[:, READ], mine)
        now, my = (s if isinstance(s, Tensor) else s[0] for s in (state, mine))
        assert difference(my, now[:, STAYS]) <= 1e-5


@pytest.mark.parametrize(
    ("kind", "options"), [*LAYERS, (nn.LSTMCell, {}), (nn.GRUCell, {"bias": False})], ids=str
)
def test_costs_of_recurrent_layers_are_exact(kind: Any, options: dict[str, Any]) -> None:
    model = nn.Sequential(kind(INPUTS, HIDDEN, **options))
    x = torch.randn(4, 3, INPUTS) if isinstance(model[0], nn.RNNBase) else torch.randn(3, INPUTS)
    recorder = Recorder(model)
    with recorder.recording():
        model(x)
    costs = recorder.costs()
    assert costs.totals() == measure(model, (x,))
    for module in (both_sides(model[0]), Plan({"0": ModulePlan(in_=READ, in_before=INPUTS)})):
        small = module.apply(model)
        expected = measure(small, (x[..., READ],))
        got = costs.totals({"0": sides(small.get_submodule("0"))})
        assert got == Totals(expected.macs, expected.params, expected.macs)


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=str)
def test_filters_of_recurrent_layers(kind: Any, options: dict[str, Any]) -> None:
    layer: Any = kind(INPUTS, HIDDEN, **options)
    rows = filter_rows(layer)
    for direction, suffix in enumerate(("", "_reverse")[: len(rows) // HIDDEN]):
        for unit in range(HIDDEN):
            own = [
                weight[unit::HIDDEN].flatten()  # of every gate
                for depth in range(layer.num_layers)
                for weight in (
                    getattr(layer, f"weight_ih_l{depth}{suffix}"),
                    getattr(layer, f"weight_hh_l{depth}{suffix}"),
                )
            ]
            assert torch.equal(rows[direction * HIDDEN + unit], torch.cat(own))
    tied = ties(layer)
    assert tied is not None
    assert tied.tolist() == list(range(HIDDEN)) * (len(rows) // HIDDEN)


def test_what_recurrent_layers_refuse() -> None:
    projected = nn.LSTM(INPUTS, HIDDEN, proj_size=2)
    assert rule_of(projected).mixes(projected)
    with pytest.raises(ValueError, match="no rule resizes '0', a LSTM"):
        both_sides(projected).apply(nn.Sequential(projected))
    both = nn.Sequential(nn.GRU(INPUTS, HIDDEN, bidirectional=True))
    with pytest.raises(ValueError, match="keep different units"):
        Plan({"0": ModulePlan(out=(0, 1, 7), out_before=12)}).apply(both)


def test_small_recurrent_layers_train_and_are_drawn_anew() -> None:
    model = nn.Sequential(nn.LSTM(INPUTS, HIDDEN, 2, bidirectional=True))
    plan = both_sides(model[0])
    small = plan.apply(model, init="random")
    assert not torch.equal(
        small.get_parameter("0.weight_hh_l1"), plan.apply(model).get_parameter("0.weight_hh_l1")
    )
    sliced = plan.apply(model, init="random_projection").state_dict()
    assert all(torch.equal(x, sliced[name]) for name, x in plan.apply(model).state_dict().items())
    small(torch.randn(4, 3, len(READ)))[0].sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@torch.no_grad()
@pytest.mark.parametrize("affine", [True, False])
def test_group_norms_lose_whole_groups(affine: bool) -> None:
    norm = nn.GroupNorm(4, 12, affine=affine)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    tied = ties(norm)
    assert tied is not None
    assert tied.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    kept = (3, 4, 5, 9, 10, 11)
    model = nn.Sequential(norm)
    small: Any = Plan({"0": ModulePlan(kept, out_before=12)}).apply(model).get_submodule("0")
    assert (small.num_groups, small.num_channels) == (2, 6)
    x = torch.randn(2, 12, 5)
    assert difference(small(x[:, kept]), norm(x)[:, kept]) <= 1e-5
    with pytest.raises(ValueError, match="GroupNorm of 3 channels a group keeps parts"):
        Plan({"0": ModulePlan((3, 4, 5, 9), out_before=12)}).apply(model)


def test_which_norms_tie_channels() -> None:
    tying = {(1, 6): False, (6, 6): False, (2, 6): True, (1, 1): False}
    for (groups, channels), tied in tying.items():
        norm = nn.GroupNorm(groups, channels)
        assert not rule_of(norm).mixes(norm)
        assert (ties(norm) is not None) == tied


class Conv1D(nn.Module):
    """GPT-2's linear layer."""

    def __init__(self, nf: int, nx: int, *, newer: bool = True) -> None:
        super().__init__()
        self.nf = nf
        if newer:
            self.nx = nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(
            *x.shape[:-1], self.nf
        )


@torch.no_grad()
@pytest.mark.parametrize("newer", [True, False])
def test_the_linear_layer_of_gpt2(newer: bool) -> None:
    layer = Conv1D(8, INPUTS, newer=newer)
    linear = nn.Linear(INPUTS, 8)
    linear.weight.copy_(layer.weight.T)
    linear.bias.copy_(layer.bias)
    models = [nn.Sequential(module) for module in (layer, linear)]
    x = torch.randn(2, 3, INPUTS)
    assert measure(models[0], (x,)) == measure(models[1], (x,))
    assert torch.equal(filter_rows(layer), filter_rows(linear))
    plan = Plan({"0": ModulePlan((0, 5, 6), READ, 8, INPUTS)})
    small, expected = (plan.apply(model) for model in models)
    assert torch.equal(small.get_parameter("0.weight"), expected.get_parameter("0.weight").T)
    assert difference(small(x[..., READ]), expected(x[..., READ])) <= 1e-5
    assert vars(small.get_submodule("0")).get("nx", 3) == 3
    random = [plan.apply(model, init="random_projection", random_state=1) for model in models]
    assert torch.equal(random[0].get_parameter("0.weight"), random[1].get_parameter("0.weight").T)
    drawn = plan.apply(models[0], init="random").get_parameter("0.weight")
    assert 0 < drawn.abs().max() < 0.2


class Block(nn.Module):
    """GPT-2's MLP on a stream, with either kind of linear layer."""

    def __init__(self, kind: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.up, self.down = kind(8, INPUTS), kind(INPUTS, 8)

    def forward(self, x: Tensor) -> Any:
        return x + self.down(torch.relu(self.up(x)))


@torch.no_grad()
def test_the_linear_layer_of_gpt2_is_refit_and_read_as_any_other() -> None:
    block, twin = Block(Conv1D).eval(), Block(lambda nf, nx: nn.Linear(nx, nf)).eval()
    for name, tensor in block.named_parameters():
        twin.get_parameter(name).copy_(tensor.t())
    units = np.arange(8)
    sides = (Member("up", units, units, 8),), (), (Member("down", units, units, 8),)
    group = Group("up", 8, 1, False, *sides)
    plan = plan_of([group], {"up": np.array([0, 2, 3, 5, 7])})
    batches: list[Arguments] = [((torch.randn(16, 3, INPUTS),), {}) for _ in range(3)]
    outputs, losses = [], []
    for model in (block, twin):
        small = plan.apply(model)
        before = small(*batches[2][0])
        found = refit(model, small, plan, Calibration(Batches(batches[:2]), Batches(batches[2:])))
        assert found.record is not None
        assert [layer.name for layer in found.record.layers] == ["down"]
        assert found.record.after < found.record.before
        assert torch.equal(small(*batches[2][0]), before)
        outputs.append(found.model(*batches[2][0]))
        losses.append(measured(model, [group], Batches(batches), substitution_losses)[0]["up"])
    assert difference(outputs[0], outputs[1]) <= 1e-5
    assert np.allclose(losses[0], losses[1], rtol=1e-5)


def test_other_modules_of_that_name_are_not_known() -> None:
    other = type("Conv1D", (nn.Module,), {})()
    assert rule_of(other).mixes(other)
    assert sides(other) == (0, 0)
