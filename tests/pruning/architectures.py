"""Small networks in the shapes of published ones: how people write their forward passes.

Each keeps what matters to pruning (how channels are split, joined, shared, reshaped into heads), at
a few channels and random weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)


def lively(network: Network, seed: int = 0) -> Network:
    """Weights under which every branch is heard, and norms with rows that differ; in eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, scale: float) -> None:
        tensor.data = scale * torch.randn(tensor.shape, generator=generator)

    for module in network.modules():
        for name, tensor in module.named_parameters(recurse=False):
            if tensor.dim() > 1:
                inputs = len(tensor) if isinstance(module, Conv1D) else tensor[0].numel()
                normal(tensor, 1.2 / math.sqrt(inputs))
            elif "bias" in name or not hasattr(module, "eps"):
                normal(tensor, 0.3)
            else:
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
        if isinstance(module, nn.Embedding):
            normal(module.weight, 1.0)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            normal(module.running_mean, 0.3)
            module.running_var = 0.5 + torch.rand(module.num_features, generator=generator)
    return network.eval()


# Convolutions


class ConvBn(nn.Sequential):
    """Convolution, BatchNorm, activation."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.SiLU())


class Bottleneck(nn.Module):
    """Two convolutions, and a shortcut if one is wanted."""

    def __init__(self, width: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvBn(width, width, 3), ConvBn(width, width, 3)
        self.add = shortcut

    def forward(self, x: Tensor) -> Any:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C2f(nn.Module):
    """YOLOv8's block: halves, the second through bottlenecks, everything on the way joined."""

    def __init__(
        self, inputs: int, outputs: int, depth: int, shortcut: bool, by_size: bool
    ) -> None:
        super().__init__()
        self.c = outputs // 2
        self.cv1 = ConvBn(inputs, 2 * self.c)
        self.cv2 = ConvBn((2 + depth) * self.c, outputs)
        self.m = nn.ModuleList(Bottleneck(self.c, shortcut) for _ in range(depth))
        self.by_size = by_size

    def forward(self, x: Tensor) -> Any:
        y = self.cv1(x)
        parts = list(torch.split(y, [self.c, self.c], 1) if self.by_size else y.chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.m)
        return self.cv2(torch.cat(parts, 1))


