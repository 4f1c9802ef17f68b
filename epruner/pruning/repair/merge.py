"""Data-free repair: what a dropped filter passed on is passed on by the filter most like it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from epruner.pruning.graph.groups import Group
from epruner.pruning.network.batchnorm import scale_shift
from epruner.pruning.network.filters import filter_matrix
from epruner.pruning.select.importance import Indices, Matrix


def folded_matrix(modules: Mapping[str, nn.Module], group: Group) -> Matrix:
    """Filters of a group as they act once BatchNorm has scaled and shifted them.

    Parameters
    ----------
    modules : mapping of str to torch.nn.Module
    group : Group

    Returns
    -------
    ndarray of shape (n, d + 1), float64
        Per producer, side by side: the filter times the scale of the BatchNorm that follows it,
        and the shift. Without BatchNorm the filter and its bias.
    """
    norms = [
        m for m in group.followers if isinstance(modules.get(m.module), _BatchNorm) and m.fold == 1
    ]
    parts = []
    for producer in group.producers:
        module = modules[producer.module]
        rows = filter_matrix(module).astype(np.float64)
        bias = np.zeros(len(rows))
        if isinstance(module.bias, Tensor):
            bias = module.bias.detach().double().cpu().numpy()
        norm = next((m for m in norms if len(m.index) == len(rows)), None)
        if norm is not None:
            layer: Any = modules[norm.module]
            scale, shift = (x.cpu().numpy()[norm.index] for x in scale_shift(layer))
            rows, bias = rows * scale[:, None], bias * scale + shift
        parts += [rows, bias[:, None]]
    return np.concatenate(parts, axis=1)


def merge(
    full: nn.Module,
    small: nn.Module,
    groups: Sequence[Group],
    kept: Mapping[str, Indices],
    *,
    leave: Collection[str] = (),
) -> list[str]:
    """Add the outgoing weights of dropped filters to those of the kept ones, in place.

    With a_j the folded filter of j (see `folded_matrix`), those of a dropped filter j go to the
    kept filter e whose multiple is nearest to it, times <a_j, a_e> / <a_e, a_e>. Filters that
    point away from all that stay are let go: a rectifier in between would make it wrong.

    Parameters
    ----------
    full, small : torch.nn.Module
        The original, and the pruned copy that is changed.
    groups : sequence of Group
    kept : mapping of str to ndarray of int
    leave : collection of str
        Names of groups whose dropped filters are let go.

    Returns
    -------
    list of str
        Notes: what was left off and why.
    """
    before, after = dict(full.named_modules()), dict(small.named_modules())
    consumers = {
        m.module
        for g in groups
        if g.name in kept
        for m in g.consumers
        if getattr(before[m.module], "groups", 1) == 1
    }
    weights = {name: _inputs_first(before[name]).clone() for name in sorted(consumers)}
    stays = {name: torch.ones(len(w), dtype=torch.bool) for name, w in weights.items()}
    left = []
    for group in groups:
        chosen = kept.get(group.name)
        if chosen is None or len(chosen) == group.channels:
            continue
        readers = [m for m in group.consumers if m.module in weights]
        if len(readers) < len(group.consumers):
            left.append(group.name)
        shares = _shares(folded_matrix(before, group), chosen)
        gone = np.setdiff1d(np.arange(group.channels), chosen)
        for member in readers:
            columns = member.index.reshape(-1, member.fold)  # (n, fold)
            stays[member.module][torch.from_numpy(columns[gone].reshape(-1))] = False
            if group.name in leave:
                continue
            weight = weights[member.module]
            for lost in gone:
                heir, share = shares[int(lost)]
                if share > 0:
                    weight[columns[heir]] += share * weight[columns[lost]]
    for name, weight in weights.items():
        module: Any = after[name]
        part = weight[stays[name]]
        rows = _inputs_first(module)
        same_outputs = rows.shape[1] == part.shape[1]
        if not same_outputs:  # its own outputs were pruned too
            part = part[:, torch.from_numpy(_kept_outputs(groups, kept, name))]
        restored = part if getattr(module, "transposed", False) else part.transpose(0, 1)
        with torch.no_grad():
            module.weight.copy_(restored.reshape(module.weight.shape))
    if not left:
        return []
    return [f"merge left off for {', '.join(left[:3])}: grouped convolutions read its channels"]


def _kept_outputs(groups: Sequence[Group], kept: Mapping[str, Indices], name: str) -> Indices:
    for group in groups:
        if group.name in kept and any(m.module == name for m in group.producers):
            return kept[group.name]
    raise AssertionError(f"{name} is not produced by any pruned group")


def _shares(folded: Matrix, chosen: Indices) -> dict[int, tuple[int, float]]:
    """Of every dropped filter: the kept filter that takes over, and how much."""
    heirs = folded[chosen]
    norms = np.maximum(np.square(heirs).sum(1), 1e-300)
    gone = np.setdiff1d(np.arange(len(folded)), chosen)
    products = folded[gone] @ heirs.T  # (dropped, kept)
    explained = np.maximum(products, 0) ** 2 / norms
    best = explained.argmax(1)
    share = np.maximum(products[np.arange(len(gone)), best], 0) / norms[best]
    return {int(j): (int(chosen[b]), float(s)) for j, b, s in zip(gone, best, share, strict=True)}


def _inputs_first(module: Any) -> Tensor:
    """Weights as (inputs, outputs, ...), float64."""
    weight: Tensor = module.weight.detach().double().cpu()
    linear = isinstance(module, nn.Linear)
    if linear or (isinstance(module, _ConvNd) and not module.transposed):
        return weight.transpose(0, 1)
    return weight
