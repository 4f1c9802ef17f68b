"""Module to filter matrix: one row of numbers per filter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from epruner.pruning.network.layers import Indices, rule_of

Matrix = npt.NDArray[np.floating[Any]]


def filter_rows(module: nn.Module) -> Tensor:
    """Filters of a layer, on the device of its weights.

    Parameters
    ----------
    module : torch.nn.Module
        A convolution (transposed ones too), linear or recurrent layer, n outputs.

    Returns
    -------
    Tensor of shape (n, d)
        float64 for float64 weights, float32 for all others. For a convolution
        d = c * kh * kw / groups; for a linear layer the row is the hidden neuron's input weights,
        for a recurrent one those of all gates and layers of a hidden unit in one direction.
    """
    rows = rule_of(module).filters(module)
    return rows.double() if rows.element_size() == 8 else rows.float()


def filter_matrix(module: nn.Module) -> Matrix:
    """Filters of a layer as `filter_rows`, as an array of shape (n, d)."""
    matrix: Matrix = filter_rows(module).cpu().numpy()
    return matrix


def joint_rows(parts: Iterable[tuple[nn.Module, Indices]]) -> Tensor:
    """Filters of all layers that produce the same channels, side by side.

    Parameters
    ----------
    parts : iterable of (torch.nn.Module, ndarray of int, shape (n, k))
        Layers, and which k of its outputs each channel consists of.

    Returns
    -------
    Tensor of shape (n, sum of k * d)
    """
    rows = [filter_rows(module)[torch.from_numpy(outputs)].flatten(1) for module, outputs in parts]
    return torch.cat([x.to(rows[0].device) for x in rows], dim=1) if len(rows) > 1 else rows[0]
