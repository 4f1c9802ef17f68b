"""Inputs made of noise, and networks that are refit on it and carried back to what they know."""

from __future__ import annotations

import copy
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from networks import BertLayer, ConvNext, GatedMlp, TwoInputs, Vgg, stirred, trained_resnet
from torch import Tensor, nn
from torch.nn import functional as F

import epruner
from epruner.pruning import Constraints, Method
from epruner.pruning.data.calibration import Calibration, calibration_inputs
from epruner.pruning.data.examples import made_up
from epruner.pruning.data.noise import dead_leaves, natural_noise, pink_noise
from epruner.pruning.network.batches import Batches
from epruner.pruning.network.outputs import output_error
from epruner.pruning.network.statistics import estimate_statistics
from epruner.pruning.plan.plan import Plan
from epruner.pruning.repair.carry import refit_carried
from epruner.pruning.repair.least_squares import refit
from epruner.pruning.report.report import Report

if TYPE_CHECKING:
    from digits import Digits

pytestmark = pytest.mark.filterwarnings("ignore::epruner.pruning.errors.BudgetWarning")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def error(got: nn.Module, full: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return output_error([[got.eval()(x)]], [[full.eval()(x)]])


def correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])


SIZES = [(100,), (32, 32), (20, 48), (8, 8, 8), (4, 9, 14)]


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_noise_is_standardised_in_any_number_of_dimensions(
    size: tuple[int, ...], channels: int
) -> None:
    # of each input its mean and size are its own, so that it takes many
    x = natural_noise(100, channels, size, rng())
    assert x.shape == (100, channels, *size)
    assert x.dtype == torch.float32
    assert torch.isfinite(x).all()
    assert abs(float(x.mean())) < 0.2
    assert 0.75 < float(x.var()) < 1.3


def test_the_generator_alone_decides_what_is_drawn() -> None:
    torch.manual_seed(1)
    x = natural_noise(3, 3, (12, 10), rng())
    torch.manual_seed(2)
    assert torch.equal(x, natural_noise(3, 3, (12, 10), rng()))
    generator = rng(1)
    others = [natural_noise(3, 3, (12, 10), generator) for _ in range(2)]
    assert not torch.equal(x, others[0])
    assert not torch.equal(*others)
    state = torch.random.get_rng_state()
    natural_noise(1, 1, (5,), rng())
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("size", [(512,), (64, 64), (48, 96), (24, 24, 24)], ids=str)
def test_power_of_pink_noise_falls_with_the_frequency(size: tuple[int, ...]) -> None:
    x = pink_noise(30, 1, size, rng())[:, 0].double().numpy()
    d = len(size)
    power = np.square(np.abs(np.fft.fftn(x, axes=range(1, 1 + d)))).mean(0)
    axes = np.meshgrid(*[np.fft.fftfreq(n) for n in size], indexing="ij")
    frequency = np.sqrt(sum(np.square(axis) for axis in axes))
    some = (frequency > 0.05) & (frequency < 0.45)
    slope, _ = np.polyfit(np.log(frequency[some]), np.log(power[some]), 1)
    assert abs(slope + d) < 0.1 * d


@pytest.mark.parametrize("make", [pink_noise, dead_leaves, natural_noise])
def test_channels_are_as_alike_as_colours(make: Any) -> None:
    x = make(200, 3, (16, 16), rng())
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert 0.7 < correlation(x[:, a], x[:, b]) < 0.9


