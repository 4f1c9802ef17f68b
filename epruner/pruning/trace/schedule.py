"""An order of ops in which calls that belong together stand side by side.

A module that is used several times is refit once, when what all its calls read is there and before
any of them runs. A forward pass need not come by in that order; ops that do not depend on each
other may be done in another. What depends on what is told by the values that they read and make,
and where they write in place by all that lies in the same memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from epruner.pruning.network.tree import leaves
from epruner.pruning.trace.trace import Op, Trace, Value, values_in


class Schedule:
    """The ops of a trace, some of them in blocks that stay together.

    Parameters
    ----------
    trace : Trace
    """

    def __init__(self, trace: Trace) -> None:
        self._before = _dependencies(trace)
        self._after: list[set[int]] = [set() for _ in trace.ops]
        for index, before in enumerate(self._before):
            for earlier in before:
                self._after[earlier].add(index)
        self._blocks: list[list[int]] = [[index] for index in range(len(trace.ops))]

    def join(self, chains: Sequence[Sequence[int]]) -> bool:
        """Let some ops stand side by side, if nothing that one chain makes reaches another.

        Parameters
        ----------
        chains : sequence of sequence of int
            A call, and ops after it that read what it gives.

        Returns
        -------
        bool
            Whether they can, and do now.
        """
        calls = [chain[0] for chain in chains]
        block = sorted({index for chain in chains for index in chain})
        reached: set[int] = set()
        todo = [index for call in calls for index in self._after[call]]
        while todo:
            if (index := todo.pop()) in reached:
                continue
            reached.update(self._blocks[index])
            todo += [after for own in self._blocks[index] for after in self._after[own]]
        outside = reached.difference(block)
        if reached.intersection(calls) or any(self._before[i] & outside for i in block):
            return False
        if any(
            self._before[index].intersection(block).difference(chain)
            for chain in chains
            for index in chain
        ):
            return False
        for index in block:
            self._blocks[index] = block
        return True

    def order(self) -> list[int]:
        """Indices of the ops, as near to the order of the trace as the blocks allow."""
        missing = {
            block[0]: len({self._blocks[b][0] for i in block for b in self._before[i]} - {block[0]})
            for block in self._blocks
        }
        ready = [first for first, count in missing.items() if not count]
        heapq.heapify(ready)
        order: list[int] = []
        while ready:
            block = self._blocks[heapq.heappop(ready)]
            order += block
            for first in {self._blocks[a][0] for i in block for a in self._after[i]} - {block[0]}:
                missing[first] -= 1
                if not missing[first]:
                    heapq.heappush(ready, first)
        return order


def _dependencies(trace: Trace) -> list[set[int]]:
    """Of each op, earlier ones that must come before it."""
    memory = _Memory(trace)
    made: dict[Value, int] = {}
    written: dict[int, int] = {}  # by memory: the last op that wrote into it
    read_since: dict[int, list[int]] = {}  # and those that read it then
    found: list[set[int]] = []
    for index, op in enumerate(trace.ops):
        before = {made[value] for value in op.reads if value in made}
        writes = {memory.of(x) for x in memory.written_by(op)}
        for place in {memory.of(x) for x in _tensors((op.args, op.kwargs))} | writes:
            if place in written:
                before.add(written[place])
            if place in writes:
                before.update(read_since.pop(place, ()))
                written[place] = index
            else:
                read_since.setdefault(place, []).append(index)
        for value in op.writes:
            made.setdefault(value, index)
        found.append(before - {index})
    return found


class _Memory:
    """Which values lie in the same memory, by what the schemas of the ops say."""

    def __init__(self, trace: Trace) -> None:
        self._parent: dict[Any, Any] = {}
        for op in trace.ops:
            aliased = _arguments(op, lambda info: True)
            for one in aliased:
                for other in values_in(op.result):
                    self._parent[self.of(other)] = self.of(one)

    def of(self, tensor: Any) -> Any:
        """What stands for all in the same memory as a value or a constant."""
        key = tensor if isinstance(tensor, Value) else ("constant", id(tensor))
        while (parent := self._parent.get(key, key)) != key:
            key = parent
        return key

    def written_by(self, op: Op) -> list[Any]:
        """Values and constants that an op writes into."""
        return _arguments(op, lambda info: info.is_write)


def _arguments(op: Op, wanted: Callable[[Any], bool]) -> list[Any]:
    """Tensors among the arguments of an op of which the schema tells that they are aliased."""
    schema = getattr(op.function, "_schema", None)
    if schema is None:
        return []
    given = {
        argument.name: value for argument, value in zip(schema.arguments, op.args, strict=False)
    } | dict(op.kwargs)
    return [
        tensor
        for argument in schema.arguments
        if argument.alias_info is not None and wanted(argument.alias_info)
        for tensor in _tensors(given.get(argument.name))
    ]


def _tensors(value: Any) -> list[Any]:
    return [leaf for leaf in leaves(value) if isinstance(leaf, (Value, Tensor))]
