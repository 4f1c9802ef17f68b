"""What filters are compared by: their weights, what BatchNorm makes of them, their responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from epruner.pruning.graph.groups import Group
from epruner.pruning.network.filters import Matrix
from epruner.pruning.network.inputs import Arguments
from epruner.pruning.repair.merge import folded_matrix
from epruner.pruning.trace.record import record_all
from epruner.pruning.trace.replay import Replay

# A user's own: the layer to its matrix, one row a filter.
Descriptor = Callable[[nn.Module], Matrix]
DESCRIPTORS = ("weights", "folded", "activations")
_SAMPLES = 2000  # responses per filter


def describe(
    descriptor: str | Descriptor,
    model: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[Arguments],
) -> dict[str, Matrix]:
    """Matrices to cluster the channels of each group by.

    Parameters
    ----------
    descriptor : {"weights", "folded", "activations"} or callable
    model : torch.nn.Module
        Full-size, in eval mode.
    groups : sequence of Group
    batches : sequence of (args, kwargs)
        Calibration inputs, for "activations".

    Returns
    -------
    dict of str to ndarray of shape (channels, d)
        By group name; empty for "weights".

    Raises
    ------
    TypeError, ValueError
        The callable returns no matrix of finite numbers with one row a filter.
    """
    modules = dict(model.named_modules())
    if descriptor == "weights":
        return {}
    if descriptor == "folded":
        return {group.name: folded_matrix(modules, group) for group in groups}
    if descriptor == "activations":
        return _responses(model, modules, groups, batches)
    assert callable(descriptor)
    return {
        group.name: np.concatenate(
            [_checked(descriptor, m.module, modules[m.module], group) for m in group.producers],
            axis=1,
        )
        for group in groups
    }


def _checked(function: Descriptor, name: str, layer: nn.Module, group: Group) -> Matrix:
    matrix = np.asarray(function(layer))
    if matrix.ndim != 2 or len(matrix) != group.channels:
        raise ValueError(
            f"descriptor returned an array of shape {matrix.shape} for {name!r}; it must have one "
            f"row for each of its {group.channels} filters"
        )
    if not np.issubdtype(matrix.dtype, np.number) or np.iscomplexobj(matrix):
        raise TypeError(f"descriptor returned an array of {matrix.dtype} for {name!r}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"descriptor returned NaN or infinity for {name!r}")
    return matrix.astype(np.float64 if matrix.dtype.itemsize == 8 else np.float32)


def _responses(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    groups: Sequence[Group],
    batches: Sequence[Arguments],
) -> dict[str, Matrix]:
    """Responses of each filter at the same positions of the same inputs, after BatchNorm."""
    traces = record_all(model, batches)
    run = Replay(traces, batches)
    norms = {
        group.name: {
            m.module
            for m in group.followers
            if isinstance(modules.get(m.module), nn.modules.batchnorm._BatchNorm)
        }
        for group in groups
    }
    homes: dict[str, list[str]] = {}
    for group in groups:
        for name in norms[group.name] or {m.module for m in group.producers}:
            homes.setdefault(name, []).append(group.name)
    parts: dict[str, list[Matrix]] = {}
    channels = {group.name: group.channels for group in groups}
    for index, op in enumerate(traces[0].ops):
        wanted = homes.get(op.module or "", [])
        for batch, trace in enumerate(traces):
            run.advance(batch, index)
            if not wanted:
                continue
            run.rerun(batch, index)
            y = run.value(batch, trace.ops[index].writes[0])
            linear = isinstance(op.function, nn.Linear) or y.dim() == 2
            rows = (y.movedim(-1, 0) if linear else y.movedim(1, 0)).flatten(1)  # (channels, ...)
            generator = torch.Generator().manual_seed(index)
            share = -(-_SAMPLES // len(traces))
            picked = torch.randperm(rows.shape[1], generator=generator)[:share].sort().values
            sample = rows[:, picked.to(rows.device)].double().cpu().numpy()
            if not np.isfinite(sample).all():
                raise ValueError(
                    f"activations of layer {op.module!r} are NaN or infinite on the "
                    "calibration inputs"
                )
            for name in wanted:
                if len(sample) == channels[name]:  # a norm over a concatenation has more
                    parts.setdefault(name, []).append(sample)
    return {name: np.concatenate(samples, axis=1) for name, samples in parts.items()}
