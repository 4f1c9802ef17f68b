"""What is known of each layer type: its channels, how it loses some of them, what a call costs.

A layer type is one class under `@rule`. A type that has none is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

Kept = Sequence[int] | None  # ascending; None keeps all
Indices = npt.NDArray[np.intp]


class Rule:
    """A layer type; the defaults are those of one that neither multiplies nor has channels."""

    multiplies = False  # by weights: its costs count, and the report names it if it stays whole
    reads_itself = False  # its own outputs, as a recurrent layer does

    def sides(self, module: Any) -> tuple[int, int]:
        """(output, input) channels; inputs 0 where they are the outputs, (0, 0) if it has none."""
        return 0, 0

    def channel_dim(self, module: Any, tensor: Tensor) -> int:
        """Dimension in which its channels lie, of what it reads or returns."""
        return tensor.dim() - 1

    def mixes(self, module: Any) -> bool:
        """Whether it has to stay whole, as no channel can go without the others."""
        return False

    def ties(self, module: Any) -> Indices | None:
        """A number for every output channel, shape (outputs,): those of one number go together.

        None where each can go alone.
        """
        return None

    def resize(self, module: Any, out: Kept, in_: Kept) -> None:
        """Keep these channels, in place."""

    def silence(self, module: Any, gone: Sequence[int]) -> None:
        """Let output channels not be read within the module itself, in place."""

    def macs(self, module: Any, read: torch.Size, written: torch.Size) -> int:
        """Multiply-adds of one call, from the shapes of its first input and output."""
        return 0

    def squared(self, module: Any) -> Fraction:
        """Share of its multiply-adds and weights that grows with the square of its outputs.

        The rest grows with outputs times inputs.
        """
        return Fraction(0)

    def filters(self, module: Any) -> Tensor:
        """Weights of every output channel, detached: (outputs, d)."""
        if not isinstance(module.weight, Tensor):
            raise TypeError(f"{type(module).__name__} has no weight tensor")
        return module.weight.detach().movedim(weight_dims(module)[0], 0).flatten(1)

    def reset(self, module: Any) -> None:
        """Draw its parameters anew."""
        module.reset_parameters()


class _Unknown(Rule):
    def mixes(self, module: Any) -> bool:
        return True


_UNKNOWN = _Unknown()
_RULES: dict[type[nn.Module], Rule] = {}


def rule(*kinds: type[nn.Module]) -> Callable[[type[Rule]], type[Rule]]:
    """Register what is known of these layer types (and their subclasses)."""

    def register(known: type[Rule]) -> type[Rule]:
        _RULES.update(dict.fromkeys(kinds, known()))
        return known

    return register


def rule_of(module: nn.Module) -> Rule:
    """What is known of a module's type."""
    known = next((_RULES[kind] for kind in type(module).__mro__ if kind in _RULES), None)
    return known or (_CONV1D if is_conv1d(module) else _UNKNOWN)


def can_resize(module: nn.Module) -> bool:
    """Whether a module is known to lose channels without a change to the others."""
    return not rule_of(module).mixes(module)


def ties(module: nn.Module) -> Indices | None:
    """A number for every output channel, those of one number go together; None if none do."""
    return rule_of(module).ties(module)


def sides(module: nn.Module) -> tuple[int, int]:
    """(output, input) channels; inputs 0 where they are the outputs, (0, 0) if it has none."""
    return rule_of(module).sides(module)


def channel_dim(module: nn.Module, tensor: Tensor) -> int:
    """Dimension in which the channels of a layer lie, of what it reads or returns."""
    return rule_of(module).channel_dim(module, tensor)


def has_filters(module: nn.Module) -> bool:
    """Whether every output channel is made of all input channels (of its group)."""
    return sides(module)[1] > 0


