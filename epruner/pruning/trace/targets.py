"""Which layers of a trace can be refit, and what each is fit to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from epruner.pruning.network.copies import address_of, own_tensors, owners
from epruner.pruning.trace.normal import positions, unknowns
from epruner.pruning.trace.record import is_plain
from epruner.pruning.trace.trace import Trace, Value


@dataclass(frozen=True)
class Site:
    """A layer, and the place where what it does is measured.

    Parameters
    ----------
    name : str
    op : int
        Its call.
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


def find_sites(model: nn.Module, trace: Trace) -> tuple[list[Site], list[str]]:
    """Layers that can be refit, in the order of their places, and why others cannot.

    Parameters
    ----------
    model : torch.nn.Module
    trace : Trace
        Of its forward pass.

    Returns
    -------
    sites : list of Site
    notes : list of str
        One line a reason.
    """
    readers = trace.readers()
    calls = Counter(op.module for op in trace.ops if op.module is not None)
    shared = _shared(model)
    sites: list[Site] = []
    left: dict[str, list[str]] = {}
    for index, op in enumerate(trace.ops):
        module = op.function
        if op.module is None or not isinstance(module, (_ConvNd, nn.Linear)):
            continue
        if reason := _objection(module, op.args, calls[op.module], shared.get(op.module, "")):
            left.setdefault(reason, []).append(op.module)
            continue
        sites.append(_site(trace, readers, index, calls, shared))
    sites.sort(key=lambda site: (site.at, site.op))
    notes = [
        f"not refit ({reason}): {', '.join(names[:3])}"
        + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for reason, names in left.items()
    ]
    return sites, notes


def fit_positions(site: Site, module: nn.Module, traces: Sequence[Trace]) -> Tensor | None:
    """Output positions of a layer to fit at over all batches; None is all of them."""
    shapes = [trace.ops[site.op].shapes[0] for trace in traces]
    linear = isinstance(module, nn.Linear)
    spatial = {shape[1:-1] if linear else shape[2:] for shape in shapes}
    if len(spatial) > 1:  # as values of each batch decide
        return None
    return positions(spatial.pop(), sum(shape[0] for shape in shapes), unknowns(module))


def _shared(model: nn.Module) -> dict[str, str]:
    """Modules that hold tensors of others, and the first of those."""
    found: dict[str, str] = {}
    holders = owners(model)
    for name, module in model.named_modules():
        for tensor in own_tensors(module):
            others = [other for other in holders.get(address_of(tensor), ()) if other != name]
            if others:
                found.setdefault(name, others[0])
    return found


def _objection(module: Any, args: tuple[Any, ...], calls: int, shared: str) -> str:
    if getattr(module, "transposed", False):
        return "transposed convolution"
    if calls > 1:
        return "used more than once in a forward pass"
    if shared:
        return f"its weights are shared with {shared!r}"
    if not is_plain(module):
        return "its forward is its own"
    if parametrize.is_parametrized(module):
        return "its weights are computed"
    if len(args) != 1 or not isinstance(args[0], Value):
        return "its input is not computed from the network's inputs"
    return ""


def _site(
    trace: Trace,
    readers: Mapping[Value, list[int]],
    index: int,
    calls: Mapping[str, int],
    shared: Mapping[str, str],
) -> Site:
    op = trace.ops[index]
    assert op.module is not None
    value, norm, norm_op = op.writes[0], None, -1
    while len(after := readers.get(value, [])) == 1 and value not in trace.outputs:
        reader = trace.ops[after[0]]
        is_norm = (
            isinstance(reader.function, _BatchNorm)
            and reader.function.track_running_stats
            and reader.function.running_mean is not None
            and is_plain(reader.function)
            and reader.module not in shared
            and reader.function.num_features == op.shapes[0][_channel_axis(op.function)]
            and (_channel_axis(op.function) == 1 or len(op.shapes[0]) == 2)
        )
        if is_norm and norm is None and calls[reader.module or ""] == 1:
            norm, norm_op, value = reader.module, after[0], reader.writes[0]
            continue
        other = _addend(trace, after[0], value)
        if other is not None and not _overwritten(trace, op.reads[0], index, after[0]):
            return Site(op.module, index, after[0], norm, norm_op, other)
        break
    return Site(op.module, index, index, norm, norm_op, None)


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
