"""What else of a network has to change when channels go: numbers that modules hold, sizes written.

A layer's own sizes are known. Those of the code around it (`num_heads`, `all_head_size`, the number
that channels are split at) are found by trial: of the integers that fit, the fewest with which the
sliced network does what the silenced one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from torch import nn

from epruner.pruning.graph.groups import Group, Number
from epruner.pruning.network.layers import rule_of
from epruner.pruning.plan.views import View, blamed

VIEWS = 4  # sizes that are inferred at most of one group in modules of one kind
Kinds = Mapping[str, type[nn.Module]]


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


Numbers = tuple[Number, ...]
Attempts = Callable[[Sequence[Group]], Attempt]


def with_numbers(model: nn.Module, groups: Sequence[Group], attempt: Attempts) -> list[Group]:
    """Groups of several filters a channel, and streams that norms read, with what has to change.

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
    waiting = [g for g in groups if g.norms or any(member.fold > 1 for member in g.producers)]
    kinds: Kinds = {name: type(module) for name, module in model.named_modules()}
    while waiting:
        first = _searched(model, waiting.pop(0), kinds, attempt)
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


def _searched(model: nn.Module, group: Group, kinds: Kinds, attempt: Attempts) -> Group | None:
    """A group with the changes that it needs; nothing but sizes inferred is the last choice.

    Of one view only one size can be inferred, and another group may need that.
    """
    alike: dict[tuple[type[nn.Module], str], list[Number]] = {}
    for number in _candidates(model, group):
        alike.setdefault((kinds[number.module], number.attribute), []).append(number)
    viewed: Group | None = None
    for chosen in _subsets([tuple(some) for some in alike.values()]):
        changed = replace(group, numbers=(*group.numbers, *chain(*chosen)))
        if found := _inferring(changed, kinds, attempt):
            found = _fewest(found, chosen, attempt)
            if len(found.numbers) > len(group.numbers) or not found.views:
                return found
            viewed = viewed or found
    return viewed


def _inferring(group: Group, kinds: Kinds, attempt: Attempts) -> Group | None:
    """A group with the sizes inferred that it needs, of those that could be the last one first."""
    outcome = attempt([group])
    if not outcome.fault:
        return group
    if outcome.error is None:
        return None
    for module, size in blamed(outcome.error):
        name = outcome.names[module]
        views = {view for other, view in group.views if kinds[other] is kinds[name]}
        if size in views or len(views) == VIEWS:
            continue
        same = {name}
        if group.norms:  # what reads a stream is the same block after block
            same.update(x for x in _around(group) if kinds[x] is kinds[name])
        more = replace(group, views=(*group.views, *((x, size) for x in sorted(same))))
        if found := _inferring(more, kinds, attempt):
            return found
    return None


def _around(group: Group) -> set[str]:
    """Names of the modules that the members of a group are in."""
    around = {""}
    for member in (*group.producers, *group.followers, *group.consumers):
        parts = member.module.split(".")
        around.update(".".join(parts[:i]) for i in range(1, len(parts)))
    return around


def _candidates(model: nn.Module, group: Group) -> tuple[Number, ...]:
    """Integers of the modules around a group that may count its channels."""
    folds = {member.fold for member in (*group.producers, *group.followers, *group.consumers)}
    around = _around(group)
    found = []
    for name, module in model.named_modules():
        if name not in around or any(rule_of(module).sides(module)):
            continue
        for attribute, value in _integers(module):
            if not value or value % group.channels:
                continue
            per = value // group.channels
            number = Number(name, attribute, value, per)
            if number not in group.numbers and any(fold % per == 0 for fold in folds):
                found.append(number)
    return tuple(found)


def _integers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Those that a module holds itself, and in lists and tuples of integers alone."""
    for attribute, value in vars(module).items():
        if type(value) is int:
            yield attribute, value
        elif type(value) in (list, tuple) and {type(number) for number in value} == {int}:
            yield from ((f"{attribute}[{place}]", number) for place, number in enumerate(value))


def _subsets(numbers: Sequence[Numbers]) -> Iterator[tuple[Numbers, ...]]:
    """All, none, one, all but one."""
    seen = set()
    singles = [(some,) for some in numbers]
    others = [tuple(n for n in numbers if n is not some) for some in numbers]
    for chosen in (tuple(numbers), (), *singles, *others):
        if chosen not in seen:
            seen.add(chosen)
            yield chosen


def _fewest(group: Group, chosen: Sequence[Numbers], attempt: Attempts) -> Group:
    for some in chosen:
        fewer = replace(group, numbers=tuple(n for n in group.numbers if n not in some))
        group = group if attempt([fewer]).fault else fewer
    return group


def _as_in(found: Group, group: Group, model: nn.Module, kinds: Kinds) -> Group | None:
    """A group with the changes that another one of the same kinds of modules needs."""
    if found.norms or group.norms:
        return None
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
    if len(group.numbers) + len(numbers) < len(found.numbers) or len(views) < len(found.views):
        return None
    return replace(group, numbers=(*group.numbers, *numbers), views=tuple(views))
