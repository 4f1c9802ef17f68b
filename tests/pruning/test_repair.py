"""Pruned networks repaired from a few unlabelled inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import (
    ConvNext,
    GatedMlp,
    GroupedSqueezeExcite,
    TwoInputs,
    Upsampler,
    Vgg,
    Vit,
    stirred,
    trained_resnet,
)
from torch import Tensor, nn
from torch.nn import functional as F

import epruner
from epruner.pruning import Constraints, Method
from epruner.pruning.data.calibration import calibration_inputs, inputs_in
from epruner.pruning.errors import RepairWarning
from epruner.pruning.network.outputs import output_error
from epruner.pruning.report.report import Report
from epruner.pruning.trace.normal import Normal, input_rows, output_rows, stacked, unstack
from epruner.pruning.trace.record import record
from epruner.pruning.trace.replay import Replay

pytestmark = pytest.mark.filterwarnings("ignore::epruner.pruning.errors.BudgetWarning")

SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    Vgg: (3, 16, 16),
    GroupedSqueezeExcite: (3, 8, 8),
    ConvNext: (3, 16, 16),
    Vit: (3, 16, 16),
    GatedMlp: (12,),
    Upsampler: (3, 8, 8),
}


def inputs(shape: tuple[int, ...], count: int, seed: int = 0) -> Tensor:
    # smooth, so that neighbours are alike as in images
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    if x.dim() == 4:
        return F.avg_pool2d(x, 3, 1, 1) * 2
    mixing = torch.randn(4, *shape, generator=torch.Generator().manual_seed(99))
    return x[:, :4] @ mixing + 0.1 * x


def error(got: nn.Module, full: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return output_error([[got.eval()(x)]], [[full.eval()(x)]])


def network(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return stirred(kind())


def as_after_training(full: nn.Module, x: Tensor) -> None:
    """Give BatchNorm the statistics of some inputs."""
    for module in full.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        full.train()(x)
    full.eval()


class Mobile(nn.Module):
    """Two inverted residual blocks, the second with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        for i in (1, 2):
            block = nn.Sequential(
                nn.Conv2d(8, 32, 1, bias=False),
                nn.BatchNorm2d(32),
                nn.ReLU6(inplace=True),
                nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False),
                nn.BatchNorm2d(32),
                nn.ReLU6(inplace=True),
                nn.Conv2d(32, 8, 1, bias=False),
                nn.BatchNorm2d(8),
            )
            self.add_module(f"block{i}", block)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(self.stem(x))  # type: ignore[operator]
        x = x + self.block2(x)  # type: ignore[operator]
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Dense(nn.Module):
    """Concatenation: each layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(12 + 8 * i),
                nn.ReLU(),
                nn.Conv2d(12 + 8 * i, 24, 1, bias=False),
                nn.BatchNorm2d(24),
                nn.ReLU(),
                nn.Conv2d(24, 8, 3, padding=1, bias=False),
            )
            for i in range(3)
        )
        self.head = nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


SHAPES |= {Mobile: (3, 8, 8), Dense: (3, 8, 8)}


@pytest.mark.parametrize("kind", SHAPES, ids=lambda kind: kind.__name__)
def test_least_squares_brings_held_out_outputs_nearer_on_every_family(
    kind: type[nn.Module],
) -> None:
    full, shape = network(kind), SHAPES[kind]
    method = Method("exemplar", "l1")
    sliced = epruner.prune(full, (1, *shape), macs=0.6, method=method, repair="none")
    repaired = epruner.prune(
        full, (1, *shape), macs=0.6, method=method, calibrate=inputs(shape, 200)
    )
    assert repaired.plan.modules.keys() == sliced.plan.modules.keys()
    x = inputs(shape, 100, seed=1)
    before, after = error(sliced.model, full, x), error(repaired.model, full, x)
    assert after < 0.9 * before, (before, after)
    assert repaired.report.repair is not None
    assert all(layer.after <= layer.before for layer in repaired.report.repair.layers)
    assert Report.from_dict(repaired.report.to_dict()) == repaired.report
    assert "layers refit" in str(repaired.report)


def test_real_resnet_is_useful_without_labels_or_training(data_dir: Path) -> None:
    with np.load(data_dir / "cifar10_lossless_subset.npz") as archive:
        raw = {part: archive[f"{part}_images"][:200] for part in ("train", "test")}
        labels = torch.from_numpy(archive["test_labels"][:200].astype(np.int64))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    images = {
        part: (torch.from_numpy(x).permute(0, 3, 1, 2) / 255 - mean) / std
        for part, x in raw.items()
    }
    full = trained_resnet(data_dir, "akamaster20")
    accuracy = {}
    for repair in ("none", "batchnorm", "least_squares"):
        result = epruner.prune(
            full, (1, 3, 32, 32), macs=0.6, calibrate=images["train"], repair=repair
        )
        with torch.no_grad():
            accuracy[repair] = float(
                (result.model(images["test"]).argmax(1) == labels).double().mean()
            )
    assert accuracy["least_squares"] > accuracy["batchnorm"] > accuracy["none"] - 0.05
    assert accuracy["least_squares"] > 0.7
    done = result.report.repair
    assert done is not None
    assert {layer.target for layer in done.layers if "conv2" in layer.name} == {"stream"}
    assert {layer.target for layer in done.layers if "conv1" in layer.name} == {"output"}


def test_training_mode_starts_from_the_repaired_network() -> None:
    full = network(Mobile)
    x = inputs((3, 8, 8), 300)
    as_after_training(full, x)
    result = epruner.prune(full, (1, 3, 8, 8), macs=0.6, calibrate=x)
    with torch.no_grad():
        trained = copy.deepcopy(result.model).train()(x)
        assert output_error([[trained]], [[full(x)]]) < 3 * error(result.model, full, x) + 0.02


@pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning")
def test_tensor_and_loader_of_the_same_inputs_give_the_same_bits() -> None:
    full, x = network(Vgg), inputs((3, 16, 16), 70)
    dataset = torch.utils.data.TensorDataset(x, torch.zeros(70, dtype=torch.long))
    loaders: list[Any] = [
        x,
        torch.utils.data.DataLoader(dataset, batch_size=16),
        [{"image": part, "label": None} for part in x.split(7)],  # type: ignore[no-untyped-call]
        ((part,) for part in x.split(33)),  # type: ignore[no-untyped-call]
    ]
    states = [
        epruner.prune(full, (1, 3, 16, 16), macs=0.6, calibrate=loader).model.state_dict()
        for loader in loaders
    ]
    for state in states[1:]:
        for key, value in state.items():
            assert torch.equal(value, states[0][key]), key


@pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning")
def test_half_precision_comes_back_in_its_type() -> None:
    full = network(Vgg)
    x = inputs((3, 16, 16), 100)
    half = copy.deepcopy(full).to(torch.bfloat16)
    result = epruner.prune(half, x[:1].bfloat16(), macs=0.6, calibrate=x.bfloat16())
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    assert error(result.model.float(), full, x) < 0.5


def test_originals_stay_as_they_were(tmp_path: Path) -> None:
    full = network(Mobile).train()
    before = copy.deepcopy(full.state_dict())
    result = epruner.prune(full, (1, 3, 8, 8), macs=0.6, calibrate=inputs((3, 8, 8), 64))
    assert full.training
    assert result.model.training
    for key, value in full.state_dict().items():
        assert torch.equal(value, before[key]), key
    epruner.save(result, tmp_path / "small.safetensors")
    again = epruner.load(network(Mobile), tmp_path / "small.safetensors")
    for key, value in again.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[key]), key


@pytest.mark.parametrize(
    ("kind", "layer", "factor"), [(Vgg, "features.0", 2.0), (ConvNext, "up", 1.0)]
)
def test_merge_takes_over_what_duplicates_passed_on(
    kind: type[nn.Module], layer: str, factor: float
) -> None:
    full = network(kind)
    half = len(full.get_submodule(layer).weight) // 2  # type: ignore[arg-type]
    for name, module in full.named_modules():  # filter i + half is a multiple of filter i
        if name == layer:
            tensors = [module.weight, module.bias]
        elif kind is Vgg and name == "features.1":  # its BatchNorm, which keeps the factor
            assert isinstance(module, nn.BatchNorm2d)
            module.eps = 0.0
            for same in (module.weight, module.running_var):
                assert isinstance(same, Tensor)
                same.data[half:] = same.data[:half]
            tensors = [module.bias, module.running_mean]
        else:
            continue
        for tensor in tensors:
            assert isinstance(tensor, Tensor)
            tensor.data[half:] = factor * tensor.data[:half]
    shape = (1, *SHAPES[kind])
    numbers = Constraints(n_filters={layer: half})
    by_weights = Method("exemplar", "exemplar", "weights")
    merged = epruner.prune(full, shape, constraints=numbers, method=by_weights, repair="merge")
    sliced = epruner.prune(full, shape, constraints=numbers, method=by_weights, repair="none")
    assert sorted(merged.kept[layer] % half) == list(range(half))  # one of each pair
    x = inputs(SHAPES[kind], 20)
    assert error(merged.model, full, x) < 1e-9 < error(sliced.model, full, x)


def test_merge_is_left_off_where_grouped_convolutions_read() -> None:
    full = network(GroupedSqueezeExcite)
    numbers = Constraints(n_filters={"reduce": 0.5})
    merged = epruner.prune(full, (1, 3, 16, 16), constraints=numbers, repair="merge")
    sliced = epruner.prune(full, (1, 3, 16, 16), constraints=numbers, repair="none")
    assert "merge left off for reduce: grouped convolutions or" in str(merged.report.notes)
    state = sliced.model.state_dict()
    for key, value in merged.model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-6, atol=0, msg=key)


def test_rank_deficient_inputs_are_reported_and_safe() -> None:
    full, x = network(Vgg), inputs((3, 16, 16), 3)
    with pytest.warns(RepairWarning, match="too few calibration inputs"):
        result = epruner.prune(full, (1, 3, 16, 16), macs=0.6, calibrate=x)
    assert all(torch.isfinite(p).all() for p in result.model.parameters())
    held_out = inputs((3, 16, 16), 50, seed=3)
    assert error(result.model, full, held_out) < 10
    assert any("too few" in note for note in result.report.notes)


def test_activations_that_overflow_are_named() -> None:
    full = network(Vgg)
    with torch.no_grad():
        full.features[3].weight.fill_(1e38)  # type: ignore[index, union-attr]
    with pytest.raises(ValueError, match=r"layer .* NaN or infinite .* normalised"):
        epruner.prune(full, (1, 3, 16, 16), macs=0.6, method="l1", calibrate=inputs((3, 16, 16), 8))


def _nan() -> Tensor:
    x = inputs((3, 16, 16), 5)
    x[3, 0, 0, 0] = float("nan")
    return x


@pytest.mark.parametrize(
    ("calibrate", "kind", "message"),
    [
        (torch.zeros(5, 3, 8, 8), ValueError, r"shape \(5, 3, 8, 8\).*\(1, 3, 16, 16\)"),
        (torch.zeros(5, 3, 16, 16, dtype=torch.uint8), TypeError, "uint8"),
        ([], ValueError, "empty"),
        (_nan(), ValueError, "1 of 5 inputs"),
        (7, TypeError, "DataLoader"),
        ("folder", ValueError, "inputs, 'noise' or 'synthetic', got 'folder'"),
        (b"folder", TypeError, "bytes"),
        ([{"label": torch.zeros(5)}], ValueError, "keys"),
        ([(3, torch.zeros(2))], TypeError, "batch 0"),
    ],
)
def test_bad_calibration_inputs(calibrate: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        epruner.prune(network(Vgg), (1, 3, 16, 16), macs=0.6, calibrate=calibrate)


NEEDY: list[tuple[dict[str, Any], str]] = [
    ({"repair": "least_squares"}, "repair='least_squares' needs calibrate"),
    ({"method": "reconstruction"}, "allocation='reconstruction' needs calibrate"),
    ({"method": Method("uniform", "reconstruction")}, "importance='reconstruction' needs"),
    ({"method": Method("uniform", "l1", "activations")}, "features='activations' needs"),
    ({"method": Method("exemplar", "exemplar", "losses")}, "features='losses' needs"),
]


@pytest.mark.parametrize(
    ("options", "message"), [({"repair": "magic"}, "repair must be one of"), *NEEDY]
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):  # BatchNorm as new: noise has no scale
        epruner.prune(Vgg().eval(), (1, 3, 16, 16), macs=0.5, **options)


@pytest.mark.parametrize("options", [options for options, _ in NEEDY])
def test_noise_makes_up_for_inputs_where_batchnorm_is_trained(options: dict[str, Any]) -> None:
    full = network(Vgg)
    result = epruner.prune(full, (1, 3, 16, 16), macs=0.5, **options)
    assert result.report.settings["evidence"] == "noise"
    assert result.report.repair is not None
    assert result.report.repair.inputs == "noise"
    assert result.report.repair.after < result.report.repair.before


@pytest.mark.parametrize("repair", ["batchnorm", "distill"])
def test_repairs_that_noise_is_not_enough_for(repair: str) -> None:
    with pytest.raises(ValueError, match=f"repair='{repair}' needs calibrate, .* or 'synthetic'"):
        epruner.prune(network(Vgg), (1, 3, 16, 16), macs=0.5, repair=repair)


class _Frozen(Vgg):
    """Its layers refuse to learn statistics."""

    def forward(self, x: Tensor) -> Any:
        if self.features[1].training:
            raise RuntimeError("statistics are frozen")
        return super().forward(x)


def test_where_noise_tells_nothing_weights_decide() -> None:
    full = network(_Frozen)
    with pytest.warns(RepairWarning, match="nothing could be learnt from noise.*frozen") as caught:
        result = epruner.prune(full, (1, 3, 16, 16), macs=0.6)
    assert [w.filename for w in caught] == [__file__]
    settings = result.report.settings
    assert Method(**settings["method"]) == Method("uniform", "l1", repair="merge")
    assert settings["evidence"] == "none"
    assert str(caught[0].message) in result.report.notes
    merged = epruner.prune(full, (1, 3, 16, 16), macs=0.6, method="l1", repair="merge")
    assert result.plan == merged.plan
    for key, value in result.model.state_dict().items():
        assert torch.equal(value, merged.model.state_dict()[key]), key
    with pytest.raises(RuntimeError, match="frozen"):  # asked for by name
        epruner.prune(full, (1, 3, 16, 16), macs=0.6, calibrate="noise")


def test_several_inputs_by_position_and_by_name() -> None:
    torch.manual_seed(0)
    full = TwoInputs().eval()
    image, depth = inputs((3, 8, 8), 40), inputs((1, 8, 8), 40)
    example = (image[:1], depth[:1])
    tuples = epruner.prune(full, example, macs=0.6, calibrate=[(image, depth, "ignored")])
    dicts = epruner.prune(full, example, macs=0.6, calibrate={"depth": depth, "image": image})
    for key, value in tuples.model.state_dict().items():
        assert torch.equal(value, dicts.model.state_dict()[key])
    with pytest.raises(ValueError, match="holds 1 tensors"):
        epruner.prune(full, example, macs=0.6, calibrate=[(image,)])


@pytest.mark.parametrize(("count", "held_back"), [(14, 0), (15, 3), (70, 14)])
def test_every_fifth_input_is_held_back(count: int, held_back: int) -> None:
    model, x = network(Vgg), inputs((3, 16, 16), count)
    found = calibration_inputs(model, iter(x.split(9)), ((x[:1],), {}), size=8)  # type: ignore[no-untyped-call]
    assert (inputs_in(found.fit), inputs_in(found.held_back)) == (count - held_back, held_back)
    unseen = torch.arange(count) % 5 == 4 if held_back else torch.zeros(count, dtype=torch.bool)
    for batches, part in ((found.fit, x[~unseen]), (found.held_back, x[unseen])):
        assert len({len(args[0]) for args, _ in batches}) <= 2
        assert torch.equal(torch.cat([args[0] for args, _ in batches] or [x[:0]]), part)


class Wide(nn.Sequential):
    """Far more weights per output than there are inputs."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(12, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 6)
        )


@pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning")
@pytest.mark.parametrize(
    ("kind", "kind_of_repair"),
    [(Wide, "least_squares"), (Mobile, "least_squares"), (Mobile, "batchnorm")],
)
def test_reported_error_is_that_of_inputs_never_seen(
    kind: type[nn.Module], kind_of_repair: str
) -> None:
    shape = SHAPES.get(kind, (12,))
    full, unseen = network(kind), torch.randn(2000, *shape)
    as_after_training(full, unseen)
    options: dict[str, Any] = {
        "macs": 0.6,
        "method": Method("exemplar", "l1"),
        "calibrate": torch.randn(150, *shape),
    }
    result = epruner.prune(full, (1, *shape), repair=kind_of_repair, **options)
    sliced = epruner.prune(full, (1, *shape), repair="none", **options)
    repair = result.report.repair
    assert repair is not None
    assert (repair.fit, repair.held_back) == (120, 30)
    assert "on 30 inputs held back" in str(repair)
    for reported, model in ((repair.before, sliced.model), (repair.after, result.model)):
        assert 0.6 < reported / error(model, full, unseen) < 1.6


def test_too_few_inputs_to_hold_some_back_are_said_to_be() -> None:
    x = inputs((3, 8, 8), 14)
    result = epruner.prune(network(Mobile), x[:1], macs=0.6, calibrate=x)
    assert result.report.repair is not None
    assert result.report.repair.held_back == 0
    assert "on these same inputs, too few" in str(result.report)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, padding=1),
        nn.Conv2d(
            6, 8, (3, 1), stride=(2, 1), dilation=(2, 1), padding=(2, 0), groups=2, bias=False
        ),
        nn.Conv2d(6, 6, 3, groups=6, padding=1, padding_mode="reflect"),
        nn.Conv1d(6, 4, 3, padding="same"),
        nn.Conv3d(6, 4, 2),
        nn.Linear(6, 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("some", [False, True])
def test_unfolded_rows_times_weights_are_the_layer(layer: nn.Module, some: bool) -> None:
    dims = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}.get(type(layer), 0)  # type: ignore[arg-type]
    x = torch.randn(3, 6, *[5] * dims) if dims else torch.randn(3, 4, 6)
    chosen = torch.tensor([0, 2, 3]) if some else None
    with torch.no_grad():
        expected = output_rows(layer(x), layer, chosen)
        got = input_rows(x, layer, chosen) @ stacked(layer).float()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    before = copy.deepcopy(layer.state_dict())
    unstack(layer, stacked(layer))
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


