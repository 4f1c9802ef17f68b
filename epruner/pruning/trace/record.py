"""Writing down the ops of a forward pass."""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from epruner.pruning.errors import TraceError
from epruner.pruning.network.batches import Batches
from epruner.pruning.network.layers import as_linear
from epruner.pruning.network.tree import leaves, mapped, tensors_in
from epruner.pruning.trace.trace import Op, Trace, Value, values_in

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LEAVES = (_ConvNd, nn.Linear, _BatchNorm)  # run as a whole, with the parameters they then have
_FORWARDS = {
    kind.forward
    for kind in (
        nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d,
        nn.ConvTranspose3d, nn.Linear, _BatchNorm, nn.SyncBatchNorm,
    )
}  # fmt: skip
_READS_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
# These read values, too, and no dispatch mode hears of it.
_LEAVES_TORCH = (Tensor.tolist, Tensor.numpy, Tensor.__array__)


def is_plain(module: nn.Module) -> bool:
    """Whether a leaf computes what its class in torch does: no forward of a subclass."""
    own = "forward" in vars(module) or type(module).forward not in _FORWARDS
    kind: Any = type(module)
    return not own and not (
        isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and all(kind._conv_forward is not base._conv_forward for base in _CONVS)
    )


def record(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], whole: Collection[str] = ()
) -> Trace:
    """Run a forward pass and write down its ops.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode.
    args, kwargs
        Of its forward. Sizes of the batch are fixed in the trace.
    whole : collection of str
        Names of modules that are one op, whatever they do.

    Returns
    -------
    Trace
        Of batches of these sizes and, where an op has a `reader`, of these values.
    """
    recorder = _Recorder(model)
    # a copy, because a forward pass may write into its inputs
    args, kwargs = mapped(
        (tuple(args), dict(kwargs)), lambda x: x.clone() if isinstance(x, Tensor) else x
    )
    inputs = tuple(recorder.value(tensor) for tensor in tensors_in((args, kwargs)))
    recorder.variable.update(inputs)
    hooks = [
        hook
        for name, module in model.named_modules()
        if name in whole or isinstance(as_linear(module), LEAVES)
        for hook in recorder.hooks(name, module)
    ]
    try:
        with torch.no_grad(), recorder, _Leaving(recorder):
            output = model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    outputs = tuple(recorder.values[id(t)] for t in tensors_in(output) if id(t) in recorder.values)
    return Trace(tuple(recorder.ops), inputs, outputs)


def record_all(model: nn.Module, batches: Batches, whole: Collection[str] = ()) -> list[Trace]:
    """A trace per batch, of the same ops on the same values.

    Batches of the same shapes share one, unless something is read off them: then each has its own.

    Parameters
    ----------
    model, whole
        See `record`.
    batches : Batches

    Raises
    ------
    TraceError
        The forward pass takes another course for some batches than for others.
    """
    by_size: dict[Any, Trace] = {}
    traces: list[Trace] = []
    with batches.ranks.agree():
        for args, kwargs in batches:
            tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
            key = tuple(t.shape for t in tensors)
            trace = by_size.get(key)
            if trace is None or any(op.reader for op in trace.ops):
                by_size[key] = trace = record(model, args, kwargs, whole)
                if traces and trace.course != traces[0].course:
                    raise TraceError(_parting(traces[0], trace))
            traces.append(trace)
    first = batches.ranks.first(lambda: traces[0].course)
    with batches.ranks.agree():
        if traces[0].course != first:
            raise TraceError(f"{_COURSE}: those of rank 0 and of rank {batches.ranks.rank} differ")
    return traces


_COURSE = (
    "the forward pass takes another course for some inputs than for others, so that it cannot be "
    "followed layer by layer"
)


def _parting(first: Trace, other: Trace) -> str:
    """Where two forward passes part."""
    both = first.ops, other.ops
    course = zip(first.course, other.course, strict=False)
    parted = next((i for i, (a, b) in enumerate(course) if a != b), min(map(len, both)))
    for mine, theirs in zip(first.ops[:parted], other.ops[:parted], strict=True):
        if mine.reader and not same_reading(mine.result, theirs.result):
            reason = (
                f"{mine.reader} reads {_read(mine)} off one batch and {_read(theirs)} off another"
            )
            break
    else:
        reason = "it depends on how many inputs a batch holds, or on what no input decides"
    then = (ops[parted].label if parted < len(ops) else "nothing" for ops in both)
    return f"{_COURSE}: {reason} (then come {' and '.join(then)})"


def _read(op: Op) -> str:
    values = [leaf for leaf in leaves(op.result) if not isinstance(leaf, Value)]
    what = ", ".join(map(str, values)) if values else f"the shape {op.shapes[0]}"
    return f"{what:.40} ({op.label})"


def same_reading(a: Any, b: Any) -> bool:
    """Whether two results are equal in all that is no tensor."""
    mine, theirs = list(leaves(a)), list(leaves(b))
    return len(mine) == len(theirs) and all(
        x == y or (x != x and y != y)
        for x, y in zip(mine, theirs, strict=True)
        if not isinstance(x, (Tensor, Value))
    )


