"""Linear least squares of one layer's weights on what it reads: unfolding, Gram matrices, solving.

A convolution is a linear layer on its unfolded input. With U its rows (one per output position of
one image), T the outputs it should have and W0 the weights it has, the refit solves

    (U'U + R) D = U'(T - U W0),    W = W0 + D,    R = r I, nearly 0 on the bias

with r a share of the mean diagonal. The sums grow batch by batch, so memory does not grow with the
images; the same sums over other inputs tell how far off any weights are there. Products of a batch
are of the precision of the activations, sums of all batches and what is solved float64: as W0 is
near, what rounding leaves is a share of the correction, not of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from epruner.pruning.network.batches import Batches

RIDGE = 1e-3
MIN_ROWS = 16_000
ROWS_PER_UNKNOWN = 16  # neighbouring positions say nearly the same: more of them add little
EXACT = 1e-9  # relative error below which there is nothing to refit


def positions(shape: tuple[int, ...], images: int, unknowns: int) -> Tensor | None:
    """Output positions to fit at: the same drawn few for every image; None is all of them.

    Parameters
    ----------
    shape : tuple of int
        Spatial shape of the output, empty for a linear layer on vectors.
    images : int
        In all batches.
    unknowns : int
        Per output of the layer.
    """
    total = int(torch.Size(shape).numel())
    wanted = -(-max(MIN_ROWS, ROWS_PER_UNKNOWN * unknowns) // images)
    if wanted >= total:
        return None
    generator = torch.Generator().manual_seed(total)
    return torch.randperm(total, generator=generator)[:wanted].sort().values


def unknowns(module: nn.Module) -> int:
    """Inputs that one output of a layer sees, the bias included."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight[0].numel() + 1


def input_rows(x: Tensor, module: nn.Module, chosen: Tensor | None) -> Tensor:
    """What a layer multiplies with its weights, with a last column of ones.

    Parameters
    ----------
    x : Tensor
        Input of the layer: (n, c, ...) for a convolution, (..., c) for a linear layer.
    module : torch.nn.Module
        A convolution that is not transposed, or a linear layer.
    chosen : Tensor or None
        Flat indices of output positions.

    Returns
    -------
    Tensor of shape (groups, rows, d + 1)
        Of the input's data type. Columns in the order of the flattened weight, rows image by image.
    """
    if isinstance(module, nn.Linear):
        return F.pad(as_rows(at_positions(x, module, chosen), module), (0, 1), value=1.0)
    assert isinstance(module, _ConvNd)
    if module.padding_mode != "zeros":
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
    taps, inside = _taps(module, x.shape[2:], chosen)
    n, channels = x.shape[:2]
    picked = x.flatten(2).index_select(2, taps.reshape(-1).to(x.device))
    picked = picked.reshape(n, channels, *taps.shape)
    if not inside.all():
        picked.masked_fill_(~inside.to(x.device), 0)
    groups, (count, size) = module.groups, taps.shape
    width = channels // groups
    rows = x.new_empty((groups, n * count, width * size + 1))
    rows[:, :, -1] = 1
    by_image = rows[:, :, :-1].view(groups, n, count, width, size)
    by_image.copy_(picked.reshape(n, groups, width, count, size).permute(1, 0, 3, 2, 4))
    return rows


