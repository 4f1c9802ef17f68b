"""Which tensors hang together: groups of coupled channels, as plain index arrays.

Torch-Pruning's dependency graph is used to look, never to prune, and on a private copy of the
model. What it says of operations that it does not really know is not believed: such groups are
left alone, with the reason. No other file but `dependency` sees anything of that library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from epruner.pruning.graph.costs import Costs, Recorder
from epruner.pruning.graph.dependency import (
    Entry,
    Meetings,
    MixedError,
    channel_buffers,
    follow,
    trace,
)
from epruner.pruning.graph.operations import INSIDES, flattens, objection, operation
from epruner.pruning.network.copies import address_of, own_tensors, owners
from epruner.pruning.network.layers import (
    can_resize,
    has_filters,
    is_depthwise,
    layers_of,
    parameter_dim,
    sides,
    ties,
)
from epruner.pruning.network.tree import tensors_in
from epruner.pruning.plan.parts import ModulePlan
from epruner.pruning.plan.plan import Plan

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
class Group:
    """Channels that can only be removed together, wherever they appear.

    Parameters
    ----------
    name : str
        First producer, in the order of the network.
    channels : int
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
    """

    name: str
    channels: int
    blocks: int
    stream: bool
    producers: tuple[Member, ...]
    followers: tuple[Member, ...]
    consumers: tuple[Member, ...]


@dataclass(frozen=True)
class Skipped:
    """A layer left alone, and why."""

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
    names = {id(module): name for name, module in model.named_modules()}
    found = layers_of(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no convolution and no linear layer, so there are no "
            "filters to prune"
        )
    recorder = Recorder(model)
    outputs: list[Tensor] = []
    buffers = channel_buffers(model)
    meetings = Meetings(tensors_in((args, kwargs)))
    graph = trace(model, args, dict(kwargs or {}), recorder, outputs, buffers, meetings)
    costs = recorder.costs()
    bare = {**dict(model.named_parameters()), **buffers}
    walker = _Walker(model, graph, names, outputs, meetings, costs, bare)

    groups: list[Group] = []
    skipped: list[Skipped] = []
    done: set[str] = set()
    for name, module in found.items():
        if name in done:
            continue
        group = None
        if not costs.modules[name].calls:
            reason = "was not run by the example inputs"
        elif not can_resize(module) or ties(module) is not None:
            reason = mixing(name, module)
        elif module not in graph.module2node:
            reason = "no gradient reaches it"
        elif is_depthwise(module):
            continue  # goes with the layer before it
        else:
            group, reason = walker.group(name, module)
        if group is None:
            skipped.append(Skipped(name, reason))
        else:
            groups.append(group)
            done.update(member.module for member in group.producers)
    return Structure(tuple(groups), tuple(skipped), costs)


def mixing(name: str, module: nn.Module) -> str:
    """The reason of layers that stay whole: norms over channels, attention, recurrence."""
    return f"{type(module).__name__} {name!r} mixes its channels"


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
    for group in groups:
        if group.name not in kept or len(kept[group.name]) == group.channels:
            continue
        stays = np.zeros(group.channels, dtype=bool)
        stays[kept[group.name]] = True
        members = [("out", m) for m in (*group.producers, *group.followers)]
        members += [("in", m) for m in group.consumers]
        for side, member in members:
            key = (member.module, side)
            sizes[key] = member.size
            dropped.setdefault(key, set()).update(member.index[~stays[member.root]].tolist())
    parts: dict[str, dict[str, Any]] = {}
    for (name, side), gone in dropped.items():
        size = sizes[name, side]
        part = parts.setdefault(name, {})
        part["in_" if side == "in" else "out"] = tuple(i for i in range(size) if i not in gone)
        part[f"{side}_before"] = size
    return Plan({name: ModulePlan(**part) for name, part in parts.items()})


class _Walker:
    """Turns the library's groups into ours, or into a reason why not."""

    def __init__(
        self,
        model: nn.Module,
        graph: Any,
        names: Mapping[int, str],
        outputs: Sequence[Tensor],
        meetings: Meetings,
        costs: Costs,
        bare: Mapping[str, nn.Parameter],
    ) -> None:
        self._graph = graph
        self._names = names
        self._order = {name: place for place, name in enumerate(names.values())}
        self._parameters = {id(p): name for name, p in bare.items()}
        self._heads = {output.grad_fn for output in outputs}
        self._meetings = meetings
        self._costs = costs
        self._owners = owners(model)

    def group(self, name: str, module: nn.Module) -> tuple[Group | None, str]:
        """The group whose first producer is `module`, or None and the reason."""
        if reason := self._objection_ahead(module):
            return None, reason
        try:
            found = follow(self._graph, module)
        except MixedError as error:
            return None, str(error)
        except Exception as error:  # whatever the library trips over, only this group is lost
            return None, f"its dependencies could not be followed ({type(error).__name__}: {error})"
        nodes = {entry.node: None for entry in found}  # a set that keeps its order
        for entry in found:
            if entry.node.grad_fn in self._heads and not _reads(entry):
                return None, "its channels are the output of the model"
        for node in nodes:
            if reason := self._objection(node):
                return None, reason
        return self._build(name, found, nodes)

    def _objection_ahead(self, module: nn.Module) -> str:
        """Why the way to the next layers rules a group out.

        Looked at first, as the reason nearest to the layer says most; and flattened maps that are
        concatenated are mapped wrongly.
        """
        root = self._graph.module2node[module]
        frontier = [(node, False) for node in root.outputs]  # False: not flattened so far
        seen = set()
        while frontier:
            node, flat = frontier.pop()
            inside = id(node.module) in self._names
            if (node, flat) in seen or (inside and has_filters(node.module)):
                continue
            seen.add((node, flat))
            if node.grad_fn in self._heads:
                return "its channels are the output of the model"
            if reason := self._objection(node):
                return reason
            if not inside and node.grad_fn is not None:
                if flat and operation(node.grad_fn) == "Cat":
                    return "its channels are flattened and then concatenated"
                flat = flat or flattens(node.grad_fn)
            frontier.extend((output, flat) for output in node.outputs)
        return ""

    def _build(
        self, name: str, found: Sequence[Entry], nodes: dict[Any, None]
    ) -> tuple[Group | None, str]:
        channels = len(found[0].roots)
        producers: dict[str, Member] = {}
        followers: dict[str, Member] = {}
        consumers: dict[str, Member] = {}
        blocks = 1
        for entry in found:
            module = entry.node.module
            if isinstance(module, nn.Parameter):
                if parameter_dim(module, channels) is None:
                    continue  # it lies on other dimensions
                label, size, side = self._parameters[id(module)], channels, followers
            elif id(module) in self._names and can_resize(module):
                label = self._names[id(module)]
                is_layer = has_filters(module)
                side = followers if not is_layer else consumers if _reads(entry) else producers
                size = sides(module)[side is consumers]
                if not size:
                    continue  # no channels of its own, e.g. a PReLU of one parameter
                if side is not followers and getattr(module, "groups", 1) > 1:
                    if module.transposed:
                        return None, f"{label!r} is a grouped transposed convolution"
                    if blocks not in (1, module.groups):
                        few, many = sorted((blocks, module.groups))
                        return None, (
                            f"convolutions of {few} and of {many} groups share its channels"
                        )
                    blocks = module.groups
            else:
                continue
            index = np.fromiter(entry.roots.keys(), np.intp)
            root = np.fromiter(entry.roots.values(), np.intp)
            order = np.lexsort((index, root))
            side[label] = Member(label, index[order], root[order], size)
        for member in (*producers.values(), *followers.values(), *consumers.values()):
            if reason := _bad_member(member, channels, whole=member.module in producers):
                return None, reason
            if blocks > 1 and member.fold > 1:
                return None, f"{member.module!r} reads its flattened channels, which are grouped"
        if not consumers:
            if channels == 1:
                return None, "it has one channel"
            return None, "nothing that could be made smaller reads its channels"
        stream = len(producers) > 1 and any(
            operation(node.grad_fn) == "Add" and sum(i in nodes for i in node.inputs) > 1
            for node in nodes
            if node.grad_fn is not None and id(node.module) not in self._names
        )
        members = (
            tuple(sorted(s.values(), key=self._place)) for s in (producers, followers, consumers)
        )
        group = Group(name, channels, blocks, stream, *members)
        return group, ""

    def _place(self, member: Member) -> int:
        return self._order.get(member.module, -1)

    def _objection(self, node: Any) -> str:
        """Why channels that meet this node cannot be removed; empty if they can."""
        module = node.module
        if isinstance(module, nn.Parameter):
            label = self._parameters.get(id(module), "")
            shared = len(self._owners.get(address_of(module), ())) > 1
            return f"parameter {label!r} on its channels is shared" if shared else ""
        if id(module) in self._names:
            return self._module_objection(self._names[id(module)], node)
        if not node.inputs or _inside_module(node):
            return ""  # works on a parameter alone, or is a part of a layer that is known
        if self._meetings.fixes(node.grad_fn):
            how = "added to" if operation(node.grad_fn) == "Add" else "combined with"
            return f"its channels are {how} the model's input and must keep their number and order"
        return objection(node.grad_fn)

    def _module_objection(self, label: str, node: Any) -> str:
        module = node.module
        if not can_resize(module) or ties(module) is not None:
            return mixing(label, module)
        cost = self._costs.modules.get(label)
        if cost is not None and cost.calls > 1:
            return f"{label!r} is used {cost.calls} times in one forward pass"
        for tensor in own_tensors(module):
            if others := [x for x in self._owners.get(address_of(tensor), ()) if x != label]:
                return f"the parameters of {label!r} are shared with {others[0]!r}"
        groups = 1 if is_depthwise(module) else getattr(module, "groups", 1)
        if groups > 1 and groups in (module.in_channels, module.out_channels):
            return f"{label!r} is a depthwise convolution with a channel multiplier"
        return ""


