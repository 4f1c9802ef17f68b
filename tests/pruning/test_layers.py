"""Layer types: pruned exactly and counted rightly, or left whole and named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import cut, difference, silenced
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.pruning import Constraints, PruningResult
from epruner.pruning.graph.costs import measure

IMAGE = (2, 3, 8, 8)


class Between(nn.Module):
    """A module between two convolutions, and a head."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.module = module
        self.second = nn.Conv2d(16, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.second(F.relu(self.module(self.first(x))))))


def check_exact(model: nn.Module, pruned: str) -> PruningResult:
    """The layer that is named loses channels and the network does what the silenced one does."""
    torch.manual_seed(1)
    for name, tensor in model.state_dict().items():  # rows that differ, so that a wrong slice shows
        if not name.endswith(("first.weight", "num_batches_tracked")):
            nn.init.uniform_(tensor, 0.5, 1.5)
    before = copy.deepcopy(model.eval().state_dict())
    x = torch.randn(IMAGE)
    result = cut(model, x, constraints=Constraints(n_filters={pruned: 0.4}))
    with torch.no_grad():
        got = result.model(x)
        assert difference(got, silenced(model, result.plan)(x)) <= 1e-5
        assert torch.equal(got, result.plan.apply(model)(x))
    assert measure(result.model, (x,)) == result.report.after
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    return result


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(16),
        nn.BatchNorm2d(16, affine=False),
        nn.GroupNorm(16, 16),
        nn.GroupNorm(16, 16, affine=False),
        nn.InstanceNorm2d(16),
        nn.InstanceNorm2d(16, affine=True),
        nn.InstanceNorm2d(16, affine=True, track_running_stats=True),
        nn.PReLU(16),
        nn.PReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 16, 3, padding=1, groups=4),
        nn.ConvTranspose2d(16, 16, 2, stride=2),
    ],
    ids=str,
)
def test_layers_that_lose_channels(module: nn.Module) -> None:
    result = check_exact(Between(copy.deepcopy(module)), "first")
    small = result.model.module
    assert isinstance(small, type(module))
    for name in ("num_features", "num_channels", "num_groups", "in_channels"):
        if hasattr(module, name):
            assert getattr(small, name) < getattr(module, name) == 16


def test_norms_without_parameters_are_counted() -> None:
    model = Between(nn.BatchNorm2d(16, affine=False))
    totals = measure(model, (torch.randn(IMAGE),))
    assert totals.macs == 2 * 64 * (27 * 16 + 16 * 6 + 6 * 2)
    assert totals.macs_with_norm == totals.macs + 4 * 2 * 64 * 16
    assert totals.params == sum(p.numel() for p in model.parameters())


class Scaled(nn.Module):
    """Channels times a tensor that is a parameter or a buffer."""

    def __init__(self, shape: tuple[int, ...], how: str, *, buffer: bool) -> None:
        super().__init__()
        self.how = how
        self.scale: Tensor
        if buffer:
            self.register_buffer("scale", torch.rand(shape), persistent=len(shape) > 1)
        else:
            self.scale = nn.Parameter(torch.rand(shape))

    def forward(self, x: Tensor) -> Any:
        scale = self.scale
        if self.how == "view":
            scale = scale.view(1, -1, 1, 1)
        elif self.how == "index":
            scale = scale[:, None, None]
        return x * scale + scale


