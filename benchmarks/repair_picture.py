"""Draw docs/pictures/repair.png: how far a pruned ResNet-56 is from the original, by block."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.cifar import accuracy, lossless, network
from epruner import prune

PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "repair.png"


def streams(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What every residual block returns."""
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, y: found.append(y.double()))
        for name, module in model.named_modules()
        if name.startswith("layer") and name.count(".") == 1
    ]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return found


def main() -> None:
    """Prune, repair, measure on test images, draw."""
    from matplotlib.figure import Figure

    full = network("theo")
    calibration, _ = lossless("train", 400)
    images, labels = lossless("test", 1000)
    wanted = streams(full, images[:200])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for repair, name in (
        ("none", "sliced"),
        ("merge", "merged (no data)"),
        ("batchnorm", "BatchNorm re-estimated"),
        ("least_squares", "least squares"),
    ):
        result = prune(
            full, (1, 3, 32, 32), macs=0.4, calibrate=calibration,
            method="reconstruction", repair=repair,
        )  # fmt: skip
        errors = [
            float((a - b).square().sum() / (b - b.mean()).square().sum())
            for a, b in zip(streams(result.model, images[:200]), wanted, strict=True)
        ]
        right = accuracy(result.model, images, labels)
        axes.plot(range(1, len(errors) + 1), errors, marker=".", label=f"{name}: {right:.1f} %")
        print(name, right, errors[-1], flush=True)
    axes.set(
        yscale="log", xlabel="residual block", ylabel="squared error / variance",
        title="ResNet-56 at 40 % of its multiply-adds (93.8 % unpruned), test images",
    )  # fmt: skip
    axes.legend(title="accuracy, one shot")
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(PICTURE, dpi=120)


if __name__ == "__main__":
    main()
