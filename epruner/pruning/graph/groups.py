"""Which tensors hang together: groups of coupled channels, as plain index arrays.

One forward pass of a private copy tells which channels are of one class (see `labels`). Layers
whose outputs share classes make a group; what stands in the way of removing its classes one by one
is the reason why its layers are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from epruner.pruning.graph.costs import Costs, Recorder
from epruner.pruning.graph.follow import Followed, follow, mixing
from epruner.pruning.graph.norms import advertised
from epruner.pruning.network.layers import (
    can_resize,
    is_depthwise,
    layers_of,
    parameter_dim,
)
from epruner.pruning.plan.parts import ModulePlan
from epruner.pruning.plan.plan import Plan
from epruner.pruning.plan.views import View

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Member:
    """One side of one module in a group.

    Parameters
    ----------
    module : str
        Dotted name of the module, bare parameter or buffer.
    index : ndarray of int, shape (m,)
        Its channels that belong to the group.
    root : ndarray of int, shape (m,)
        Channel of the group that each of them goes with. A flattened feature map gives several
        entries per channel (as many for each), a concatenation an offset between the two.
    size : int
        All channels of this side of the module.

    Examples
    --------
    A layer that reads a flattened map reads each channel at every position:

    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 2))
    >>> (reader,) = epruner.analyse(model, (1, 3, 5, 5)).groups[0].consumers
    >>> reader.module, reader.fold, reader.entries[1].tolist()
    ('2', 9, [9, 10, 11, 12, 13, 14, 15, 16, 17])
    """

    module: str
    index: Indices
    root: Indices
    size: int

    @property
    def fold(self) -> int:
        """Entries per channel of the group: 1, the positions of a map, the width of a head, ..."""
        return len(self.index) // len(np.unique(self.root))

    @property
    def entries(self) -> Indices:
        """`index` by channel of the group: (channels, fold)."""
        return self.index[np.argsort(self.root, kind="stable")].reshape(-1, self.fold)


@dataclass(frozen=True)
class Number:
    """An integer that a module holds, and that is a multiple of the number of a group's channels.

    Parameters
    ----------
    module : str
        Dotted name.
    attribute : str
        As in `Plan.attributes`.
    value : int
        At full size.
    per : int
        What each channel counts for.

    Examples
    --------
    A module that holds its number of heads, and whose heads are the channels:

    >>> from epruner.pruning.graph.groups import Number
    >>> Number("attention", "num_heads", value=8, per=1)
    Number(module='attention', attribute='num_heads', value=8, per=1)
    """

    module: str
    attribute: str
    value: int
    per: int


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together, wherever they appear.

    Parameters
    ----------
    name : str
        First producer, in the order of the network.
    channels : int
        How many there are.
    blocks : int
        A grouped convolution takes part: of each of this many consecutive equal blocks of
        channels the same number must stay.
    stream : bool
        Several layers add onto these channels (a residual stream).
    producers : tuple of Member
        Convolutions and linear layers whose outputs the channels are; each covers all of them.
    followers : tuple of Member
        What sits on the channels without mixing them: BatchNorm, depthwise convolutions, PReLU,
        bare parameters and buffers.
    consumers : tuple of Member
        Layers that read the channels.
    products : tuple of Member
        Matrix products of computed tensors that are made for each channel.
    numbers : tuple of Number
        What modules hold of the number of channels.
    views : tuple of (str, View)
        By module, sizes that its forward writes and that have to be inferred.
    norms : tuple of Member
        Modules that take a norm over the channels: without some of them it is another, so that
        pruning them is an approximation.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3))
    >>> (group,) = epruner.analyse(model, (1, 3, 8, 8)).groups
    >>> group.name, group.channels
    ('0', 16)
    >>> [member.module for member in group.followers + group.consumers]
    ['1', '2']
    """

    name: str
    channels: int
    blocks: int
    stream: bool
    producers: tuple[Member, ...]
    followers: tuple[Member, ...]
    consumers: tuple[Member, ...]
    products: tuple[Member, ...] = ()
    numbers: tuple[Number, ...] = ()
    views: tuple[tuple[str, View], ...] = ()
    norms: tuple[Member, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A layer left alone, and why.

    Parameters
    ----------
    name : str
        Dotted module name.
    reason : str
        What keeps it whole, in words.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> epruner.analyse(model, (1, 8)).skipped
    (Skipped(name='2', reason='its channels are the output of the model'),)
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Structure:
    """All that pruning needs to know of a network.

    Parameters
    ----------
    groups : tuple of Group
        In the order of the network.
    skipped : tuple of Skipped
        Layers whose outputs must stay whole.
    costs : Costs
        Of the full-size network, for the example inputs.
    """

    groups: tuple[Group, ...]
    skipped: tuple[Skipped, ...]
    costs: Costs


def find_groups(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Structure:
    """Find the groups of coupled channels.

    Parameters
    ----------
    model : torch.nn.Module
        A model of the analysis's own (see `network.copies.tracing_copy`): in eval mode, float32,
        unfrozen.
    args, kwargs
        Arguments of its forward.

    Returns
    -------
    Structure

    Raises
    ------
    ValueError
        There is nothing in the model that could be pruned.
    TraceError
        The forward pass or the analysis failed.
    """
    found = layers_of(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no convolution and no linear layer, so there are no "
            "filters to prune"
        )
    recorder = Recorder(model)
    followed = follow(model, args, dict(kwargs or {}), recorder)
    builder = _Builder(model, followed)

    groups: list[Group] = []
    skipped: list[Skipped] = []
    done: set[str] = set()
    for name, module in found.items():
        if name in done:
            continue
        group = None
        if not recorder.calls.get(name):
            reason = "was not run by the example inputs"
        elif not can_resize(module):
            reason = mixing(name, module)
        elif is_depthwise(module):
            continue  # goes with the layer before it
        else:
            group, reason = builder.group(name)
        if group is None:
            skipped.append(Skipped(name, reason))
        else:
            groups.append(group)
            done.update(member.module for member in group.producers)
    costs = recorder.costs(
        {name: len(labels) for name, labels in followed.products.items()},
        {m.module: m.size for g in groups for m in g.followers if m.module not in followed.outputs},
    )
    return Structure(tuple(groups), tuple(skipped), costs)


def plan_of(groups: Sequence[Group], kept: Mapping[str, Indices]) -> Plan:
    """The plan that keeps the given channels.

    Parameters
    ----------
    groups : sequence of Group
    kept : mapping of str to ndarray of int
        By group name, ascending. Groups that are not in it keep all.
    """
    dropped: dict[tuple[str, str], set[int]] = {}
    sizes: dict[tuple[str, str], int] = {}
    attributes: dict[str, dict[str, tuple[int, int]]] = {}
    views: dict[str, tuple[View, ...]] = {}
    for group in groups:
        if group.name not in kept or len(kept[group.name]) == group.channels:
            continue
        stays = np.zeros(group.channels, dtype=bool)
        stays[kept[group.name]] = True
        gone = group.channels - len(kept[group.name])
        for number in group.numbers:
            mine = attributes.setdefault(number.module, {})
            _, after = mine.get(number.attribute, (0, number.value))
            mine[number.attribute] = (number.value, after - gone * number.per)
        for module, view in group.views:
            views[module] = tuple({*views.get(module, ()), view})
        members = [("out", m) for m in (*group.producers, *group.followers)]
        members += [("in", m) for m in group.consumers]
        for side, member in members:
            key = (member.module, side)
            sizes[key] = member.size
            dropped.setdefault(key, set()).update(member.index[~stays[member.root]].tolist())
    parts: dict[str, dict[str, Any]] = {}
    for (name, side), without in dropped.items():
        size = sizes[name, side]
        part = parts.setdefault(name, {})
        part["in_" if side == "in" else "out"] = tuple(i for i in range(size) if i not in without)
        part[f"{side}_before"] = size
    return Plan({name: ModulePlan(**part) for name, part in parts.items()}, attributes, views)


class _Builder:
    """Turns classes of labels into groups, or into reasons why not."""

    def __init__(self, model: nn.Module, followed: Followed) -> None:
        self._model = model
        self._classes = followed.classes
        self._order = {name: place for place, (name, _) in enumerate(model.named_modules())}
        find = followed.classes.find
        self._makes = {name: find(x) for name, x in followed.outputs.items()}
        self._reads = {name: find(x) for name, x in followed.inputs.items()}
        self._bare = {place: find(x) for place, x in followed.bare.items()}
        self._products = {name: find(x) for name, x in followed.products.items()}
        self._norms = {name: find(x) for name, x in followed.norms.items()}
        self._added = frozenset(find(followed.added).tolist())
        self._together = _components([self._makes[name] for name in self._reads])

    def group(self, layer: str) -> tuple[Group | None, str]:
        """The group that a layer's outputs belong to, or None and the reason."""
        mine = self._makes[layer]
        together = self._together[int(mine[0])]
        makers = sorted(
            (n for n in self._reads if self._together[int(self._makes[n][0])] == together),
            key=self._place,
        )
        if reason := self._stays(layer) or next(filter(None, map(self._stays, makers)), ""):
            return None, reason
        first = self._makes[makers[0]].tolist()
        order = {root: channel for channel, root in enumerate(dict.fromkeys(first))}
        for other in makers:
            if set(self._makes[other].tolist()) != set(order):
                return None, f"it shares only a part of the channels of {other!r}"
        if len(order) == 1:
            if len(mine) == 1:
                return None, "it has one channel"
            return None, self._classes.joined(mine) or "all its channels go together"
        places = np.full(len(self._classes), -1, np.intp)
        places[list(order)] = np.arange(len(order))
        producers = _members({n: self._makes[n] for n in makers}, places)
        followers = _members({n: x for n, x in self._makes.items() if n not in self._reads}, places)
        for (name, dim), roots in self._bare.items():
            if members := _members({name: roots}, places):
                if parameter_dim(self._tensor(name), len(roots)) != dim:
                    return None, f"parameter {name!r} has two dimensions of {len(roots)}"
                followers += members
        consumers = _members(self._reads, places)
        norms = _members(self._norms, places)
        if not consumers:
            return None, "nothing that could be made smaller reads its channels"
        blocks = 1
        for member in (*producers, *consumers):
            groups = getattr(self._model.get_submodule(member.module), "groups", 1)
            if groups > 1:
                blocks, reason = self._blocks(member, groups, len(order), blocks)
                if reason:
                    return None, reason
        for member in (*producers, *followers, *consumers, *norms):
            counts = np.bincount(member.root, minlength=len(order))
            if (counts != counts[0]).any():
                return None, f"only some of its channels reach {member.module!r}"
            if blocks > 1 and member.fold > 1:
                return None, f"{member.module!r} reads its flattened channels, which are grouped"
        group = Group(
            name=makers[0],
            channels=len(order),
            blocks=blocks,
            stream=len(producers) > 1 and not self._added.isdisjoint(order),
            producers=tuple(producers),
            followers=tuple(sorted(followers, key=self._placed)),
            consumers=tuple(sorted(consumers, key=self._placed)),
            products=tuple(_members(self._products, places)),
            numbers=self._sizes(norms, followers),
            norms=tuple(norms),
        )
        return group, ""

    def _sizes(self, norms: Sequence[Member], bare: Sequence[Member]) -> tuple[Number, ...]:
        """What norms, and owners of bare parameters, say of their width."""
        members = {m.module: m for m in norms}
        members |= {m.module.rpartition(".")[0]: m for m in bare if m.module not in self._makes}
        found = []
        for name, member in members.items():
            if attribute := advertised(self._model.get_submodule(name), member.size):
                found.append(Number(name, attribute, member.size, member.fold))
        return tuple(found)

    def _stays(self, name: str) -> str:
        """Why some of a layer's outputs have to stay, if they do."""
        return self._classes.reason(self._makes[name]) or ""

    def _blocks(self, member: Member, groups: int, channels: int, blocks: int) -> tuple[int, str]:
        """Blocks of channels of which equal numbers have to stay, or a reason why none may go."""
        label = member.module
        if self._model.get_submodule(label).transposed:
            return blocks, f"{label!r} is a grouped transposed convolution"
        block = member.index // (member.size // groups)
        counts = np.zeros((channels, groups), np.intp)
        np.add.at(counts, (member.root, block), 1)
        if (counts == counts[:1, :1]).all():
            return blocks, ""  # of every block as many go as of any other
        if blocks not in (1, groups):
            few, many = sorted((blocks, groups))
            return blocks, f"convolutions of {few} and of {many} groups share its channels"
        whole = member.fold == 1 and len(member.index) == member.size
        if not whole or (block != member.root // (channels // groups)).any():
            return blocks, f"its channels do not lie in the groups of {label!r} as they are made"
        return groups, ""

    def _tensor(self, name: str) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(self._model.get_submodule(owner), leaf)
        return tensor

    def _place(self, name: str) -> int:
        return self._order.get(name, -1)

    def _placed(self, member: Member) -> int:
        return self._place(member.module)


def _members(sides: Mapping[str, Indices], places: Indices) -> list[Member]:
    """Sides of modules as far as they are of a group.

    Parameters
    ----------
    sides : mapping of str to ndarray of int
        By module, the class of each channel.
    places : ndarray of int
        By class, the channel of the group; -1 for all others.
    """
    found = []
    for name, roots in sides.items():
        root = places[roots]
        index = np.flatnonzero(root >= 0)
        if len(index):
            order = np.lexsort((index, root[index]))
            found.append(Member(name, index[order], root[index][order], len(roots)))
    return found


def _components(parts: Sequence[Indices]) -> dict[int, int]:
    """A number for each element; the same for all that one part or another holds together."""
    first: dict[int, int] = {}

    def top(x: int) -> int:
        while first[x] != x:
            first[x] = x = first[first[x]]
        return x

    for part in parts:
        for x in part.tolist():
            first.setdefault(x, x)
            first[top(x)] = top(int(part[0]))
    return {x: top(x) for x in first}
