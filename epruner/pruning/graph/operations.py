"""Which operations keep channels apart, read off their autograd functions.

Between the layers of a network stand operations that no module owns. Channels may be removed
across those that are known to keep every channel where it is and to itself; what is not known is
not trusted.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

Shape = tuple[int, ...]

# fmt: off
# One number of one or of several tensors at a time.
_POINTWISE = frozenset([
    "Add", "Sub", "Rsub", "Mul", "Div", "Neg", "Abs", "Sign", "Sgn", "Pow", "Sqrt", "Rsqrt",
    "Reciprocal", "Exp", "Exp2", "Expm1", "Log", "Log1P", "Log2", "Log10", "Logit", "Logaddexp",
    "Xlogy", "Hypot", "Sin", "Cos", "Tan", "Sinh", "Cosh", "Tanh", "Asin", "Acos", "Atan", "Atan2",
    "Asinh", "Acosh", "Atanh", "Sinc", "Erf", "Erfc", "Round", "Floor", "Ceil", "Trunc", "Frac",
    "Fmod", "Remainder", "Clamp", "ClampMin", "ClampMax", "Maximum", "Minimum", "Fmax", "Fmin",
    "NanToNum", "Where", "MaskedFill", "Lerp", "Addcmul", "Addcdiv", "Relu", "Hardtanh",
    "LeakyRelu", "PreluKernel", "RreluWithNoise", "Elu", "Celu", "Selu", "Gelu", "Silu", "Mish",
    "Sigmoid", "LogSigmoid", "Softplus", "Hardswish", "Hardsigmoid", "Hardshrink", "Softshrink",
    "Threshold", "Clone", "ToCopy", "Alias", "Detach", "Contiguous", "NativeDropout",
    "FusedDropout",
])
# The positions of one channel at a time, in the dimensions in which they come.
_SPATIAL = frozenset([
    "MaxPool2DWithIndices", "MaxPool3DWithIndices", "MkldnnMaxPool2D", "MkldnnMaxPool3D",
    "FractionalMaxPool2D", "FractionalMaxPool3D", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D",
    "AdaptiveAvgPool3D", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "MaxUnpool2D", "MaxUnpool3D",
    "UpsampleNearest1D", "UpsampleNearest2D", "UpsampleNearest3D", "UpsampleNearestExact1D",
    "UpsampleNearestExact2D", "UpsampleNearestExact3D", "UpsampleLinear1D", "UpsampleBilinear2D",
    "UpsampleBilinear2DAa", "UpsampleBicubic2D", "UpsampleBicubic2DAa", "UpsampleTrilinear3D",
    "ReflectionPad1D", "ReflectionPad2D", "ReflectionPad3D", "ReplicationPad1D", "ReplicationPad2D",
    "ReplicationPad3D", "NativeBatchNorm", "CudnnBatchNorm",
])
# Over which dimensions, a trial tells.
_REDUCTIONS = frozenset(["Mean", "Sum", "Nansum", "Std", "Var", "Amax", "Amin", "Max", "Min"])
# One dimension or some, which must not be that of the channels.
_ALONG = frozenset([
    "Slice", "Select", "IndexSelect", "Flip", "Roll", "Softmax", "LogSoftmax", "Cumsum",
    "Logsumexp", "LinalgVectorNorm",
])
_CHANNELWISE = _POINTWISE | _SPATIAL | _REDUCTIONS | {
    "Squeeze", "Unsqueeze", "Permute", "Transpose", "AsStrided",
}
# fmt: on
# Their channels come out in dimension 1, whatever went in.
_LAYERS = frozenset(["Convolution", "Addmm", "Mm", "NativeBatchNorm", "CudnnBatchNorm"])
_VIEWS = frozenset(["View", "UnsafeView", "ReshapeAlias", "Reshape"])
# What a layer is made of where one module is several operations; the layer is known, so they are.
INSIDES: dict[type[nn.Module], frozenset[str]] = {
    nn.Linear: _VIEWS | {"Addmm", "Mm", "T", "Bmm", "Add"},
    _InstanceNorm: _VIEWS | {"NativeBatchNorm", "CudnnBatchNorm"},
}


def objection(function: Any) -> str:
    """Why channels that pass this operation cannot be removed; empty if they can.

    Parameters
    ----------
    function : torch.autograd.graph.Node or None
        Not a part of a module that is known as a whole.
    """
    if function is None:
        return "an operation on its channels is unknown"
    raw = function.name()
    name = operation(function)
    before, after = shapes(function)
    if name in _CHANNELWISE or name == "Cat":
        return ""
    if name in _VIEWS:
        axis = channel_axis(sources[0][0]) if (sources := _sources(function)) else None
        if _harmless_view(before, after) or (axis and _axis_after(function, axis) is not None):
            return ""
        return f"its channels are rearranged by a view from {before} to {after}"
    if name in _ALONG and (sources := _sources(function)):
        source, place = sources[0]
        axis = channel_axis(source)
        dims = len(source._input_metadata[place].shape)
        if axis is not None and axis not in _along(function, dims):
            return ""
    if name == "Expand" and before and after and before[-3:-2] == after[-3:-2]:
        return ""
    if name == "Slice" and before is not None:
        if before == after:  # x[:] of older torch
            return ""
        if len(before) == 4 and _dim(function, 4) > 1:
            return ""
    if name == "ConstantPadNd" and after is not None:
        if len(after) >= 3 and not any(function._saved_pad[2 * (len(after) - 2) :]):
            return ""
        return "a shortcut pads its channels with zeros, which fixes their positions"
    if name in {"Split", "SplitWithSizes", "Unbind", "Slice"}:
        return f"its channels are split ({raw}), so which of them go together is not known"
    return f"its channels pass {raw}, which is not known to keep them apart"


def operation(function: Any) -> str:
    """Name of an autograd function without its suffix: AddBackward0 -> Add."""
    return str(function.name()).split("Backward")[0]


def is_pointwise(function: Any) -> bool:
    """Whether an operation makes each number of those at the same place."""
    return operation(function) in _POINTWISE


def shapes(function: Any) -> tuple[Shape | None, Shape | None]:
    """Shapes of the input and output of an operation, where autograd has them."""
    saved = getattr(function, "_saved_self_sym_sizes", None)
    metadata = getattr(function, "_input_metadata", None)
    return (
        None if saved is None else tuple(saved),
        tuple(metadata[0].shape) if metadata else None,
    )


def parts(function: Any) -> list[tuple[int, int]]:
    """Start and size of each input of a concatenation that depends on a parameter.

    Returns
    -------
    list of (int, int)
        Empty if it does not concatenate along dimension 1, or if two or more inputs depend on no
        parameter (as the model's own inputs): their sizes are not known.
    """
    _, after = shapes(function)
    if after is None or _dim(function, len(after)) != 1:
        return []
    sizes = [
        None if source is None else int(source._input_metadata[place].shape[1])
        for source, place in function.next_functions
    ]
    if sizes.count(None) > 1:
        return []
    rest = after[1] - sum(size for size in sizes if size is not None)
    ends = accumulate(rest if size is None else size for size in sizes)
    return [(end - size, size) for end, size in zip(ends, sizes, strict=True) if size is not None]


def flattens(function: Any) -> bool:
    """Whether an operation is a view (n, c, ...) -> (n, c * ...)."""
    before, after = shapes(function)
    if before is None or after is None or len(before) < 3 or len(after) != 2:
        return False
    return before[0] == after[0] and after[1] == math.prod(before[1:])


def channel_axis(function: Any) -> int | None:
    """Dimension of an operation's output in which the channels of the layers before it lie.

    Returns
    -------
    int or None
        None where they cannot be followed.
    """
    way = []
    while operation(function) not in _LAYERS:
        sources = _sources(function)
        if not sources:
            return None
        way.append(function)
        function = sources[0][0]
    axis: int | None = 1
    for function in reversed(way):
        axis = None if axis is None else _axis_after(function, axis)
    return axis


def _sources(function: Any) -> list[tuple[Any, int]]:
    """What an operation works on, but for parameters: functions, and which of their outputs."""
    return [
        (source, place)
        for source, place in function.next_functions
        if source is not None and "AccumulateGrad" not in source.name()
    ]


def _along(function: Any, dims: int) -> list[int]:
    """Dimensions that an operation works along; all if it does not say which."""
    saved = getattr(function, "_saved_dim", getattr(function, "_saved_dims", None))
    if saved is None or saved == ():
        return list(range(dims))
    return [_positive(dim, dims) for dim in (saved if isinstance(saved, tuple) else [saved])]


def _axis_after(function: Any, axis: int) -> int | None:
    name = operation(function)
    before, after = shapes(function)
    if name in _POINTWISE or name in _SPATIAL or name in {"Cat", "ConstantPadNd", "Slice"}:
        return axis
    if name == "Permute":
        dims = [_positive(dim, len(function._saved_dims)) for dim in function._saved_dims]
        return dims.index(axis)
    if after is not None and name == "Transpose":
        dims = [_positive(d, len(after)) for d in (function._saved_dim0, function._saved_dim1)]
        return sum(dims) - axis if axis in dims else axis
    if after is not None and name == "Unsqueeze":
        return axis + (_positive(function._saved_dim, len(after)) <= axis)
    if before and after and name == "Squeeze" and hasattr(function, "_saved_dim"):
        return axis - (_positive(function._saved_dim, len(before)) < axis)
    if before and after and name in _VIEWS:
        if before[: axis + 1] == after[: axis + 1]:
            return axis
        if axis == len(before) - 1 and before[-1] == after[-1]:
            return len(after) - 1
    return None


def _harmless_view(before: Shape | None, after: Shape | None) -> bool:
    """Whether a view keeps channels together: flattening from dim 1, or leading dims only."""
    if before is None or after is None:
        return False
    if max(before, default=1) == max(after, default=1) == math.prod(before):
        return True  # (c,) <-> (1, c, 1, 1), which bare tensors need
    if len(before) < 2 or len(after) < 2:
        return False
    if before[-1] == after[-1] and (len(before) == 2 or len(after) == 2 or before == after):
        return True  # (..., c) <-> (n, c), what linear layers do
    if before[:2] == after[:2]:
        return True  # (n, c, h, w) <-> (n, c, h * w)
    return before[0] == after[0] and len(after) == 2 and after[1] == math.prod(before[1:])


def _dim(function: Any, dims: int) -> int:
    return _positive(function._saved_dim, dims)


def _positive(dim: int, dims: int) -> int:
    # negative dimensions are saved as unsigned numbers
    return dim if dim < dims else dim - 2**64 + dims
