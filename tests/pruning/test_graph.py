"""What hangs together, what is left alone and why: every guard with a network that needs it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import networks
import pytest
import torch
from networks import cut, difference, silenced
from pytorchcv.model_provider import get_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from epruner.pruning import Constraints
from epruner.pruning.errors import TraceError
from epruner.pruning.graph.groups import Structure, find_groups
from epruner.pruning.network.copies import tracing_copy
from epruner.pruning.network.tree import tensors_in

IMAGE = (1, 3, 16, 16)


def structure_of(model: nn.Module, *args: Any, **kwargs: Any) -> Structure:
    """Analysis of a private copy."""
    traced, _ = tracing_copy(model)
    return find_groups(traced, args or (torch.randn(IMAGE),), kwargs)


def reasons(model: nn.Module, x: Any = IMAGE, **options: Any) -> dict[str, str]:
    """Reason of every layer that pruning leaves alone."""
    return {s.name: s.reason for s in cut(model, x, **options).report.skipped}


def test_a_chain_is_one_group_a_layer() -> None:
    structure = structure_of(networks.Vgg())
    assert [g.name for g in structure.groups] == [
        "features.0", "features.3", "features.7", "features.10", "features.14", "classifier.0",
    ]  # fmt: skip
    flattened = structure.groups[4]
    (head,) = flattened.consumers
    assert (head.module, head.size, head.fold) == ("classifier.0", 128, 4)
    assert head.index[head.root == 5].tolist() == [20, 21, 22, 23]
    assert [m.module for m in flattened.followers] == ["features.15"]


def test_concatenated_channels_keep_their_offset() -> None:
    structure = structure_of(networks.TwoInputs(), torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8))
    right = next(g for g in structure.groups if g.name == "right")
    (join,) = right.consumers
    assert join.index.tolist() == list(range(12, 22))
    assert join.root.tolist() == list(range(10))


def test_the_models_input_may_lie_between_the_parts_of_a_concatenation() -> None:
    groups = {g.name: g for g in structure_of(networks.InputConcat()).groups}
    (after_one,) = groups["first"].consumers
    assert after_one.index.tolist() == list(range(3, 15))
    (after_two,) = groups["second"].consumers
    assert (after_two.module, after_two.index.tolist()) == ("third", list(range(3, 13)))


def test_branches_that_are_thrown_away_are_followed() -> None:
    groups = {g.name: g for g in structure_of(networks.ThrownAway()).groups}
    assert [m.module for m in groups["stem"].consumers] == ["body", "aside"]
    assert [m.module for m in groups["aside"].consumers] == ["spare"]
    found = reasons(networks.ThrownAway())
    assert set(found) == {"spare", "head"}
    assert found["spare"] == "its channels are mixed: softmax runs along them"


def test_grouped_transposed_convolutions_are_left_alone() -> None:
    for scope in ("inner", "all"):
        found = reasons(networks.GroupedUpsampler(), scope=scope)
        assert set(found) == {"first", "up", "last"}
        for name in ("first", "up"):
            assert found[name] == "'up' is a grouped transposed convolution"


def test_a_gate_is_no_stream_but_a_sum_is() -> None:
    groups = {g.name: g for g in structure_of(networks.GroupedSqueezeExcite()).groups}
    assert [m.module for m in groups["grouped"].producers] == ["grouped", "excite"]
    assert not groups["grouped"].stream
    assert groups["stem"].stream
    assert groups["reduce"].blocks == groups["grouped"].blocks == 4
    assert not structure_of(networks.GatedMlp(), torch.randn(2, 12)).groups[0].stream


def test_the_output_keeps_its_channels() -> None:
    for model, last in ((networks.Vgg(), "classifier.2"), (networks.Upsampler(), "last")):
        assert {name for name, reason in reasons(model).items() if "output" in reason} == {last}
        kept = cut(model, IMAGE, beta=5.0).model.get_submodule(last)
        assert len(kept.weight) == len(model.get_submodule(last).weight)  # type: ignore[arg-type]
    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Softplus())
    assert reasons(features)["2"] == "its channels are the output of the model"


class AllOutputs(nn.Module):
    """Returns what its head reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 8, 3)
        self.c = nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        x = self.b(self.a(x).relu())
        return {"outputs": [x, self.c(x.relu())]}


