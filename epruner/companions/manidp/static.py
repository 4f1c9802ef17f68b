"""From gates to a plan: channels that no input needs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from epruner.companions.manidp.gates import Gate, GatedNetwork, check_gated
from epruner.pruning.graph.groups import Member, plan_of
from epruner.pruning.network.layers import rule_of, take
from epruner.pruning.plan.plan import Plan

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Static:
    """What of a gated network does not depend on the input.

    Parameters
    ----------
    plan : Plan
        For the original network: without the channels that were never on. What it makes of that has
        the weights from before gating, and has to be trained.
    network : GatedNetwork
        The gated network without them; for these inputs it answers as before.
    always, never : mapping of str to ndarray of int
        By convolution, the channels that were on, or off, for all inputs. All others depend on the
        input.

    Examples
    --------
    >>> import torch
    >>> from epruner.companions import manidp
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3))
    >>> gated = manidp.gate(model, (1, 3, 8, 8))
    >>> found = manidp.to_static(gated, torch.randn(64, 3, 8, 8))
    >>> len(found.always["0"]), len(found.never["0"])  # before training all are on
    (16, 0)
    """

    plan: Plan
    network: GatedNetwork
    always: Mapping[str, Indices]
    never: Mapping[str, Indices]


def to_static(gated: GatedNetwork, inputs: Tensor) -> Static:
    """Remove the channels that were off for all inputs.

    Parameters
    ----------
    gated : GatedNetwork
        Trained; not modified.
    inputs : Tensor of shape (n, ...)
        All that it is to be ready for: some hundreds.

    Returns
    -------
    Static
        Of a convolution that no input used, one channel stays.

    Raises
    ------
    TypeError, ValueError
        No tensor, or inputs that are all equal, which would use the same channels.

    Examples
    --------
    >>> import torch
    >>> from epruner.companions import manidp
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3))
    >>> gated = manidp.gate(model, (1, 3, 8, 8))
    >>> _ = gated.gates()["0"].excite.bias.data[:6].fill_(-1)  # as training may: six go off
    >>> found = manidp.to_static(gated, torch.randn(64, 3, 8, 8))
    >>> found.plan.apply(model)[0]
    Conv2d(3, 10, kernel_size=(3, 3), stride=(1, 1))
    """
    check_gated(gated)
    masks = gated.masks(inputs)
    if len(inputs) == 1:
        raise ValueError("one input does not tell what depends on inputs; give some hundreds")
    if bool((inputs == inputs[:1]).all()):
        raise ValueError(
            f"all {len(inputs)} inputs are equal, so that no channel depends on them; give inputs "
            "like those that the network will see"
        )
    always, never, kept = {}, {}, {}
    for name, mask in masks.items():
        on = mask > 0
        used = on.any(0)
        always[name], never[name] = _places(on.all(0)), _places(~used)
        if not used.any():
            used[0] = True
        kept[name] = _places(used)
    plan = plan_of(gated.groups, kept)
    return Static(plan, _cut(gated, plan, kept), always, never)


def _places(chosen: Tensor) -> Indices:
    found: Indices = np.flatnonzero(chosen.cpu().numpy())
    return found


def _cut(gated: GatedNetwork, plan: Plan, kept: Mapping[str, Indices]) -> GatedNetwork:
    """The gated network with the channels that stay, and their gates."""
    sides = {name: part.in_ for name, part in plan.modules.items() if part.in_ is not None}
    groups = []
    for group in gated.groups:
        mine = kept[group.name]
        producers, followers = (
            tuple(_cut_member(member, mine, mine) for member in members)
            for members in (group.producers, group.followers)
        )
        consumers = tuple(
            _cut_member(member, mine, np.asarray(sides.get(member.module, range(member.size))))
            for member in group.consumers
        )
        groups.append(
            replace(
                group,
                channels=len(mine),
                producers=producers,
                followers=followers,
                consumers=consumers,
            )
        )
    gates = {
        name: _cut_gate(gate, kept[name], sides.get(name)) for name, gate in gated.gates().items()
    }
    small = GatedNetwork(plan.apply(gated.plain()), groups, gates, gated.skipped)
    for name, buffer in gated.named_buffers(recurse=False):
        getattr(small, name).copy_(buffer)
    return small


def _cut_member(member: Member, kept: Indices, stays: Indices) -> Member:
    """The same in the numbering of the smaller network."""
    there = np.isin(member.root, kept)
    return Member(
        member.module,
        np.searchsorted(stays, member.index[there]),
        np.searchsorted(kept, member.root[there]),
        len(stays),
    )


def _cut_gate(gate: Gate, made: Indices, read: Sequence[int] | None) -> Gate:
    small = copy.deepcopy(gate)
    rule_of(small.squeeze).resize(small.squeeze, None, read)
    rule_of(small.excite).resize(small.excite, made.tolist(), None)
    small.saliency_sum = take(small.saliency_sum, 0, made.tolist())
    return small
