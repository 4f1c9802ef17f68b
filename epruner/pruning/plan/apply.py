"""Plan and model to a smaller model: each tensor is sliced once, by a rule of its layer type."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from epruner.pruning.network.copies import deep_copy
from epruner.pruning.plan.plan import ModulePlan, Plan

Kept = Sequence[int] | None
# Resize one module in place to what its part of the plan keeps.
Rule = Callable[[Any, ModulePlan], None]
INITS = ("exemplar", "random", "random_projection")
BN_MODES = ("slice", "reset")

_RULES: dict[type[nn.Module], Rule] = {}


def rule(*kinds: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register the function that resizes these layer types (and their subclasses)."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(kinds, function))
        return function

    return register


def can_resize(module: nn.Module) -> bool:
    """Whether a rule knows this layer type."""
    return _rule_of(module) is not None


def is_depthwise(module: nn.Module) -> bool:
    """Whether a convolution's output channel i is made of its input channel i alone."""
    return (
        isinstance(module, _ConvNd)
        and module.groups == module.in_channels == module.out_channels != 1
    )


def take(tensor: Tensor, dim: int, kept: Kept) -> Tensor:
    """Slice of a tensor; a Parameter stays one, with its requires_grad and memory format."""
    if kept is None:
        return tensor
    index = torch.as_tensor(kept, dtype=torch.long, device=tensor.device)
    sliced = tensor.detach().index_select(dim, index)
    return _like(tensor, sliced)


def apply_plan(model: nn.Module, plan: Plan, *, weights: bool = True) -> nn.Module:
    """A pruned deep copy of a full-size model; see `Plan.apply`."""
    small = deep_copy(model)
    modules = dict(small.named_modules())
    for name, part in plan.modules.items():
        if name in modules:
            _resize(name, modules[name], part)
        else:
            _resize_parameter(small, name, part)
    if weights:
        _initialise(dict(model.named_modules()), modules, plan)
    return small


def _resize(name: str, module: nn.Module, part: ModulePlan) -> None:
    function = _rule_of(module)
    if function is None:
        raise ValueError(f"no rule resizes {name!r}, a {type(module).__name__}")
    function_sizes = _sizes(module)
    for side, before, size in (
        ("output", part.out_before, function_sizes[0]),
        ("input", part.in_before, function_sizes[1]),
    ):
        if before is not None and before != size:
            raise ValueError(
                f"the plan was made for a {name!r} with {before} {side} channels, this one has "
                f"{size}; apply it to a full-size model of the same kind"
            )
    function(module, part)


def _resize_parameter(model: nn.Module, name: str, part: ModulePlan) -> None:
    owner_name, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(owner_name)
        parameter = getattr(owner, leaf)
    except AttributeError:
        raise ValueError(
            f"the plan prunes {name!r}, which this model has not; apply it to a full-size model "
            "of the same kind"
        ) from None
    dim = parameter_dim(parameter, part.out_before or 0)
    if dim is None:
        raise ValueError(
            f"the plan was made for a parameter {name!r} with one dimension of {part.out_before}, "
            f"this one has shape {tuple(parameter.shape)}"
        )
    setattr(owner, leaf, take(parameter, dim, part.out))


def parameter_dim(parameter: Tensor, channels: int) -> int | None:
    """The one dimension of a bare parameter that has so many entries; None if not exactly one."""
    dims = [d for d, size in enumerate(parameter.shape) if size == channels]
    return dims[0] if len(dims) == 1 else None


@rule(nn.Linear)
def _linear(module: nn.Linear, part: ModulePlan) -> None:
    module.weight = take(take(module.weight, 0, part.out), 1, part.in_)
    _resize_bias(module, part)
    module.out_features, module.in_features = module.weight.shape


@rule(_ConvNd)
def _conv(module: _ConvNd, part: ModulePlan) -> None:
    if is_depthwise(module):
        kept = part.out if part.out is not None else part.in_
        module.weight = take(module.weight, 0, kept)
        _resize_bias(module, ModulePlan(kept, None, part.out_before or part.in_before))
        module.groups = module.in_channels = module.out_channels = module.weight.shape[0]
        return
    if module.transposed:  # (in, out / groups, ...); groups are never touched here
        weight = take(take(module.weight, 1, part.out), 0, part.in_)
        module.in_channels, module.out_channels = weight.shape[:2]
    else:
        weight = take(module.weight, 0, part.out)
        weight = _take_grouped_inputs(weight, part.in_, module.in_channels, module.groups)
        module.out_channels = weight.shape[0]
        module.in_channels = weight.shape[1] * module.groups
    module.weight = weight
    _resize_bias(module, part)