def test_every_output_counts_however_nested() -> None:
    assert set(reasons(AllOutputs())) == {"b", "c"}


def test_padded_shortcuts_are_left_alone_and_named() -> None:
    model = networks.resnet20()
    for scope in ("inner", "all"):
        found = reasons(model, (1, 3, 32, 32), scope=scope)
        assert "pads its channels with zeros" in found["conv1"]
        assert "pads its channels with zeros" in found["layer2.1.conv2"]
        assert "layer2.1.conv1" not in found


def test_channel_shuffles_do_not_break_the_analysis() -> None:
    found = reasons(networks.ChannelShuffle())
    assert found["first"] == "its channels do not lie in the groups of 'second' as they are made"
    assert set(found) == {"first", "head"}
    torch.manual_seed(0)
    check_exact(networks.SplitNet(), "stem", each=2)  # the same channels of both halves


def test_shufflenet() -> None:
    model = get_model("shufflenetv2_wd2")
    found = reasons(model, (1, 3, 224, 224), beta=0.9, scope="all")
    assert "features.stage1.unit1.compress_conv1" not in found
    # pairs of halves, shuffled unit after unit, are the whole stage in the end
    assert "split into parts" in found["features.stage2.unit2.expand_conv3"]


def test_halves_of_split_channels_go_together() -> None:
    (both, _) = structure_of(networks.ChunkedMlp(), torch.randn(2, 12)).groups
    (member,) = both.producers
    assert both.channels == 40
    assert member.index[member.root == 3].tolist() == [3, 43]


def test_a_mean_counts_channels() -> None:
    found = reasons(networks.ChannelMean())
    assert found["second"] == "its channels are mixed: one number is made of them (mean)"
    assert "first" not in found
    assert "third" not in found


class LargeNoise(nn.Module):
    """Small differences between large numbers: in float32 rounding is large beside them."""

    def __init__(self, *, insist: bool) -> None:
        super().__init__()
        # sums of 3,600 and of 1,800 terms: no library adds them up in the same order
        self.first = nn.Conv2d(3, 400, 1)
        self.second = nn.Conv2d(400, 16, 3)
        self.head = nn.Linear(16, 4, bias=False)
        self.insist = insist
        nn.init.constant_(self.first.bias, 1e5)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Any:
        if self.insist:
            x = x @ torch.eye(x.shape[-1])
        y = self.second(torch.relu(self.first(x)))
        return self.head(torch.relu(y - y.mean((2, 3), keepdim=True)).mean((2, 3)))


def test_rounding_is_not_taken_for_mixing() -> None:
    torch.manual_seed(0)
    assert set(reasons(LargeNoise(insist=False))) == {"head"}
    # a forward pass that cannot be had in float64 gets no benefit of the doubt
    assert "more than silencing" in reasons(LargeNoise(insist=True))["first"]


