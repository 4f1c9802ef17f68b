"""Example inputs and layer patterns: what a user may write, made uniform once at the door."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod

from epruner.pruning.network.copies import HALVES
from epruner.pruning.network.tree import mapped

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def check_model(model: object) -> None:
    """Refuse what is no network that can be copied, traced and cut.

    Raises
    ------
    TypeError
        It is not a torch module, or it holds TorchScript.
    ValueError
        Its weights have no values, values that are not finite, or are computed by masks.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        path = f"model.{name}" if name else "model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"{path} is TorchScript; give the network that it was made of")
        if any(isinstance(hook, BasePruningMethod) for hook in module._forward_pre_hooks.values()):
            raise ValueError(
                f"the weights of {path} are computed by a mask of torch.nn.utils.prune; make it "
                "permanent first (torch.nn.utils.prune.remove)"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{name!r} has no shape yet; run the model once before")
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} is on the meta device and has no values; load the weights before"
            )
    for name, parameter in model.named_parameters():
        if not _is_finite(parameter.detach()):
            raise ValueError(
                f"parameter {name!r} holds NaN or infinity; check where the weights come from"
            )
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        for kind in ("running_mean", "running_var"):
            statistic = getattr(module, kind)
            if statistic is not None and not _is_finite(statistic):
                raise ValueError(
                    f"statistics {name + '.' + kind!r} hold NaN or infinity; the network was shown "
                    "such inputs in training mode"
                )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype not in (*HALVES, torch.float32, torch.float64):
        return True
    # a finite sum has finite terms only, and takes no copy; that of halves may overflow
    return math.isfinite(tensor.sum()) or bool(torch.isfinite(tensor).all())


def as_arguments(model: nn.Module, inputs: Any) -> Arguments:
    """Positional and keyword arguments of the model's forward.

    Parameters
    ----------
    model : torch.nn.Module
        Gives data type and device where only a shape is known.
    inputs : Tensor, sequence of int, tuple of arguments, or mapping of keyword arguments
        A sequence of integers is the shape of one random input.

    Raises
    ------
    TypeError
        None of these.
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)) and inputs:
        if all(type(size) is int for size in inputs):
            if min(inputs) < 1:
                raise ValueError(f"inputs is a shape with a size below 1: {inputs}")
            like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
            generator = torch.Generator().manual_seed(0)
            values = torch.randn(tuple(inputs), generator=generator)
            return (values.to(like.device, like.dtype),), {}
        if all(isinstance(size, Real) for size in inputs):
            raise TypeError(f"the sizes of a shape are integers, got {inputs}")
        return tuple(inputs), {}
    got = f"{inputs!r}"
    raise TypeError(
        "inputs must be a tensor, a shape such as (1, 3, 32, 32), a tuple of arguments or "
        "a dict of keyword arguments of the model's forward, got "
        + (got if len(got) < 80 else f"an object of type {type(inputs).__name__}")
    )


def in_float32(value: Any) -> Any:
    """Half-precision tensors, however nested, as float32."""
    return _converted(value, HALVES, torch.float32)


def in_float64(value: Any) -> Any:
    """float32 tensors, however nested, as float64."""
    return _converted(value, (torch.float32,), torch.float64)


def _converted(value: Any, old: tuple[torch.dtype, ...], new: torch.dtype) -> Any:
    def convert(leaf: Any) -> Any:
        return leaf.to(new) if isinstance(leaf, Tensor) and leaf.dtype in old else leaf

    return mapped(value, convert)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a module: by its name, a parent's name, or a glob of either."""
    parents = name.split(".")
    return any(
        fnmatchcase(".".join(parents[:depth]), pattern) for depth in range(1, len(parents) + 1)
    )


def as_patterns(model: nn.Module, option: str, wanted: Iterable[str | nn.Module]) -> list[str]:
    """Names for modules and patterns.

    Raises
    ------
    ValueError
        A module that is not part of the model.
    """
    if isinstance(wanted, (str, nn.Module)):
        wanted = [wanted]
    if not isinstance(wanted, Iterable):
        raise TypeError(f"{option} must be names, patterns or modules, got {wanted!r}")
    names = {module: name for name, module in model.named_modules()}
    patterns = []
    for item in wanted:
        if not isinstance(item, (str, nn.Module)):
            raise TypeError(f"{option}: {item!r} is neither a name or pattern nor a module")
        if isinstance(item, nn.Module) and item not in names:
            raise ValueError(f"{option}: {type(item).__name__} is not a module of this model")
        named = names[item] if isinstance(item, nn.Module) else item
        patterns.append(named.replace("_orig_mod.", ""))  # as without torch.compile
    return patterns


def check_patterns(option: str, patterns: Iterable[str], layers: Sequence[str]) -> None:
    """ValueError for the first pattern that matches no convolution or linear layer."""
    for pattern in patterns:
        if any(matches(layer, pattern) for layer in layers):
            continue
        close = difflib.get_close_matches(pattern, layers, n=3, cutoff=0.3) or layers[:3]
        raise ValueError(
            f"{option}: {pattern!r} matches no convolution or linear layer of the model; names "
            f"are like {', '.join(map(repr, close))}, and * stands for anything"
        )