def multiplies(module: nn.Module) -> bool:
    """Whether a module multiplies by weights."""
    return rule_of(module).multiplies


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that multiply by weights, by name; not the inside of those that stay whole."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        parent = found.get(name.rpartition(".")[0])
        if multiplies(module) and (parent is None or can_resize(parent)):
            found[name] = module
    return found


@rule(nn.Linear)
class _Linear(Rule):
    multiplies = True

    def sides(self, module: nn.Linear) -> tuple[int, int]:
        return module.out_features, module.in_features

    def resize(self, module: nn.Linear, out: Kept, in_: Kept) -> None:
        module.weight = take(take(module.weight, 0, out), 1, in_)
        _take_rows(module, out, "bias")
        module.out_features, module.in_features = module.weight.shape

    def macs(self, module: nn.Linear, read: torch.Size, written: torch.Size) -> int:
        return written.numel() * module.in_features


class _Conv1D(_Linear):
    def sides(self, module: Any) -> tuple[int, int]:
        inputs, outputs = module.weight.shape
        return outputs, inputs

    def resize(self, module: Any, out: Kept, in_: Kept) -> None:
        module.weight = take(take(module.weight, 1, out), 0, in_)
        _take_rows(module, out, "bias")
        module.nf = module.weight.shape[1]
        if hasattr(module, "nx"):  # newer ones
            module.nx = module.weight.shape[0]

    def macs(self, module: Any, read: torch.Size, written: torch.Size) -> int:
        return int(written.numel() * len(module.weight))

    def reset(self, module: Any) -> None:
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


_CONV1D = _Conv1D()