class HardCodedView(nn.Module):
    """Its forward writes a number of channels down."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 10, 3, padding=1)
        self.head = nn.Linear(10 * 16, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.adaptive_max_pool2d(self.b(self.a(x).relu()).relu(), 4)
        return self.head(x.view(-1, 160))


def test_numbers_written_in_the_forward_are_left_alone() -> None:
    found = reasons(HardCodedView())
    assert "does not run without" in found["b"]
    assert "a" not in found


def test_shared_parameters_are_left_alone() -> None:
    tied = nn.Sequential(
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 9),
        nn.ReLU(),
        nn.Linear(9, 2),
    )
    tied[2].weight = tied[0].weight
    assert "parameters of '2' are shared with '0'" in reasons(tied, (1, 6))["2"]
    assert "shared" in reasons(tied, (1, 6))["0"]
    assert "4" not in reasons(tied, (1, 6))


def test_modules_used_twice_are_pruned_for_both_uses() -> None:
    groups = {g.name: g for g in structure_of(networks.Shared()).groups}
    assert [m.module for m in groups["stem"].producers] == ["stem", "twice"]
    assert [m.module for m in groups["stem"].consumers] == ["twice", "inner"]
    torch.manual_seed(0)
    check_exact(networks.Shared(), "stem")


def chain() -> Any:
    """Three pairs of layers and a head."""
    widths = [6, 8, 8, 8, 8]
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*layers, nn.Linear(8, 2))


def test_two_parameters_of_one_memory_stay_so() -> None:
    model = chain()
    model[2].weight.data = model[1].weight.data
    result = cut(model, (1, 6), beta=0.9)
    assert {s.name for s in result.report.skipped} == {"0", "1", "2", "4"}
    assert "3" in result.plan.modules
    small: Any = result.model
    assert small[2].weight.data_ptr() == small[1].weight.data_ptr()
    assert small[2].weight.data_ptr() != model[2].weight.data_ptr()
    model.half()  # which itself forgets it
    model[2].weight.data = model[1].weight.data
    halved: Any = cut(model, (1, 6), beta=0.9)
    assert {s.name for s in halved.report.skipped} == {"0", "1", "2", "4"}
    assert halved.model[2].weight.data_ptr() == halved.model[1].weight.data_ptr()


def test_shared_buffers_are_left_alone() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    model[3].running_mean = model[1].running_mean
    found = reasons(model)
    assert "parameters of '1' are shared with '3'" in found["0"]
    assert "parameters of '3' are shared with '1'" in found["2"]
    assert "4" not in found


def test_one_module_under_two_names_is_no_sharing() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = chain()
            self.middle = self.body[2]

        def forward(self, x: Tensor) -> Any:
            return self.body(x)

    model = Named()
    result = cut(model, (1, 6), beta=0.9)
    assert [x.name for x in result.report.layers] == [f"body.{i}" for i in range(4)]
    small: Any = result.model
    assert small.middle is small.body[2]
    again: Any = result.plan.apply(model)
    assert again.middle is again.body[2]
    x = torch.randn(5, 6)
    assert torch.equal(small(x), again(x))


def test_computed_weights_are_left_alone() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Conv2d(8, 8, 3),
        nn.ReLU(), nn.Conv2d(8, 9, 3), nn.ReLU(), nn.Conv2d(9, 2, 3),
    )  # fmt: skip
    found = reasons(model)
    assert "the weights of '0' are computed" in found["0"]
    assert set(found) == {"0", "6"}


def test_depthwise_multipliers_are_left_alone() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 9, 1), nn.Conv2d(9, 2, 1)
    )
    found = reasons(model)
    assert "channel multiplier" in found["0"]
    assert "channel multiplier" in found["1"]
    assert "2" not in found


class TwoGroupings(nn.Module):
    """Convolutions of two and of three groups read the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.twos = nn.Conv2d(12, 8, 1, groups=2)
        self.threes = nn.Conv2d(12, 9, 1, groups=3)
        self.head = nn.Conv2d(17, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.stem(x))
        return self.head(torch.cat([self.twos(x), self.threes(x)], 1))


def test_channels_grouped_in_two_ways_are_left_alone() -> None:
    found = reasons(TwoGroupings())
    assert found["stem"] == "convolutions of 2 and of 3 groups share its channels"
    assert set(found) == {"stem", "head"}


def test_frozen_layers_are_seen() -> None:
    frozen = networks.Vgg().requires_grad_(False)
    thawed = copy.deepcopy(frozen).requires_grad_(True)
    assert cut(frozen, IMAGE).plan == cut(thawed, IMAGE).plan


def test_no_grad_around_the_call_does_not_matter() -> None:
    model = networks.Vgg()
    with torch.no_grad():
        inside = cut(model, IMAGE)
    assert inside.plan == cut(model, IMAGE).plan


def test_a_forward_without_gradients_is_followed() -> None:
    class NoGrad(networks.Vgg):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Any:
            return super().forward(x)

    model = networks.Vgg()
    other = NoGrad()
    other.load_state_dict(model.state_dict())
    assert cut(other, IMAGE).plan == cut(model, IMAGE).plan


