"""What filters are compared by: weights, also as BatchNorm makes them, or responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from epruner.pruning.graph.groups import Group, Member
from epruner.pruning.network.batches import Batches
from epruner.pruning.network.filters import Matrix, filter_matrix
from epruner.pruning.network.inputs import Arguments
from epruner.pruning.network.layers import scale_shift
from epruner.pruning.select.visual import outlets, visualise
from epruner.pruning.trace.record import record_all
from epruner.pruning.trace.replay import Replay

# A user's own: the layer to its matrix, one row a filter.
Features = Callable[[nn.Module], Matrix]
FEATURES = ("weights", "losses", "folded", "activations", "visual")
_SAMPLES = 2000  # responses per filter


def features_of(
    features: str | Features,
    model: nn.Module,
    groups: Sequence[Group],
    batches: Batches,
    *,
    example: Arguments = ((), {}),
    seed: int = 0,
) -> dict[str, Matrix]:
    """Matrices to cluster the channels of each group by.

    Parameters
    ----------
    features : {"weights", "losses", "folded", "activations", "visual"} or callable
    model : torch.nn.Module
        Full-size, in eval mode.
    groups : sequence of Group
    batches : Batches
        Inputs, for "activations".
    example : (args, kwargs)
        For "visual", how the model is called.
    seed : int
        Of what "visual" draws.

    Returns
    -------
    dict of str to ndarray of shape (channels, d)
        By group name; empty for "weights" and "losses", which say nothing of single filters.

    Raises
    ------
    TypeError, ValueError
        The callable returns no matrix of finite numbers with one row a filter, or the model reads
        nothing that "visual" could change.
    """
    modules = dict(model.named_modules())
    if features in ("weights", "losses"):
        return {}
    if features == "folded":
        return {group.name: folded_matrix(modules, group) for group in groups}
    if features == "activations":
        return _responses(model, modules, groups, batches)
    if features == "visual":
        found = visualise(model, groups, example, seed=seed)
        return {name: visual.features() for name, visual in found.items()}
    assert callable(features)
    return {
        group.name: np.concatenate(
            [_checked(features, member, modules[member.module]) for member in group.producers],
            axis=1,
        )
        for group in groups
    }


def _checked(function: Features, member: Member, layer: nn.Module) -> Matrix:
    matrix, name = np.asarray(function(layer)), member.module
    if matrix.ndim != 2 or len(matrix) != member.size:
        raise ValueError(
            f"features returned an array of shape {matrix.shape} for {name!r}; it must have one "
            f"row for each of its {member.size} filters"
        )
    if not np.issubdtype(matrix.dtype, np.number) or np.iscomplexobj(matrix):
        raise TypeError(f"features returned an array of {matrix.dtype} for {name!r}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"features returned NaN or infinity for {name!r}")
    matrix = matrix.astype(np.float64 if matrix.dtype.itemsize == 8 else np.float32)
    return by_channel(matrix, member)


def by_channel(matrix: Matrix, member: Member) -> Matrix:
    """Rows of a module's channels, those of one channel of the group side by side."""
    entries = member.entries
    return matrix[entries].reshape(len(entries), -1)


def folded_matrix(modules: Mapping[str, nn.Module], group: Group) -> Matrix:
    """Filters of a group as they act once BatchNorm has scaled and shifted them.

    Parameters
    ----------
    modules : mapping of str to torch.nn.Module
    group : Group

    Returns
    -------
    ndarray of shape (n, d + 1)
        Per producer, side by side: the filter times the scale of the BatchNorm that follows it,
        and the shift. Without BatchNorm the filter and its bias. Where a channel consists of
        several filters of a producer, these are side by side.
    """
    norms = [
        (member, norm)
        for member in group.followers
        if isinstance(norm := modules.get(member.module), _BatchNorm)
        and norm.running_mean is not None
    ]
    parts = []
    for producer in group.producers:
        module = modules[producer.module]
        rows = filter_matrix(module)
        bias = np.zeros(len(rows), rows.dtype)
        if isinstance(module.bias, Tensor):
            bias = module.bias.detach().cpu().to(torch.float64).numpy().astype(rows.dtype)
        rows, bias = rows[producer.entries], bias[producer.entries]  # (n, fold, d), (n, fold)
        found = next((pair for pair in norms if _is_on(pair[0], producer)), None)
        if found is not None:
            member, norm = found
            scale, shift = (
                x.cpu().numpy()[member.entries].astype(rows.dtype) for x in scale_shift(norm)
            )
            rows, bias = rows * scale[..., None], bias * scale + shift
        parts += [rows.reshape(len(rows), -1), bias]
    return np.concatenate(parts, axis=1)


def _is_on(norm: Member, producer: Member) -> bool:
    """Whether the entries of a norm are those of a producer, one by one."""
    if norm.fold == producer.fold == 1:  # wherever they lie in a concatenation
        return True
    return np.array_equal(norm.entries, producer.entries)


def _responses(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    groups: Sequence[Group],
    batches: Batches,
) -> dict[str, Matrix]:
    """Responses of each filter at the same positions of the same inputs, after BatchNorm."""
    traces = record_all(model, batches)
    run = Replay(traces, batches)
    homes: dict[str, list[tuple[str, Member]]] = {}
    for group in groups:
        for member in outlets(modules, group):
            homes.setdefault(member.module, []).append((group.name, member))
    parts: dict[str, list[Matrix]] = {}
    share = -(-_SAMPLES // batches.count(len(batches)))
    with batches.ranks.agree():
        for index, op in enumerate(traces[0].ops):
            wanted = homes.get(op.module or "", [])
            for batch, trace in enumerate(traces):
                run.advance(batch, index)
                if not wanted:
                    continue
                run.rerun(batch, index)
                y = run.value(batch, trace.ops[index].writes[0])
                linear = isinstance(op.function, nn.Linear) or y.dim() == 2
                rows = (y.movedim(-1, 0) if linear else y.movedim(1, 0)).flatten(1)  # by channel
                generator = torch.Generator().manual_seed(index)
                picked = torch.randperm(rows.shape[1], generator=generator)[:share].sort().values
                sample = rows[:, picked.to(rows.device)].double().cpu().numpy()
                if not np.isfinite(sample).all():
                    raise ValueError(
                        f"activations of layer {op.module!r} are NaN or infinite on the "
                        "calibration inputs"
                    )
                for name, member in wanted:
                    parts.setdefault(name, []).append(by_channel(sample, member))
    return {
        name: np.ascontiguousarray(batches.joined(np.concatenate(samples, axis=1).T).T)
        for name, samples in parts.items()
    }
