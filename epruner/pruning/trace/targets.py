"""Which layers of a trace can be refit, and what each is fit to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from epruner.pruning.network.batches import Batches
from epruner.pruning.network.copies import address_of, own_tensors, owners
from epruner.pruning.trace.normal import positions, unknowns
from epruner.pruning.trace.record import is_plain
from epruner.pruning.trace.schedule import Schedule
from epruner.pruning.trace.trace import Trace, Value


@dataclass(frozen=True)
class Call:
    """A call of a layer, and the place where what it does is measured.

    Parameters
    ----------
    name : str
        Of the layer.
    op : int
    at : int
        The addition onto a shortcut that its output goes to, or the call itself.
    norm : str or None
        BatchNorm that alone reads its output.
    norm_op : int
        Its call, or -1.
    other : Value or None
        What the output is added to.
    """

    name: str
    op: int
    at: int
    norm: str | None
    norm_op: int
    other: Value | None

    @property
    def ops(self) -> list[int]:
        """All that is done between what it reads and where it is measured."""
        return [index for index in (self.op, self.norm_op, self.at) if index >= 0]


@dataclass(frozen=True)
class Site:
    """A layer and all its calls, which stand side by side where there are several.

    Layers that are tied, weight and bias, are one.

    Parameters
    ----------
    calls : tuple of Call
    """

    calls: tuple[Call, ...]

    @property
    def name(self) -> str:
        """Of the layer, the first where several are tied."""
        return self.calls[0].name

    @property
    def norm(self) -> str | None:
        """BatchNorm that alone reads what the calls give, and nothing else."""
        return self.calls[0].norm

    @property
    def begin(self) -> int:
        """The op before which all that the calls read, and add to, is there."""
        return self.calls[0].at if len(self.calls) == 1 else min(call.op for call in self.calls)

    @property
    def end(self) -> int:
        """The last op at which a call is measured."""
        return max(call.at for call in self.calls)


def find_sites(model: nn.Module, trace: Trace) -> tuple[list[int], list[Site], list[str]]:
    """Layers that can be refit, in the order of their places, and why others cannot.

    Parameters
    ----------
    model : torch.nn.Module
    trace : Trace
        Of its forward pass.

    Returns
    -------
    order : list of int
        Of the ops, for `Trace.reordered`: in this order the calls of a layer that is used more
        than once stand side by side, and none reads what another gives.
    sites : list of Site
        With places in that order.
    notes : list of str
        One line a reason.
    """
    uses: dict[Any, list[int]] = {}
    for index, op in enumerate(trace.ops):
        if op.module is not None and isinstance(op.function, (_ConvNd, nn.Linear)):
            uses.setdefault(_weights_of(op.function), []).append(index)
    look = _Look(model, trace)
    schedule: Schedule | None = None
    streams: dict[Any, bool] = {}  # whether additions are where it is measured
    left: dict[str, dict[str, None]] = {}
    for key, indices in uses.items():
        reason = look.objection(indices)
        if not reason and len(indices) > 1:
            schedule = schedule or Schedule(trace)
            if not schedule.join([call.ops for call in look.calls(indices)]):
                streams[key] = False
                if not schedule.join([call.ops for call in look.calls(indices, streams=False)]):
                    reason = "one of its uses depends on another"
        if reason:
            names = dict.fromkeys(str(trace.ops[index].module) for index in indices)
            left.setdefault(reason, {}).update(names)
            streams.pop(key, None)
        else:
            streams.setdefault(key, True)
    order = schedule.order() if schedule else list(range(len(trace.ops)))
    look = _Look(model, trace.reordered(order))
    place = {index: new for new, index in enumerate(order)}
    sites = [
        Site(look.calls(sorted(place[index] for index in uses[key]), streams=wanted))
        for key, wanted in streams.items()
    ]
    sites.sort(key=lambda site: (site.begin, site.calls[0].op))
    notes = [
        f"not refit ({reason}): {', '.join(list(names)[:3])}"
        + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for reason, names in left.items()
    ]
    return order, sites, notes


def fit_positions(
    site: Site, call: Call, module: nn.Module, traces: Sequence[Trace], batches: Batches
) -> Tensor | None:
    """Output positions of a call of a layer to fit at over all batches; None is all of them.

    Parameters
    ----------
    site : Site
    call : Call
        Of the site.
    module : torch.nn.Module
        Its layer.
    traces : sequence of Trace
        Of the batches first, which may be followed by others.
    batches : Batches
    """
    shapes = [trace.ops[call.op].shapes[0] for trace in traces[: len(batches)]]
    linear = isinstance(module, nn.Linear)
    spatial = {shape[1:-1] if linear else shape[2:] for shape in shapes}
    images = 0 if batches.stands_in else sum(shape[0] for shape in shapes)
    found = batches.ranks.gather(torch.tensor([(images, *shape) for shape in spatial]))
    images = sum(int(rows[0, 0]) for rows in found) * len(site.calls)
    spatial = {tuple(row[1:]) for rows in found for row in rows.tolist()}
    if len(spatial) > 1:  # as values of each batch decide
        return None
    return positions(spatial.pop(), images, unknowns(module))


def _weights_of(module: Any) -> Any:
    """The same for layers that are one, or tied in all their tensors."""
    tensors = (module.weight, module.bias)
    return (
        *((address_of(t), t.shape, t.stride()) if t is not None else None for t in tensors),
        0 if address_of(module.weight) else id(module),
        getattr(module, "groups", 1),
    )


def _shared(model: nn.Module) -> dict[str, list[str]]:
    """Modules that hold tensors of others, and those others."""
    found: dict[str, list[str]] = {}
    holders = owners(model)
    for name, module in model.named_modules():
        for tensor in own_tensors(module):
            others = [other for other in holders.get(address_of(tensor), ()) if other != name]
            if others:
                found.setdefault(name, []).extend(others)
    return found


class _Look:
    """At the calls of a trace."""

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        self._trace, self._readers = trace, trace.readers()
        self._number = Counter(op.module for op in trace.ops if op.module is not None)
        self._shared = _shared(model)

    def objection(self, indices: Sequence[int]) -> str:
        """Why a layer with these calls is not refit; empty if it is."""
        ops = [self._trace.ops[index] for index in indices]
        names = {op.module for op in ops}
        for op in ops:
            module: Any = op.function
            others = [name for name in self._shared.get(op.module or "", ()) if name not in names]
            if getattr(module, "transposed", False):
                return "transposed convolution"
            if others:
                return f"its weights are shared with {others[0]!r}"
            if not is_plain(module):
                return "its forward is its own"
            if parametrize.is_parametrized(module):
                return "its weights are computed"
            if len(op.args) != 1 or not isinstance(op.args[0], Value):
                return "its input is not computed from the network's inputs"
        return ""

    def calls(self, indices: Sequence[int], *, streams: bool = True) -> tuple[Call, ...]:
        """The calls of a layer, with a norm if all have the same, and that no other."""
        found = [self._call(index, len(indices), streams) for index in indices]
        if len({call.norm for call in found}) > 1:
            found = [self._call(index, 0, streams) for index in indices]
        return tuple(found)

    def _call(self, index: int, uses: int, streams: bool) -> Call:
        trace, op = self._trace, self._trace.ops[index]
        assert op.module is not None
        value, norm, norm_op = op.writes[0], None, -1
        while len(after := self._readers.get(value, [])) == 1 and value not in trace.outputs:
            reader = trace.ops[after[0]]
            is_norm = (
                isinstance(reader.function, _BatchNorm)
                and reader.function.track_running_stats
                and reader.function.running_mean is not None
                and is_plain(reader.function)
                and reader.module not in self._shared
                and reader.function.num_features == op.shapes[0][_channel_axis(op.function)]
                and (_channel_axis(op.function) == 1 or len(op.shapes[0]) == 2)
            )
            if is_norm and norm is None and self._number[reader.module or ""] == uses:
                norm, norm_op, value = reader.module, after[0], reader.writes[0]
                continue
            other = _addend(trace, after[0], value) if streams else None
            if other is not None and not _overwritten(trace, op.reads[0], index, after[0]):
                return Call(op.module, index, after[0], norm, norm_op, other)
            break
        return Call(op.module, index, index, norm, norm_op, None)


def _channel_axis(layer: Any) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


def _addend(trace: Trace, index: int, value: Value) -> Value | None:
    """The other summand, if this op adds two tensors of the same shape and no more."""
    op = trace.ops[index]
    if op.label not in ("aten::add", "aten::add_") or len(op.args) != 2 or op.kwargs:
        return None
    a, b = op.args
    if not isinstance(a, Value) or not isinstance(b, Value) or a == b:
        return None
    other = b if a == value else a
    shapes = {
        s: shape for t in trace.ops[:index] for s, shape in zip(t.writes, t.shapes, strict=True)
    }
    return other if shapes.get(other) == shapes.get(value) else None


def _overwritten(trace: Trace, value: Value, first: int, last: int) -> bool:
    """Whether an op between two writes into a tensor in place."""
    return any(
        op.module is None and value in op.reads and op.label.endswith("_")
        for op in trace.ops[first + 1 : last]
    )