@rule(_ConvNd)
class _Conv(Rule):
    multiplies = True

    def channel_dim(self, module: _ConvNd, tensor: Tensor) -> int:
        return tensor.dim() - 1 - len(module.kernel_size)

    def sides(self, module: _ConvNd) -> tuple[int, int]:
        return module.out_channels, 0 if is_depthwise(module) else module.in_channels

    def resize(self, module: _ConvNd, out: Kept, in_: Kept) -> None:
        _take_rows(module, out, "bias")
        if is_depthwise(module):
            _take_rows(module, out, "weight")
            module.groups = module.in_channels = module.out_channels = len(module.weight)
            return
        out_dim, in_dim = weight_dims(module)
        weight = take(module.weight, out_dim, out)
        if module.groups == 1:
            weight = take(weight, in_dim, in_)
        elif in_ is not None:  # of transposed ones, groups are never touched
            weight = _take_grouped_inputs(weight, in_, module.in_channels, module.groups)
        module.weight = weight
        module.out_channels = module.out_channels if out is None else len(out)
        module.in_channels = module.in_channels if in_ is None else len(in_)

    def macs(self, module: _ConvNd, read: torch.Size, written: torch.Size) -> int:
        # a transposed convolution spreads every input element, the other kind gathers every output
        positions, channels = (
            (read, module.out_channels) if module.transposed else (written, module.in_channels)
        )
        return int(positions.numel() * math.prod(module.kernel_size) * channels // module.groups)


class _Second(Rule):
    """Its channels lie in the second dimension, in that of a single vector if there is one only."""

    def channel_dim(self, module: nn.Module, tensor: Tensor) -> int:
        return min(1, tensor.dim() - 1)


@rule(_NormBase)  # BatchNorm and InstanceNorm
class _Norm(_Second):
    def sides(self, module: _NormBase) -> tuple[int, int]:
        return module.num_features, 0

    def resize(self, module: _NormBase, out: Kept, in_: Kept) -> None:
        _take_rows(module, out, "weight", "bias", "running_mean", "running_var")
        module.num_features = module.num_features if out is None else len(out)


@rule(nn.GroupNorm)
class _GroupNorm(_Second):
    def sides(self, module: nn.GroupNorm) -> tuple[int, int]:
        return module.num_channels, 0

    def ties(self, module: nn.GroupNorm) -> Indices | None:
        width = module.num_channels // module.num_groups
        return np.arange(module.num_channels) // width if module.num_groups > 1 < width else None

    def resize(self, module: nn.GroupNorm, out: Kept, in_: Kept) -> None:
        if out is None:
            return
        if module.num_groups > 1:
            width = module.num_channels // module.num_groups
            groups, sizes = np.unique(np.asarray(out) // width, return_counts=True)
            if (sizes != width).any():
                raise ValueError(f"a GroupNorm of {width} channels a group keeps parts of groups")
            module.num_groups = len(groups)
        _take_rows(module, out, "weight", "bias")
        module.num_channels = len(out)


@rule(nn.PReLU)
class _PReLU(_Second):
    def sides(self, module: nn.PReLU) -> tuple[int, int]:
        return (module.num_parameters, 0) if module.num_parameters > 1 else (0, 0)

    def resize(self, module: nn.PReLU, out: Kept, in_: Kept) -> None:
        _take_rows(module, out, "weight")
        module.num_parameters = len(module.weight)


@rule(nn.MultiheadAttention)
class _Attention(Rule):
    multiplies = True

    def mixes(self, module: nn.MultiheadAttention) -> bool:
        return True

    def macs(self, module: nn.MultiheadAttention, read: torch.Size, written: torch.Size) -> int:
        # in-projections of query, key and value and the out-projection, for self-attention
        return int(4 * written.numel() * module.embed_dim)


@rule(nn.RNNBase, nn.RNNCellBase)
class _Recurrent(Rule):
    multiplies = True
    reads_itself = True

    def sides(self, module: Any) -> tuple[int, int]:
        if self.mixes(module):
            return 0, 0
        return self._directions(module) * module.hidden_size, module.input_size

    def mixes(self, module: Any) -> bool:
        return bool(getattr(module, "proj_size", 0))

    def ties(self, module: Any) -> Indices | None:
        # one number of units holds for all layers and both directions
        return np.tile(np.arange(module.hidden_size), self._directions(module))

    def resize(self, module: Any, out: Kept, in_: Kept) -> None:
        hidden, directions = module.hidden_size, self._directions(module)
        units = None if out is None else [unit for unit in out if unit < hidden]
        if units is not None:
            if list(out or ()) != [d * hidden + unit for d in range(directions) for unit in units]:
                raise ValueError("the two directions of a recurrent layer keep different units")
            module.hidden_size = len(units)
        for name, parameter in list(module.named_parameters(recurse=False)):
            gates = len(parameter) // hidden
            rows = units and [gate * hidden + unit for gate in range(gates) for unit in units]
            taken = take(parameter, 0, rows)
            if "weight" in name:
                columns = units if "_hh" in name else in_ if _reads_input(name) else out
                taken = take(taken, 1, columns)
            setattr(module, name, taken)
        module.input_size = module.input_size if in_ is None else len(in_)
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()

    def silence(self, module: Any, gone: Sequence[int]) -> None:
        units = [channel for channel in gone if channel < module.hidden_size]
        for name, weight in self._matrices(module).items():
            if not _reads_input(name):
                weight.data[:, units if "_hh" in name else list(gone)] = 0

    def macs(self, module: Any, read: torch.Size, written: torch.Size) -> int:
        # every matrix (of each gate, layer and direction) works once on every step of every input
        return math.prod(written[:-1]) * sum(w.numel() for w in self._matrices(module).values())

    def squared(self, module: Any) -> Fraction:
        sizes = {name: weight.numel() for name, weight in self._matrices(module).items()}
        reading = sum(size for name, size in sizes.items() if _reads_input(name))
        return 1 - Fraction(reading, sum(sizes.values()))

    def filters(self, module: Any) -> Tensor:
        hidden = module.hidden_size
        sides = []
        for reverse in (False, True)[: self._directions(module)]:
            weights = [
                weight.detach().view(-1, hidden, weight.shape[1]).movedim(1, 0).flatten(1)
                for name, weight in self._matrices(module).items()
                if name.endswith("_reverse") == reverse
            ]
            sides.append(torch.cat(weights, 1))  # (hidden, gates and layers)
        return torch.cat(sides)

    @staticmethod
    def _directions(module: Any) -> int:
        return 2 if getattr(module, "bidirectional", False) else 1

    @staticmethod
    def _matrices(module: nn.Module) -> dict[str, nn.Parameter]:
        return {name: p for name, p in module.named_parameters(recurse=False) if p.dim() == 2}


def _reads_input(name: str) -> bool:
    """Whether a weight of a recurrent layer or cell is one that works on what it reads."""
    return name.removesuffix("_reverse") in ("weight_ih", "weight_ih_l0")


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution's output channel i is made of its input channel i alone."""
    return (
        isinstance(module, _ConvNd)
        and module.groups == module.in_channels == module.out_channels != 1
    )


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is GPT-2's linear layer, with weights of shape (inputs, outputs).

    It is known by its name, as the library that it is of (transformers) need not be there.
    """
    named = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    weight = getattr(module, "weight", None)
    return (
        named and hasattr(module, "nf") and isinstance(weight, nn.Parameter) and weight.dim() == 2
    )


def as_linear(module: Any) -> Any:
    """The module; for GPT-2's linear layer a `torch.nn.Linear` that shares its memory."""
    if not is_conv1d(module):
        return module
    inputs, outputs = module.weight.shape
    linear = nn.Linear(inputs, outputs, device="meta").train(module.training)
    linear.weight = nn.Parameter(module.weight.detach().T, module.weight.requires_grad)
    linear.bias = module.bias
    return linear


def weight_dims(module: nn.Module) -> tuple[int, int]:
    """Dimensions of a weight that stand for the (output, input) channels of its layer."""
    return (1, 0) if getattr(module, "transposed", False) or is_conv1d(module) else (0, 1)


def scale_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift that a BatchNorm layer applies in eval mode, float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


def take(tensor: Tensor, dim: int, kept: Kept) -> Tensor:
    """Slice of a tensor; a Parameter stays one, with its requires_grad and memory format."""
    if kept is None:
        return tensor
    index = torch.as_tensor(kept, dtype=torch.long, device=tensor.device)
    return _like(tensor, tensor.detach().index_select(dim, index))


def parameter_dim(tensor: Tensor, channels: int) -> int | None:
    """The one dimension of a bare tensor that has so many entries; None if not exactly one."""
    dims = [d for d, size in enumerate(tensor.shape) if size == channels]
    return dims[0] if len(dims) == 1 else None


def _take_rows(module: nn.Module, kept: Kept, *names: str) -> None:
    for name in names:
        if (tensor := getattr(module, name, None)) is not None:
            setattr(module, name, take(tensor, 0, kept))


def _take_grouped_inputs(weight: Tensor, kept: Sequence[int], inputs: int, groups: int) -> Tensor:
    # (out, in / groups, ...): the outputs of group g see the inputs of group g alone
    local = torch.as_tensor(kept).view(groups, -1) % (inputs // groups)
    parts = weight.detach().chunk(groups)
    sliced = [
        part.index_select(1, index.to(weight.device))
        for part, index in zip(parts, local, strict=True)
    ]
    return _like(weight, torch.cat(sliced))


def _like(tensor: Tensor, sliced: Tensor) -> Tensor:
    if tensor.dim() == 4 and tensor.stride(1) == 1 and tensor.stride(3) == tensor.shape[1] > 1:
        _, c, h, w = sliced.shape  # channels last; by strides, as 1 x 1 kernels look contiguous
        strides = (h * w * c, 1, w * c, c)
        sliced = torch.empty_strided(
            sliced.shape, strides, dtype=sliced.dtype, device=sliced.device
        ).copy_(sliced)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(sliced, requires_grad=tensor.requires_grad)
    return sliced