def _taps(module: _ConvNd, shape: Sequence[int], chosen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Flat input positions under a kernel, and which are not padding: (positions, kernel) each."""
    zeros = module.padding_mode == "zeros"
    pads = module._reversed_padding_repeated_twice[::-1]  # ..., after, before: of the first first
    per_dim = []
    for d, (size, kernel) in enumerate(zip(shape, module.kernel_size, strict=True)):
        after, before = pads[2 * d : 2 * d + 2] if zeros else (0, 0)
        step, dilation = module.stride[d], module.dilation[d]
        span = size + before + after - dilation * (kernel - 1) - 1
        first = torch.arange(span // step + 1) * step - before
        per_dim.append(first[:, None] + torch.arange(kernel) * dilation)  # (out, kernel)
    out = tuple(len(place) for place in per_dim)
    flat = torch.arange(int(np.prod(out))) if chosen is None else chosen.cpu()
    where = np.unravel_index(flat.numpy(), out)
    index = torch.zeros(len(flat), 1, dtype=torch.int64)
    inside = torch.ones(len(flat), 1, dtype=torch.bool)
    for size, place, at in zip(shape, per_dim, where, strict=True):
        along = place[torch.from_numpy(at)]  # (positions, kernel of this dimension)
        index = (index[:, :, None] * size + along[:, None].clamp(0, size - 1)).flatten(1)
        inside = (inside[:, :, None] & ((along >= 0) & (along < size))[:, None]).flatten(1)
    return index, inside


def output_rows(y: Tensor, module: nn.Module, chosen: Tensor | None) -> Tensor:
    """Outputs of a layer as rows: (groups, rows, outputs / groups)."""
    return as_rows(at_positions(y, module, chosen), module)


def at_positions(y: Tensor, module: nn.Module, chosen: Tensor | None) -> Tensor:
    """Outputs of a layer at some positions: (n, positions, o) of a linear layer, (n, o, positions).

    Parameters
    ----------
    y : Tensor
        Output of the layer: (n, o, ...) of a convolution, (..., o) of a linear layer.
    module : torch.nn.Module
    chosen : Tensor or None
        Flat indices of output positions.
    """
    if isinstance(module, nn.Linear):
        y = y.reshape(len(y), -1, y.shape[-1])
        return y if chosen is None else y.index_select(1, chosen.to(y.device))
    y = y.flatten(2)
    return y if chosen is None else y.index_select(2, chosen.to(y.device))


def as_rows(y: Tensor, module: nn.Module) -> Tensor:
    """What `at_positions` returns as (groups, rows, outputs / groups)."""
    if isinstance(module, nn.Linear):
        return y.reshape(1, -1, y.shape[-1])
    n, channels, count = y.shape
    groups: int = module.groups  # type: ignore[assignment]
    rows = y.reshape(n, groups, channels // groups, count).permute(1, 0, 3, 2)
    return rows.reshape(groups, n * count, -1)


def inner(rows: Tensor) -> Tensor:
    """U'U, of which half is computed: (groups, rows, d) -> (groups, d, d)."""
    d = rows.shape[-1]
    step = min(512, max(128, -(-d // 4)))
    if d <= step:
        return rows.transpose(1, 2) @ rows
    found = rows.new_empty((len(rows), d, d))
    for first in range(0, d, step):
        end = min(first + step, d)
        part = rows[:, :, first:end].transpose(1, 2) @ rows[:, :, first:]
        found[:, first:end, first:] = part
        found[:, end:, first:end] = part[:, :, end - first :].transpose(1, 2)
    return found


@dataclass
class Normal:
    """Sums of the normal equations, per group of a convolution.

    Parameters
    ----------
    gram : Tensor of shape (groups, d + 1, d + 1)
        U'U
    cross : Tensor of shape (groups, d + 1, o)
        U'T
    square : Tensor of shape (groups, o)
        Sum of T², T the targets or what is missing to them.
    rows : int
    """

    gram: Tensor
    cross: Tensor
    square: Tensor
    rows: int = 0

    @classmethod
    def empty(cls, module: nn.Module) -> Normal:
        """No rows yet."""
        weight: Tensor = module.weight  # type: ignore[assignment]
        groups: int = getattr(module, "groups", 1)
        d, o = weight[0].numel() + 1, len(weight) // groups
        new = weight.new_zeros
        return cls(
            new((groups, d, d), dtype=torch.float64),
            new((groups, d, o), dtype=torch.float64),
            new((groups, o), dtype=torch.float64),
        )

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """Add a batch: (groups, rows, d + 1) and (groups, rows, o)."""
        self.gram += inner(rows)
        self.cross += rows.transpose(1, 2) @ targets.to(rows.dtype)
        self.square += targets.double().square().sum(1)
        self.rows += rows.shape[1]

    def add_up(self, batches: Batches) -> None:
        """Make sums over all batches of those over the batches of this process."""
        self.gram, self.cross, self.square, rows = batches.total(
            self.gram, self.cross, self.square, torch.tensor(self.rows)
        )
        self.rows = int(rows)

    def finite(self) -> bool:
        """Whether no NaN and no infinity was added."""
        return all(bool(torch.isfinite(x).all()) for x in (self.gram, self.cross, self.square))

    def error(self, weights: Tensor) -> Tensor:
        """Sum of squares of U W - T, per output: (groups, d + 1, o) -> (groups, o)."""
        fitted = (weights * (self.gram @ weights - 2 * self.cross)).sum(1)
        return (fitted + self.square).clamp_min(0)

    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of U W, per output: (groups, o) each."""
        mean = (self.gram[:, -1:] @ weights)[:, 0] / self.rows
        square = (weights * (self.gram @ weights)).sum(1) / self.rows
        return mean, (square - mean.square()).clamp_min(0)

    def solve(self, start: Tensor, ridge: float = RIDGE, *, bias: bool) -> Tensor:
        """Weights of least squared error, drawn towards those given.

        Parameters
        ----------
        start : Tensor of shape (groups, d + 1, o)
        ridge : float
            How strongly: a share of the mean diagonal of U'U.
        bias : bool
            Whether the last row (the bias) may change.
        """
        size = self.gram.shape[-1] if bias else self.gram.shape[-1] - 1
        gram, cross = self.gram[:, :size, :size], self.cross[:, :size]
        if not bias:  # the bias that is there stays
            cross = cross - self.gram[:, :size, size:] @ start[:, size:]
        strength = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)  # (groups,)
        pull = strength[:, None].expand(-1, size).clone()
        if bias:
            pull[:, -1] *= 1e-6  # keeps inputs that are all zero solvable
        pull.clamp_min_(torch.finfo(torch.float64).tiny ** 0.5)
        right = cross + pull[..., None] * start[:, :size]
        gram = gram.clone()
        gram.diagonal(dim1=1, dim2=2).add_(pull)
        factor, failed = torch.linalg.cholesky_ex(gram)
        found = torch.cholesky_solve(right, factor)
        usable = (failed == 0) & torch.isfinite(found).all(2).all(1)
        solved = start.clone()
        solved[:, :size] = torch.where(usable[:, None, None], found, start[:, :size])
        return solved


def stacked(module: nn.Module) -> Tensor:
    """Weights and bias of a layer as (groups, d + 1, o), float64."""
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    groups: int = getattr(module, "groups", 1)
    rows = weight.reshape(groups, len(weight) // groups, -1).double().transpose(1, 2)
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    last = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    return torch.cat([rows, last.double().reshape(groups, 1, -1)], 1)


def unstack(module: nn.Module, weights: Tensor) -> Tensor:
    """Write weights (and the bias, if there is one) into a layer; returns the bias (o,)."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    with torch.no_grad():
        weight.copy_(weights[:, :-1].transpose(1, 2).reshape(weight.shape))
        bias = weights[:, -1].reshape(-1)
        if isinstance(module.bias, Tensor):
            module.bias.copy_(bias)
    return bias
