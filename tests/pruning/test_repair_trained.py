"""Repairs of networks with real trained weights, measured on inputs that they were not fit to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import wheels
from torch import Tensor
from torch.nn import functional as F

import epruner
from epruner.pruning.network.outputs import output_error

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),  # four minutes on two quiet cores
    pytest.mark.filterwarnings("ignore::epruner.pruning.errors.BudgetWarning"),
    pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning"),
]


def images(data: Path, part: str, count: int, size: int) -> Tensor:
    """CIFAR images, enlarged: the only natural images at hand."""
    with np.load(data / "cifar10_lossless_subset.npz") as archive:
        raw = torch.from_numpy(archive[f"{part}_images"][:count])
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    x = (raw.permute(0, 3, 1, 2) / 255 - mean) / std
    return F.interpolate(x, size=(size, size), mode="bilinear")


@pytest.mark.parametrize("importance", ["l1", "reconstruction"])
@pytest.mark.parametrize("name", wheels.networks("mobilenetv2", "efficientnet-lite0"))
def test_inverted_residuals_come_nearer_to_the_original(
    name: str, importance: str, data_dir: Path
) -> None:
    full, shape = wheels.trained(name)
    x, held_out = images(data_dir, "train", 64, shape[-1]), images(data_dir, "test", 32, shape[-1])
    outputs = {}
    method = epruner.Method("exemplar", importance)
    for repair in ("none", "least_squares"):
        result = epruner.prune(full, shape, macs=0.8, method=method, calibrate=x, repair=repair)
        with torch.no_grad():
            outputs[repair] = result.model(held_out)
    with torch.no_grad():
        wanted = full(held_out)
    before, after = (output_error([[y]], [[wanted]]) for y in outputs.values())
    assert after < 0.5 * before, (before, after)
    same = (outputs["least_squares"].argmax(1) == wanted.argmax(1)).double().mean()
    was = (outputs["none"].argmax(1) == wanted.argmax(1)).double().mean()
    assert same > was, (was, same)