def test_normal_equations_recover_weights_and_bias() -> None:
    layer = nn.Conv2d(4, 5, 3)
    x = torch.randn(20, 4, 8, 8)
    normal = Normal.empty(layer)
    for part in x.split(6):  # type: ignore[no-untyped-call]
        rows = input_rows(part, layer, None)
        normal.add(rows, output_rows(layer(part).detach(), layer, None))
    wanted = stacked(layer)
    solved = normal.solve(wanted + 0.1, bias=True)
    torch.testing.assert_close(solved, wanted, rtol=0, atol=1e-3)
    assert (normal.error(solved) < normal.error(wanted + 0.1)).all()
    kept = normal.solve(wanted + 0.1, bias=False)
    assert torch.equal(kept[:, -1], (wanted + 0.1)[:, -1])


class SamePadding(nn.Conv2d):
    """Pads by itself, more after than before, as networks ported from TensorFlow do."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 1, 0, 1))
        return F.conv2d(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


class Doubled(nn.Linear):
    """Not what a linear layer computes."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OwnForwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = SamePadding(3, 16, 3, stride=2)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = SamePadding(16, 16, 3, stride=2, groups=16, bias=False)
        self.wide = nn.Conv2d(16, 24, 1)
        self.last = SamePadding(24, 12, 2)
        self.hidden = Doubled(12, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.relu(self.norm(self.stem(x)))))
        x = self.last(F.relu(self.wide(x))).mean((2, 3))
        return self.head(F.relu(self.hidden(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("importance", ["l1", "reconstruction"])
def test_layers_with_forwards_of_their_own(importance: str) -> None:
    full, x = network(OwnForwards), inputs((3, 16, 16), 100)
    method = Method("exemplar", importance)
    options: dict[str, Any] = {"macs": 0.6, "method": method, "calibrate": x}
    sliced = epruner.prune(full, (1, 3, 16, 16), repair="none", **options)
    repaired = epruner.prune(full, (1, 3, 16, 16), **options)
    held_out = inputs((3, 16, 16), 50, seed=1)
    assert error(repaired.model, full, held_out) < 0.7 * error(sliced.model, full, held_out)
    assert repaired.report.repair is not None
    refitted = {layer.name for layer in repaired.report.repair.layers}
    assert {"wide", "last"} <= refitted
    assert "hidden" not in refitted
    assert any("forward is its own" in n and "hidden" in n for n in repaired.report.notes)


def test_tape_runs_other_batches_like_the_model() -> None:
    model = network(Dense)
    x = inputs((3, 8, 8), 12)
    with torch.no_grad():
        trace = record(model, (x[:4],), {})
        run = Replay([trace] * 3, [((part,), {}) for part in x.split(4)])  # type: ignore[no-untyped-call]
        for batch in range(3):
            run.advance(batch, len(trace.ops))
        got = torch.cat([run.outputs(batch)[0] for batch in range(3)])
        torch.testing.assert_close(got, model(x), rtol=1e-6, atol=1e-6)
    assert all(len(values) <= 2 for values in run._values)  # the rest was let go


class Attention(nn.Module):
    """Looks at the mask that it makes for itself, as text encoders do."""

    def __init__(self, limit: float | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.values = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[:2])
        if self.limit is not None:
            mask[:, 0].masked_fill_(x[:, 0, 0] > self.limit, 0)  # through a view
        weights = torch.full(x.shape[:2], 1 / x.shape[1])
        if not (mask == 1).all():
            weights = torch.softmax(mask, 1)
        return x + (weights[:, :, None] * self.values(x)).sum(1, keepdim=True)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    def __init__(self, limit: float | None = None) -> None:
        super().__init__()
        self.attention = Attention(limit)
        self.wide, self.narrow = nn.Linear(12, 32), nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        return x + self.narrow(F.gelu(self.wide(x)))  # type: ignore[no-any-return]


def test_values_that_no_input_decides_may_be_read() -> None:
    torch.manual_seed(0)
    full, x = Encoder().eval(), torch.randn(100, 5, 12)
    half = Constraints(n_filters={"wide": 0.5})
    result = epruner.prune(full, x[:1], constraints=half, method="exemplar", calibrate=x)
    assert result.report.repair is not None
    assert [layer.name for layer in result.report.repair.layers] == ["narrow"]


def two_courses() -> tuple[Tensor, Encoder]:
    """A network, and inputs of which those of one batch take another way through it."""
    torch.manual_seed(0)
    x = torch.randn(60, 5, 12)
    x[0, 0, 0] = 9
    return x, Encoder(8.0).eval()


@pytest.mark.filterwarnings("ignore:no layer is ranked")
@pytest.mark.parametrize("method", ["l1", "exemplar"])
def test_network_that_reads_its_inputs_is_merged_and_says_where(method: str) -> None:
    x, model = two_courses()
    half = Constraints(n_filters={"wide": 0.5})
    options: dict[str, Any] = {"constraints": half, "method": method, "calibrate": x}
    message = (
        r"least squares left off, merge in its place: .*another course.*"
        r"'attention' reads False \(aten::.*\) off one batch and True"
    )
    with pytest.warns(RepairWarning, match=message) as caught:
        result = epruner.prune(model, x[:1], **options)
    assert result.report.repair is None
    assert str(caught[-1].message) in result.report.notes
    assert result.report.settings["method"]["repair"] == "least_squares"
    merged = epruner.prune(model, x[:1], **options, repair="merge")
    assert result.plan == merged.plan
    for key, value in result.model.state_dict().items():
        assert torch.equal(value, merged.model.state_dict()[key]), key


@pytest.mark.filterwarnings("ignore:least squares left off")
def test_where_nothing_can_be_ranked_weights_decide() -> None:
    x, model = two_courses()
    with pytest.warns(RepairWarning, match="no layer is ranked by what reads it, weights decide"):
        result = epruner.prune(model, x[:1], params=0.8, calibrate=x)
    uniform = epruner.prune(model, x[:1], params=0.8, method="l1", repair="none")
    assert result.plan == uniform.plan
    assert "ranked by what reads it" in result.report.notes[0]
    with pytest.warns(RepairWarning, match="no layer is ranked by what reads it, weights decide"):
        result = epruner.prune(model, x[:1], params=0.8, calibrate=x, method="exemplar")
    weights = epruner.Method("exemplar", "exemplar", "weights", "none")
    assert result.plan == epruner.prune(model, x[:1], params=0.8, method=weights).plan


class Tied(nn.Module):
    """Two parameters of one memory, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.read = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm_a, self.norm_b = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.once = nn.Conv2d(8, 8, 1)
        self.again = self.once
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.read(F.relu(self.stem(x)))))
        x = F.relu(self.norm_b(self.b(F.relu(self.norm_a(self.a(x))))))
        return self.head(self.again(F.relu(self.once(x))).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("repair", ["none", "merge", "batchnorm", "least_squares"])
def test_what_is_shared_stays_shared(repair: str) -> None:
    full = network(Tied)
    assert isinstance(full, Tied)
    full.b.weight.data = full.a.weight.data
    full.norm_b.bias.data = full.norm_a.bias.data
    x = inputs((3, 8, 8), 100)
    as_after_training(full, x)
    result = epruner.prune(
        full,
        x[:1],
        constraints=Constraints(n_filters={"stem": 0.5}),
        method="l1",
        repair=repair,
        calibrate=x,
    )
    small = result.model
    assert isinstance(small, Tied)
    assert small.again is small.once
    for one, other in ((small.a.weight, small.b.weight), (small.norm_a.bias, small.norm_b.bias)):
        assert one.data_ptr() == other.data_ptr()
    if repair == "least_squares":
        assert result.report.repair is not None
        assert [layer.name for layer in result.report.repair.layers] == ["read", "head"]
        notes = str(result.report.notes)
        assert "its weights are shared with 'b'): a" in notes
        assert "one of its uses depends on another): once" in notes
        assert torch.equal(small.a.weight, full.a.weight)
        assert torch.equal(small.norm_a.bias, full.norm_a.bias)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Outputs(nn.Module):
    """Outputs of several shapes beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 24), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.second(torch.relu(self.first(x)))
        return {"flat": y.squeeze(-1), "mean": y.mean(), "class": (y > 0).long(), "whole": y}


@pytest.mark.parametrize("repair", ["batchnorm", "least_squares"])
def test_outputs_of_any_shape(repair: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 6)
    result = epruner.prune(Outputs(), x[:1], macs=0.5, calibrate=x, repair=repair)
    assert result.report.repair is not None
    assert result.report.repair.after <= result.report.repair.before


class Tokens(nn.Module):
    """A BatchNorm over tokens, as many as the channels of the layer before it."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(10, 24), nn.BatchNorm1d(tokens)
        self.second, self.head = nn.Linear(24, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.second(torch.relu(self.first(x)))))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("tokens", [6, 12])
def test_a_norm_over_another_dimension_is_not_the_layers(tokens: int) -> None:
    full, x = Tokens(tokens), torch.randn(200, tokens, 10)
    as_after_training(full, x)
    numbers = Constraints(n_filters={"first": 0.5})
    sliced = epruner.prune(full, x[:1], constraints=numbers, method="l1", repair="none")
    repaired = epruner.prune(full, x[:1], constraints=numbers, method="l1", calibrate=x)
    unseen = torch.randn(200, tokens, 10)
    assert error(repaired.model, full, unseen) < 0.9 * error(sliced.model, full, unseen)


@pytest.mark.parametrize(
    "between",
    [
        [nn.BatchNorm2d(16, track_running_stats=False)],
        [nn.BatchNorm2d(16), nn.BatchNorm2d(16)],
        [nn.InstanceNorm2d(16, affine=True)],
        [nn.Conv2d(16, 16, 3, padding=1, groups=16)],
    ],
    ids=["batch statistics", "two norms", "instance norm", "depthwise"],
)
def test_merge_is_left_off_where_multiples_do_not_stay_multiples(between: list[nn.Module]) -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 16, 3, padding=1), *between, nn.ReLU(), nn.Conv2d(16, 4, 1)]
    full = nn.Sequential(*parts, nn.Flatten(), nn.Linear(256, 3)).eval()
    for repair in ("merge", "none"):
        result = epruner.prune(
            full, (2, 3, 8, 8), macs=0.6, layers=["0"], method="l1", repair=repair
        )
        if repair == "merge":
            merged = result.model.state_dict()
            assert "merge left off for 1 layers" in result.report.notes[-1]
    for key, value in result.model.state_dict().items():
        assert torch.equal(value, merged[key])


def test_precision_of_inputs_follows_the_example() -> None:
    full, x = network(Mobile), inputs((3, 8, 8), 40)
    results = [
        epruner.prune(full, x[:1], macs=0.6, calibrate=calibrate).model.state_dict()
        for calibrate in (x, x.double())
    ]
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key])