def test_a_failing_forward_names_the_module_and_what_to_check() -> None:
    with pytest.raises(TraceError, match=r"in module 'features\.0'.*inputs"):
        cut(networks.Vgg(), (1, 4, 16, 16))
    with pytest.raises(TraceError, match=r"missing 1 required positional argument.*keyword"):
        cut(networks.TwoInputs(), IMAGE)


def test_networks_without_filters_are_refused() -> None:
    with pytest.raises(ValueError, match="no convolution and no linear layer"):
        cut(nn.Sequential(nn.ReLU()), (1, 3))
    with pytest.raises(ValueError, match=r"nothing in this model can be pruned: 0: its channels"):
        cut(nn.Sequential(nn.Linear(3, 3)), (1, 3))


@pytest.mark.parametrize("transposed", [False, True])
def test_transposed_convolutions(transposed: bool) -> None:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    groups = {
        g.name: g
        for g in structure_of(
            nn.Sequential(kind(3, 8, 3), nn.ReLU(), kind(8, 5, 3), kind(5, 2, 1))
        ).groups
    }
    assert {name: g.channels for name, g in groups.items()} == {"0": 8, "2": 5}


class FlattenedHeads(nn.Module):
    """Heads at two scales, flattened and concatenated inside and at the output (as SSD does)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(3, 8, 3, padding=1)
        self.fine = nn.Conv2d(8, 6, 1)
        self.coarse = nn.Conv2d(8, 6, 1)
        self.mix = nn.Linear(6 * 64 + 6 * 16, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.trunk(x))
        fine = F.adaptive_avg_pool2d(F.relu(self.fine(x)), 8).flatten(1)
        coarse = F.adaptive_avg_pool2d(F.relu(self.coarse(x)), 4).flatten(1)
        y = self.head(F.relu(self.mix(torch.cat([fine, coarse], 1))))
        return torch.cat([y, coarse * 2], 1)


def test_flattened_heads_may_be_concatenated() -> None:
    groups = {g.name: g for g in structure_of(FlattenedHeads(), torch.randn(1, 3, 16, 16)).groups}
    (mix,) = groups["fine"].consumers
    assert (mix.module, mix.size, mix.fold) == ("mix", 6 * 64 + 6 * 16, 64)
    assert reasons(FlattenedHeads())["coarse"] == "its channels are the output of the model"


class GroupedFlattened(nn.Module):
    """A grouped convolution whose flattened map a linear layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 12, 1, groups=2)
        self.hidden = nn.Linear(12 * 4, 10)
        self.head = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Any:
        x = F.adaptive_avg_pool2d(self.grouped(torch.relu(self.stem(x))), 2).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def test_flattened_grouped_channels_are_left_alone() -> None:
    found = reasons(GroupedFlattened())
    assert found["grouped"] == "'hidden' reads its flattened channels, which are grouped"
    assert "stem" not in found