class _Recording:
    """What a recorder does, apart from the mode that makes torch call it.

    A mode that itself defines ``__torch_dispatch__`` makes torch import its compiler, which takes
    seconds and 150 MB.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {id(module): name for name, module in model.named_modules()}
        self.ops: list[Op] = []
        self.variable: set[Value] = set()  # what differs from batch to batch
        # by identity, as long as the tensor lives: holding on to all that a pass computes would
        # take many times the memory of the pass
        self.values: dict[int, Value] = {}
        self._watched: dict[int, weakref.ref[Tensor]] = {}
        self._count = 0
        self._inside: list[Any] = []  # what the running leaf modules read
        self._around: list[tuple[str, _ConvNd]] = []  # running convolutions with own forwards

    def value(self, tensor: Tensor) -> Value:
        key = id(tensor)
        if key not in self.values:
            self.values[key] = Value(self._count)
            self._count += 1

            def gone(_: Any) -> None:
                del self.values[key], self._watched[key]

            self._watched[key] = weakref.ref(tensor, gone)
        return self.values[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        name = func._schema.name
        read = self._references((args, kwargs))
        reader = ""
        if _READS_VALUES.intersection(func.tags):
            looked_at = read
            if name == "aten::index":  # positions are data like any other, a mask is not
                looked_at = self._references([i for i in args[1] if i is not None and _is_mask(i)])
            if self._varies(looked_at):
                reader = self._running()
        result = func(*args, **kwargs)
        if func._schema.is_mutable and self._varies(read):
            self._written(tensors_in(result))
        plain = self._convolution(name, args)
        if plain is not None:
            read = ((read[0][0],), {})
            self._add(f"module {self._around[-1][0]}", self._around[-1][0], plain, read, result)
        else:
            self._add(name, None, func, read, result, reader)
        return result

    def leaves_torch(self, tensor: Tensor) -> None:
        """Values go where no op follows them: that they are read is an op."""
        if not self._inside and self._varies(self._references(tensor)):
            read: Any = (self._references((tensor,)), {})
            self._add("tolist", None, Tensor.tolist, read, tensor.tolist(), self._running())

    def _convolution(self, name: str, args: Any) -> _ConvNd | None:
        """The plain convolution with the module's weights, if that is what its forward calls."""
        if name != "aten::convolution" or not self._around:
            return None
        module = self._around[-1][1]
        if args[1] is not module.weight or args[2] is not module.bias:
            return None
        given = [tuple(args[3]), tuple(args[4]), tuple(args[5]), args[6], args[8]]
        own = [module.stride, module.padding, module.dilation, module.transposed, module.groups]
        if given != own:
            return None
        plain = next(kind for kind in _CONVS if isinstance(module, kind))(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.dilation,  # type: ignore[arg-type]
            module.groups,
            module.bias is not None,
            device="meta",
        ).eval()
        plain.weight, plain.bias = module.weight, module.bias
        return plain

    def hooks(self, name: str, module: nn.Module) -> list[Any]:
        if isinstance(module, _CONVS) and not is_plain(module):
            return [
                module.register_forward_pre_hook(lambda *_: self._around.append((name, module))),
                module.register_forward_hook(lambda *_: _nothing(self._around.pop())),
            ]

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._inside.append(self._references((args, kwargs)))

        def leave(_: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
            if args and result is args[0]:  # what it writes gets a value of its own
                result = result.view_as(result)
            read = self._inside.pop()
            if not self._inside:
                self._add(f"module {name}", name, as_linear(module), read, result)
            return result

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True),
        ]

    def _varies(self, read: Any) -> bool:
        return not self.variable.isdisjoint(values_in(read))

    def _written(self, tensors: Sequence[Tensor]) -> None:
        """Inputs were written into these, and so into all that lies in the same memory."""
        memory = {_memory(tensor) for tensor in tensors}
        for key, watched in self._watched.items():
            other = watched()
            if other is not None and _memory(other) in memory:
                self.variable.add(self.values[key])

    def _running(self) -> str:
        """The innermost module whose forward is under way."""
        for frame, _ in traceback.walk_stack(None):
            name = self._names.get(id(frame.f_locals.get("self")))
            if name is not None:
                return repr(name) if name else "the model's own forward"
        return "the model's own forward"

    def _add(
        self,
        label: str,
        module: str | None,
        function: Any,
        read: Any,
        result: Any,
        reader: str = "",
    ) -> None:
        written = mapped(result, lambda x: self.value(x) if isinstance(x, Tensor) else x)
        drawn = torch.Tag.nondeterministic_seeded in getattr(function, "tags", ())
        if drawn or self._varies(read):
            self.variable.update(values_in(written))
        shapes = tuple(tuple(t.shape) for t in tensors_in(result))
        args, kwargs = read
        self.ops.append(Op(label, module, function, args, kwargs, written, shapes, reader))

    def _references(self, value: Any) -> Any:
        return mapped(value, lambda t: self.values.get(id(t), t) if isinstance(t, Tensor) else t)


class _Recorder(_Recording, TorchDispatchMode):  # type: ignore[no-untyped-call]
    pass


class _Leaving(TorchFunctionMode):
    """Tells a recorder what is read off tensors without an op."""

    def __init__(self, recorder: _Recording) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LEAVES_TORCH:
            self._recorder.leaves_torch(args[0])
        return func(*args, **(kwargs or {}))


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _nothing(_: Any) -> None:
    """A hook's result that leaves the module's as it is."""
