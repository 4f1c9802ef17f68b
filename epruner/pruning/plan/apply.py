"""Parts and model to a smaller model: each tensor is sliced once, by the rule of its layer type."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from epruner.pruning.network.attention import any_folded, unfolded
from epruner.pruning.network.copies import deep_copy, retie, uncompiled
from epruner.pruning.network.layers import (
    multiplies,
    parameter_dim,
    rule_of,
    take,
    weight_dims,
)
from epruner.pruning.plan.parts import ModulePlan
from epruner.pruning.plan.views import View, infer

INITS = ("exemplar", "random", "random_projection")
BN_MODES = ("slice", "reset")
Parts = Mapping[str, ModulePlan]
Attributes = Mapping[str, Mapping[str, tuple[int, int]]]


class Passed(nn.Module):
    """Stands where a residual block was: returns what it reads, whatever else it is given."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the first argument."""
        return x


def resized(
    model: nn.Module,
    parts: Parts,
    attributes: Attributes,
    views: Mapping[str, Sequence[View]],
    passed: Sequence[str],
) -> nn.Module:
    """A deep copy of a full-size model that keeps what `parts` say, the weights that stay with it.

    Parameters
    ----------
    model : torch.nn.Module
    parts, attributes, views, passed
        Of a `Plan`.

    Raises
    ------
    ValueError
        `model` lacks a module or an attribute or has it in another size, or no rule knows it.
    """
    model = uncompiled(model)
    small = unfolded(deep_copy(model), _owners(parts))
    for name in passed:
        _pass_by(small, name)
    modules = dict(small.named_modules())
    for name, part in parts.items():
        if name in modules:
            _resize_module(name, modules[name], part)
        else:
            _resize_tensor(small, name, part)
    for name, counts in attributes.items():
        for attribute, (before, after) in counts.items():
            _set_count(modules.get(name), name, attribute, before, after)
    for name, found in views.items():
        if name not in modules:
            raise ValueError(f"the plan changes {name!r}, which this model has not")
        infer(modules[name], found)
    retie(model, small)
    return small


def counterpart(model: nn.Module, parts: Parts | None = None) -> nn.Module:
    """The full-size model with the modules that `parts` name; default: that an analysis knows.

    A copy where its attention has to be unfolded for that, else the model itself.
    """
    owners = None if parts is None else _owners(parts)
    return unfolded(deep_copy(model), owners) if any_folded(model, owners) else model


def _pass_by(model: nn.Module, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    try:
        block = model.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"the plan passes {name!r} by, which this model has not; apply it to a full-size model "
            "of the same kind"
        ) from None
    setattr(model.get_submodule(owner), leaf, Passed().train(block.training))


def _owners(parts: Parts) -> set[str]:
    return {name.rpartition(".")[0] for name in parts}


def _resize_module(name: str, module: nn.Module, part: ModulePlan) -> None:
    known = rule_of(module)
    if known.mixes(module):
        raise ValueError(f"no rule resizes {name!r}, a {type(module).__name__}")
    befores = (part.out_before, part.in_before)
    for side, before, size in zip(("output", "input"), befores, known.sides(module), strict=True):
        if before is not None and before != size:
            raise ValueError(
                f"the plan was made for a {name!r} with {before} {side} channels, this one has "
                f"{size}; apply it to a full-size model of the same kind"
            )
    known.resize(module, part.out, part.in_)


def _resize_tensor(model: nn.Module, name: str, part: ModulePlan) -> None:
    owner_name, _, leaf = name.rpartition(".")
    try:
        owner = model.get_submodule(owner_name)
        tensor: Tensor = getattr(owner, leaf)
    except AttributeError:
        raise ValueError(
            f"the plan prunes {name!r}, which this model has not; apply it to a full-size model "
            "of the same kind"
        ) from None
    dim = parameter_dim(tensor, part.out_before or 0)
    if dim is None:
        raise ValueError(
            f"the plan was made for a parameter {name!r} with one dimension of {part.out_before}, "
            f"this one has shape {tuple(tensor.shape)}"
        )
    setattr(owner, leaf, take(tensor, dim, part.out))


def _set_count(
    module: nn.Module | None, name: str, attribute: str, before: int, after: int
) -> None:
    in_list = re.fullmatch(r"(\w+)\[(\d+)\]", attribute)
    key, place = (in_list[1], int(in_list[2])) if in_list else (attribute, 0)
    held: Any = getattr(module, key, None)
    numbers = [held]
    if in_list:
        numbers = list(held) if type(held) in (list, tuple) else []
    found = numbers[place] if place < len(numbers) else None
    if type(found) is not int or found != before:
        has = "has not" if found is None else f"has as {found!r:.60}"
        raise ValueError(
            f"the plan changes {f'{name}.{attribute}'.lstrip('.')!r} from {before} to {after}, "
            f"which this model {has}; apply it to a full-size model of the same kind"
        )
    numbers[place] = after
    setattr(module, key, type(held)(numbers) if in_list else after)


def initialise(
    model: nn.Module, small: nn.Module, parts: Parts, *, init: str, bn: str, seed: int
) -> None:
    """The inits other than slicing, from the seed alone: the same bits every time.

    Parameters
    ----------
    model, small : torch.nn.Module
        The full-size one, and the one that `resized` made of it, which is changed.
    parts, init, bn, seed
        See `Plan.apply`.
    """
    before = dict(counterpart(model, parts).named_modules())
    after = dict(small.named_modules())
    if bn == "reset":
        for name in parts:
            if isinstance(module := after.get(name), _BatchNorm):
                module.reset_parameters()
    if init == "exemplar":
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, part in parts.items():
            module = after.get(name)
            if module is None or not multiplies(module):
                continue
            if init == "random":
                _reset_on_cpu(module)
            elif (
                part.in_ is not None
                and isinstance(getattr(module, "weight", None), Tensor)
                and getattr(module, "groups", 1) == 1
            ):
                _project_inputs(before[name], module, part)


def _reset_on_cpu(module: nn.Module) -> None:
    # drawn on the CPU, so that the seed means the same on every device
    fresh = copy.deepcopy(module).cpu().float()
    rule_of(fresh).reset(fresh)
    for target, source in zip(module.parameters(), fresh.parameters(), strict=True):
        target.copy_(source)


def _project_inputs(full: nn.Module, small: nn.Module, part: ModulePlan) -> None:
    """Input channels from a sparse random projection (Achlioptas, s = sqrt(n)) of all of them."""
    assert part.in_ is not None
    assert part.in_before is not None
    out_dim, in_dim = weight_dims(small)
    n, k = part.in_before, len(part.in_)
    s = math.sqrt(n)
    draw = torch.rand(n, k)
    signs = (draw < 0.5 / s).float() - (draw >= 1 - 0.5 / s).float()
    projection = signs * math.sqrt(s / k)  # (n, k)
    weight = take(full.weight, out_dim, part.out)  # type: ignore[arg-type]
    projected = torch.tensordot(weight.float(), projection.to(weight.device), ([in_dim], [0]))
    small.weight.copy_(projected.movedim(-1, in_dim))  # type: ignore[operator]
