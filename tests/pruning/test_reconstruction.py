"""Importance, numbers and features that look at what a layer passes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Vgg, stirred, trained_resnet
from torch import Tensor, nn

import epruner
from epruner.pruning import Constraints, Method
from epruner.pruning.errors import RepairWarning
from epruner.pruning.network.batches import Batches
from epruner.pruning.select.elimination import eliminate
from epruner.pruning.select.readers import measured

pytestmark = [
    pytest.mark.filterwarnings("ignore::epruner.pruning.errors.BudgetWarning"),
    pytest.mark.filterwarnings(f"ignore::{RepairWarning.__module__}.RepairWarning"),
]
SHAPE = (1, 3, 16, 16)


def vgg() -> Any:
    torch.manual_seed(0)
    return stirred(Vgg())


def images(count: int = 60) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_reconstruction_drops_what_others_can_make_up_for() -> None:
    full = vgg()
    first, norm = full.features[0], full.features[1]
    with torch.no_grad():
        for copy_ in range(4):  # four channels twice
            for tensor in (
                first.weight,
                first.bias,
                norm.weight,
                norm.bias,
                norm.running_mean,
                norm.running_var,
            ):
                tensor[12 + copy_] = tensor[copy_]
    result = epruner.prune(
        full,
        SHAPE,
        constraints=Constraints(n_filters={"features.0": 12}),
        method="reconstruction",
        calibrate=images(),
    )
    kept = set(result.kept["features.0"].tolist())
    assert all(len(kept & {i, 12 + i}) == 1 for i in range(4))
    with torch.no_grad():
        x = images(10)
        difference = (result.model(x) - full(x)).abs().max() / full(x).abs().max()
    assert difference < 0.02


@pytest.mark.parametrize("scale", [0.3, 1, 20])
def test_layers_without_channels_lose_their_variance_whatever_scale_their_norm_has(
    scale: float,
) -> None:
    full = vgg().eval()
    for module in full.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight.mul_(scale)
                module.bias.add_(torch.arange(len(module.bias)))  # no loss: a bias stays
    net = epruner.analyse(full, SHAPE)
    ranked, _ = measured(full, net.groups, Batches([((images(),), {})]), eliminate)
    assert ranked
    for found in ranked.values():  # up to the positions that are looked at
        assert 0.7 < found.errors[0] < 1.4
        assert (np.diff(found.errors) <= 0).all()


def test_reconstruction_widths_meet_the_budget_and_lose_less(data_dir: Path) -> None:
    with np.load(data_dir / "cifar10_lossless_subset.npz") as archive:
        raw = archive["train_images"][:64]
    x = (torch.from_numpy(raw).permute(0, 3, 1, 2) / 255 - 0.45) / 0.225
    full = trained_resnet(data_dir, "akamaster20")
    after = {}
    for allocation in ("uniform", "reconstruction"):
        method = Method(allocation, "reconstruction")
        result = epruner.prune(full, x[:1], macs=0.5, method=method, calibrate=x)
        report = result.report
        assert 0.48 * report.before.macs <= report.after.macs <= 0.5 * report.before.macs
        assert report.settings["method"]["allocation"] == allocation
        assert report.repair is not None
        after[allocation] = report.repair.after
    assert after["reconstruction"] < after["uniform"]


def test_layers_that_few_inputs_fit_too_well_keep_the_share_of_others() -> None:
    torch.manual_seed(0)
    model: nn.Sequential = stirred(
        nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 200, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(200, 10),  # reads one row of an input, its predecessor hundreds
        )
    )
    shares = {}
    for count in (60, 1000):
        result = epruner.prune(model, SHAPE, macs=0.5, calibrate=images(count))
        shares[count] = [layer.kept for layer in result.report.layers]
    assert abs(shares[60][0] - shares[60][1]) < 0.1
    assert shares[1000][1] < shares[1000][0] - 0.1


@pytest.mark.parametrize("features", ["weights", "folded", "activations"])
def test_features_cluster_every_layer(features: str) -> None:
    x = images(20)
    method = Method("exemplar", "exemplar", features, repair="none")
    result = epruner.prune(vgg(), SHAPE, beta=0.73, method=method, calibrate=x)
    again = epruner.prune(vgg(), SHAPE, beta=0.73, method=method, calibrate=x)
    assert result.plan == again.plan
    assert result.report.settings["method"]["features"] == features
    for name, found in result.clusters.items():
        assert len(found.features) == result.groups[0].channels or name != "features.0"


def test_features_of_the_user_replace_the_weights() -> None:
    def halves(layer: nn.Module) -> np.ndarray[Any, Any]:
        n = len(layer.weight)  # type: ignore[arg-type]
        return (
            np.repeat([0.0, 1.0], [n // 2, n - n // 2])[:, None] + np.linspace(0, 1e-3, n)[:, None]
        )

    method = Method("exemplar", "exemplar", halves)
    result = epruner.prune(vgg(), SHAPE, layers=["features.0"], method=method, beta=1.0)
    kept = result.kept["features.0"]
    assert kept.min() < 8 <= kept.max()
    assert result.report.settings["method"]["features"] == "halves"


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((3, 2)), r"shape \(3, 2\) for 'features.0'"),
        (np.zeros(16), "one row for each of its 16 filters"),
        (np.full((16, 2), np.nan), "NaN"),
    ],
)
def test_bad_features(matrix: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        epruner.prune(
            vgg(), SHAPE, beta=1.0, method=Method("exemplar", "exemplar", lambda _: matrix)
        )


def test_command_line_repairs_compares_and_fine_tunes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from epruner.cli import main

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=pixels, labels=rng.integers(0, 10, 48))
    source, small = str(tmp_path / "set.npz"), str(tmp_path / "small.safetensors")
    network = ["--model", "networks:Vgg", "--input-shape", "1,3,16,16"]
    repair = ["--macs", "0.6", "--calibrate", source, "--calibrate-images", "40"]
    assert main(["prune", *network, *repair, "--method", "reconstruction", "--out", small]) == 0
    assert "layers refit" in capsys.readouterr().out
    options = ["--method", "l1", "--repair", "none", "merge", "--labelled", source]
    assert main(["compare", *network, *repair, *options]) == 0
    shown = capsys.readouterr().out
    assert "merge" in shown
    assert "accuracy of the whole network" in shown
    tuned = str(tmp_path / "tuned.safetensors")
    train = ["--train", source, "--batch", "16", "--epochs", "1", "--labelled", source]
    assert main(["finetune", small, *network, *train, "--out", tuned]) == 0
    assert "epoch 1: loss" in capsys.readouterr().out
    assert Path(tuned).is_file()
    again = ["finetune", small, *network, *train, "--out", tuned, "--force"]
    assert main([*again, "--distill", "2"]) == 2
    assert "distill must be in [0, 1], got 2" in capsys.readouterr().err
    torch.save(vgg().state_dict(), tmp_path / "whole.pth")
    teacher = ["--weights", str(tmp_path / "whole.pth"), "--distill", "1", "--json"]
    assert main([*again, *teacher[:2]]) == 2
    assert "give --distill" in capsys.readouterr().err
    losses = []
    for more in (teacher, ["--json"]):
        assert main(["finetune", small, *network, *train, "--out", tuned, "--force", *more]) == 0
        losses.append(json.loads(capsys.readouterr().out)["epochs"][0]["loss"])
    assert losses[0] != losses[1]
    assert (
        main(["prune", *network, "--macs", "0.6", "--method", "reconstruction", "--out", "other"])
        == 2
    )
    assert "needs calibrate" in capsys.readouterr().err
    folder = tmp_path / "nothing"
    folder.mkdir()
    assert (
        main(["prune", *network, "--macs", "0.6", "--calibrate", str(folder), "--out", "other"])
        == 2
    )
    assert "holds no images" in capsys.readouterr().err


def test_what_one_head_is_left_of_is_refit() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 16), layer, nn.Linear(16, 3)).eval()
    x, fresh = torch.randn(60, 7, 5), torch.randn(40, 7, 5)
    constraints = Constraints(n_filters={"*.q_proj": 1})
    errors = []
    for repair in ("none", "least_squares"):
        result = epruner.prune(
            model, x[:2], constraints=constraints, method="l1", repair=repair, calibrate=x
        )
        assert result.model[1].self_attn.num_heads == 1  # type: ignore[index]
        with torch.no_grad():
            errors.append(float((result.model(fresh) - model(fresh)).square().mean()))
    assert errors[1] < 0.8 * errors[0]