class Sppf(nn.Module):
    """One pooling three times in a row, all results joined."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvBn(width, width // 2), ConvBn(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Any:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class Yolo(nn.Module):
    """Backbone and neck of C2f blocks, one head for three scales, boxes from distributions."""

    bins, classes = 4, 5

    def __init__(self, by_size: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBn(3, 8, 3, 2), C2f(8, 16, 1, True, by_size))
        self.p4 = nn.Sequential(ConvBn(16, 24, 3, 2), C2f(24, 24, 2, True, by_size))
        self.p5 = nn.Sequential(ConvBn(24, 32, 3, 2), Sppf(32))
        self.up4 = C2f(32 + 24, 24, 1, False, by_size)
        self.up3 = C2f(24 + 16, 16, 1, False, by_size)
        self.down3, self.down4 = ConvBn(16, 16, 3, 2), ConvBn(24, 24, 3, 2)
        self.out4 = C2f(16 + 24, 24, 1, False, by_size)
        self.out5 = C2f(24 + 32, 32, 1, False, by_size)
        self.align = nn.ModuleList(ConvBn(width, 16) for width in (16, 24, 32))
        self.box = nn.Sequential(ConvBn(16, 16, 3), nn.Conv2d(16, 4 * self.bins, 1))
        self.kind = nn.Sequential(ConvBn(16, 12, 3), nn.Conv2d(12, self.classes, 1))
        self.register_buffer("places", torch.arange(float(self.bins)))

    def forward(self, x: Tensor) -> Any:
        p3 = self.stem(x)
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        n4 = self.up4(torch.cat([F.interpolate(p5, scale_factor=2.0), p4], 1))
        n3 = self.up3(torch.cat([F.interpolate(n4, scale_factor=2.0), p3], 1))
        n4 = self.out4(torch.cat([self.down3(n3), n4], 1))
        n5 = self.out5(torch.cat([self.down4(n4), p5], 1))
        maps = [align(y) for align, y in zip(self.align, (n3, n4, n5), strict=True)]
        found = [torch.cat([self.box(y), self.kind(y)], 1).flatten(2) for y in maps]
        box, kind = torch.split(torch.cat(found, 2), [4 * self.bins, self.classes], 1)
        spread = box.view(len(box), 4, self.bins, -1).softmax(2)
        sides = torch.einsum("nsba,b->nsa", spread, self.places)
        return torch.cat([sides, kind.sigmoid()], 1)


class Csp(nn.Module):
    """CSP blocks: two ways through one map (by two convolutions, then by halves), joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBn(3, 16, 3, 2)
        self.cv1, self.cv2 = ConvBn(16, 12), ConvBn(16, 12)
        self.inner = Bottleneck(12, True)
        self.cv3 = ConvBn(24, 24)
        self.partial = Bottleneck(12, True)
        self.transition = ConvBn(24, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        x = self.cv3(torch.cat([self.inner(self.cv1(x)), self.cv2(x)], 1))
        half = x.shape[1] // 2
        x = torch.cat([x[:, :half], self.partial(x[:, half:])], 1)
        return self.head(self.transition(x).mean((2, 3)))


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels of all groups in turn."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class ShuffleUnit(nn.Module):
    """Half of the channels through 1 x 1, depthwise, 1 x 1; the other half joined and shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        kept, changed = x.chunk(2, dim=1)
        return shuffled(torch.cat((kept, self.branch(changed)), 1), 2)


class ShuffleDown(nn.Module):
    """Both branches halve the map, and together double the channels."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        half = width // 2
        self.left = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
        )  # fmt: skip
        self.right = nn.Sequential(
            nn.Conv2d(inputs, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
            nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False), nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        return shuffled(torch.cat((self.left(x), self.right(x)), 1), 2)


class ShuffleNetV2(nn.Module):
    """Two stages of one halving and one or two ordinary units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.stages = nn.Sequential(
            ShuffleDown(8, 16), ShuffleUnit(16), ShuffleUnit(16), ShuffleDown(16, 24),
            ShuffleUnit(24),
        )  # fmt: skip
        self.last = nn.Sequential(nn.Conv2d(24, 32, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.last(self.stages(self.stem(x))).mean((2, 3)))


class SuperResolution(nn.Module):
    """EDSR: residual blocks without norms, a convolution whose channels become pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(12, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 12, 3, padding=1)
            )
            for _ in range(2)
        )
        self.up = nn.Sequential(nn.Conv2d(12, 40, 3, padding=1), nn.PixelShuffle(2))
        self.last = nn.Conv2d(10, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        for block in self.body:
            x = x + block(x)
        return self.last(F.relu(self.up(x)))


class Ghost(nn.Module):
    """Half of the channels by a convolution, the other half from it by depthwise ones; cut."""

    def __init__(self, inputs: int, outputs: int, relu: bool) -> None:
        super().__init__()
        half = (outputs + 1) // 2
        act = nn.ReLU() if relu else nn.Identity()
        self.primary = nn.Sequential(nn.Conv2d(inputs, half, 1), nn.BatchNorm2d(half), act)
        self.cheap = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=1, groups=half), nn.BatchNorm2d(half), act
        )
        self.outputs = outputs

    def forward(self, x: Tensor) -> Any:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], 1)[:, : self.outputs]


class GhostNet(nn.Module):
    """Two ghost bottlenecks with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBn(3, 12, 3, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(Ghost(12, 28, True), Ghost(28, 12, False)) for _ in range(2)
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((2, 3)))


class GatedConvs(nn.Module):
    """Three ways to gate: a convolution of its own, ``F.glu``, slices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(3, 20, 3, padding=1)
        self.second = nn.Conv2d(20, 32, 3, padding=1)
        self.third = nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.elu(self.first(x)) * torch.sigmoid(self.gate(x))
        x = self.third(F.glu(self.second(x), 1))
        half = x.shape[1] // 2
        return self.head((x[:, :half].tanh() * x[:, half:]).mean((2, 3)))


