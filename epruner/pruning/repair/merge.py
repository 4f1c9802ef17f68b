"""Data-free repair: what a dropped filter passed on is passed on by the filter most like it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from epruner.pruning.graph.groups import Group
from epruner.pruning.network.layers import is_conv1d, take, weight_dims
from epruner.pruning.plan.apply import counterpart
from epruner.pruning.plan.plan import Plan
from epruner.pruning.select.features import folded_matrix
from epruner.pruning.select.importance import Indices, Matrix


def merge(
    full: nn.Module,
    small: nn.Module,
    plan: Plan,
    groups: Sequence[Group],
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
    plan : Plan
        That made it.
    groups : sequence of Group
    leave : collection of str
        Names of groups whose dropped filters are let go.

    Returns
    -------
    list of str
        Notes: what was left off and why.
    """
    before = dict(counterpart(full, plan.modules).named_modules())
    after = dict(small.named_modules())
    several, unread = [], []
    for group in groups:
        own = plan.modules.get(group.name)
        if own is None or own.out is None or group.name in leave:
            continue
        if any(m.fold > 1 or not _is_product(before[m.module]) for m in group.producers):
            several.append(group.name)
            continue
        stays = np.isin(group.producers[0].entries[:, 0], own.out)
        chosen, gone = np.flatnonzero(stays), np.flatnonzero(~stays)
        heirs, shares = _heirs(folded_matrix(before, group), chosen, gone)
        readers = [
            m
            for m in group.consumers
            if _is_product(before[m.module]) and getattr(before[m.module], "groups", 1) == 1
        ]
        if len(readers) < len(group.consumers):
            unread.append(group.name)
        for member in readers:
            columns = member.entries
            out_dim, in_dim = weight_dims(before[member.module])
            part = plan.modules.get(member.module)
            if part is None or part.in_ is None:
                continue
            whole: Tensor = before[member.module].weight.detach()
            lost = take(take(whole, out_dim, part.out), in_dim, columns[gone].reshape(-1).tolist())
            places = np.searchsorted(np.asarray(part.in_), columns[heirs].reshape(-1))
            _add(after[member.module], in_dim, places, np.repeat(shares, member.fold), lost)
    return [
        f"merge left off for {', '.join(names[:3])}: {reason}"
        for names, reason in (
            (several, "each of its channels is made of several filters, as those of a head are"),
            (unread, "grouped convolutions or recurrent layers read its channels"),
        )
        if names
    ]


def _is_product(module: nn.Module) -> bool:
    """Whether a module does no more than multiply what it reads by a weight."""
    return isinstance(module, (_ConvNd, nn.Linear)) or is_conv1d(module)


def _heirs(
    folded: Matrix, chosen: Indices, gone: Indices
) -> tuple[Indices, np.ndarray[tuple[int, ...], np.dtype[np.floating]]]:
    """Of every dropped filter: the kept filter that takes over, and how much of it."""
    norms = np.maximum(np.square(folded[chosen]).sum(1), np.finfo(folded.dtype).tiny)
    products = np.maximum(folded[gone] @ folded[chosen].T, 0)  # (dropped, kept)
    best = (products**2 / norms).argmax(1)
    return chosen[best], products[np.arange(len(gone)), best] / norms[best]


def _add(module: nn.Module, dim: int, places: Indices, shares: Matrix, lost: Tensor) -> None:
    """Add shares of some slices of a weight to others."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    wide = torch.promote_types(weight.dtype, torch.float32)
    factor = torch.from_numpy(shares).to(weight.device, wide)
    view = [1] * weight.dim()
    view[dim] = -1
    with torch.no_grad():
        index = torch.from_numpy(places).to(weight.device)
        summed = weight.to(wide).index_add(dim, index, lost.to(wide) * factor.view(view))
        weight.copy_(summed)
