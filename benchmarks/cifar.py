"""CIFAR-10 images and trained ResNets for the accuracy benchmarks (not part of the project)."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from epruner import load_weights
from examples.cifar_resnet import resnet20, resnet56

DATA = Path(os.environ.get("EPRUNER_DATA", Path(__file__).parents[2] / "shared" / "data"))
NETWORKS = {
    "theo": (resnet56, "theo-obadiah_resnet56.pth", {"conv": "conv1", "bn": "bn1"}),
    "akamaster": (resnet56, "resnet56-4bfd9763.th", {}),
    "resnet20": (resnet20, "resnet20-12fca82f.th", {}),
}
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def network(name: str) -> nn.Module:
    """A trained ResNet, in eval mode."""
    make, file, key_map = NETWORKS[name]
    model = make()
    prefix = "" if name == "theo" else "module."
    load_weights(model, DATA / "cifar_resnets" / file, prefix_strip=prefix, key_map=key_map)
    return model.eval()


def lossless(part: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images with their true pixels: (n, 3, 32, 32), (n,)."""
    with np.load(DATA / "cifar10_lossless_subset.npz") as archive:
        images = archive[f"{part}_images"][:count]
        labels = archive[f"{part}_labels"][:count]
        return normalise(images), torch.from_numpy(labels.astype(np.int64))


def jpeg(part: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images as JPEG of quality 75."""
    from PIL import Image

    with np.load(DATA / f"cifar10_{part}_jpeg_q75.npz") as archive:
        data, offsets = archive["data"], archive["offsets"]
        images = np.stack(
            [
                np.asarray(Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]].tobytes())))
                for i in range(count)
            ]
        )
        labels = archive["labels"][:count]
    return normalise(images), torch.from_numpy(labels.astype(np.int64))


def normalise(images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Tensor:
    """uint8 (n, 32, 32, 3) to what the networks were trained on."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 in percent."""
    model.eval()
    scores = torch.cat([model(batch) for batch in images.split(250)])  # type: ignore[no-untyped-call]
    return 100 * float((scores.argmax(1) == labels).double().mean())