class UNet(nn.Module):
    """Two levels with GroupNorm, maps joined across, transposed convolutions upwards."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self._double(3, 16), self._double(16, 32)
        self.bottom = self._double(32, 32)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.level2, self.level1 = self._double(48, 32), self._double(32, 16)
        self.last = nn.Conv2d(16, 2, 1)

    @staticmethod
    def _double(inputs: int, width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.SiLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.bottom(F.max_pool2d(two, 2))
        x = self.level2(torch.cat([self.up2(x), two], 1))
        return self.last(self.level1(torch.cat([self.up1(x), one], 1)))


class Siamese(nn.Module):
    """One backbone sees two images; a linear layer weighs the difference of what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 20, 3, 2, 1), nn.BatchNorm2d(20), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 16),
        )  # fmt: skip
        self.head = nn.Linear(16, 2)

    def forward(self, left: Tensor, right: Tensor) -> Any:
        return self.head((self.backbone(left) - self.backbone(right)).abs())


class PyramidHead(nn.Module):
    """RetinaNet: three levels brought to one width, and the same heads on each."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            ConvBn(inputs, outputs, 3, 2) for inputs, outputs in ((3, 12), (12, 16), (16, 24))
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, 16, 1) for width in (12, 16, 24))
        self.smooth = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.kind, self.box = self._tower(6), self._tower(4)

    @staticmethod
    def _tower(outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(16, 20, 3, padding=1), nn.ReLU(), nn.Conv2d(20, 18, 3, padding=1), nn.ReLU(),
            nn.Conv2d(18, outputs, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Any:
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        merged: list[Tensor] = []
        for lateral, level in zip(reversed(self.lateral), reversed(levels), strict=True):
            y = lateral(level)
            merged.append(y + F.interpolate(merged[-1], size=y.shape[2:]) if merged else y)
        maps = [smooth(y) for smooth, y in zip(self.smooth, reversed(merged), strict=True)]
        kinds, boxes = (
            torch.cat([head(y).flatten(2) for y in maps], 2) for head in (self.kind, self.box)
        )
        return {"kinds": kinds, "boxes": boxes}


class Cbam(nn.Module):
    """A gate a channel, from one MLP on mean and maximum; then a gate a place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = ConvBn(3, 12, 3), ConvBn(12, 24, 3)
        self.mlp = nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 24))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)
        self.last = ConvBn(24, 16, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(self.stem(x))
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
        x = x * gate[:, :, None, None]
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        x = x * torch.sigmoid(self.spatial(seen))
        return self.head(self.last(x).mean((2, 3)))


class WaveNet(nn.Module):
    """Dilated causal convolutions whose halves gate each other; what all layers skip is summed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 12, 1)
        self.dilated = nn.ModuleList(nn.Conv1d(12, 32, 2, dilation=2**i) for i in range(4))
        self.residual = nn.ModuleList(nn.Conv1d(16, 12, 1) for _ in range(4))
        self.skip = nn.ModuleList(nn.Conv1d(16, 20, 1) for _ in range(4))
        self.last1, self.last2 = nn.Conv1d(20, 24, 1), nn.Conv1d(24, 8, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        skipped: Any = 0
        for i, (dilated, residual, skip) in enumerate(
            zip(self.dilated, self.residual, self.skip, strict=True)
        ):
            a, b = dilated(F.pad(x, (2**i, 0))).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            skipped = skipped + skip(y)
            x = x + residual(y)
        return self.last2(F.relu(self.last1(F.relu(skipped))))


# Recurrence


class TextReader(nn.Module):
    """CRNN: columns of a convolved line of text, through two bidirectional LSTM, to letters."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(20, 24, (4, 2)), nn.ReLU(),
        )  # fmt: skip
        self.rnn1 = nn.LSTM(24, 16, bidirectional=True, batch_first=True)
        self.between = nn.Linear(32, 18)
        self.rnn2 = nn.LSTM(18, 12, bidirectional=True, batch_first=True)
        self.letters = nn.Linear(24, 11)

    def forward(self, x: Tensor) -> Any:
        x = self.features(x).squeeze(2).permute(0, 2, 1)
        x = self.between(self.rnn1(x)[0])
        return self.letters(self.rnn2(x)[0])


