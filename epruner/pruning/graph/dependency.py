"""Tracing with Torch-Pruning: its dependency graph, kept from guessing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from epruner.pruning.errors import TraceError
from epruner.pruning.graph.costs import Recorder
from epruner.pruning.graph.operations import (
    channel_axis,
    flattens,
    is_pointwise,
    objection,
    parts,
    shapes,
)
from epruner.pruning.network.layers import can_resize, multiplies, sides
from epruner.pruning.network.tree import tensors_in


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    recorder: Recorder,
    outputs: list[Tensor],
    buffers: Mapping[str, nn.Parameter],
    meetings: Meetings,
) -> Any:
    """The library's dependency graph of a model.

    Parameters
    ----------
    model : torch.nn.Module
    args, kwargs
        Arguments of its forward.
    recorder : Recorder
        Records the forward pass.
    outputs : list of Tensor
        Filled with the model's outputs that depend on its parameters.
    buffers : mapping of str to Parameter
        See `channel_buffers`.
    meetings : Meetings
        Filled, too.

    Raises
    ------
    TraceError
        The forward pass or the analysis failed.
    """
    import torch_pruning as tp  # here, because it takes long to import

    made: list[Tensor] = []  # by the layers, in the order of their calls

    def forward(traced: nn.Module, _: object) -> Any:
        try:
            with (
                recorder.recording(),
                _collected(traced, made),
                meetings,
                _followed(traced, buffers),
            ):
                return traced(*args, **kwargs)
        except Exception as error:
            at = recorder.running[-1] if recorder.running else ""
            where = f"in module {at!r}" if at else "in the model's own forward"
            line = str(error).partition("\n")[0]
            raise TraceError(
                f"the forward pass failed {where}: {type(error).__name__}: {line}. Check "
                "inputs: a tensor, a shape, a tuple of arguments or a dict of keyword "
                "arguments"
            ) from error

    def with_gradient(output: Any) -> list[Tensor]:
        outputs.extend(t for t in tensors_in(output) if t.grad_fn is not None)
        if not outputs:
            raise TraceError(
                "no output of the model depends on its parameters in a differentiable way (is its "
                "forward under torch.no_grad, or does it return integers?); nothing can be traced"
            )
        return [*outputs, *_dead_ends(outputs, made)]

    try:
        # a caller's no_grad must not reach the tracing, which follows gradients
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _tolerant(tp)().build_dependency(
                model,
                example_inputs=None,
                forward_fn=forward,
                output_transform=with_gradient,
                unwrapped_parameters=[(p, p.shape.index(max(p.shape))) for p in buffers.values()],
                verbose=False,
            )
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(
            f"the structure of {type(model).__name__} could not be analysed: "
            f"{type(error).__name__}: {error}"
        ) from error


def channel_buffers(model: nn.Module) -> dict[str, nn.Parameter]:
    """Buffers that may lie on the channels of a layer, by name, as parameters of the same memory.

    The library follows gradients and so sees no buffer; these can stand in for them.
    """
    widths = {sides(module)[0] for module in model.modules()} - {0, 1}
    found = {}
    for name, module in model.named_modules():
        for leaf, buffer in module.named_buffers(name, recurse=False):
            wide = buffer.is_floating_point() and not widths.isdisjoint(buffer.shape)
            if wide and not can_resize(module):  # which else slices its own
                # one of three dimensions would keep the library from following concatenations
                found[leaf] = nn.Parameter(buffer[None] if buffer.dim() == 3 else buffer)
    return found


class Meetings(TorchFunctionMode):
    """Notes, during a forward pass, where what layers make meets the model's input.

    Parameters
    ----------
    inputs : iterable of Tensor
        The model's.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self._inputs = {id(tensor): tensor for tensor in inputs}  # and what is made of them alone
        self._met: dict[Any, list[torch.Size]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            given = tensors_in((args, kwargs))
            shapes_met = [tensor.shape for tensor in given if id(tensor) in self._inputs]
            if shapes_met and result.grad_fn is not None:
                self._met.setdefault(result.grad_fn, []).extend(shapes_met)
            elif shapes_met:
                self._inputs[id(result)] = result
        return result

    def fixes(self, function: Any) -> bool:
        """Whether an operation combines channels, one by one, with those of the model's input."""
        met = self._met.get(function)
        axis = channel_axis(function) if met and is_pointwise(function) else None
        if not met or axis is None:
            return False
        dims = len(function._input_metadata[0].shape)
        return any(len(s) > (place := len(s) - dims + axis) >= 0 and s[place] > 1 for s in met)


class MixedError(Exception):
    """Channels do not stay apart."""


class Place(NamedTuple):
    """A channel of a node and the channel of the layer it goes with, as the library names them."""

    idx: int
    root_idx: int


@dataclass(frozen=True)
class Entry:
    """One side of one node that channels of a layer reach.

    Parameters
    ----------
    node
        The library's.
    reads : bool
        The channels are those that the node reads, not those that it makes.
    roots : dict of int to int
        Channel of the layer by channel of this node.
    """

    node: Any
    reads: bool
    roots: dict[int, int]


def follow(graph: Any, module: nn.Module) -> list[Entry]:
    """All that the output channels of a layer hang together with, the layer itself first.

    The library's own way visits every path, which are too many where a module is used again and
    again; here each channel passes each node once.

    Raises
    ------
    MixedError
        Two channels of the layer reach the same channel of a node.
    """
    pruner = graph.get_pruner_of_module(module)
    found: dict[tuple[Any, Any], dict[int, int]] = {}
    last: dict[tuple[Any, Any], Sequence[Place]] = {}
    start = [Place(i, i) for i in range(pruner.get_out_channels(module))]
    stack = [(graph.module2node[module], pruner.prune_out_channels, start)]
    while stack:
        node, side, places = stack.pop()
        if last.get((node, side)) is places:
            continue  # back along an edge; most arrivals are
        last[node, side] = places
        roots = found.setdefault((node, side), {})
        fresh = [place for place in places if place.idx not in roots] if roots else places
        expected = len(roots) + len(places)
        roots.update(fresh)
        if len(roots) < expected and any(roots[idx] != root for idx, root in places):
            raise MixedError("its channels are mixed: further on, two of them meet in one")
        for dep in node.dependencies if fresh else ():
            if not dep.is_triggered_by(side):
                continue
            reached = fresh
            for mapping in dep.index_mapping:
                reached = mapping(reached) if mapping is not None and reached else reached
            stack.append((dep.target, dep.handler, reached))
    return [
        Entry(node, side.__name__ == "prune_in_channels", roots)
        for (node, side), roots in found.items()
        if roots
    ]


@contextmanager
def _followed(model: nn.Module, buffers: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Let parameters stand in for buffers, as copies that a forward pass may write to."""
    saved = {name: model.get_buffer(name) for name in buffers}
    for name, parameter in buffers.items():
        copied = parameter.clone()
        more = copied.dim() > saved[name].dim()
        _set_buffer(model, name, copied.squeeze(0) if more else copied)
    try:
        yield
    finally:
        for name, buffer in saved.items():
            _set_buffer(model, name, buffer)


def _set_buffer(model: nn.Module, name: str, value: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, value)


@contextmanager
def _collected(model: nn.Module, made: list[Tensor]) -> Iterator[None]:
    def collect(_: nn.Module, __: object, output: Any) -> None:
        made.extend(t for t in tensors_in(output) if t.grad_fn is not None)

    layers = [m for m in model.modules() if multiplies(m) and can_resize(m)]
    hooks = [layer.register_forward_hook(collect) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _dead_ends(outputs: Sequence[Tensor], made: Sequence[Tensor]) -> list[Tensor]:
    """What layers made that nothing returned comes of.

    Such branches (heads that are computed and thrown away) must be known, too: they run, and so
    must fit the channels that they read.
    """
    seen: set[Any] = set()

    def follow(tensor: Tensor) -> None:
        frontier = [tensor.grad_fn]
        while frontier:
            function = frontier.pop()
            if function is not None and function not in seen:
                seen.add(function)
                frontier.extend(source for source, _ in function.next_functions)

    ends = []
    for tensor in outputs:
        follow(tensor)
    for tensor in reversed(made):
        if tensor.grad_fn not in seen:
            ends.append(tensor)
            follow(tensor)
    return ends


def _tolerant(tp: Any) -> Any:
    """The library's graph, kept from guessing.

    It reads every reshape as a flattening and divides by zero on others (channel shuffles), and
    every slice as one of channels. All that matters of those here is that their groups are left
    alone. It infers where the parts of a concatenation lie from the layers around, and fails where
    it cannot; autograd knows.
    """

    class Graph(tp.DependencyGraph):  # type: ignore[misc]
        def _trace(self, *args: Any, **kwargs: Any) -> Any:
            nodes = super()._trace(*args, **kwargs)
            for node in nodes.values():
                if node.type == tp.ops.OPTYPE.RESHAPE and not flattens(node.grad_fn):
                    node.type = tp.ops.OPTYPE.ELEMENTWISE
                if node.type == tp.ops.OPTYPE.SLICE and not objection(node.grad_fn):
                    node.type = tp.ops.OPTYPE.ELEMENTWISE  # of positions
                if node.type == tp.ops.OPTYPE.CONCAT:
                    sizes = [size for _, size in parts(node.grad_fn)]
                    _, after = shapes(node.grad_fn)
                    if after is None or not sizes or sum(sizes) < after[1]:
                        sizes = [0] * len(node.inputs)  # which keeps it from mapping anything
                    node.module.concat_sizes = sizes
            _cut_broadcasts(nodes.values())
            self._2d_4d = True  # a linear layer on sequences elsewhere must not stop flattenings
            return nodes

        def build_dependency(self, *args: Any, **kwargs: Any) -> Any:
            super().build_dependency(*args, **kwargs)
            for node in self.module2node.values():
                if node.type == tp.ops.OPTYPE.CONCAT and not any(node.module.concat_sizes):
                    _place_parts(node)  # some depend on no parameter
                if node.type == tp.ops.OPTYPE.RESHAPE:
                    _place_positions(node)
            return self

    return Graph


def _cut_broadcasts(nodes: Iterable[Any]) -> None:
    """Part what is of one channel from the channels that each meet it, as under a spatial gate."""
    by_function = {node.grad_fn: node for node in nodes}
    for node in by_function.values():
        axis = channel_axis(node.grad_fn) if is_pointwise(node.grad_fn) else None
        if axis is None:
            continue
        after = node.grad_fn._input_metadata[0].shape
        for function, place in node.grad_fn.next_functions:
            source = by_function.get(function)
            if source is None or source not in node.inputs:
                continue
            before = function._input_metadata[place].shape
            at = axis - len(after) + len(before)
            if at >= 0 and before[at] == 1 < after[axis]:
                node.inputs.remove(source)
                source.outputs.remove(node)


def _place_parts(node: Any) -> None:
    """Map the parts of a concatenation with an input of the model among them."""
    placed = parts(node.grad_fn)
    sources = list(dict.fromkeys(node.inputs))
    # in three dimensions the second may be channels or tokens
    if len(sources) != len(placed) or len(shapes(node.grad_fn)[1] or ()) == 3:
        return
    for source, (start, size) in zip(sources, placed, strict=True):
        for dep in node.dependencies:
            if dep.target is source:
                dep.index_mapping[1] = _Part(start, size, inwards=True)
        for dep in source.dependencies:
            if dep.target is node:
                dep.index_mapping[1] = _Part(start, size, inwards=False)


def _place_positions(node: Any) -> None:
    """Map the channels of a flattened map that do not lie in dimension 1."""
    before, _ = shapes(node.grad_fn)
    if before is None or not node.inputs:
        return
    source = node.inputs[0]
    axis = channel_axis(node.grad_fn.next_functions[0][0])
    if axis is None or axis < 2:
        return
    for dep in (*node.dependencies, *source.dependencies):
        if dep.index_mapping[0] is not None and {dep.source, dep.target} == {node, source}:
            dep.index_mapping[0] = _Flattening(before, axis, inwards=dep.target is source)


class _Flattening:
    """From channels in one dimension of a map to places in the flattened map, or inwards."""

    def __init__(self, shape: Sequence[int], axis: int, *, inwards: bool) -> None:
        self._channels = shape[axis]
        self._stride = math.prod(shape[axis + 1 :])
        places = np.arange(math.prod(shape[1:])).reshape(-1, self._channels, self._stride)
        self._places = places.swapaxes(0, 1).reshape(self._channels, -1).tolist()
        self._inwards = inwards

    def __call__(self, entries: Sequence[Any]) -> list[Any]:
        if not self._inwards:
            return [e._replace(idx=place) for e in entries for place in self._places[e.idx]]
        found = [e._replace(idx=e.idx // self._stride % self._channels) for e in entries]
        return list(dict.fromkeys(found))


class _Part:
    """From channels of one part of a concatenation to those of the whole, or inwards."""

    def __init__(self, start: int, size: int, *, inwards: bool) -> None:
        self._start, self._size, self._inwards = start, size, inwards

    def __call__(self, entries: Sequence[Any]) -> list[Any]:
        if not self._inwards:
            return [entry._replace(idx=entry.idx + self._start) for entry in entries]
        return [
            entry._replace(idx=entry.idx - self._start)
            for entry in entries
            if 0 <= entry.idx - self._start < self._size
        ]
