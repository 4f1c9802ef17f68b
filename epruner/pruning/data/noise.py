"""Inputs made of noise that is distributed like what is found in nature.

Signals of nature have spectra that fall with frequency and edges where one thing hides another. So
an input is a heap of "dead leaves" (Matheron 1968; Lee, Mumford & Huang 2001): random bodies of all
sizes, the number of those of a size falling with a power of it so that no scale is special, each
with a value of its own and covering what was there before, and over it noise of amplitude 1/f.
What Baradad et al. ("Learning to See by Looking at Noise", 2021) found for learning holds here too:
networks answer such inputs much more as they answer real ones than they answer plain noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

CORRELATION = 0.8  # between the channels of an input, as between the colours of photographs
_SMALLEST, _LARGEST = 1.5, 0.7  # radius of a body: in samples of 32, and of the longest side
_ELONGATION, _SHADING, _TEXTURE = 0.5, 0.2, 0.3
_AT_ONCE = 2**22  # elements of the inputs that are made together
_COVERED, _MOST_BODIES = 4.0, 400  # how often bodies cover a place, if they are not too many


def natural_noise(n: int, channels: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Dead leaves with a texture, of mean about 0 and variance about 1.

    Parameters
    ----------
    n, channels : int
    size : sequence of int
        Samples along each dimension of space or time, any number of dimensions from 1.
    generator : torch.Generator
        On the CPU.

    Returns
    -------
    Tensor of shape (n, channels, *size), float32
    """
    at_once = max(1, _AT_ONCE // (channels * math.prod(size)))
    parts = []
    for first in range(0, n, at_once):
        count = min(at_once, n - first)
        part = dead_leaves(count, channels, size, generator)
        part += _TEXTURE * pink_noise(count, channels, size, generator)
        parts.append(part / math.hypot(1, _TEXTURE))
    return torch.cat(parts)


def dead_leaves(n: int, channels: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Random balls and boxes that cover each other: (n, channels, *size)."""
    d = len(size)
    least = (
        _SMALLEST * max(1.0, max(size) / 32) ** 0.5
    )  # a larger picture shows more, not only finer
    most = max(least, _LARGEST * max(size))
    u = torch.rand(n, _MOST_BODIES, generator=generator)
    # the density of radii is r^-(d+1): bodies of every scale cover about as much
    radii = ((1 - u) / least**d + u / most**d) ** (-1 / d)
    covered = 2**d * float((radii**d).mean()) / math.prod(size)
    bodies = min(_MOST_BODIES, math.ceil(_COVERED / covered))
    centres = torch.rand(n, bodies, d, generator=generator) * torch.tensor(size)
    turns, _ = torch.linalg.qr(torch.randn(n, bodies, d, d, generator=generator))
    axes = torch.exp(_ELONGATION * torch.randn(n, bodies, d, generator=generator))
    axes *= radii[:, :bodies, None]
    slopes = (_SHADING * torch.randn(n, bodies, d, generator=generator)).numpy()
    boxes = (torch.rand(n, bodies, generator=generator) < 0.5).tolist()
    values = _values(n * (bodies + 1), channels, generator).view(n, bodies + 1, channels).numpy()
    reach = (turns.abs() @ axes[..., None] * math.sqrt(d))[..., 0]  # along each dimension
    low = (centres - reach).floor().clamp_min(0).int().tolist()
    high = (centres + reach).ceil().int().tolist()
    into = (turns / axes[..., None, :]).transpose(2, 3).numpy()  # a body becomes one of radius 1
    middles = centres.numpy()
    inputs = np.empty((n, channels, *size), np.float32)
    inputs[:] = values[:, -1].reshape(n, channels, *[1] * d)
    for image, body in np.ndindex(n, bodies):
        where = [
            slice(first, min(last + 1, end))
            for first, last, end in zip(low[image][body], high[image][body], size, strict=True)
        ]
        offset: Any = 0.0
        for dim, part in enumerate(where):
            along = np.arange(part.start, part.stop, dtype=np.float32) - middles[image, body, dim]
            turned = into[image, body, :, dim].reshape(d, *[1] * d)
            offset = offset + turned * along.reshape(-1, *[1] * (d - 1 - dim))
        distance = np.abs(offset).max(0) if boxes[image][body] else np.square(offset).sum(0)
        shade = np.tensordot(slopes[image, body], offset, 1)
        value = values[image, body].reshape(channels, *[1] * d) + shade
        np.copyto(inputs[(image, slice(None), *where)], value, where=distance < 1)
    return torch.from_numpy(inputs)


def pink_noise(n: int, channels: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """Gaussian noise with a power that falls as 1/f^d in d dimensions: (n, channels, *size)."""
    d = len(size)
    dims = tuple(range(2, 2 + d))
    common = torch.randn(n, 1, *size, generator=generator)
    own = torch.randn(n, channels, *size, generator=generator)
    spectrum = torch.fft.rfftn(_mixed(common, own, channels), dim=dims)
    axes = [torch.fft.fftfreq(s) for s in size[:-1]] + [torch.fft.rfftfreq(size[-1])]
    squares = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0)
    amplitude = squares.sqrt().clamp_min(1 / max(size)) ** (-d / 2)
    signal: Tensor = torch.fft.irfftn(spectrum * amplitude, s=tuple(size), dim=dims)
    spread = signal.flatten(1).std(1, correction=0).view(-1, *[1] * (d + 1))
    return signal / torch.where(spread > 0, spread, 1)  # a single value has none


def _values(n: int, channels: int, generator: torch.Generator) -> Tensor:
    """One value a channel: (n, channels)."""
    common = torch.randn(n, 1, generator=generator)
    return _mixed(common, torch.randn(n, channels, generator=generator), channels)


def _mixed(common: Tensor, own: Tensor, channels: int) -> Tensor:
    share = CORRELATION if channels > 1 else 0.0
    return math.sqrt(share) * common + math.sqrt(1 - share) * own