class TextClassifier(nn.Module):
    """Embedding, LSTM or GRU, what the last step left behind."""

    def __init__(self, gru: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.rnn = (nn.GRU if gru else nn.LSTM)(16, 24, batch_first=True)
        self.hidden, self.head = nn.Linear(24, 20), nn.Linear(20, 3)

    def forward(self, ids: Tensor) -> Any:
        outputs, state = self.rnn(self.embedding(ids))
        last = outputs.mean(1) if isinstance(self.rnn, nn.GRU) else state[0][-1]
        return self.head(F.relu(self.hidden(last)))


# Attention


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, explicit: bool = False) -> Tensor:
    """Heads in dimension 1, head_dim last; written out, or torch's own."""
    if not explicit:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, dim=-1), v)


class SeparateAttention(nn.Module):
    """As in Hugging Face's BERT and ViT: three projections, sizes in attributes."""

    def __init__(self, width: int, heads: int, explicit: bool = False) -> None:
        super().__init__()
        self.num_attention_heads = heads
        self.attention_head_size = width // heads
        self.all_head_size = self.num_attention_heads * self.attention_head_size
        self.query = nn.Linear(width, self.all_head_size)
        self.key = nn.Linear(width, self.all_head_size)
        self.value = nn.Linear(width, self.all_head_size)
        self.dense = nn.Linear(self.all_head_size, width)
        self.explicit = explicit

    def forward(self, x: Tensor, mask: Any = None) -> Any:
        shape = (*x.shape[:-1], -1, self.attention_head_size)
        q = self.query(x).view(*shape).transpose(1, 2)
        k = self.key(x).view(*shape).transpose(1, 2)
        v = self.value(x).view(*shape).transpose(1, 2)
        y = attend(q, k, v, mask, self.explicit).permute(0, 2, 1, 3).contiguous()
        return self.dense(y.view((*y.shape[:-2], self.all_head_size)))