@pytest.mark.parametrize("size", [(200,), (32, 32), (20, 48), (12, 12, 12)], ids=str)
def test_neighbours_are_alike_and_less_so_the_farther_apart(size: tuple[int, ...]) -> None:
    x = natural_noise(100, 1, size, rng())
    white = torch.randn(x.shape, generator=rng())
    x = x - x.mean()
    for dim in range(2, x.dim()):
        n = x.shape[dim]
        near, far = (
            correlation(x.narrow(dim, 0, n - k), x.narrow(dim, k, n - k)) for k in (1, n // 2)
        )
        assert near > 0.6
        assert far < near - 0.15
        assert (
            abs(correlation(white.narrow(dim, 0, n - 1), white.narrow(dim, 1, n - 1))) < 0.2 < near
        )


def test_leaves_have_edges() -> None:
    # most neighbours are of one leaf and nearly equal, some are of two and far apart
    leaves, gauss = (make(50, 1, (32, 32), rng()) for make in (dead_leaves, pink_noise))
    kurtosis = []
    for x in (leaves, gauss):
        step = x.diff(dim=-1).double()
        kurtosis.append(float(step.pow(4).mean() / step.square().mean().square()))
    assert kurtosis[0] > 6
    assert abs(kurtosis[1] - 3) < 1


@pytest.mark.parametrize("size", [(1,), (1, 1), (1, 7), (2, 1, 1)], ids=str)
def test_dimensions_of_one_sample_are_no_trouble(size: tuple[int, ...]) -> None:
    x = natural_noise(5, 3, size, rng())
    assert x.shape == (5, 3, *size)
    assert torch.isfinite(x).all()


class Reads(nn.Module):
    """Input by a convolution, or one of vectors."""

    def __init__(self, kind: type[nn.Module], channels: int) -> None:
        super().__init__()
        size = () if kind is nn.Linear else (1,)
        self.layer = kind(channels, 4, *size)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.Conv2d, (3, 12, 17)),
        (nn.Conv1d, (5, 40)),
        (nn.Conv3d, (2, 6, 7, 8)),
        (nn.Linear, (9,)),
        (nn.Linear, (30, 9)),
        (nn.Linear, (6, 7, 9)),
    ],
    ids=str,
)
def test_inputs_are_made_up_for_what_reads_them(
    kind: type[nn.Module], shape: tuple[int, ...]
) -> None:
    channels = shape[-1] if kind is nn.Linear else shape[0]
    model = Reads(kind, channels).eval()
    example: Any = (torch.zeros(2, *shape),), {}
    (x,) = made_up(model, example, 150, seed=0)
    assert x.shape == (150, *shape)
    assert x.dtype == torch.float32
    assert abs(float(x.mean())) < 0.2
    assert 0.75 < float(x.var()) < 1.3
    assert torch.equal(x, made_up(model, example, 150, seed=0)[0])
    assert not torch.equal(x, made_up(model, example, 150, seed=1)[0])
    with torch.no_grad():
        assert torch.isfinite(model(x)).all()


def test_vectors_have_independent_entries() -> None:
    (x,) = made_up(Reads(nn.Linear, 6).eval(), ((torch.zeros(1, 6),), {}), 3000, seed=0)
    assert (torch.corrcoef(x.T) - torch.eye(6)).abs().max() < 0.1


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv1d])
def test_channels_come_last_where_a_linear_layer_reads(kind: type[nn.Module]) -> None:
    model = Reads(kind, 40).eval()
    last = kind is nn.Linear
    example = torch.zeros(1, 40, 40)
    (x,) = made_up(model, ((example,), {}), 100, seed=0)
    x = x if last else x.transpose(1, 2)  # (n, t, c)
    # neighbours in time are more alike than others; channels have no neighbours
    assert correlation(x[:, 10], x[:, 11]) > correlation(x[:, 10], x[:, 30]) + 0.2
    assert abs(correlation(x[..., 10], x[..., 11]) - correlation(x[..., 10], x[..., 30])) < 0.1


def test_tokens_are_drawn_from_the_vocabulary_beside_the_mask_of_the_example() -> None:
    mask = torch.ones(2, 9)
    mask[0, 6:] = 0
    for dtype in (torch.int64, torch.int32):
        example = {"input_ids": torch.zeros(2, 9, dtype=dtype), "attention_mask": mask.long()}
        tokens, same = made_up(BertLayer().eval(), ((), example), 200, seed=0)
        assert tokens.shape == (200, 9)
        assert tokens.dtype == dtype
        counts = np.bincount(tokens.flatten().numpy(), minlength=50)
        assert len(counts) == 50
        assert counts.min() > 10  # of 36 on average
        assert torch.equal(same, mask.long()[:1].expand(200, 9))