class SummandReturned(nn.Module):
    """One of two summands is an output, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(3, 8, 1)
        self.third = nn.Conv2d(8, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.second(x)
        return y, self.head(torch.relu(self.third(torch.relu(self.first(x) + y))))


def test_summands_of_an_output_are_left_alone() -> None:
    found = reasons(SummandReturned(), scope="all")
    assert set(found) == {"first", "second", "head"}
    assert found["first"] == found["second"] == "its channels are the output of the model"


class Between(nn.Module):
    """An operation between two layers, and a head that reads what it is told to."""

    def __init__(self, operation: Callable[[Tensor], Tensor], head: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.operation = operation
        self.head = head

    def forward(self, x: Tensor) -> Any:
        return self.head(self.operation(self.first(x)))


ONE_BY_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "masked_fill": lambda x: x.masked_fill(x > 0.3, 0.0),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "sin": lambda x: x + torch.sin(x) ** 2,  # the snake activation
    "remainder": lambda x: x % 0.5,
    "antialiased": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True),
    "smallest": lambda x: x.amin((2, 3), keepdim=True),
    "deviation": lambda x: x / x.std((2, 3), keepdim=True),
    "softmax": lambda x: x * x.flatten(2).softmax(-1).view_as(x),
    "norm": lambda x: x / x.norm(dim=(2, 3), keepdim=True),
    "flip": lambda x: x + x.flip(-1),
    "roll": lambda x: x + x.roll(1, 2),
    "permuted": lambda x: x.permute(0, 2, 3, 1)[:, 1:].softmax(2).permute(0, 3, 1, 2),
    "windows": lambda x: x.permute(0, 2, 3, 1).reshape(4, -1, 32, x.shape[1]).permute(0, 3, 1, 2),
}
ACROSS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "norm": lambda x: x / x.norm(dim=-3, keepdim=True),
    "slice": lambda x: F.pad(x[:, 1:], (0, 0, 0, 0, 1, 0)),
    "permuted": lambda x: x.permute(0, 2, 3, 1).softmax(-1).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_operations_that_keep_channels_apart(name: str) -> None:
    torch.manual_seed(0)
    check_exact(Between(ONE_BY_ONE[name], nn.Conv2d(8, 4, 1)), "first")


@pytest.mark.parametrize("name", ACROSS)
def test_operations_across_channels_are_left_alone(name: str) -> None:
    model = Between(ACROSS[name], nn.Sequential(nn.Conv2d(8, 9, 1), nn.Conv2d(9, 4, 1)))
    assert set(reasons(model)) == {"first", "head.1"}


def test_channels_that_meet_their_mirror_images_go_in_pairs() -> None:
    model = Between(lambda x: x + x.flip(1), nn.Conv2d(8, 4, 1))
    (group,) = structure_of(model).groups
    assert group.producers[0].index[group.producers[0].root == 1].tolist() == [1, 6]


FLATTENED: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda x: x.flatten(1),
    "channels last": lambda x: x.permute(0, 2, 3, 1).flatten(1),
    "width first": lambda x: x.permute(0, 3, 2, 1).contiguous().view(x.shape[0], -1),
    "in between": lambda x: x.transpose(1, 2).reshape(x.shape[0], -1),
    "twice": lambda x: F.relu(x.transpose(1, 3)).transpose(-1, -2).flatten(1),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).flatten(1),
}


@pytest.mark.parametrize("order", FLATTENED)
def test_maps_may_be_permuted_before_they_are_flattened(order: str) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(8 * 16 * 12, 10), nn.ReLU(), nn.Linear(10, 3))
    check_exact(Between(FLATTENED[order], head), "first", (2, 3, 16, 12))


def test_operations_of_ones_own_are_what_they_are_made_of() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            return 2 * gradients[0]

    torch.manual_seed(0)
    model = Between(lambda x: Double.apply(x) + 1, nn.Conv2d(8, 4, 1))  # type: ignore[no-untyped-call]
    check_exact(model, "first")


def test_tokens_may_be_flattened() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Flatten(), nn.Linear(36, 4))
    check_exact(model, "0", (2, 4, 5))


def test_the_end_of_a_sequence_may_be_cut_off() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv1d(3, 8, 3, padding=2)
            self.second = nn.Conv1d(8, 6, 3, padding=2)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            x = torch.relu(self.first(x)[:, :, :-2])
            return self.head(torch.relu(self.second(x)[..., :-2])[..., -1])

    torch.manual_seed(0)
    check_exact(Causal(), "first", (2, 3, 9))
    assert set(reasons(Causal(), (2, 3, 9))) == {"head"}


def check_exact(
    model: nn.Module, layer: str, shape: Sequence[int] = (2, 3, 16, 16), each: int = 1
) -> None:
    """A layer is pruned, and that does what silencing does."""
    result = cut(model, tuple(shape), constraints=Constraints(n_filters={layer: 5}))
    x = torch.randn(tuple(shape))
    assert len(result.model.get_parameter(f"{layer}.weight")) == 5 * each
    with torch.no_grad():
        got, expected = result.model(x), silenced(model, result.plan)(x)
    assert difference(got, expected) <= 1e-5


@dataclass
class Nested:
    """What some models return."""

    scores: Tensor
    rest: Any = None


def test_tensors_in_dataclasses_are_outputs() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.body = nn.Conv2d(8, 7, 3)
            self.heads = nn.ModuleList([nn.Conv2d(7, 4, 1) for _ in range(3)])

        def forward(self, x: Tensor) -> Nested:
            x = torch.relu(self.body(torch.relu(self.stem(x))))
            a, b, c = (head(x) for head in self.heads)
            return Nested(a, {"b": [b], "c": Nested(c)})

    torch.manual_seed(0)
    model = Heads()
    result = cut(model, IMAGE, constraints=Constraints(n_filters={"body": 3}))
    found = {s.name: s.reason for s in result.report.skipped}
    for i in range(3):
        assert found[f"heads.{i}"] == "its channels are the output of the model"
    x = torch.randn(IMAGE)
    with torch.no_grad():
        got, expected = tensors_in(result.model(x)), tensors_in(silenced(model, result.plan)(x))
    assert len(got) == len(expected) == 3
    assert all(difference(*pair) <= 1e-5 for pair in zip(got, expected, strict=True))


class MeetsInput(nn.Module):
    """A residual stream that begins with the model's input."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 9, 3, padding=1)
        self.second = nn.Conv2d(9, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)
        self.join = join

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.relu(self.join(x, self.second(torch.relu(self.first(x))))))


