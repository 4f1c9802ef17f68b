"""Channels followed through what is seldom written, checked on inputs that were not analysed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import difference
from test_architectures import silenced
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.pruning import Constraints, PruningResult, analyse, prune

D, HEADS = 16, 4


def halved(model: nn.Module, *example: Tensor) -> PruningResult:
    """Cut as it is, at random weights that are nowhere zero."""
    halves = Constraints(n_filters={"*": 0.5})
    return prune(model.eval(), example, constraints=halves, method="l1", repair="none", scope="all")


@torch.no_grad()
def check(result: PruningResult, model: nn.Module, *others: tuple[Tensor, ...]) -> None:
    """Slicing is silencing on inputs of other sizes."""
    full = silenced(model, result)
    for name, part in result.plan.modules.items():
        cell: Any = model.get_submodule(name) if part.out else None
        if isinstance(cell, nn.RNNCellBase):
            gone = [unit for unit in range(cell.hidden_size) if unit not in (part.out or ())]
            full.get_parameter(f"{name}.weight_hh")[:, gone] = 0
    for x in others:
        assert difference(result.model(*x), full(*x)) <= 1e-5


class Attending(nn.Module):
    """Projections to heads; how they are used, subclasses tell."""

    def __init__(self, keys: int = HEADS) -> None:
        super().__init__()
        self.num_heads, self.num_keys, self.width = HEADS, keys, D // HEADS
        self.query = nn.Linear(D, D)
        self.key, self.value = (nn.Linear(D, keys * self.width) for _ in range(2))
        self.out = nn.Linear(D, 3)


class NamedOtherwise(Attending):
    """The instance is not called self, and the size lies in a function within."""

    def forward(this, x: Tensor) -> Any:
        n, t, c = x.shape

        def merged(y: Tensor) -> Tensor:
            return y.transpose(1, 2).reshape(n, t, c)

        q, k, v = (
            layer(x).view(n, t, this.num_heads, this.width).transpose(1, 2)
            for layer in (this.query, this.key, this.value)
        )
        return this.out(merged(F.scaled_dot_product_attention(q, k, v)))


class Private(Attending):
    """Its number of heads has a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.__heads = HEADS

    def forward(self, x: Tensor) -> Any:
        n, t, c = x.shape
        q, k, v = (
            layer(x).view(n, t, self.__heads, self.width).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        return self.out(y)


class OneKey(Attending):
    """Multi-query attention: all heads read one key and one value."""

    def __init__(self) -> None:
        super().__init__(keys=1)

    def forward(self, x: Tensor) -> Any:
        n, t, _ = x.shape
        q = self.query(x).view(n, t, self.num_heads, self.width).transpose(1, 2)
        k, v = (
            layer(x).view(n, t, 1, self.width).transpose(1, 2).expand(n, self.num_heads, -1, -1)
            for layer in (self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("make", [NamedOtherwise, Private, OneKey])
def test_heads_go_however_a_forward_is_written(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    result = halved(model, torch.randn(2, 5, D))
    assert result.model.get_parameter("query.weight").shape == (D // 2, D)
    check(result, model, (torch.randn(1, 9, D),), (torch.randn(4, 4, D),))
    copied = pickle.loads(pickle.dumps(result.model))
    x = torch.randn(3, 2, D)
    assert torch.equal(copied(x), result.model(x))


class OverPixels(nn.Module):
    """Attention over the pixels of a map, which is put together by all of its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.mix = nn.Conv2d(D, 3 * D, 1)
        self.out = nn.Conv2d(D, 3, 1)

    def forward(self, x: Tensor) -> Any:
        n, c, h, w = x.shape
        q, k, v = (y.view(n, self.heads, -1, h * w) for y in self.mix(x).chunk(3, 1))
        y = v @ (q.mT @ k).softmax(-1).mT
        return self.out(y.reshape(n, c, h, w))


def test_of_several_sizes_that_of_the_channels_is_inferred() -> None:
    torch.manual_seed(0)
    model = OverPixels()
    result = halved(model, torch.randn(2, D, 4, 4))
    assert result.model.get_parameter("mix.weight").shape[0] == 3 * D // 2
    check(result, model, (torch.randn(1, D, 6, 3),), (torch.randn(3, D, 2, 2),))


class Loop(nn.Module):
    """Cells called in a loop; the second one starts from what a layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(4, 8)
        self.first, self.second = nn.LSTMCell(4, 6), nn.GRUCell(6, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Any:
        states, y = None, self.start(x[0])
        for step in x:
            states = self.first(step, states)
            y = self.second(states[0], y)
        return self.out(y)


def test_cells_in_a_loop_lose_units() -> None:
    torch.manual_seed(0)
    model = Loop()
    result = halved(model, torch.randn(3, 1, 4))
    cells: Any = result.model
    assert (cells.first.hidden_size, cells.second.hidden_size) == (3, 4)
    assert cells.start.out_features == 4
    check(result, model, (torch.randn(1, 2, 4),), (torch.randn(5, 6, 4),))


class Empties(nn.Module):
    """Adds tensors without elements to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        x = torch.cat([x, x[:0]])
        return self.second(torch.cat([x, x[:, :0], x.new_empty(0)], 1))


def test_empty_tensors_take_nothing_away() -> None:
    torch.manual_seed(0)
    model = Empties()
    result = halved(model, torch.randn(1, 3, 2, 2))
    assert result.model.get_parameter("first.weight").shape[0] == 4
    check(result, model, (torch.randn(2, 3, 4, 4),))


class Between(nn.Module):
    """Two convolutions and what is done between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.second(self.function(self.first(x)))


def reshaped(x: Tensor) -> Tensor:
    """In place."""
    y: Tensor = (x * 1).unsqueeze_(0).squeeze_(0).transpose_(2, 3)
    return y


def turned(x: Tensor) -> Tensor:
    """By complex numbers."""
    pairs = torch.view_as_complex(torch.stack([x, x + 1], -1))
    parts: Tensor = torch.view_as_real(pairs.conj() * torch.polar(x.abs(), x))
    return parts.sum(-1)


def filtered(x: Tensor) -> Tensor:
    """In the frequencies of the positions."""
    halved: Tensor = torch.fft.rfft2(x)
    return torch.fft.irfft2(halved * 2, s=x.shape[-2:]) + torch.fft.fft(x).imag  # type: ignore[no-any-return]


def overwritten(x: Tensor) -> Tensor:
    """Where a mask says, and at numbered positions."""
    x = x.clone()
    x[x > 0.5] = 0.5
    x = x.index_add(3, torch.tensor([0, 1]), x[..., :2])
    return x.scatter_add(2, torch.zeros_like(x, dtype=torch.long), x)


def unpooled(x: Tensor) -> Tensor:
    """Maxima, put back to where they were."""
    largest, places = F.max_pool2d(x, 2, return_indices=True)
    y: Tensor = F.max_unpool2d(largest.tanh(), places, [2, 2], output_size=x.shape[-2:])
    return y


@pytest.mark.parametrize("function", [reshaped, turned, filtered, overwritten, unpooled])
def test_operations_on_positions_let_channels_go(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Between(function)
    result = halved(model, torch.randn(1, 3, 4, 6))
    assert result.model.get_parameter("first.weight").shape[0] == 4
    check(result, model, (torch.randn(2, 3, 5, 3),))


class Sections(nn.Module):
    """Cuts its channels at sizes that it holds in a list, as IBN-Net does."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [4, 4]
        self.norm = nn.InstanceNorm2d(4, affine=True)

    def forward(self, x: Tensor) -> Any:
        first, second = torch.split(x, self.sizes, 1)
        return torch.cat([self.norm(first), second.tanh()], 1)


def test_sizes_in_lists_are_found() -> None:
    torch.manual_seed(0)
    model = Between(sections := Sections())
    result = halved(model, torch.randn(1, 3, 4, 6))
    assert result.plan.attributes["function"] == {"sizes[0]": (4, 2), "sizes[1]": (4, 2)}
    assert sections.sizes == [4, 4]
    check(result, model, (torch.randn(2, 3, 5, 3),))


class Turned(nn.Module):
    """A convolution that slides along the channels, and makes fewer of them."""

    def __init__(self) -> None:
        super().__init__()
        self.along = nn.Conv2d(4, 4, 3, stride=(2, 1), padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.along(x.transpose(1, 2)).transpose(1, 2).repeat(1, 2, 1, 1)


class Octave(nn.Conv2d):
    """Of two maps, with parts of one weight (Chen et al., 2019)."""

    def forward(self, x: Tensor) -> Any:
        low, high = x.chunk(2, 1)
        low = F.conv2d(low, self.weight[:4, :4], padding=1)
        return torch.cat([low, F.conv2d(high, self.weight[4:, 4:8], padding=1)], 1)


class Halves(nn.Module):
    """Gives an octave convolution less than it says it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.octave = Octave(16, 8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.octave(x)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (Turned(), "its channels lie where 'function.along' expects positions"),
        (Halves(), "'function.octave' has a forward of its own"),
    ],
)
def test_layers_that_are_used_in_other_ways_keep_what_they_read(
    function: nn.Module, reason: str
) -> None:
    analysis = analyse(Between(function), (1, 3, 4, 4))
    assert {x.name: x.reason for x in analysis.skipped}["first"] == reason


def test_where_the_network_fails_is_named() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x.view(-1, 8, 4, 4)

    analysis = analyse(Between(Fixed()), (1, 3, 4, 4))
    (reason,) = (x.reason for x in analysis.skipped if x.name == "first")
    assert "does not run without some of its channels (in 'function': shape" in reason


def test_pooling_to_one_position_moves_no_channel() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 3)
            self.pool = nn.AdaptiveAvgPool1d(1)

        def forward(self, x: Tensor) -> Any:
            return self.second(self.pool(self.first(x).transpose(1, 2)).flatten(1))

    assert [group.name for group in analyse(Pooled().eval(), (2, 5, 6)).groups] == ["first"]
