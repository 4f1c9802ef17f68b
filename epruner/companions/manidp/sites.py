"""Where gates may stand: what pruning may remove, as far as switching it off is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from epruner.pruning.analysis import Analysis
from epruner.pruning.graph.costs import Costs, eval_mode
from epruner.pruning.graph.groups import Group, Member, Skipped
from epruner.pruning.graph.prunable import in_order
from epruner.pruning.network.layers import layers_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def gateable(plain: nn.Module, analysis: Analysis) -> tuple[list[Group], tuple[Skipped, ...]]:
    """Groups of one convolution and its BatchNorm that may have gates, and all other layers.

    Parameters
    ----------
    plain : torch.nn.Module
        Run once, to see that what is switched off behind a BatchNorm is read as zeros.
    analysis : Analysis
        Of this network.

    Returns
    -------
    groups : list of Group
    skipped : tuple of Skipped
        Each with its reason, in the order of the network.
    """
    modules = dict(plain.named_modules())
    skipped = list(analysis.skipped)
    wanted, groups = [], []
    for group in analysis.groups:
        if reason := _obstacle(group, modules, analysis.costs):
            skipped += [Skipped(member.module, reason) for member in group.producers]
        else:
            wanted.append(group)
    args, kwargs = analysis.arguments
    for group, sealed in zip(wanted, _sealed(plain, wanted, args, kwargs), strict=True):
        if sealed:
            groups.append(group)
        else:
            reason = "what is switched off behind its BatchNorm would be read as something else"
            skipped.append(Skipped(group.name, reason))
    return groups, in_order(skipped, list(layers_of(plain)))


def _obstacle(group: Group, modules: Mapping[str, nn.Module], costs: Costs) -> str:
    """Why the channels of a group get no gate, if they do not."""
    if len(group.producers) > 1:
        return "several layers make its channels"
    conv = modules[group.name]
    if not isinstance(conv, CONVOLUTIONS) or conv.groups > 1:
        return "only convolutions of one group have gates"
    norms = [modules.get(member.module) for member in group.followers]
    if not any(isinstance(norm, _BatchNorm) for norm in norms):
        return "no BatchNorm follows it"
    if len(norms) != 1 or not isinstance(norms[0], _BatchNorm) or norms[0].running_mean is None:
        return "its BatchNorm is not all that follows before its channels are read"
    for member in group.consumers:
        reader = modules.get(member.module)
        if not isinstance(reader, (nn.Linear, *CONVOLUTIONS)) or getattr(reader, "groups", 1) > 1:
            return f"{member.module!r} reads it, neither linear nor a convolution of one group"
    if group.numbers or group.views or group.norms or group.products:
        return "the number of its channels is written down somewhere"
    members = (*group.producers, *group.followers, *group.consumers)
    if any(costs.modules[member.module].calls != 1 for member in members):
        return "it, or what reads it, runs more than once"
    return ""


@torch.no_grad()
def _sealed(
    plain: nn.Module, groups: Sequence[Group], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[bool]:
    """Of each group, whether its BatchNorm reads its convolution and zeros are read as zeros."""
    sound = [True] * len(groups)
    made: list[Any] = [None] * len(groups)
    hooks: list[Any] = []

    def watch(place: int, group: Group) -> None:
        off = np.arange(0, group.channels, 2)

        def remember(_: nn.Module, __: Any, result: Tensor) -> None:
            made[place] = result

        def switch(_: nn.Module, read: tuple[Tensor, ...], result: Tensor) -> Tensor:
            sound[place] &= read[0] is made[place]
            result = result.clone()
            result[:, off] = 0
            return result

        hooks.append(plain.get_submodule(group.name).register_forward_hook(remember))
        norm = plain.get_submodule(group.followers[0].module)
        hooks.append(norm.register_forward_hook(switch))
        for member in group.consumers:

            def check(reader: nn.Module, read: tuple[Tensor, ...], member: Member = member) -> None:
                dim = -1 if isinstance(reader, nn.Linear) else 1
                entries = torch.from_numpy(member.entries[off].ravel()).to(read[0].device)
                sound[place] &= not read[0].index_select(dim, entries).any()

            hooks.append(plain.get_submodule(member.module).register_forward_pre_hook(check))

    for place, group in enumerate(groups):
        watch(place, group)
    try:
        with eval_mode(plain):
            plain(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return sound