def test_two_inputs_by_place_and_by_name() -> None:
    image, depth = torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    model = TwoInputs().eval()
    by_place = made_up(model, ((image, depth), {}), 20, seed=0)
    by_name = made_up(model, ((), {"image": image, "depth": depth}), 20, seed=0)
    assert [x.shape for x in by_place] == [(20, 3, 8, 8), (20, 1, 8, 8)]
    for a, b in zip(by_place, by_name, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(by_place[0][:, :1], by_place[1])


class Counts(nn.Module):
    """Reads integers without an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 24), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Any:
        return self.second(self.first(x.float()).relu())


def test_integers_that_nothing_says_how_to_draw_are_refused() -> None:
    example: Any = (torch.ones(1, 6, dtype=torch.long),), {}
    with pytest.raises(ValueError, match="neither floating nor read by an embedding"):
        made_up(Counts().eval(), example, 10, seed=0)


def normed(bias: bool = False, affine: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=bias),
        nn.BatchNorm2d(6, affine=affine),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(6, 5, 3, bias=bias),
        nn.BatchNorm2d(5, momentum=0.3, affine=affine),
    )


def test_statistics_are_those_of_the_inputs_layer_by_layer() -> None:
    torch.manual_seed(0)
    net: Any = normed(bias=True)
    with torch.no_grad():
        net[1].weight.uniform_(0.5, 2)
        net[1].bias.uniform_(-1, 1)
    batches = [torch.randn(n, 3, 7, 9) * 2 + 1 for n in (8, 8, 5)]
    net.train()
    estimate_statistics(net, Batches([((x,), {}) for x in batches]))
    assert not any(module.training for module in net.modules())
    assert (net[1].momentum, net[5].momentum) == (0.1, 0.3)

    means: list[list[Any]] = [[], []]
    variances: list[list[Any]] = [[], []]
    for x in batches:
        for place, layer in enumerate((0, 4)):
            with torch.no_grad():
                y = net[layer](x)
            rows = y.double().numpy().transpose(0, 2, 3, 1).reshape(-1, y.shape[1])
            means[place].append(rows.mean(0))
            variances[place].append(rows.var(0, ddof=1))
            norm = net[layer + 1]
            z = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + norm.eps)
            z = z * norm.weight.detach().numpy() + norm.bias.detach().numpy()
            n, c, h, w = y.shape
            x = torch.from_numpy(z.reshape(n, h, w, c).transpose(0, 3, 1, 2)).float().relu()
    for place, norm in enumerate((net[1], net[5])):
        for got, wanted in ((norm.running_mean, means), (norm.running_var, variances)):
            np.testing.assert_allclose(got.numpy(), np.mean(wanted[place], 0), rtol=1e-4, atol=1e-5)


def test_statistics_that_are_not_finite_name_their_layer() -> None:
    net: Any = normed()
    with torch.no_grad():
        net[4].weight.fill_(3e38)
    with pytest.raises(ValueError, match=r"BatchNorm layer '5' are NaN or infinite"):
        estimate_statistics(net, Batches([((torch.randn(4, 3, 8, 8),), {})]))
    assert (net[1].momentum, net[5].momentum) == (0.1, 0.3)


class Chain(nn.Module):
    """Convolutions with BatchNorm in a row, the last one onto a shortcut, and a linear head."""

    def __init__(self, *, bias: bool = False, affine: bool = True) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for n, o in pairwise((3, 12, 16, 14, 12)):
            self.convs.append(nn.Conv2d(n, o, 3, padding=1, bias=bias))
            self.norms.append(nn.BatchNorm2d(o, affine=affine))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        (a, b, c, d), (k, m, n, o) = self.convs, self.norms
        x = F.relu(k(a(x)))
        y = F.relu(n(c(F.relu(m(b(x))))))
        x = F.relu(x + o(d(y)))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Linear layers with BatchNorm."""

    def __init__(self, *, bias: bool = True, affine: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 24, bias=bias), nn.Linear(24, 16, bias=bias)
        self.k, self.m = nn.BatchNorm1d(24, affine=affine), nn.BatchNorm1d(16, affine=affine)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.m(self.b(F.relu(self.k(self.a(x)))))))