class FusedAttention(nn.Module):
    """As in timm: one projection; the heads are joined by a size, or by what is there."""

    def __init__(self, width: int, heads: int, explicit: bool = False, fixed: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.explicit, self.fixed = explicit, fixed

    def forward(self, x: Tensor) -> Any:
        n, t, c = x.shape
        qkv = self.qkv(x).reshape(n, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = attend(q, k, v, None, self.explicit).transpose(1, 2)
        return self.proj(y.reshape(n, t, c if self.fixed else -1))


class TorchAttention(nn.Module):
    """``nn.MultiheadAttention`` on itself."""

    def __init__(self, width: int, heads: int, explicit: bool = False) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.need_weights = explicit

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


class TransformerBlock(nn.Module):
    """Norm before attention, norm before two linear layers."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = attention
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Any:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Vit(nn.Module):
    """Patches, a class token, positions, blocks of the kind given, a head on the token."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 24))
        self.positions = nn.Parameter(torch.zeros(1, 17, 24))
        self.blocks = nn.Sequential(block(), block())
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit(attention: Callable[..., nn.Module], **options: Any) -> Vit:
    """With one of the ways to write attention."""
    return Vit(lambda: TransformerBlock(24, attention(24, 4, **options)))


def vit_encoder(norm_first: bool) -> Vit:
    """With ``nn.TransformerEncoderLayer``."""
    return Vit(
        lambda: nn.TransformerEncoderLayer(
            24, 4, 48, 0.0, "gelu", batch_first=True, norm_first=norm_first
        )
    )


class WindowAttention(nn.Module):
    """Fused attention within windows, with a bias for every offset between two places."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
        offsets = (places[:, :, None] - places[:, None, :]) + window - 1
        self.register_buffer("offsets", offsets[0] * (2 * window - 1) + offsets[1])
        self.offsets: Tensor

    def forward(self, x: Tensor, mask: Tensor | None) -> Any:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.table[self.offsets.view(-1)].view(t, t, -1).permute(2, 0, 1).contiguous()
        scores = scores + bias.unsqueeze(0)
        if mask is not None:
            windows = len(mask)
            scores = scores.view(n // windows, windows, self.num_heads, t, t)
            scores = (scores + mask.unsqueeze(1).unsqueeze(0)).view(-1, self.num_heads, t, t)
        y = (scores.softmax(-1) @ v).transpose(1, 2)
        return self.proj(y.reshape(n, t, -1))


class SwinBlock(nn.Module):
    """Attention within windows, which may be shifted around the map's edge."""

    def __init__(self, width: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        mask = None
        if shift:
            region = torch.zeros(1, size, size, 1)
            ends = (slice(-window), slice(-window, -shift), slice(-shift, None))
            for i, (rows, columns) in enumerate((r, c) for r in ends for c in ends):
                region[:, rows, columns] = i
            flat = self._parts(region).squeeze(-1)
            mask = (flat[:, None, :] != flat[:, :, None]) * -100.0
        self.register_buffer("mask", mask)
        self.mask: Tensor | None

    def _parts(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = x.view(n, h // self.window, self.window, w // self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, self.window**2, c)

    def forward(self, x: Tensor) -> Any:
        n, h, w, c = x.shape
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = self.attn(self._parts(y), self.mask)
        y = y.view(n, h // self.window, w // self.window, self.window, self.window, c)
        y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(n, h, w, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PatchMerging(nn.Module):
    """Four neighbours side by side, normalised and halved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Any:
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    """Two stages of a plain and a shifted block, patches merged between them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, stride=2)
        self.layers = nn.Sequential(
            SwinBlock(16, 4, 8, 4, 0), SwinBlock(16, 4, 8, 4, 2), PatchMerging(16),
            SwinBlock(32, 4, 4, 2, 0), SwinBlock(32, 4, 4, 2, 1),
        )  # fmt: skip
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.layers(self.patches(x).permute(0, 2, 3, 1))
        return self.head(self.norm(x).mean((1, 2)))


class MobileVit(nn.Module):
    """Convolutions, attention among the places that share a position in 2 x 2 patches, a join."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.local = ConvBn(3, 12, 3, 2), ConvBn(12, 12, 3)
        self.into, self.back = nn.Conv2d(12, 24, 1, bias=False), ConvBn(24, 12)
        self.block = TransformerBlock(24, FusedAttention(24, 4))
        self.norm = nn.LayerNorm(24)
        self.join = ConvBn(24, 16, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = self.into(self.local(x))
        n, c, h, w = y.shape
        y = y.reshape(n * c * (h // 2), 2, w // 2, 2).transpose(1, 2)
        y = y.reshape(n, c, h * w // 4, 4).transpose(1, 3).reshape(n * 4, h * w // 4, c)
        y = self.norm(self.block(y))
        y = y.reshape(n, 4, h * w // 4, c).transpose(1, 3)
        y = y.reshape(n * c * (h // 2), w // 2, 2, 2).transpose(1, 2).reshape(n, c, h, w)
        x = self.join(torch.cat([x, self.back(y)], 1))
        return self.head(x.mean((2, 3)))


class Conv1D(nn.Module):
    """GPT-2's linear layer: its weight is (inputs, outputs)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.zeros(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Any:
        shape = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


class GptAttention(nn.Module):
    """Causal by a buffer; one projection, split by size."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.embed_dim = self.split_size = width
        self.num_heads, self.head_dim = heads, width // heads
        self.c_attn, self.c_proj = Conv1D(3 * width, width), Conv1D(width, width)
        self.register_buffer("causal", torch.ones(16, 16, dtype=torch.bool).tril()[None, None])
        self.causal: Tensor

    def _heads(self, x: Tensor) -> Tensor:
        return x.view((*x.size()[:-1], self.num_heads, self.head_dim)).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Any:
        q, k, v = map(self._heads, self.c_attn(x).split(self.split_size, dim=2))
        scores = torch.matmul(q, k.transpose(-1, -2)) / v.size(-1) ** 0.5
        t = q.size(-2)
        lowest = torch.full([], torch.finfo(scores.dtype).min, dtype=scores.dtype)
        scores = torch.where(self.causal[:, :, :t, :t], scores, lowest)
        y = torch.matmul(scores.softmax(-1), v).permute(0, 2, 1, 3).contiguous()
        return self.c_proj(y.view((*y.size()[:-2], self.num_heads * self.head_dim)))


class GptBlock(nn.Module):
    """Norm before attention, norm before two such layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = GptAttention(width, heads)
        self.c_fc, self.c_proj = Conv1D(4 * width, width), Conv1D(width, 4 * width)

    def forward(self, x: Tensor) -> Any:
        x = x + self.attn(self.ln_1(x))
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Gpt(nn.Module):
    """Words and positions, two blocks, logits by the words' own vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(40, 24), nn.Embedding(16, 24)
        self.h = nn.ModuleList(GptBlock(24, 4) for _ in range(2))
        self.ln_f = nn.LayerNorm(24)
        self.lm_head = nn.Linear(24, 40, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Any:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class RmsNorm(nn.Module):
    """Scaled to a mean square of one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Any:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: the two halves of a head are the coordinates that turn."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def repeat_kv(x: Tensor, times: int) -> Tensor:
    """(n, heads, t, d) -> (n, heads * times, t, d), each head so many times in a row."""
    n, heads, t, d = x.shape
    return x[:, :, None].expand(n, heads, times, t, d).reshape(n, heads * times, t, d)


class LlamaAttention(nn.Module):
    """Several heads of queries share one of keys and values."""

    def __init__(self, width: int, heads: int, kv_heads: int, fused: bool) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.num_heads, self.num_kv_heads = heads, kv_heads
        self.num_key_value_groups = heads // kv_heads
        kv = kv_heads * self.head_dim
        if fused:
            self.qkv_proj = nn.Linear(width, width + 2 * kv, bias=False)
        else:
            self.q_proj = nn.Linear(width, width, bias=False)
            self.k_proj = nn.Linear(width, kv, bias=False)
            self.v_proj = nn.Linear(width, kv, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.fused = fused

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        shape = (*x.shape[:-1], -1, self.head_dim)
        if self.fused:
            qkv = self.qkv_proj(x)
            first = self.num_heads * self.head_dim
            second = first + self.num_kv_heads * self.head_dim
            parts = (qkv[..., :first], qkv[..., first:second], qkv[..., second:])
        else:
            parts = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (part.view(shape).transpose(1, 2) for part in parts)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        k, v = repeat_kv(k, self.num_key_value_groups), repeat_kv(v, self.num_key_value_groups)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(*x.shape[:-1], -1).contiguous())


class LlamaMlp(nn.Module):
    """SwiGLU: gate and up by two projections, or by the halves of one."""

    def __init__(self, width: int, hidden: int, fused: bool) -> None:
        super().__init__()
        if fused:
            self.gate_up_proj = nn.Linear(width, 2 * hidden, bias=False)
        else:
            self.gate_proj = nn.Linear(width, hidden, bias=False)
            self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)
        self.fused = fused

    def forward(self, x: Tensor) -> Any:
        if self.fused:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(F.silu(gate) * up)


class LlamaLayer(nn.Module):
    """Attention and a gated MLP, each after its norm."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RmsNorm(width), RmsNorm(width)
        self.self_attn = LlamaAttention(width, 8, 4, fused)
        self.mlp = LlamaMlp(width, 48, fused)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Any:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Two layers with rotary positions and grouped queries."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(40, 32)
        self.layers = nn.ModuleList(LlamaLayer(32, fused) for _ in range(2))
        self.norm, self.lm_head = RmsNorm(32), nn.Linear(32, 40, bias=False)
        self.register_buffer("inv_freq", 100.0 ** -(torch.arange(0, 4, 2) / 4), persistent=False)
        self.inv_freq: Tensor

    def forward(self, ids: Tensor) -> Any:
        x = self.embed_tokens(ids)
        angles = torch.arange(ids.shape[1], device=ids.device)[:, None] * self.inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


class BertLayer(nn.Module):
    """Attention and two linear layers, each added to what it reads and normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = SeparateAttention(width, heads, explicit=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.intermediate, self.output = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.output(F.gelu(self.intermediate(x))))


class Bert(nn.Module):
    """Two post-norm layers, a mask by keyword, a pooled first token; a dict of results."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(40, 24), nn.Embedding(16, 24)
        self.register_buffer("position_ids", torch.arange(16)[None])
        self.position_ids: Tensor
        self.norm = nn.LayerNorm(24)
        self.layer = nn.ModuleList(BertLayer(24, 4) for _ in range(2))
        self.pooler, self.classifier = nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.words(input_ids) + self.positions(self.position_ids[:, : input_ids.shape[1]])
        x = self.norm(x)
        mask = (1.0 - attention_mask[:, None, None, :]) * torch.finfo(x.dtype).min
        for layer in self.layer:
            x = layer(x, mask)
        pooled = torch.tanh(self.pooler(x[:, 0]))
        return {"last_hidden_state": x, "logits": self.classifier(pooled)}


class Mixer(nn.Module):
    """MLPs across patches and across channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 20, 4, stride=4)
        self.norms = nn.ModuleList(nn.LayerNorm(20) for _ in range(4))
        self.tokens = nn.ModuleList(self._mlp(16, 24) for _ in range(2))
        self.channels = nn.ModuleList(self._mlp(20, 40) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(20), nn.Linear(20, 5)

    @staticmethod
    def _mlp(width: int, hidden: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Any:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for i, (tokens, channels) in enumerate(zip(self.tokens, self.channels, strict=True)):
            x = x + tokens(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(self.norms[2 * i + 1](x))
        return self.head(self.norm(x).mean(1))


@dataclass(frozen=True)
class Case:
    """A network, inputs for it, and what pruning must find.

    Parameters
    ----------
    make : callable
        Builds the network; `lively` gives it weights.
    inputs : tensor, tuple of arguments or dict of keyword arguments
    units : mapping of str to int or None
        Patterns of producers that must be in groups, and how many channels (heads, halves that go
        together, units) these groups have; None leaves that open.
    """

    make: Callable[[], nn.Module]
    inputs: Any
    units: Mapping[str, int | None] = field(default_factory=dict)

    def network(self) -> nn.Module:
        """With its weights, in eval mode."""
        torch.manual_seed(0)
        return lively(self.make())


def _numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _words(batch: int, length: int) -> Tensor:
    return torch.randint(40, (batch, length), generator=torch.Generator().manual_seed(1))


IMAGE = _numbers(2, 3, 16, 16)
SCENE = _numbers(2, 3, 32, 32)
TEXT = _words(2, 12)
MASKED = {
    "input_ids": TEXT,
    "attention_mask": (torch.arange(12) < torch.tensor([[12], [9]])).float(),
}
HEADS_HF = {"*.query": 4, "*.key": 4, "*.value": 4}
C2F = {"*.cv1.0": None, "*.m.*.cv1.0": None, "box.0.0": 16, "kind.0.0": 12, "p5.1.cv1.0": 16}

CASES: dict[str, Case] = {
    "yolo-chunk": Case(Yolo, SCENE, C2F),
    "yolo-split": Case(lambda: Yolo(by_size=True), SCENE, C2F),
    "csp": Case(Csp, IMAGE, {"cv2.0": 12, "inner.cv1.0": 12, "cv3.0": None, "partial.cv1.0": 12}),
    "shufflenetv2": Case(ShuffleNetV2, SCENE, {"stages.*.branch.0": None, "last.0": 32}),
    "pixelshuffle": Case(SuperResolution, IMAGE, {"body.*.0": 16, "up.0": 10}),
    "ghostnet": Case(GhostNet, IMAGE, {"blocks.*.0.primary.0": 14}),
    "gated-convs": Case(GatedConvs, IMAGE, {"first": 20, "gate": 20, "second": 16, "third": 12}),
    "unet": Case(UNet, IMAGE, {"up1": 16, "up2": 16, "bottom.3": None, "level1.0": None}),
    "siamese": Case(
        Siamese,
        (IMAGE, _numbers(2, 3, 16, 16).flip(0)),
        {"backbone.0": 12, "backbone.3": 20, "backbone.8": 16},
    ),
    "pyramid": Case(
        PyramidHead,
        SCENE,
        {"kind.0": 20, "kind.2": 18, "box.0": 20, "box.2": 18, "stages.*.0": None},
    ),
    "cbam": Case(Cbam, IMAGE, {"stem.0": 12, "mlp.0": 8, "last.0": 16}),
    "wavenet": Case(WaveNet, _numbers(2, 1, 48), {"dilated.*": 16, "last1": 24}),
    "text-reader": Case(
        TextReader,
        _numbers(2, 1, 16, 40),
        {"features.0": 12, "features.3": 20, "features.7": 24, "rnn*": None, "between": 18},
    ),
    "text-lstm": Case(TextClassifier, TEXT, {"rnn": 24, "hidden": 20}),
    "text-gru": Case(lambda: TextClassifier(gru=True), TEXT, {"rnn": 24, "hidden": 20}),
    "vit-separate": Case(lambda: vit(SeparateAttention), IMAGE, {**HEADS_HF, "*.fc1": 48}),
    "vit-separate-explicit": Case(
        lambda: vit(SeparateAttention, explicit=True), IMAGE, {**HEADS_HF, "*.fc1": 48}
    ),
    "vit-fused": Case(lambda: vit(FusedAttention), IMAGE, {"*.qkv": 4, "*.fc1": 48}),
    "vit-fused-explicit": Case(
        lambda: vit(FusedAttention, explicit=True), IMAGE, {"*.qkv": 4, "*.fc1": 48}
    ),
    "vit-fused-fixed": Case(
        lambda: vit(FusedAttention, fixed=True), IMAGE, {"*.qkv": 4, "*.fc1": 48}
    ),
    "vit-torch": Case(lambda: vit(TorchAttention), IMAGE, {"*.q_proj": 4, "*.fc1": 48}),
    "vit-torch-explicit": Case(
        lambda: vit(TorchAttention, explicit=True), IMAGE, {"*.q_proj": 4, "*.fc1": 48}
    ),
    "encoder-layer": Case(
        lambda: vit_encoder(norm_first=True), IMAGE, {"*.q_proj": 4, "*.linear1": 48}
    ),
    "encoder-layer-post": Case(
        lambda: vit_encoder(norm_first=False), IMAGE, {"*.q_proj": 4, "*.linear1": 48}
    ),
    "swin": Case(Swin, IMAGE, {"*.attn.qkv": 4, "*.fc1": None}),
    "mobilevit": Case(MobileVit, IMAGE, {"stem.0": None, "local.0": 12, "*.qkv": 4, "*.fc1": 48}),
    "gpt2": Case(Gpt, TEXT, {"*.attn.c_attn": 4, "*.c_fc": 96}),
    "llama": Case(
        Llama,
        TEXT,
        {"*.q_proj": 4, "*.k_proj": 4, "*.v_proj": 4, "*.gate_proj": 48, "*.up_proj": 48},
    ),
    "llama-fused": Case(lambda: Llama(fused=True), TEXT, {"*.qkv_proj": 4, "*.gate_up_proj": 48}),
    "bert": Case(Bert, MASKED, {**HEADS_HF, "*.intermediate": 48, "pooler": 24}),
    "mixer": Case(Mixer, IMAGE, {"tokens.*.0": 24, "channels.*.0": 40}),
}
