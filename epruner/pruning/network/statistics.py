"""What BatchNorm layers remember of their inputs: whether it is trained, and estimated anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from epruner.pruning.network.inputs import Arguments


def remembering(model: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorm layers with running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and module.running_var is not None
    }


def trained_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Of those, the layers whose statistics are not the ones that a new layer starts with."""
    return {
        name: norm
        for name, norm in remembering(model).items()
        if bool((norm.running_mean != 0).any() | (norm.running_var != 1).any())  # type: ignore[union-attr]
    }


def estimate_statistics(model: nn.Module, batches: Iterable[Arguments]) -> None:
    """Set the running statistics to those of some inputs, in place; every layer in eval mode.

    Each layer reads what those before it make with the statistics of the same batch; those of all
    batches are averaged.

    Raises
    ------
    ValueError
        They are NaN or infinite.
    """
    norms = remembering(model)
    before = {name: norm.momentum for name, norm in norms.items()}
    model.eval()
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of all batches
        norm.train()
    try:
        with torch.no_grad():
            for args, kwargs in batches:
                model(*args, **kwargs)
    finally:
        for name, norm in norms.items():
            norm.momentum = before[name]
            norm.eval()
    for name, norm in norms.items():
        for tensor in (norm.running_mean, norm.running_var):
            if not torch.isfinite(tensor).all():  # type: ignore[arg-type]
                raise ValueError(not_finite(f"BatchNorm layer {name!r}"))


def not_finite(where: str) -> str:
    """What to say where activations overflow."""
    return (
        f"activations of {where} are NaN or infinite on the calibration inputs; check that they "
        "are scaled and normalised as in training"
    )
