"""Small networks of every family that pruning must get right, and of those it must leave alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.pruning import PruningResult, prune
from epruner.pruning.plan.plan import Plan
from examples.cifar_resnet import CifarResNet as CifarResNet
from examples.cifar_resnet import resnet20 as resnet20
from examples.cifar_resnet import resnet56 as resnet56

Network = TypeVar("Network", bound=nn.Module)

# Published checkpoints: file, network, and renaming of the keys to the example's.
CHECKPOINTS = {
    "theo": ("theo-obadiah_resnet56.pth", resnet56, {"conv.": "conv1.", "bn.": "bn1."}),
    "akamaster": ("resnet56-4bfd9763.th", resnet56, {}),
    "akamaster20": ("resnet20-12fca82f.th", resnet20, {}),
}


def trained_resnet(data: Path, which: str) -> CifarResNet:
    """A CIFAR ResNet with the weights of a published checkpoint, in eval mode."""
    file, make, renamed = CHECKPOINTS[which]
    state = torch.load(data / "cifar_resnets" / file, map_location="cpu", weights_only=True)
    weights = {}
    for key, value in state["state_dict"].items():
        name = key.removeprefix("module.")
        for old, new in renamed.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        weights[name] = value
    network = make()
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return network.eval()


def stirred(network: Network, seed: int = 0) -> Network:
    """BatchNorm layers with rows that differ, so that a wrong slice shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.data = noise + 0.5 if tensor is not module.running_mean else noise - 0.5
    return network.eval()


def silenced(model: nn.Module, plan: Plan) -> nn.Module:
    """The full network with the inputs of consumers zeroed that the plan drops.

    Written apart from the package's own: one output channel at a time.
    """
    full = copy.deepcopy(model)
    for name, part in plan.modules.items():
        if part.in_ is None or part.in_before is None:
            continue
        module: Any = full.get_submodule(name)
        groups = getattr(module, "groups", 1)
        width = part.in_before // groups
        with torch.no_grad():
            for channel in set(range(part.in_before)) - set(part.in_):
                if getattr(module, "transposed", False):
                    module.weight[channel] = 0
                    continue
                rows = module.weight.shape[0] // groups
                first = channel // width * rows
                module.weight[first : first + rows, channel % width] = 0
    return full


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference relative to the largest absolute value."""
    return float((got - expected).abs().max() / expected.abs().max())


class Vgg(nn.Module):
    """Convolution, BatchNorm, ReLU in a row; a head on the flattened 2 x 2 map."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in (16, 16, "M", 24, 24, "M", 32, "M"):
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            assert isinstance(width, int)
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(32 * 4, 20), nn.ReLU(), nn.Linear(20, 10))

    def forward(self, x: Tensor) -> Any:
        return self.classifier(self.features(x).flatten(1))


