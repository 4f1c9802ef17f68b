"""What a network is shown where nobody gave inputs: which are, and what could do harm."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import stirred
from torch import Tensor, nn

import epruner
from epruner.pruning import Method
from epruner.pruning.data.evidence import kind_of
from epruner.pruning.errors import RepairWarning
from epruner.pruning.network.batches import Batches
from epruner.pruning.network.statistics import estimate_statistics, trained_norms

pytestmark = pytest.mark.filterwarnings("ignore::epruner.pruning.errors.BudgetWarning")
SHAPE = (1, 3, 12, 12)


def plain(width: int = 16) -> Any:
    torch.manual_seed(0)
    return stirred(
        nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, 5),
        )
    )


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.BatchNorm1d(4)], "none"),
        ([nn.LayerNorm(4)], "noise"),
        ([nn.BatchNorm1d(4), nn.LayerNorm(4)], "none"),
        ([nn.InstanceNorm3d(4)], "noise"),
        ([nn.InstanceNorm2d(4, track_running_stats=True)], "none"),
        ([nn.Linear(4, 4)], "none"),
    ],
)
def test_noise_is_for_networks_that_bring_it_to_a_scale(
    layers: list[nn.Module], expected: str
) -> None:
    assert kind_of(nn.Sequential(*layers), None) == expected


def test_channels_that_do_not_vary_stand_in_for_nothing() -> None:
    model = plain()
    with torch.no_grad():
        model[1].weight[:3] = 0
        model[1].bias[:3] = torch.tensor([0.3, 0.7, -0.2])  # two constants and nothing at all
    found = epruner.prune(model, SHAPE, macs=0.5, method="exemplar")
    assert not {0, 1, 2} & set(found.kept["0"].tolist())


def test_noise_that_leads_to_nothing_is_done_without() -> None:
    class Logarithm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.a, self.b = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(self.norm(x.log()))))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Logarithm().eval(), torch.rand(1, 16) + 0.1
    with pytest.warns(RepairWarning, match="nothing could be learnt from noise"):
        result = epruner.prune(model, x, macs=0.5)
    assert result.report.settings["evidence"] == "none"
    assert result.report.settings["method"]["importance"] == "l1"
    with pytest.raises(ValueError, match="NaN or infinite"):
        epruner.prune(model, x, macs=0.5, calibrate="noise")


@pytest.mark.parametrize("features", ["weights", "folded", "activations", "losses"])
def test_select_and_prune_choose_alike(features: str) -> None:
    method = Method("exemplar", "exemplar", features)
    net = epruner.analyse(plain(), SHAPE)
    assert (
        net.select(macs=0.5, method=method)
        == epruner.prune(plain(), net, macs=0.5, method=method).plan
    )


def test_layers_that_were_never_trained_keep_their_statistics() -> None:
    model = plain()
    model[4].reset_running_stats()
    noise = torch.randn(64, 3, 12, 12)
    shown = copy.deepcopy(model)
    estimate_statistics(shown, Batches([((noise,), {})]), trained_norms(shown))
    assert torch.equal(shown[4].running_var, torch.ones(16))
    assert not torch.equal(shown[1].running_var, model[1].running_var)
    x, errors = torch.randn(200, 3, 12, 12), []
    for repair in ("none", "least_squares"):
        small = epruner.prune(model, SHAPE, macs=0.6, repair=repair).model
        with torch.no_grad():
            errors.append(float((small(x) - model(x)).square().sum()))
    assert errors[1] < errors[0]


def test_layers_that_are_not_used_keep_their_statistics() -> None:
    class Auxiliary(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for part in list(self)[:-1]:
                x = part(x)
            return x

    model = Auxiliary(*plain(), stirred(nn.BatchNorm1d(5)))
    before = copy.deepcopy(model[-1].state_dict())
    estimate_statistics(model, Batches([((torch.randn(8, 3, 12, 12),), {})]))
    assert all(torch.equal(before[name], value) for name, value in model[-1].state_dict().items())


def test_synchronised_statistics_wait_for_nobody() -> None:
    model: Any = nn.SyncBatchNorm.convert_sync_batchnorm(plain())  # type: ignore[no-untyped-call]
    other: Any = plain()
    for each in (model, other):  # on CPUs torch refuses to train the former
        estimate_statistics(each, Batches([((torch.ones(4, *SHAPE[1:]).cumsum(3),), {})]))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))
    assert type(model[1]) is nn.SyncBatchNorm


def test_groups_whose_readers_are_not_all_measured_are_not_ranked() -> None:
    class Two(nn.Module):
        """Half of the channels matters to a convolution, half to a transposed one."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Conv2d(3, 16, 3), stirred(nn.BatchNorm2d(16))
            self.b, self.c = nn.Conv2d(16, 4, 1), nn.ConvTranspose2d(16, 4, 1)
            with torch.no_grad():
                self.b.weight[:, 8:] = 0
                self.c.weight[:8] = 0

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = torch.relu(self.norm(self.a(x)))
            return self.b(x), self.c(x)

    torch.manual_seed(0)
    result = epruner.prune(Two().eval(), SHAPE, macs=0.5, repair="none")
    assert any("cannot be measured for a" in note for note in result.report.notes)
    assert result.kept["a"].max() >= 8


@pytest.mark.parametrize("learn", ["synthesise", "distill"])
def test_what_needs_gradients_has_them_where_they_are_off(learn: str) -> None:
    model = plain()
    with torch.no_grad():
        if learn == "synthesise":
            made = epruner.synthesise(model, SHAPE, n=4)
            assert isinstance(made, Tensor)
            assert torch.isfinite(made).all()
        else:
            plan = epruner.analyse(model, SHAPE).select(macs=0.5, method="l1")
            x = torch.randn(40, 3, 12, 12)
            _, done = epruner.distill(model, plan.apply(model), x, steps=20)
            assert done is not None
            assert done.after < done.before


def test_series_of_vectors_keep_their_channels_in_place() -> None:
    from epruner.pruning.data.synthesis import _moved

    x = torch.arange(2 * 32 * 5.0).reshape(2, 32, 5)
    for step in range(4):
        moved = _moved(x, step, torch.Generator().manual_seed(step), True)
        assert torch.equal(moved.sum(1), x.sum(1))
        assert torch.equal(moved % 5, x % 5)


def test_statistics_that_are_missing_or_not_counted_are_no_obstacle() -> None:
    model = plain()
    model[1].num_batches_tracked = None
    assert epruner.prune(model, SHAPE, macs=0.5).report.settings["evidence"] == "noise"
    model[4].running_mean = model[4].running_var = None
    small = epruner.prune(model, SHAPE, macs=0.5).model
    assert torch.isfinite(small(torch.randn(8, *SHAPE[1:]))).all()
