"""Exported networks compute what the pruned ones do, without their code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import stirred
from torch import Tensor, nn

from epruner.pruning.io.export import export_onnx, export_program
from epruner.pruning.pipeline import prune
from examples.cifar_resnet import CifarResNet

ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra test)")


class Masked(nn.Module):
    """Two inputs, one of them an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(n, t), (n, t) -> (n, 3)."""
        return self.head((self.embed(tokens) * mask[..., None]).mean(1))  # type: ignore[no-any-return]


class OneBatch(nn.Linear):
    """Works for a single sample only."""

    def forward(self, x: Tensor) -> Tensor:
        """(1, 4) -> (2, 2)."""
        return super().forward(x).reshape(2, 2)


class Branches(nn.Linear):
    """Its path depends on values, which no export follows."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, 4) -> (n, 4)."""
        return super().forward(x) if float(x.sum()) > 0 else x


def small() -> nn.Module:
    """Convolution, BatchNorm with statistics of its own, pooling, linear head."""
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(5, 4),
    )  # fmt: skip
    model(torch.randn(8, 3, 9, 9))
    return model


def run_onnx(file: Path, inputs: dict[str, Tensor]) -> Tensor:
    session = ort.InferenceSession(file)
    (output,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(output)


@torch.no_grad()
def test_onnx_equals_the_network_for_any_batch(tmp_path: Path) -> None:
    model, file = small(), tmp_path / "m.onnx"
    assert export_onnx(model, (1, 3, 9, 9), file)
    assert model.training
    x = torch.randn(5, 3, 9, 9)
    got = run_onnx(file, {ort.InferenceSession(file).get_inputs()[0].name: x})
    torch.testing.assert_close(got, model.eval()(x), rtol=1e-5, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@torch.no_grad()
def test_inputs_by_name(tmp_path: Path) -> None:
    model, file = Masked().eval(), tmp_path / "m.onnx"
    inputs = {"tokens": torch.tensor([[1, 2, 3]]), "mask": torch.ones(1, 3)}
    assert export_onnx(model, inputs, file)
    inputs = {name: value.repeat(4, 1) for name, value in inputs.items()}
    torch.testing.assert_close(run_onnx(file, inputs), model(**inputs), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_program_needs_no_code(tmp_path: Path) -> None:
    model, file = small(), tmp_path / "m.pt2"
    assert export_program(model, torch.randn(1, 3, 9, 9), file)
    x = torch.randn(5, 3, 9, 9)
    got = torch.export.load(file).module()(x)
    torch.testing.assert_close(got, model.eval()(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_fixed_batch_is_exported_as_such(tmp_path: Path) -> None:
    model, x = OneBatch(4, 4), torch.randn(1, 4)
    assert not export_program(model, x, tmp_path / "m.pt2")
    assert not export_onnx(model, x, tmp_path / "m.onnx")
    torch.testing.assert_close(run_onnx(tmp_path / "m.onnx", {"x": x}), model(x))


class Attention(nn.Module):
    """A transformer's block on patches, with a head."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, 5)."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norm(x))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def grouped() -> nn.Module:
    """A grouped and a depthwise convolution, as in ResNeXt and MobileNet."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, groups=4), nn.BatchNorm2d(32), nn.ReLU6(),
        nn.Conv2d(32, 32, 3, groups=32), nn.BatchNorm2d(32), nn.SiLU(),
        nn.Conv2d(32, 12, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 4),
    )  # fmt: skip
    return stirred(model)


@torch.no_grad()
def published(name: str) -> nn.Module:
    """An ImageNet network of pytorchcv, random weights, BatchNorm statistics that fit them."""
    provider = pytest.importorskip("pytorchcv.model_provider", reason="needs pytorchcv")
    model: nn.Module = provider.get_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model(torch.randn(4, 3, 224, 224))
    return model


@torch.no_grad()
def check(model: nn.Module, size: int, folder: Path, ignore: tuple[str, ...] = ()) -> None:
    """Prune to half the multiply-adds, export both ways, compare on another batch size."""
    pruned = prune(model.eval(), (1, 3, size, size), macs=0.5, method="paper", ignore=ignore).model
    example = torch.randn(1, 3, size, size)
    x = torch.randn(2, 3, size, size)
    expected = pruned(x)
    assert export_onnx(pruned, example, folder / "m.onnx")
    session = ort.InferenceSession(folder / "m.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    limit = 1e-5 * float(expected.abs().max())
    assert float((torch.from_numpy(got) - expected).abs().max()) < limit
    assert export_program(pruned, example, folder / "m.pt2")
    again = torch.export.load(folder / "m.pt2").module()(x)
    assert float((again - expected).abs().max()) < limit


@pytest.mark.filterwarnings("ignore::epruner.pruning.errors.BudgetWarning")
@pytest.mark.parametrize("make", [lambda: CifarResNet(1), Attention, grouped])
def test_pruned_networks_export(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    check(make(), 32, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [
        "bn_vgg16", "resnet50", "resnext50_32x4d", "seresnet50", "densenet121", "mobilenetv2_w1",
        "efficientnet_b0",
    ],
)  # fmt: skip
def test_pruned_published_networks_export(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    # the two huge linear layers would take minutes to cluster and test nothing more
    check(published(name), 224, tmp_path, ignore=("output",) if name == "bn_vgg16" else ())


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_what_cannot_be_exported_says_why(tmp_path: Path, export: Callable[..., bool]) -> None:
    with pytest.raises(ValueError, match=r"Branches cannot be exported: .*data-dependent"):
        export(Branches(4, 4), torch.randn(1, 4), tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="no folder"):
        export(small(), (1, 3, 9, 9), tmp_path / "absent" / "m")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, package, missing)
    with pytest.raises(ImportError, match=r'pip install "\S+\[onnx\]"'):
        export_onnx(small(), (1, 3, 9, 9), tmp_path / "m.onnx")
