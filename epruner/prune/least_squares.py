"""Linear least squares of one layer's weights on what it reads: unfolding, Gram matrices, solving.

A convolution is a linear layer on its unfolded input. With U its rows (one per output position of
one image), T the outputs it should have and W0 the weights it has, the refit solves

    (U'U + R) W = U'T + R W0,    R = r I on weights, 0 on the bias,  r = 1e-3 of the mean diagonal

in float64. U'U and U'T are summed batch by batch, so memory does not grow with the images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

RIDGE = 1e-3
MIN_ROWS = 12_000
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
    Tensor of shape (groups, rows, d + 1), float64
        Columns in the order of the flattened weight, rows image by image.
    """
    if isinstance(module, nn.Linear):
        rows = x.reshape(1, -1, *x.shape[-1:]) if chosen is None else _vectors(x, chosen)[None]
        return _with_ones(rows.double())
    assert isinstance(module, _ConvNd)
    if any(module._reversed_padding_repeated_twice):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    dims = len(module.kernel_size)
    for d in range(dims):
        size, dilation = module.kernel_size[d], module.dilation[d]
        x = x.unfold(2 + d, dilation * (size - 1) + 1, module.stride[d])[..., ::dilation]
    out = x.shape[2 : 2 + dims]  # (n, c, *out, *kernel), a view
    flat = torch.arange(out.numel()) if chosen is None else chosen
    where = torch.unravel_index(flat.to(x.device), out)
    picked = x[(slice(None), slice(None), *where)]  # type: ignore[index]
    n, channels, count = picked.shape[:3]
    groups = module.groups
    rows = picked.reshape(n, groups, channels // groups, count, -1).permute(1, 0, 3, 2, 4)
    return _with_ones(rows.reshape(groups, n * count, -1).double())


def output_rows(y: Tensor, module: nn.Module, chosen: Tensor | None) -> Tensor:
    """Outputs of a layer as rows: (groups, rows, outputs / groups), float64."""
    if isinstance(module, nn.Linear):
        rows = y.reshape(-1, y.shape[-1]) if chosen is None else _vectors(y, chosen)
        return rows[None].double()
    assert isinstance(module, _ConvNd)
    y = y.flatten(2)
    if chosen is not None:
        y = y.index_select(2, chosen.to(y.device))
    n, channels, count = y.shape
    groups = module.groups
    rows = y.reshape(n, groups, channels // groups, count).permute(1, 0, 3, 2)
    return rows.reshape(groups, n * count, -1).double()


def _vectors(x: Tensor, chosen: Tensor) -> Tensor:
    flat = x.reshape(len(x), -1, x.shape[-1])
    return flat.index_select(1, chosen.to(x.device)).reshape(-1, x.shape[-1])


def _with_ones(rows: Tensor) -> Tensor:
    return F.pad(rows, (0, 1), value=1.0)


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
        Sum of T².
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
        self.gram += rows.transpose(1, 2) @ rows
        self.cross += rows.transpose(1, 2) @ targets
        self.square += targets.square().sum(1)
        self.rows += rows.shape[1]

    def finite(self) -> bool:
        """Whether no NaN and no infinity was added."""
        return all(bool(torch.isfinite(x).all()) for x in (self.gram, self.cross, self.square))

    def error(self, weights: Tensor) -> Tensor:
        """Sum of squares of U W - T, per output: (groups, d + 1, o) -> (groups, o)."""
        fitted = (weights * (self.gram @ weights - 2 * self.cross)).sum(1)
        return (fitted + self.square).clamp_min(0)

    def spread(self) -> float:
        """Sum of squares of T about its mean, over all outputs."""
        mean = self.cross[:, -1] / self.rows
        return float((self.square - self.rows * mean.square()).sum())

    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of U W, per output: (groups, o) each."""
        mean = (self.gram[:, -1:] @ weights)[:, 0] / self.rows
        square = (weights * (self.gram @ weights)).sum(1) / self.rows
        return mean, (square - mean.square()).clamp_min(0)

    def solve(self, start: Tensor, *, bias: bool) -> Tensor:
        """Weights of least squared error, drawn towards those given.

        Parameters
        ----------
        start : Tensor of shape (groups, d + 1, o)
        bias : bool
            Whether the last row (the bias) may change.
        """
        size = self.gram.shape[-1] if bias else self.gram.shape[-1] - 1
        gram, cross = self.gram[:, :size, :size], self.cross[:, :size]
        if not bias:  # the bias that is there stays
            cross = cross - self.gram[:, :size, size:] @ start[:, size:]
        strength = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)  # (groups,)
        ridge = strength[:, None].expand(-1, size).clone()
        if bias:
            ridge[:, -1] *= 1e-6  # keeps inputs that are all zero solvable
        ridge.clamp_min_(torch.finfo(torch.float64).tiny ** 0.5)
        right = cross + ridge[..., None] * start[:, :size]
        found, failed = torch.linalg.solve_ex(gram + torch.diag_embed(ridge), right)
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