class GroupedSqueezeExcite(nn.Module):
    """A residual bottleneck with a grouped 3 x 3 convolution and a squeeze-and-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.reduce = nn.Conv2d(16, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=4, bias=False)
        self.bn2 = nn.BatchNorm2d(24)
        self.squeeze = nn.Conv2d(24, 8, 1)
        self.excite = nn.Conv2d(8, 24, 1)
        self.expand = nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        y = F.relu(self.bn1(self.reduce(x)))
        y = F.relu(self.bn2(self.grouped(y)))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        x = F.relu(x + self.expand(y * torch.sigmoid(gate)))
        return self.head(x.mean((2, 3)))


class ConvNext(nn.Module):
    """Depthwise 7 x 7, LayerNorm over channels, two linear layers, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, stride=4)
        self.depthwise = nn.Conv2d(12, 12, 7, padding=3, groups=12)
        self.norm = nn.LayerNorm(12)
        self.up = nn.Linear(12, 48)
        self.down = nn.Linear(48, 12)
        self.scale = nn.Parameter(torch.rand(12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Self-attention with separate projections, as BERT writes it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Any:
        n, t, c = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(n, t, self.heads, c // self.heads).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        y = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, c))


class Vit(nn.Module):
    """Patches, a class token, position embedding, one pre-norm block."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        self.norm1 = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm2 = nn.LayerNorm(16)
        self.fc1 = nn.Linear(16, 64)
        self.fc2 = nn.Linear(64, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x[:, 0])


class BertLayer(nn.Module):
    """Token embedding and one post-norm layer; takes token indices and a mask by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.attention = Attention(16, 4)
        self.norm1 = nn.LayerNorm(16)
        self.intermediate = nn.Linear(16, 64)
        self.output = nn.Linear(64, 16)
        self.norm2 = nn.LayerNorm(16)
        self.classifier = nn.Linear(16, 3)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.embedding(input_ids) * attention_mask[..., None]
        x = self.norm1(x + self.attention(x))
        x = self.norm2(x + self.output(F.gelu(self.intermediate(x))))
        return {"logits": self.classifier(x[:, 0])}


class GatedMlp(nn.Module):
    """Two linear layers whose product a third one reads (SwiGLU)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(12, 40)
        self.up = nn.Linear(12, 40)
        self.down = nn.Linear(40, 6)

    def forward(self, x: Tensor) -> Any:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class ChunkedMlp(nn.Module):
    """One linear layer whose halves are multiplied (GLU): its channels are split."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(12, 80)
        self.down = nn.Linear(40, 20)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Any:
        a, b = self.both(x).chunk(2, -1)
        return self.head(F.relu(self.down(F.silu(a) * b)))


class ChannelMean(nn.Module):
    """Every operation is known, but the mean counts the channels: only a trial can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.first(x))
        x = F.relu(self.second(x))
        x = x - x.mean(1, keepdim=True)
        return self.head(F.relu(self.third(x)).mean((2, 3)))


class ChannelShuffle(nn.Module):
    """ShuffleNet's shuffle between two grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.first = nn.Conv2d(12, 24, 1, groups=3)
        self.second = nn.Conv2d(24, 24, 1, groups=3)
        self.last = nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.first(self.stem(x)))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = F.relu(self.last(F.relu(self.second(x))))
        return self.head(x.mean((2, 3)))


class SplitNet(nn.Module):
    """ShuffleNet v2: half of the channels goes through, the other half is convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.branch1 = nn.Conv2d(8, 12, 1)
        self.branch2 = nn.Conv2d(12, 8, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        a, b = torch.chunk(F.relu(self.stem(x)), 2, dim=1)
        x = torch.cat([a, self.branch2(F.relu(self.branch1(b)))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One convolution used twice in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.inner = nn.Conv2d(16, 20, 1)
        self.outer = nn.Conv2d(20, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.twice(F.relu(self.twice(F.relu(self.stem(x))))))
        x = self.outer(F.relu(self.inner(x)))
        return self.head(x.mean((2, 3)))


class Upsampler(nn.Module):
    """Transposed convolutions, PReLU, instance norm and a convolutional head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.prelu = nn.PReLU(16)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.norm = nn.InstanceNorm2d(12, affine=True)
        self.last = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.last(F.relu(self.norm(self.up(self.prelu(self.first(x))))))


class TwoInputs(nn.Module):
    """Two inputs that meet in a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 12, 3, padding=1)
        self.right = nn.Conv2d(1, 10, 3, padding=1)
        self.join = nn.Conv2d(22, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor, depth: Tensor) -> Any:
        both = torch.cat([F.relu(self.left(image)), F.relu(self.right(depth))], 1)
        return self.head(F.relu(self.join(both)).mean((2, 3)))


class InputConcat(nn.Module):
    """The input itself, and scaled by a parameter, beside features made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.second = nn.Conv2d(15, 10, 3, padding=1)
        self.third = nn.Conv2d(16, 14, 1)
        self.head = nn.Linear(14, 4)

    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.second(torch.cat([x, F.relu(self.first(x))], 1)))
        y = torch.cat([self.scale * x, y, x], 1)
        return self.head(F.relu(self.third(y)).mean((2, 3)))


class GroupedUpsampler(nn.Module):
    """A grouped transposed convolution between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 12, 2, stride=2, groups=4)
        self.second = nn.Conv2d(12, 10, 1)
        self.last = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Any:
        return self.last(F.relu(self.second(F.relu(self.up(F.relu(self.first(x)))))))


class ThrownAway(nn.Module):
    """A second head is computed, and nothing returned comes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Conv2d(16, 20, 3, padding=1)
        self.aside = nn.Conv2d(16, 18, 3, padding=1)
        self.spare = nn.Linear(18, 5)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        self.spare(F.relu(self.aside(x)).mean((2, 3))).softmax(1)
        return self.head(F.relu(self.body(x)).mean((2, 3)))


def cut(model: nn.Module, inputs: Any, **options: Any) -> PruningResult:
    """Prune by exemplars and without repair, at beta 0.73 where nothing says how much."""
    how_much = {"macs", "params", "beta", "budget", "recipe", "constraints"}
    options = {"method": "paper", **options}
    return prune(model, inputs, **options if how_much & set(options) else options | {"beta": 0.73})
