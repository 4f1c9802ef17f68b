"""Which groups of channels are pruned, and why all others are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from epruner.pruning.graph.groups import Group, Skipped, Structure
from epruner.pruning.network.inputs import check_patterns, matches
from epruner.pruning.network.layers import layers


def layer_names(model: nn.Module) -> list[str]:
    """Names of the layers that multiply by weights."""
    return list(layers(model))


def candidates(
    model: nn.Module,
    structure: Structure,
    parametrized: frozenset[str],
    wanted: Sequence[str] | None,
    unwanted: Sequence[str],
    scope: str,
) -> tuple[list[Group], list[Skipped]]:
    """Groups to prune, and everything else with its reason.

    Raises
    ------
    ValueError
        A pattern that matches nothing, or of those wanted nothing that can be pruned.
    """
    names = layer_names(model)
    check_patterns("layers", wanted or [], names)
    check_patterns("ignore", unwanted, names)
    groups = []
    skipped = list(structure.skipped)
    for group in structure.groups:
        producers = [member.module for member in group.producers]
        members = (*group.producers, *group.followers, *group.consumers)
        computed = [m.module for m in members if m.module in parametrized]
        if group.channels < 2:
            skipped += [Skipped(name, "it has one channel") for name in producers]
        elif computed:
            reason = (
                f"the weights of {computed[0]!r} are computed (a parametrization such as "
                "weight_norm); remove it first (torch.nn.utils.parametrize."
                "remove_parametrizations)"
            )
            skipped += [Skipped(name, reason) for name in producers]
        elif any(matches(name, pattern) for name in producers for pattern in unwanted):
            skipped += [Skipped(name, "ignored on request") for name in producers]
        elif group.stream and scope == "inner":
            reason = "several layers add onto its channels; scope='all' prunes them together"
            skipped += [Skipped(name, reason) for name in producers]
        elif wanted is None or any(matches(n, p) for n in producers for p in wanted):
            groups.append(group)
        else:
            skipped += [Skipped(name, "not among layers") for name in producers]
    reachable = [member.module for group in groups for member in group.producers]
    for pattern in wanted or []:
        if not any(matches(name, pattern) for name in reachable):
            lost = [f"{s.name}: {s.reason}" for s in skipped if matches(s.name, pattern)]
            lost += ["depthwise convolutions go with the layer before them; name that"]
            raise ValueError(f"layers: {pattern!r} cannot be pruned: {lost[0]}")
    return groups, skipped


def chosen(
    groups: Sequence[Group], values: Mapping[str, Any], option: str
) -> tuple[list[Group], list[Skipped]]:
    """Groups that have a value, and the layers of all others."""
    skipped = [
        Skipped(member.module, f"no pattern of {option} matches it")
        for group in groups
        if group.name not in values
        for member in group.producers
    ]
    return [group for group in groups if group.name in values], skipped


def in_order(skipped: Iterable[Skipped], names: Sequence[str]) -> tuple[Skipped, ...]:
    """Sorted as the layers are in the network."""
    order = {name: place for place, name in enumerate(names)}
    return tuple(sorted(skipped, key=lambda s: order.get(s.name, len(order))))


def nothing(skipped: Sequence[Skipped]) -> str:
    """The message where no group is left."""
    shown = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3])
    more = f" (and {len(skipped) - 3} more)" if len(skipped) > 3 else ""
    return f"nothing in this model can be pruned: {shown}{more}"


def by_layer(
    option: str, values: Mapping[str, Any], names: Sequence[str], groups: Sequence[Group]
) -> dict[str, Any]:
    """Value of the last pattern that matches a group's producers."""
    check_patterns(option, values, names)
    found = {}
    for group in groups:
        for pattern, value in values.items():
            if any(matches(member.module, pattern) for member in group.producers):
                found[group.name] = value
    for pattern in values:
        producers = (m.module for group in groups for m in group.producers)
        if not any(matches(name, pattern) for name in producers):
            raise ValueError(
                f"{option}: {pattern!r} matches no layer that is pruned; see the report of a run "
                "without it for what is skipped and why"
            )
    return found