@pytest.mark.parametrize("buffer", [True, False], ids=["buffer", "parameter"])
@pytest.mark.parametrize(
    ("shape", "how"),
    [
        ((1, 16, 1, 1), ""),
        ((16, 1, 1), ""),
        ((1, 16, 8, 8), ""),
        ((16, 8, 8), ""),
        ((16,), "view"),
        ((16,), "index"),
    ],
)
def test_bare_tensors_on_the_channels_are_sliced(
    shape: tuple[int, ...], how: str, buffer: bool
) -> None:
    model = Between(Scaled(shape, how, buffer=buffer))
    small: Any = check_exact(model, "first").model
    assert small.module.scale.numel() == 6 * torch.Size(shape).numel() // 16
    assert ("module.scale" in dict(small.named_buffers())) == buffer
    assert list(small.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("buffer", [True, False], ids=["buffer", "parameter"])
def test_bare_tensors_across_the_channels_are_not(buffer: bool) -> None:
    small: Any = check_exact(Between(Scaled((8,), "", buffer=buffer)), "first").model
    assert small.module.scale.shape == (8,)


class Written(Scaled):
    """Writes to its buffer in every forward pass."""

    def forward(self, x: Tensor) -> Any:
        self.scale.clamp_(0.4, 0.6)
        return super().forward(x)


def test_buffers_that_are_written_to_are_no_fault() -> None:
    torch.manual_seed(0)
    module = Written((16,), "view", buffer=True)
    result = cut(Between(module), IMAGE)
    assert "module.scale" in result.plan.modules
    assert float(module.scale.max()) > 0.6  # the analysis wrote to a copy


def test_shared_buffers_on_the_channels_are_left_alone() -> None:
    module = Scaled((1, 16, 1, 1), "", buffer=True)
    model = Between(module)
    model.register_buffer("again", module.scale)
    found = {s.name: s.reason for s in cut(model, IMAGE).report.skipped}
    assert found["first"] == "parameter 'module.scale' on its channels is shared"


class Reader(nn.Module):
    """A recurrent layer between linear ones."""

    def __init__(self, recurrent: nn.Module, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(5, 9)
        self.second = nn.Linear(9, 6)
        self.recurrent = recurrent
        self.third = nn.Linear(width, 7)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.recurrent(input=self.second(F.relu(self.first(x))))[0]
        return self.head(F.relu(self.third(x)))


@pytest.mark.parametrize(
    ("kind", "gates", "projected"),
    [(nn.RNN, 1, 0), (nn.GRU, 3, 0), (nn.LSTM, 4, 0), (nn.LSTM, 4, 3)],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 3, "bidirectional": True}, {"batch_first": True, "bias": False}],
    ids=["plain", "deep", "batch first"],
)
def test_recurrent_layers_are_counted_and_named(
    kind: Any, gates: int, projected: int, options: dict[str, Any]
) -> None:
    hidden, sides = 4, 2 if "bidirectional" in options else 1
    written = projected or hidden
    more = {"proj_size": projected} if projected else {}
    model = Reader(kind(6, hidden, **options, **more), sides * written).eval()
    x = torch.randn(3, 2, 5)
    macs = 0
    for layer in range(options.get("num_layers", 1)):
        read = 6 if layer == 0 else sides * written
        macs += sides * (gates * hidden * (read + written) + hidden * projected)
    rest = 5 * 9 + 9 * 6 + sides * written * 7 + 7 * 2
    result = cut(model, x, constraints=Constraints(n_filters={"first": 4, "third": 3}))
    assert result.report.before.macs == measure(model, (x,)).macs == 6 * (macs + rest)
    assert result.report.before.params == sum(p.numel() for p in model.parameters())
    assert result.report.after == measure(result.model, (x,))
    found = {s.name: s.reason for s in result.report.skipped}
    assert list(found) == ["second", "recurrent", "head"]
    unnamed, mixes = "no pattern of n_filters matches it", f"{kind.__name__} 'recurrent' mixes"
    assert found["recurrent"].startswith(mixes if projected else unnamed)
    with torch.no_grad():
        assert difference(result.model(x), silenced(model, result.plan)(x)) <= 1e-5


def test_packed_sequences_and_cells_are_counted() -> None:
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(5, 2, 6), torch.tensor([5, 3]))
    assert measure(nn.GRU(6, 4), (packed,)).macs == 8 * 3 * 4 * (6 + 4)
    assert measure(nn.LSTMCell(6, 4), (torch.randn(7, 6),)).macs == 7 * 4 * 4 * (6 + 4)


def test_what_stays_whole_can_be_ignored_but_not_asked_for() -> None:
    model = Reader(nn.LSTM(6, 4, proj_size=3), 3)
    x = torch.randn(3, 2, 5)
    with pytest.raises(ValueError, match=r"'recurrent' cannot be pruned.* mixes its channels"):
        cut(model, x, layers=["recurrent"])
    assert "recurrent" not in cut(model, x, ignore=["recurrent"]).plan.modules