CASES = {
    "convolutions": (Chain, {}, (3, 8, 8), "convs.[12]"),
    "convolutions with bias": (Chain, {"bias": True}, (3, 8, 8), "convs.[12]"),
    "no scale, no bias": (Chain, {"affine": False}, (3, 8, 8), "convs.[12]"),
    "no scale": (Chain, {"affine": False, "bias": True}, (3, 8, 8), "convs.[12]"),
    "linear": (Dense, {}, (10,), "[ab]"),
    "linear without bias": (Dense, {"bias": False}, (10,), "[ab]"),
    "linear without scale": (Dense, {"affine": False}, (10,), "[ab]"),
}
DEAD = [("convolutions", True), ("linear", True)]  # channels that pass nothing on
Case = tuple[nn.Module, Plan, Calibration, Tensor]


@cache
def case(name: str, *, dead: bool = False) -> Case:
    """A network with BatchNorm of odd statistics, a plan for it, noise."""
    kind, options, shape, layers = CASES[name]
    torch.manual_seed(0)
    full = kind(**options).eval()
    for module in full.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.2, 2)
            if module.affine:
                module.weight.data.uniform_(-1.5, 1.5)
                module.bias.data.uniform_(-1, 1)
                if dead:
                    module.weight.data[::5] = 0
    example: Any = (torch.zeros(1, *shape),), {}
    (x,) = made_up(full, example, 150, seed=0)
    numbers = Constraints(n_filters={layers: 0.6})
    plan = epruner.prune(
        full, example[0][0], constraints=numbers, method="random", repair="none"
    ).plan
    return full, plan, calibration_inputs(full, x, example), x


def shown(full: nn.Module, calibration: Calibration) -> nn.Module:
    """A copy whose statistics are those of the inputs."""
    reference = copy.deepcopy(full)
    estimate_statistics(reference, calibration.everything)
    return reference


@pytest.mark.parametrize(("name", "dead"), [*((name, False) for name in CASES), *DEAD])
def test_where_noise_is_what_it_was_trained_on_carrying_is_plain_least_squares(
    name: str, dead: bool
) -> None:
    full, plan, calibration, x = case(name, dead=dead)
    full = shown(full, calibration)
    small = plan.apply(full)
    before = copy.deepcopy(small.state_dict())
    carried = refit_carried(small, plan, copy.deepcopy(full), calibration)
    plain = refit(full, small, plan, calibration, anchored=True)
    assert carried.record == plain.record
    assert carried.record is not None
    assert len(carried.record.layers) == 2
    for key, value in small.state_dict().items():
        assert torch.equal(value, before[key])
    unseen = 2 * torch.randn(x.shape, generator=rng(5))
    with torch.no_grad():
        got, wanted, sliced = (m.eval()(unseen) for m in (carried.model, plain.model, small))
    scale = wanted.abs().max()
    assert (got - wanted).abs().max() < 1e-5 * scale
    assert (sliced - wanted).abs().max() > 1e-2 * scale


@pytest.mark.parametrize(("name", "dead"), [*((name, False) for name in CASES), *DEAD])
def test_each_layer_changes_by_the_same_in_units_of_what_its_norm_reads(
    name: str, dead: bool
) -> None:
    full, plan, calibration, _ = case(name, dead=dead)
    reference = shown(full, calibration)
    small, copied = plan.apply(full).eval(), plan.apply(reference).eval()
    carried = refit_carried(small, plan, reference, calibration)
    found = refit(reference, copied, plan, calibration, anchored=True)
    assert carried.record == found.record
    assert len(carried.norms) == 2
    changed = set()
    for layer, norm in carried.norms.items():
        true, after, before = (
            m.get_submodule(layer).double() for m in (carried.model, found.model, copied)
        )
        weight: Any = true.weight
        x = torch.randn(50, *weight.shape[1:], dtype=torch.float64, generator=rng(3))
        with torch.no_grad():
            if norm is None:
                torch.testing.assert_close(true(x), after(x), rtol=1e-6, atol=1e-6)
                continue
            # a BatchNorm gives scale * read + shift; its scale and shift are found by probing it
            probes = {}
            for which, model in (("true", small), ("copy", copied)):
                module = copy.deepcopy(model.get_submodule(norm)).double().eval()
                shape = [2, weight.shape[0], *[1] * (weight.dim() - 2)]
                read = torch.zeros(shape, dtype=torch.float64)
                read[1] = 1
                at_zero, at_one = module(read)
                probes[which] = (at_one - at_zero, at_zero)
            pairs = (("true", carried.model, true), ("copy", found.model, after))
            units = []
            for which, model, module in pairs:
                scale, shift = probes[which]
                written = copy.deepcopy(model.get_submodule(norm)).double().eval()(module(x))
                silent = scale.flatten().abs() <= 1e-9  # and says the same as before
                assert torch.equal(written[:, silent], shift.expand_as(written)[:, silent])
                units.append((written - shift) / scale)
            alive = probes["copy"][0].abs().flatten() > 1e-9
            assert alive.all() or dead
            assert alive.any()
            spread = units[1][:, alive].abs().max()
            assert (units[0] - units[1])[:, alive].abs().max() < 1e-5 * spread
            changed.add(bool((units[1] - before(x))[:, alive].abs().max() > 1e-2 * spread))
    assert True in changed


