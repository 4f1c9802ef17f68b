"""A forward pass as a list of operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from epruner.pruning.network.tree import leaves


class Value(int):
    """Number of a tensor that a forward pass reads or makes: the same in all traces of a model."""


@dataclass(frozen=True)
class Op:
    """One operation or one call of a leaf module.

    Parameters
    ----------
    label : str
        Name of the operator, or of the module behind ``"module "``.
    module : str or None
        Dotted name, for calls of leaf modules.
    function : callable
    args, kwargs
        With a `Value` for every tensor that the pass computes; parameters as they are.
    result
        Of the same structure as what the function returns, with values for tensors.
    shapes : tuple of tuple of int
        Of the tensors in `result`.
    reader : str
        Where values that differ from batch to batch decide the result's shape, or are the result:
        in words, the module whose forward reads them. Else empty.
    """

    label: str
    module: str | None
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    shapes: tuple[tuple[int, ...], ...]
    reader: str = ""

    @property
    def reads(self) -> list[Value]:
        """Values among the arguments, in order."""
        return values_in((self.args, self.kwargs))

    @property
    def writes(self) -> list[Value]:
        """Values of the result."""
        return values_in(self.result)


@dataclass(frozen=True)
class Trace:
    """The ops of one forward pass.

    Parameters
    ----------
    ops : tuple of Op
    inputs : tuple of Value
        Of the tensors in the arguments, in order.
    outputs : tuple of Value
        Of the tensors in what the model returns.
    """

    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def course(self) -> list[tuple[str, list[Value], list[Value]]]:
        """What is done with what: the same in all traces of which the ops correspond."""
        return [(op.label, op.reads, op.writes) for op in self.ops]

    def reordered(self, order: Sequence[int]) -> Trace:
        """The same with its ops in another order, in which each still finds what it reads."""
        return replace(self, ops=tuple(self.ops[index] for index in order))

    def readers(self) -> dict[Value, list[int]]:
        """Indices of the ops that read each value."""
        found: dict[Value, list[int]] = {}
        for index, op in enumerate(self.ops):
            for value in dict.fromkeys(op.reads):
                found.setdefault(value, []).append(index)
        return found


def values_in(structure: Any) -> list[Value]:
    """The values in a nested structure, in order."""
    return [leaf for leaf in leaves(structure) if isinstance(leaf, Value)]
