"""Module to filter matrix: one row of numbers per filter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

Matrix = npt.NDArray[np.floating[Any]]


def filter_matrix(module: nn.Module) -> Matrix:
    """Filters of a convolution or linear layer.

    Parameters
    ----------
    module : torch.nn.Module
        A convolution (transposed ones too) or linear layer, n outputs.

    Returns
    -------
    ndarray of shape (n, d)
        float64 for float64 weights, float32 for all others. For a convolution
        d = c * kh * kw / groups; for a linear layer the row is the hidden neuron's input weights.
    """
    weight = module.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(module).__name__} has no weight tensor")
    rows = weight.detach()
    if getattr(module, "transposed", False):
        rows = rows.transpose(0, 1)  # (in, out, ...) -> (out, in, ...); groups are not pruned here
    rows = rows.reshape(rows.shape[0], -1).cpu()
    return rows.double().numpy() if rows.element_size() == 8 else rows.float().numpy()


def joint_matrix(modules: Iterable[nn.Module]) -> Matrix:
    """Filter matrices of all layers that produce the same channels, side by side: (n, sum of d)."""
    matrices = [filter_matrix(module) for module in modules]
    return matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=1)
