"""What networks answer, and how far one's answers are from another's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from epruner.pruning.network.batches import NONE, Batches
from epruner.pruning.network.inputs import Arguments
from epruner.pruning.network.tree import tensors_in


def outputs(model: nn.Module, batches: Sequence[Arguments]) -> list[list[Tensor]]:
    """What a model returns, per batch; it is in eval mode and of at least float32."""
    with torch.no_grad():
        return [tensors_in(model(*args, **kwargs)) for args, kwargs in batches]


def output_error(
    got: Sequence[Sequence[Tensor]],
    expected: Sequence[Sequence[Tensor]],
    batches: Batches = NONE,
) -> float:
    """Squared error over the variance, of all floating outputs of all batches.

    Parameters
    ----------
    got, expected : sequence of sequence of Tensor
        As `outputs` gives them.
    batches : Batches
        That they are answers to.
    """
    error = spread = 0.0
    for parts in zip(zip(*got, strict=True), zip(*expected, strict=True), strict=True):
        if not parts[1][0].is_floating_point():
            continue
        a, b = (
            torch.cat([t.double().reshape(len(t) if t.dim() else 1, -1) for t in part])
            for part in parts
        )
        summed, count = batches.total(b.sum(0), torch.tensor(float(len(b))))
        sums = batches.total((a - b).square().sum(), (b - summed / count).square().sum())
        error, spread = error + float(sums[0]), spread + float(sums[1])
    return error / spread if spread > 0 else error
