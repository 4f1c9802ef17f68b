"""Which groups of channels are pruned, and why all others are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from epruner.pruning.graph.groups import Group, Skipped
from epruner.pruning.network.inputs import check_patterns, matches


def resizable(
    groups: Sequence[Group], parametrized: frozenset[str]
) -> tuple[list[Group], list[Skipped]]:
    """Groups whose weights are no function of others, and layers of the rest with their reasons."""
    found = []
    skipped = []
    for group in groups:
        members = (*group.producers, *group.followers, *group.consumers)
        computed = [m.module for m in members if m.module in parametrized]
        if computed:
            skipped += _skipped(
                group,
                f"the weights of {computed[0]!r} are computed (a parametrization such as "
                "weight_norm); remove it first (torch.nn.utils.parametrize."
                "remove_parametrizations)",
            )
        else:
            found.append(group)
    return found, skipped


def wanted_groups(
    groups: Sequence[Group],
    skipped: Sequence[Skipped],
    names: Sequence[str],
    *,
    layers: Sequence[str] | None,
    ignore: Sequence[str],
    scope: str,
    approximate: bool,
) -> tuple[list[Group], list[Skipped]]:
    """Of the groups that can be pruned those that shall be, and all that stays with its reason.

    Parameters
    ----------
    groups, skipped
        What can be pruned and what cannot.
    names : sequence of str
        Of all convolutions and linear layers.
    layers, ignore : sequence of str
        Patterns; None of `layers` is all.
    scope : {"inner", "all", "blocks"}
    approximate : bool
        Also channels over which norms are taken.

    Raises
    ------
    ValueError
        A pattern that matches nothing, or of those wanted nothing that can be pruned.
    """
    check_patterns("layers", layers or [], names)
    check_patterns("ignore", ignore, names)
    found = []
    left = list(skipped)
    for group in groups:
        producers = [member.module for member in group.producers]
        if any(matches(name, pattern) for name in producers for pattern in ignore):
            left += _skipped(group, "ignored on request")
        elif group.stream and not group.norms and scope != "all":
            left += _skipped(
                group, "several layers add onto its channels; scope='all' prunes them together"
            )
        elif group.norms and not approximate:
            norm = group.norms[0].module
            left += _skipped(
                group,
                f"{repr(norm) if norm else 'the model'} takes a norm over its channels, so that "
                "removing some is an approximation; scope='all' and a method that learns from "
                "calibrate= let them be pruned and repaired",
            )
        elif layers is None or any(matches(n, p) for n in producers for p in layers):
            found.append(group)
        else:
            left += _skipped(group, "not among layers")
    reachable = [member.module for group in found for member in group.producers]
    for pattern in layers or []:
        if not any(matches(name, pattern) for name in reachable):
            lost = [f"{s.name}: {s.reason}" for s in left if matches(s.name, pattern)]
            lost += ["depthwise convolutions go with the layer before them; name that"]
            raise ValueError(f"layers: {pattern!r} cannot be pruned: {lost[0]}")
    return found, left


def approximated(groups: Sequence[Group]) -> list[str]:
    """A note that names the norms over channels of these groups; none if there are none."""
    names = list(dict.fromkeys(member.module for group in groups for member in group.norms))
    if not names:
        return []
    shown = ", ".join(map(repr, names[:3]))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"an approximation: norms are taken over fewer channels ({shown}{more})"]


def with_values(
    groups: Sequence[Group], values: Mapping[str, Any], option: str
) -> tuple[list[Group], list[Skipped]]:
    """Groups that have a value, and the layers of all others."""
    without = [group for group in groups if group.name not in values]
    skipped = [s for g in without for s in _skipped(g, f"no pattern of {option} matches it")]
    return [group for group in groups if group.name in values], skipped


def by_group(
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
                f"{option}: {pattern!r} matches no layer that is pruned; print(epruner.analyse("
                "model, inputs)) shows what is left alone and why"
            )
    return found


def in_order(skipped: Iterable[Skipped], names: Sequence[str]) -> tuple[Skipped, ...]:
    """Sorted as the layers are in the network."""
    order = {name: place for place, name in enumerate(names)}
    return tuple(sorted(skipped, key=lambda s: order.get(s.name, len(order))))


def nothing(skipped: Sequence[Skipped]) -> str:
    """The message where no group is left."""
    shown = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3])
    more = f" (and {len(skipped) - 3} more)" if len(skipped) > 3 else ""
    return f"nothing in this model can be pruned: {shown}{more}"


def _skipped(group: Group, reason: str) -> list[Skipped]:
    return [Skipped(member.module, reason) for member in group.producers]