def _reads(entry: Entry) -> bool:
    """Whether an entry is the input side of a layer."""
    return entry.reads and has_filters(entry.node.module)


def _bad_member(member: Member, channels: int, *, whole: bool) -> str:
    if len(np.unique(member.index)) != len(member.index) or member.index.max() >= member.size:
        return f"its channels could not be mapped to those of {member.module!r}"
    counts = np.bincount(member.root, minlength=channels)
    if len(counts) > channels or np.any(counts != counts[0]) or counts[0] == 0:
        return f"only some of its channels reach {member.module!r}"
    if whole and (len(member.index) != member.size or counts[0] != 1):
        return f"it shares only a part of the channels of {member.module!r}"
    return ""


def _inside_module(node: Any) -> bool:
    """Whether all that this operation feeds is the inside of one kind of known layer."""
    for kind, operations in INSIDES.items():
        frontier, seen, inside = [node], {node}, operation(node.grad_fn) in operations
        while frontier and inside:
            outputs = frontier.pop().outputs
            inside = bool(outputs)
            for output in outputs:
                if isinstance(output.module, kind) or output in seen:
                    continue
                if output.grad_fn is None or operation(output.grad_fn) not in operations:
                    inside = False
                    break
                seen.add(output)
                frontier.append(output)
        if inside:
            return True
    return False