@rule(_BatchNorm, _InstanceNorm)
def _norm(module: _BatchNorm | _InstanceNorm, part: ModulePlan) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(module, name, None)
        if tensor is not None:
            setattr(module, name, take(tensor, 0, part.out))
    if part.out is not None:
        module.num_features = len(part.out)


@rule(nn.PReLU)
def _prelu(module: nn.PReLU, part: ModulePlan) -> None:
    if module.num_parameters > 1 and part.out is not None:
        module.weight = take(module.weight, 0, part.out)  # type: ignore[assignment]
        module.num_parameters = len(part.out)


def _take_grouped_inputs(weight: Tensor, kept: Kept, inputs: int, groups: int) -> Tensor:
    if kept is None or groups == 1:
        return take(weight, 1, kept)
    # (out, in / groups, ...): the outputs of group g see the inputs of group g alone
    local = torch.as_tensor(kept).view(groups, -1) % (inputs // groups)
    parts = weight.detach().chunk(groups)
    sliced = [
        part.index_select(1, index.to(weight.device))
        for part, index in zip(parts, local, strict=True)
    ]
    return _like(weight, torch.cat(sliced))


def _resize_bias(module: nn.Linear | _ConvNd, part: ModulePlan) -> None:
    if module.bias is not None:
        module.bias = take(module.bias, 0, part.out)
    elif part.add_bias:
        channels = module.weight.shape[1 if getattr(module, "transposed", False) else 0]
        module.bias = nn.Parameter(
            module.weight.new_zeros(channels), requires_grad=module.weight.requires_grad
        )


def _initialise(before: dict[str, nn.Module], after: dict[str, nn.Module], plan: Plan) -> None:
    """The inits other than slicing, from the plan's seed alone: the same bits every time."""
    if plan.bn == "reset":
        for name in plan.modules:
            if isinstance(module := after.get(name), _BatchNorm):
                module.reset_parameters()
    if plan.init == "exemplar":
        return
    layers = {
        n: p for n, p in plan.modules.items() if isinstance(after.get(n), (nn.Linear, _ConvNd))
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(plan.seed)
        for name, part in layers.items():
            module = after[name]
            if plan.init == "random":
                _reset_on_cpu(module)
            elif part.in_ is not None and getattr(module, "groups", 1) == 1:
                _project_inputs(before[name], module, part)


def _reset_on_cpu(module: nn.Module) -> None:
    # drawn on the CPU, so that the seed means the same on every device
    fresh = copy.deepcopy(module).cpu().float()
    fresh.reset_parameters()  # type: ignore[operator]
    for target, source in zip(module.parameters(), fresh.parameters(), strict=True):
        target.copy_(source)


def _project_inputs(full: nn.Module, small: nn.Module, part: ModulePlan) -> None:
    """Input channels from a sparse random projection (Achlioptas, s = sqrt(n)) of all of them."""
    assert part.in_ is not None
    assert part.in_before is not None
    transposed = getattr(small, "transposed", False)
    n, k = part.in_before, len(part.in_)
    s = math.sqrt(n)
    draw = torch.rand(n, k)
    signs = (draw < 0.5 / s).float() - (draw >= 1 - 0.5 / s).float()
    projection = signs * math.sqrt(s / k)  # (n, k)
    weight = take(full.weight, 1 if transposed else 0, part.out)  # type: ignore[arg-type]
    dim = 0 if transposed else 1
    small.weight.copy_(  # type: ignore[operator]
        torch.tensordot(weight.float(), projection.to(weight.device), ([dim], [0])).movedim(-1, dim)
    )


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


def _rule_of(module: nn.Module) -> Rule | None:
    return next((_RULES[kind] for kind in type(module).__mro__ if kind in _RULES), None)


def _sizes(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, _ConvNd):
        return module.out_channels, module.in_channels
    size = int(getattr(module, "num_features", getattr(module, "num_parameters", 0)))
    return size, size
