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
_CHANNELWISE = frozenset([
    "Add", "Sub", "Rsub", "Mul", "Div", "Neg", "Abs", "Pow", "Sqrt", "Rsqrt", "Exp", "Log",
    "Log1P", "Clamp", "ClampMin", "ClampMax", "Maximum", "Minimum", "Relu", "Hardtanh",
    "LeakyRelu", "PreluKernel", "Elu", "Celu", "Selu", "Gelu", "Silu", "Mish", "Sigmoid",
    "LogSigmoid", "Tanh", "Softplus", "Hardswish", "Hardsigmoid", "Hardshrink", "Softshrink",
    "Threshold", "Erf", "Clone", "ToCopy", "Alias", "Detach", "Contiguous", "NativeDropout",
    "FusedDropout", "MaxPool2DWithIndices", "MaxPool3DWithIndices", "AvgPool2D", "AvgPool3D",
    "MkldnnMaxPool2D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AdaptiveMaxPool2D",
    "AdaptiveMaxPool3D", "Mean", "Sum", "Amax", "Max", "UpsampleNearest1D", "UpsampleNearest2D",
    "UpsampleNearest3D", "UpsampleNearestExact2D", "UpsampleBilinear2D", "UpsampleBicubic2D",
    "UpsampleTrilinear3D", "UpsampleLinear1D", "ReflectionPad1D", "ReflectionPad2D",
    "ReplicationPad1D", "ReplicationPad2D", "Squeeze", "Unsqueeze", "Permute", "Transpose",
    "NativeBatchNorm", "CudnnBatchNorm", "AsStrided",
])
# fmt: on
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
        if _harmless_view(before, after):
            return ""
        return f"its channels are rearranged by a view from {before} to {after}"
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
    # negative dimensions are saved as unsigned numbers
    dim = int(function._saved_dim)
    return dim if dim < dims else dim - 2**64 + dims