def test_channels_that_meet_those_of_the_input_are_left_alone() -> None:
    size = (1, 8, 6, 6)
    for scope in ("inner", "all"):
        found = reasons(MeetsInput(lambda x, y: x + y), size, scope=scope)
        assert found["second"] == (
            "its channels are added to the model's input and must keep their number and order"
        )
        assert "first" not in found
    joins: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda x, y: y * x.sigmoid(),
        lambda x, y: torch.maximum(y, x),
        lambda x, y: y - x.mean((2, 3), keepdim=True),
    ]
    for join in joins:
        assert "combined with the model's input" in reasons(MeetsInput(join), size)["second"]


def test_one_channel_of_the_input_fixes_nothing() -> None:
    torch.manual_seed(0)
    check_exact(MeetsInput(lambda x, y: y * x[:, :1] + 2), "second", (1, 8, 6, 6))
    check_exact(MeetsInput(lambda x, y: y * (x > 0).any(1, keepdim=True)), "second", (1, 8, 6, 6))


class SpatialGate(nn.Module):
    """One channel weighs the positions of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.gate = nn.Conv2d(8, 1, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.first(x))
        return self.head(torch.sigmoid(self.gate(x)) * x)


def test_a_spatial_gate_goes_with_all_channels() -> None:
    torch.manual_seed(0)
    check_exact(SpatialGate(), "first")
    assert reasons(SpatialGate())["gate"] == "it has one channel"


def test_statistics_over_channels_are_a_mixing() -> None:
    class Pooled(SpatialGate):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Conv2d(2, 1, 3, padding=1)
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Any:
            x = torch.relu(self.first(x))
            both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
            return self.last(self.head(torch.sigmoid(self.gate(both)) * x))

    assert "its channels are mixed" in reasons(Pooled())["first"]


def test_tied_embeddings_stay_tied() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.up = nn.Linear(8, 16)
            self.down = nn.Linear(16, 8)
            self.last = nn.Linear(8, 8)
            self.head = nn.Linear(8, 20, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Any:
            x = self.down(torch.relu(self.up(self.embedding(tokens))))
            return self.head(torch.relu(self.last(x)))

    result = cut(
        Language(),
        (torch.arange(5)[None],),
        constraints=Constraints(n_filters={"up": 5, "down": 6}),
    )
    found = {s.name: s.reason for s in result.report.skipped}
    assert found["last"] == "the parameters of 'head' are shared with 'embedding'"
    for small in (result.model, result.plan.apply(Language())):
        tensors = dict(small.named_parameters(remove_duplicate=False))
        assert tensors["head.weight"] is tensors["embedding.weight"]
        assert small.get_parameter("down.weight").shape == (6, 5)


def test_weights_that_the_forward_uses_once_more_are_left_alone() -> None:
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(6, 8)
            self.inner = nn.Linear(8, 9)
            self.outer = nn.Linear(9, 8)

        def forward(self, x: Tensor) -> Any:
            x = self.outer(torch.relu(self.inner(torch.relu(self.encoder(x)))))
            return F.linear(x, self.encoder.weight.t())

    assert set(reasons(Autoencoder(), (2, 6))) == {"encoder", "outer"}
