"""What else of a network has to change when channels go: numbers that modules hold, sizes written.

A layer's own sizes are known. Those of the code around it (`num_heads`, `all_head_size`, the number
that channels are split at) are found by trial: of the integers that fit, the fewest with which the
sliced network does what the silenced one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from epruner.pruning.graph.groups import Group, Number
from epruner.pruning.network.layers import rule_of
from epruner.pruning.plan.views import View, blamed

VIEWS = 4  # sizes of one group that are inferred at most


@dataclass(frozen=True)
class Attempt:
    """How a trial of some groups went.

    Parameters
    ----------
    fault : str
        Empty if all is well.
    error : Exception or None
        What the sliced network raised.
    names : mapping of Module to str
        Of the sliced network.
    """

    fault: str
    error: Exception | None
    names: Mapping[nn.Module, str]


Attempts = Callable[[Sequence[Group]], Attempt]


def with_numbers(model: nn.Module, groups: Sequence[Group], attempt: Attempts) -> list[Group]:
    """Groups of several filters a channel, with what has to change beside them.

    Parameters
    ----------
    model : torch.nn.Module
    groups : sequence of Group
    attempt : callable
        Tries some of them.

    Returns
    -------
    list of Group
        In the same order; those for which nothing helps are as they were.
    """
    found: dict[str, Group] = {}
    waiting = [g for g in groups if any(member.fold > 1 for member in g.producers)]
    kinds = {name: type(module) for name, module in model.named_modules()}
    while waiting:
        first = _searched(model, waiting.pop(0), attempt)
        if first is None:
            continue
        found[first.name] = first
        alike = [made for group in waiting if (made := _as_in(first, group, model, kinds))]
        if len(alike) > 1 and not attempt(alike).fault:
            passed = alike
        else:
            passed = [group for group in alike if not attempt([group]).fault]
        found |= {group.name: group for group in passed}
        waiting = [group for group in waiting if group.name not in found]
    return [found.get(group.name, group) for group in groups]


def _searched(model: nn.Module, group: Group, attempt: Attempts) -> Group | None:
    for chosen in _subsets(_candidates(model, group)):
        if found := _inferring(replace(group, numbers=chosen), attempt):
            return _fewest(found, attempt)
    return None


def _inferring(group: Group, attempt: Attempts) -> Group | None:
    """A group with the sizes inferred that it needs, of those that could be the last one first."""
    outcome = attempt([group])
    if not outcome.fault:
        return group
    if outcome.error is None or len(group.views) == VIEWS:
        return None
    for module, size in blamed(outcome.error):
        view = outcome.names[module], size
        more = replace(group, views=(*group.views, view))
        if view not in group.views and (found := _inferring(more, attempt)):
            return found
    return None


def _candidates(model: nn.Module, group: Group) -> tuple[Number, ...]:
    """Integers of the modules around a group that may count its channels."""
    members = (*group.producers, *group.followers, *group.consumers)
    folds = {member.fold for member in members}
    around = {""}
    for member in members:
        parts = member.module.split(".")
        around.update(".".join(parts[:i]) for i in range(1, len(parts)))
    found = []
    for name, module in model.named_modules():
        if name not in around or any(rule_of(module).sides(module)):
            continue
        for attribute, value in _integers(module):
            per = value // group.channels
            if value and not value % group.channels and any(fold % per == 0 for fold in folds):
                found.append(Number(name, attribute, value, per))
    return tuple(found)


def _integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Those that a module holds itself, and in lists and tuples of integers alone."""
    for attribute, value in vars(module).items():
        if type(value) is int:
            yield attribute, value
        elif type(value) in (list, tuple) and {type(number) for number in value} == {int}:
            yield from ((f"{attribute}[{place}]", number) for place, number in enumerate(value))


def _subsets(numbers: tuple[Number, ...]) -> Iterator[tuple[Number, ...]]:
    """All, none, one, all but one."""
    seen = set()
    singles = [(number,) for number in numbers]
    others = [tuple(n for n in numbers if n is not number) for number in numbers]
    for some in (numbers, (), *singles, *others):
        if some not in seen:
            seen.add(some)
            yield some


def _fewest(group: Group, attempt: Attempts) -> Group:
    for number in group.numbers:
        fewer = replace(group, numbers=tuple(n for n in group.numbers if n is not number))
        group = group if attempt([fewer]).fault else fewer
    return group


def _as_in(found: Group, group: Group, model: nn.Module, kinds: Mapping[str, type]) -> Group | None:
    """A group with the changes that another one of the same kinds of modules needs."""
    numbers = tuple(
        number
        for number in _candidates(model, group)
        if any(
            (kinds[number.module], number.attribute) == (kinds[n.module], n.attribute)
            for n in found.numbers
        )
    )
    parents = {member.module.rpartition(".")[0] for member in group.producers}
    views: list[tuple[str, View]] = [
        (name, view)
        for module, view in found.views
        for name in parents
        if kinds.get(name) is kinds[module]
    ]
    if len(numbers) < len(found.numbers) or len(views) < len(found.views):
        return None
    return replace(group, numbers=numbers, views=tuple(views))
