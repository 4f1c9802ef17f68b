"""What BatchNorm layers remember of their inputs: whether it is trained, and estimated anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from epruner.pruning.network.batches import Batches
from epruner.pruning.network.tree import tensors_in


def trained_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorm layers with running statistics that are not those that a new layer starts with."""
    return {
        name: module
        for name, module in _remembering(model).items()
        if bool((module.running_mean != 0).any() | (module.running_var != 1).any())  # type: ignore[union-attr]
    }


def estimate_statistics(
    model: nn.Module, batches: Batches, norms: Mapping[str, _BatchNorm] | None = None
) -> None:
    """Set running statistics to those of some inputs, in place; every layer in eval mode.

    Each layer reads what those before it make with the statistics of the same batch; those of all
    batches are averaged. Layers that a forward pass does not use keep theirs.

    Parameters
    ----------
    model : torch.nn.Module
    batches : Batches
    norms : mapping of str to BatchNorm, optional
        Layers of the model to estimate; the others stay as they are. Default: all that have
        statistics.

    Raises
    ------
    ValueError
        They, or what the model returns, are NaN or infinite.
    """
    norms = _remembering(model) if norms is None else norms
    model.eval()
    before: dict[str, tuple[Any, ...]] = {
        name: (
            type(norm),
            norm.momentum,
            norm.num_batches_tracked,
            norm.running_mean.clone(),  # type: ignore[union-attr]
            norm.running_var.clone(),  # type: ignore[union-attr]
        )
        for name, norm in norms.items()
    }
    found = {name: _Sums(norm) for name, norm in norms.items()}
    hooks = []
    for name, norm in norms.items():
        norm.num_batches_tracked = None
        norm.momentum = 1.0  # of this batch alone
        if isinstance(norm, nn.SyncBatchNorm):  # which would wait for other processes
            norm.__class__ = _Local  # type: ignore[assignment]
        norm.train()
        hooks.append(norm.register_forward_hook(found[name].add))
    finite = True
    try:
        with batches.ranks.agree(), torch.no_grad():
            for args, kwargs in batches:
                answers = [x for x in tensors_in(model(*args, **kwargs)) if x.is_floating_point()]
                finite = finite and all(bool(torch.isfinite(x).all()) for x in answers)
    finally:
        for hook in hooks:
            hook.remove()
        for name, norm in norms.items():
            norm.__class__, norm.momentum, norm.num_batches_tracked, mean, var = before[name]
            norm.eval()
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(var)  # type: ignore[union-attr]
    sums = [x for each in found.values() for x in (each.mean, each.var, each.calls)]
    *totals, astray = batches.total(*sums, torch.tensor(float(not finite)))
    for (name, norm), mean, var, calls in zip(
        norms.items(), *(totals[i::3] for i in range(3)), strict=True
    ):
        if not calls:
            continue
        for tensor, total in ((norm.running_mean, mean), (norm.running_var, var)):
            if not torch.isfinite(total).all():
                raise ValueError(not_finite(f"BatchNorm layer {name!r}"))
            tensor.copy_(total / calls)
    if astray:
        raise ValueError(not_finite("the last layer"))


class _Sums:
    """Of the statistics of a BatchNorm over its calls."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.mean, self.var = (
            torch.zeros_like(x, dtype=torch.float64)  # type: ignore[arg-type]
            for x in (norm.running_mean, norm.running_var)
        )
        self.calls = torch.zeros((), dtype=torch.float64)

    def add(self, norm: Any, *_: object) -> None:
        """Add those of the call that was just made."""
        self.mean += norm.running_mean
        self.var += norm.running_var
        self.calls += 1


class _Local(_BatchNorm):
    """BatchNorm of any number of dimensions, by the statistics of this process alone."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _remembering(model: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorm layers with running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.track_running_stats
        and module.running_mean is not None
        and module.running_var is not None
    }


def not_finite(where: str) -> str:
    """What to say where activations overflow."""
    return (
        f"activations of {where} are NaN or infinite on the calibration inputs; check that they "
        "are scaled and normalised as in training"
    )
