"""Repair without data: a network is refit on noise, and the result carried back to what it knows.

On noise a network is out of its element. So a copy learns on the noise what its BatchNorm layers
should remember of it (`estimate_statistics`): then every layer reads what it would read if the
noise were its training data, and there filters are chosen and weights refit as with real inputs.
What a refit changes is then expressed in units of what each BatchNorm reads. With (a1, c1) the
scale and shift that a BatchNorm of the copy applies before the refit, (aS, cS) after it, and W, b
the refit weights and bias of the layer it reads, that layer of the true network gets

    W_true = (aS / a1) W,    and its BatchNorm reads (cS + aS b - c1) / a1 - b_true more than that,

so that in the units of the BatchNorm it changes by the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from epruner.pruning.data.calibration import Calibration
from epruner.pruning.network.copies import with_weights_of, working_copy
from epruner.pruning.network.layers import scale_shift
from epruner.pruning.plan.plan import Plan
from epruner.pruning.repair.least_squares import Refit, refit

_DEAD = 1e-12  # scale below which a BatchNorm passes nothing on


def refit_carried(
    small: nn.Module, plan: Plan, reference: nn.Module, calibration: Calibration
) -> Refit:
    """Refit a copy of the network whose BatchNorm statistics are those of the inputs.

    Parameters
    ----------
    small : torch.nn.Module
        What `plan` makes of the true network; not modified.
    plan : Plan
    reference : torch.nn.Module
        The full copy, its statistics estimated on the inputs.
    calibration : Calibration

    Returns
    -------
    Refit
        Of the true network; the errors in its record are those of the copy.
    """
    sliced = plan.apply(reference)
    found = refit(reference, sliced, plan, calibration, anchored=True)
    if found.record is None:
        return found
    true, before, after = working_copy(small), working_copy(sliced), working_copy(found.model)
    for layer, norm in found.norms.items():
        if norm is None:
            true.get_submodule(layer).load_state_dict(after.get_submodule(layer).state_dict())
        else:
            _carry(*(_Pair(m, layer, norm) for m in (true, before, after)))
    return replace(found, model=with_weights_of(small, true))


class _Pair:
    """A layer and the BatchNorm that reads it."""

    def __init__(self, model: nn.Module, layer: str, norm: str) -> None:
        modules: dict[str, Any] = dict(model.named_modules())
        self.layer, self.norm = modules[layer], modules[norm]
        self.scale, self.shift = scale_shift(self.norm)
        bias = self.layer.bias
        self.bias: Tensor = torch.zeros_like(self.scale) if bias is None else bias.double()
        self.mean: Tensor = self.norm.running_mean.double()
        self.var: Tensor = self.norm.running_var.double()


@torch.no_grad()
def _carry(true: _Pair, before: _Pair, after: _Pair) -> None:
    """Let a true layer do what the refit made the copy's do."""
    alive = before.scale.abs() > _DEAD
    divisor = torch.where(alive, before.scale, 1)
    ratio = torch.where(alive, after.scale / divisor, 1)
    offset = (after.scale * after.bias + after.shift - before.shift) / divisor - true.bias
    offset = torch.where(alive, offset, 0)
    weight = after.layer.weight.double() * ratio.view(-1, *[1] * (after.layer.weight.dim() - 1))
    view = alive.view(-1, *[1] * (weight.dim() - 1))
    true.layer.weight.copy_(torch.where(view, weight, true.layer.weight.double()))
    if true.norm.weight is None or true.norm.bias is None:
        true.norm.running_mean.sub_(offset)
        return
    # The statistics of what it now reads, so that it does the same in training mode, as in
    # `least_squares`: by how much the copy's changed.
    mean = ratio * (after.mean - after.bias) + true.bias
    spread = ((true.var + true.norm.eps) / (before.var + before.norm.eps)).sqrt()
    moved = (mean + offset - before.mean) * spread - offset
    mean = true.mean + torch.where(alive, moved, 0)
    var = torch.where(alive, ratio.square() * after.var * spread.square(), true.var)
    shift = true.shift + true.scale * offset
    true.norm.running_mean.copy_(mean)
    true.norm.running_var.copy_(var)
    true.norm.weight.copy_(true.scale * (var + true.norm.eps).sqrt())
    true.norm.bias.copy_(shift + true.scale * mean)