@pytest.mark.parametrize("name", ["convolutions", "linear without bias"])
def test_training_mode_starts_from_what_was_carried(name: str) -> None:
    full, plan, calibration, x = case(name)
    full = shown(full, calibration)
    carried = refit_carried(plan.apply(full), plan, full, calibration).model
    small = plan.apply(full)
    with torch.no_grad():
        wanted = carried.eval()(x)
        trained = copy.deepcopy(carried).train()(x)
        refit_only = output_error([[trained]], [[wanted]])
    assert refit_only < 0.1 * error(small, full, x)
    assert refit_only < 0.02


def test_trained_network_is_pruned_by_noise_and_stays_nearer_than_by_weights(
    data_dir: Path,
) -> None:
    with np.load(data_dir / "cifar10_lossless_subset.npz") as archive:
        raw = archive["test_images"][:200]
    x = (torch.from_numpy(raw).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225
    full = trained_resnet(data_dir, "akamaster20")
    shown = epruner.prune(full, (1, 3, 32, 32), macs=0.5)
    blind = epruner.prune(full, (1, 3, 32, 32), macs=0.5, method="l1", repair="merge")
    assert error(shown.model, full, x) < 0.5 * error(blind.model, full, x)
    assert shown.report.settings["evidence"] == "noise"
    assert blind.report.settings["evidence"] == "none"
    done = shown.report.repair
    assert done is not None
    assert done.inputs == "noise"
    assert (done.fit, done.held_back) == (205, 51)
    assert "on 205 noise inputs" in str(shown.report)
    assert done.after < done.before
    assert Report.from_dict(shown.report.to_dict()) == shown.report


def test_the_seed_alone_decides_and_the_network_is_left_as_it_was(digits: Digits) -> None:
    full = digits.network().train()
    full.stem.weight.requires_grad_(False)
    full.get_parameter("blocks.1.conv2.weight").requires_grad_(False)
    before = copy.deepcopy(full.state_dict())
    states: list[dict[str, Tensor]] = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + len(states))
        result = epruner.prune(full, (1, 1, 8, 8), macs=0.6, random_state=seed)
        assert result.report.settings["evidence"] == "noise"
        states.append(result.model.state_dict())
    assert all(torch.equal(value, states[0][key]) for key, value in states[1].items())
    differ = [
        key
        for key, value in states[2].items()
        if value.shape != states[0][key].shape or not torch.equal(value, states[0][key])
    ]
    assert any("conv2" in key for key in differ)
    assert full.training
    assert result.model.training
    assert full.state_dict().keys() == before.keys()
    for key, value in full.state_dict().items():
        assert torch.equal(value, before[key])
    frozen = {name for name, p in result.model.named_parameters() if not p.requires_grad}
    assert frozen == {"stem.weight", "blocks.1.conv2.weight"}


@pytest.fixture(scope="module")
def pruned(digits: Digits) -> epruner.PruningResult:
    return epruner.prune(digits.network(), (1, 1, 8, 8), macs=0.6)


def test_layers_that_read_all_they_did_and_no_norm_follows_keep_their_bits(
    digits: Digits, pruned: epruner.PruningResult
) -> None:
    full = digits.network()
    for name in ("blocks.1.short", "head"):
        mine, theirs = (m.get_submodule(name).parameters() for m in (pruned.model, full))
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    blind = epruner.prune(full, (1, 1, 8, 8), macs=0.6, method="l1", repair="merge").model
    x = digits.test_images
    assert error(pruned.model, full, x) < 0.7 * error(blind, full, x)


