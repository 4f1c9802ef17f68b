"""Training over ranks: each has a part of every batch, and all take the step of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode


def replica(model: nn.Module, group: dist.ProcessGroup) -> Callable[..., Any]:
    """Forward pass of a model whose gradients are averaged over ranks.

    Parameters
    ----------
    model : torch.nn.Module
        Takes the parameters and buffers of rank 0, and in every forward pass its buffers again:
        BatchNorm statistics are those of the whole batch anyhow.
    group : torch.distributed.ProcessGroup

    Returns
    -------
    callable
        With the model's arguments and results. In training mode BatchNorm layers normalise by the
        whole batch. After each call gradients have to be taken before the next, and of the same
        parameters in every step.
    """
    # static: what is not used in the first step never is; others would have to be looked for anew
    parallel = DistributedDataParallel(model, process_group=group, static_graph=True)

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _WholeBatch(group):
            return parallel(*args, **kwargs)

    return forward


class _WholeBatch(TorchFunctionMode):
    """BatchNorm by the statistics of all ranks' parts, on every device, whatever module calls it.

    torch's own SyncBatchNorm works on cards only; a model that has it keeps it.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__()
        self._group = group

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            return _batch_norm(self._group, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class _Sum(torch.autograd.Function):
    """Sum over ranks, whose gradient is the sum of what it is to each of them."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        total = part.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _batch_norm(
    group: dist.ProcessGroup,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm`, of which this rank has some rows of the input."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    variance, mean = (
        part.double() for part in torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
    )  # in float64 the difference of moments is as exact as these are
    moments = torch.cat([mean, variance + mean.square(), mean.new_ones(1)])
    moments = moments * (x.numel() // x.shape[1])
    total: Tensor = _Sum.apply(moments, group)  # type: ignore[no-untyped-call]
    n = total[-1]
    mean, square = (total[:-1] / n).chunk(2)
    variance = (square - mean.square()).clamp_min(0)
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            running_var.lerp_((variance * n / (n - 1)).to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    sizes = (1, -1, *[1] * (x.dim() - 2))
    scale, shift = (value.to(x.dtype).view(sizes) for value in (scale, shift))
    return (x * scale + shift).to(input.dtype)
