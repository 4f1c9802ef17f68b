"""Proof by trial: slicing must do exactly what silencing does.

The dependency analysis is believed only as far as it can be checked. A random half of the channels
of every group is removed, and the output compared with that of the full network in which the
consumers ignore the same channels. Groups for which the two differ are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from epruner.pruning.graph.groups import Group, Indices, Skipped
from epruner.pruning.network.copies import deep_copy
from epruner.pruning.network.inputs import in_float64
from epruner.pruning.network.tree import tensors_in
from epruner.pruning.plan.parts import ModulePlan
from epruner.pruning.plan.plan import Plan

# Sliced and silenced sums differ in their order alone. What differs by more is tried again in
# float64, where nothing of that is left; a mean over 16 channels or over 8 of them may change the
# output by as little as 1e-4.
TOLERANCE = 5e-6
COARSE = 1e-4  # where the forward pass insists on float32


def make_plan(groups: Sequence[Group], kept: Mapping[str, Indices], **options: Any) -> Plan:
    """The plan that keeps the given channels.

    Parameters
    ----------
    groups : sequence of Group
    kept : mapping of str to ndarray of int
        By group name, ascending. Groups that are not in it keep all.
    **options
        Other fields of the plan.
    """
    dropped: dict[tuple[str, str], set[int]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for group in groups:
        if group.name not in kept or len(kept[group.name]) == group.channels:
            continue
        stays = np.zeros(group.channels, dtype=bool)
        stays[kept[group.name]] = True
        members = [("out", m) for m in (*group.producers, *group.followers)]
        members += [("in", m) for m in group.consumers]
        for side, member in members:
            key = (member.module, side)
            sizes[key] = member.size
            dropped.setdefault(key, set()).update(member.index[~stays[member.root]].tolist())
    parts: dict[str, dict[str, Any]] = {}
    for (name, side), gone in dropped.items():
        size = sizes[name, side]
        part = parts.setdefault(name, {})
        part["in_" if side == "in" else "out"] = tuple(i for i in range(size) if i not in gone)
        part[f"{side}_before"] = size
    return Plan({name: ModulePlan(**part) for name, part in parts.items()}, **options)


def sound_groups(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    groups: Sequence[Group],
    seed: int,
) -> tuple[list[Group], list[Skipped]]:
    """Groups that can be pruned exactly, all together, and those that cannot.

    Parameters
    ----------
    model : torch.nn.Module
        The tracing copy; as it was afterwards.
    args, kwargs
        Arguments of its forward.
    groups : sequence of Group
    seed : int
        Draws the halves that are dropped.
    """
    rng = np.random.default_rng(seed)
    kept = {group.name: _random_half(group, rng) for group in groups}
    sound: list[Group] = []
    skipped: list[Skipped] = []

    def admit(some: Sequence[Group]) -> None:
        fault = _fault(model, args, kwargs, [*sound, *some], kept)
        if not fault:
            sound.extend(some)
        elif len(some) == 1:
            skipped.extend(Skipped(member.module, fault) for member in some[0].producers)
        else:  # halves, so that few culprits among many groups cost few trials
            admit(some[: len(some) // 2])
            admit(some[len(some) // 2 :])

    if groups:
        admit(groups)
    return sound, skipped


class Silenced:
    """Context in which the consumers of a plan ignore their dropped inputs."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self._model = model
        self._plan = plan
        self._saved: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> None:
        for name, part in self._plan.modules.items():
            if part.in_ is None or part.in_before is None:
                continue
            module = self._model.get_submodule(name)
            weight: Tensor = module.weight.data  # type: ignore[assignment]
            self._saved.append((weight, weight.clone()))
            gone = np.setdiff1d(np.arange(part.in_before), np.asarray(part.in_))
            if getattr(module, "transposed", False):
                weight[gone] = 0
                continue
            groups: int = getattr(module, "groups", 1)
            blocks = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])
            width = part.in_before // groups
            blocks[gone // width, :, gone % width] = 0

    def __exit__(self, *_: object) -> None:
        for weight, saved in self._saved:
            weight.copy_(saved)


def _random_half(group: Group, rng: np.random.Generator) -> Indices:
    width = group.channels // group.blocks
    halves = [
        np.sort(rng.permutation(width)[: (width + 1) // 2]) + block * width
        for block in range(group.blocks)
    ]
    return np.concatenate(halves).astype(np.intp)


def _fault(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    groups: Sequence[Group],
    kept: Mapping[str, Indices],
) -> str:
    """What goes wrong when all these groups are halved; empty if nothing does."""
    plan = make_plan(groups, kept)
    fault, difference = _trial(model, args, kwargs, plan)
    limit = TOLERANCE
    if not fault and not difference <= TOLERANCE:
        try:
            wide = deep_copy(model).double()
            fault, difference = _trial(wide, in_float64(args), in_float64(kwargs), plan)
        except Exception:  # whatever a forward pass written for float32 raises
            limit = COARSE
    if not fault and not difference <= limit:
        return (
            "removing its channels does more than silencing them (relative difference "
            f"{difference:.2g}): something counts or mixes them"
        )
    return fault


def _trial(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], plan: Plan
) -> tuple[str, float]:
    """What goes wrong, and the relative difference of the outputs if nothing does."""
    with Silenced(model, plan):
        expected = _run(model, args, kwargs)
    small = plan.apply(model)
    try:
        got = _run(small, args, kwargs)
    except Exception as error:  # anything that a forward pass can raise
        line = str(error).partition("\n")[0]
        return f"the network does not run without some of its channels ({line})", math.inf
    if [t.shape for t in got] != [t.shape for t in expected]:
        return "the model's output changes its shape with its channels", math.inf
    return "", max(map(relative_difference, got, expected), default=0.0)


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value expected."""
    if not expected.numel() or not expected.is_floating_point():
        return 0.0 if torch.equal(got, expected) else 1.0
    same_nan = torch.isnan(got) & torch.isnan(expected)
    error = torch.where(same_nan, 0, got - expected).abs().max()
    scale = torch.nan_to_num(expected, 0.0).abs().max()
    return float(error / scale) if scale > 0 else float(error)


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # models that draw even in eval mode draw the same twice
        return tensors_in(model(*args, **kwargs))