def test_half_precision_comes_back_in_its_type(
    digits: Digits, pruned: epruner.PruningResult
) -> None:
    full = digits.network()
    half = copy.deepcopy(full).to(torch.bfloat16)
    result = epruner.prune(half, torch.zeros(1, 1, 8, 8, dtype=torch.bfloat16), macs=0.6)
    assert result.report.settings["evidence"] == "noise"
    for key, value in result.model.state_dict().items():
        assert value.dtype == half.state_dict()[key].dtype
    got = error(result.model.float(), full, digits.test_images)
    assert got < 1.3 * error(pruned.model, full, digits.test_images) + 0.05


def test_repair_alone_does_the_same_as_within_prune(
    digits: Digits, pruned: epruner.PruningResult
) -> None:
    full = digits.network()
    small = pruned.plan.apply(full)
    again, done = epruner.repair(full, small, pruned.plan, inputs=(1, 1, 8, 8))
    assert done == pruned.report.repair
    for key, value in again.state_dict().items():
        assert torch.equal(value, pruned.model.state_dict()[key])


@pytest.mark.parametrize(
    ("model", "shape", "evidence"),
    [
        (Vgg, (1, 3, 16, 16), "none"),  # BatchNorm that never saw anything
        (lambda: stirred(Vgg()), (1, 3, 16, 16), "noise"),
        (ConvNext, (1, 3, 16, 16), "noise"),  # LayerNorm
        (GatedMlp, (1, 12), "none"),  # knows no scale of its inputs
    ],
    ids=["new", "trained", "normalising", "no norm"],
)
def test_noise_is_shown_to_networks_that_know_what_scale_their_inputs_have(
    model: Any, shape: tuple[int, ...], evidence: str
) -> None:
    result = epruner.prune(model().eval(), shape, macs=0.6)
    assert result.report.settings["evidence"] == evidence
    method = result.report.settings["method"]
    expected = ("uniform", "merge") if evidence == "none" else ("reconstruction", "least_squares")
    assert (method["allocation"], method["repair"]) == expected
    assert (result.report.repair is None) == (evidence == "none")


@pytest.mark.parametrize("calibrate", [None, "noise"])
def test_what_cannot_be_drawn_is_said_or_refused(calibrate: str | None) -> None:
    net = nn.Sequential(Counts(), nn.BatchNorm1d(2))
    with torch.no_grad():
        net.train()(torch.randint(5, (20, 6)))
    net.eval()
    example = torch.ones(2, 6, dtype=torch.long)
    if calibrate is None:
        with pytest.warns(epruner.RepairWarning, match="nothing could be learnt from noise"):
            result = epruner.prune(net, example, macs=0.6)
        assert result.report.settings["evidence"] == "none"
        assert "neither floating nor read by an embedding" in result.report.notes[0]
    else:
        with pytest.raises(ValueError, match="neither floating nor read by an embedding"):
            epruner.prune(net, example, macs=0.6, calibrate=calibrate)


def test_synthetic_inputs_need_norms_that_remember() -> None:
    for model, shape in ((Vgg(), (1, 3, 16, 16)), (ConvNext(), (1, 3, 16, 16))):
        with pytest.raises(ValueError, match="this network has none that do"):
            epruner.prune(model.eval(), shape, macs=0.6, calibrate="synthetic")


@pytest.mark.parametrize("repair", ["batchnorm", "distill"])
def test_repairs_that_noise_will_not_do_for(repair: str) -> None:
    with pytest.raises(ValueError, match=f"repair='{repair}' needs calibrate"):
        epruner.prune(stirred(Vgg()), (1, 3, 16, 16), macs=0.6, repair=repair)


def test_methods_of_the_user_are_shown_noise_too() -> None:
    method = Method("uniform", "reconstruction")
    result = epruner.prune(stirred(Vgg()), (1, 3, 16, 16), macs=0.6, method=method)
    assert result.report.settings["evidence"] == "noise"
    weights = epruner.prune(
        stirred(Vgg()), (1, 3, 16, 16), macs=0.6, method="l1", repair="none", calibrate="noise"
    )
    assert weights.report.settings["evidence"] == "none"
