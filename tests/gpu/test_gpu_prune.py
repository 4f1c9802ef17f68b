"""Pruning where the weights are on a device: the same plans as on the CPU, by the real kernels.

The kernels run on the CPU (see `cuda_shim`) and torch's CPU tensors stand for CUDA's: what is not
shown here is CuPy's part, arrays and launches.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networks
import numpy as np
import pytest
import torch
from cuda_shim import HostEngine, Make
from digits import SHAPE
from networks import stirred, trained_resnet
from torch import Tensor, nn

from epruner.cluster.backends import cuda
from epruner.cluster.backends.cuda import cluster
from epruner.cluster.backends.cuda import device as cuda_device
from epruner.cluster.backends.cuda.device import load_cupy
from epruner.pruning import Constraints, Method, PruningResult, prune

if TYPE_CHECKING:
    from digits import Digits

IMAGE = (1, 3, 16, 16)
CIFAR = (1, 3, 32, 32)


class Device:
    """Whether tensors count as being on a device, which is the CPU."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine = engine
        self.here = False

    def both(self, model: nn.Module, inputs: Any, **options: Any) -> PruningResult:
        """Prune on the CPU and on the device; the same comes out, to the iteration."""
        options = {"method": "paper"} | options
        self.here = False
        expected = prune(model, inputs, **options)
        self.here = True
        self.engine.launched.clear()
        found = prune(model, inputs, **options)
        assert any(kernel.startswith("distances") for kernel in self.engine.launched)
        assert found.plan == expected.plan
        assert found.report.layers == expected.report.layers
        assert found.report.notes == expected.report.notes
        for name, clusters in expected.clusters.items():
            np.testing.assert_array_equal(found.clusters[name].labels, clusters.labels)
            np.testing.assert_array_equal(found.clusters[name].features, clusters.features)
        return found


@pytest.fixture
def device(make: Make, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device that tensors are on while it is `here`."""
    device = Device(make())

    @contextmanager
    def engine_for(arrays: Sequence[object]) -> Iterator[HostEngine]:
        yield device.engine

    monkeypatch.setattr(cuda, "on_device", lambda x: device.here and isinstance(x, Tensor))
    monkeypatch.setattr(cuda, "load_cupy", lambda: np)
    monkeypatch.setattr(cuda_device, "load_cupy", lambda: np)
    monkeypatch.setattr(cluster, "engine_for", engine_for)
    return device


def test_a_trained_resnet56_is_pruned_the_same(device: Device, data_dir: Path) -> None:
    model = trained_resnet(data_dir, "theo")
    found = device.both(model, CIFAR, beta=0.76)
    assert len(found.report.layers) == 27
    assert all(layer.converged for layer in found.report.layers)


def test_a_budget_solves_messages_again_and_nothing_else(device: Device, digits: Digits) -> None:
    found = device.both(digits.network(), SHAPE, macs=0.7)
    launched = device.engine.launched
    assert launched["distances_f32"] == len(found.report.layers) == 4
    assert launched["medians_matrix_f32"] == 1
    assert launched["small_f32"] > 2


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.73, "scope": "all", "layers": ["stem", "blocks.0"]},
        {"constraints": Constraints(n_filters={"blocks.0.conv1": 5, "blocks.1.conv1": 0.5})},
        {
            "beta": {"blocks.0.conv1": 0.5, "blocks.2.conv1": 3.0},
            "method": Method("exemplar", "fpgm"),
        },
    ],
    ids=["several layers side by side", "given numbers", "a beta a layer"],
)
def test_options_give_the_same(device: Device, digits: Digits, options: dict[str, Any]) -> None:
    device.both(digits.network(), SHAPE, **options)


def test_grouped_convolutions_and_dead_filters(device: Device) -> None:
    model = stirred(networks.GroupedSqueezeExcite())
    with torch.no_grad():
        model.reduce.weight[:12] = 0  # two blocks of filters all alike
    found = device.both(model, IMAGE, beta=0.7)
    assert any(group.blocks == 4 for group in found.groups)


def test_double_precision_stays(device: Device) -> None:
    model = stirred(networks.Vgg()).double()
    device.both(model, torch.randn(IMAGE, dtype=torch.float64), beta=0.7)
    assert device.engine.launched["distances_f64"] > 0


def test_layers_too_wide_for_shared_memory_get_active_sets(device: Device, digits: Digits) -> None:
    device.engine.max_shared = 0
    device.both(digits.network(), SHAPE, beta=2.0)
    assert device.engine.launched["active_rows"] > 0


def test_other_features_are_numpys_and_stay_on_the_cpu(device: Device) -> None:
    device.here = True
    found = prune(
        stirred(networks.Vgg()), IMAGE, beta=0.7, method=Method("exemplar", "exemplar", "folded")
    )
    assert not device.engine.launched
    assert not found.report.notes


def test_without_cupy_the_cpu_does_it_and_the_report_says_so(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stirred(networks.Vgg())
    expected = prune(model, IMAGE, beta=0.7)
    device.here = True
    monkeypatch.setitem(sys.modules, "cupy", None)  # what an import finds where nothing is there
    load_cupy.cache_clear()
    monkeypatch.setattr(cuda, "load_cupy", load_cupy)
    found = prune(model, IMAGE, beta=0.7)
    assert found.plan == expected.plan
    (note,) = found.report.notes
    assert "were clustered on the CPU" in note
    assert "[cuda13]" in note
    assert not device.engine.launched


def test_what_does_not_fit_on_the_device_is_done_on_the_cpu(device: Device) -> None:
    model = stirred(networks.Vgg())
    expected = prune(model, IMAGE, beta=0.7)
    device.here = True
    device.engine.free = 1000
    found = prune(model, IMAGE, beta=0.7)
    assert found.plan == expected.plan
    (note,) = found.report.notes
    assert "were clustered on the CPU: similarities of " in note
    assert "0.00 GB are free" in note
