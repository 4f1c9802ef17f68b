"""Which repair is made, and what is left off with a note."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from epruner.pruning.errors import RepairWarning, TraceError
from epruner.pruning.graph.groups import Group
from epruner.pruning.network.layers import is_depthwise
from epruner.pruning.plan.plan import Plan
from epruner.pruning.repair.calibration import Calibration, inputs_in
from epruner.pruning.repair.least_squares import (
    output_error,
    outputs,
    reestimate,
    refit,
)
from epruner.pruning.repair.merge import merge
from epruner.pruning.report.records import Repair
from epruner.pruning.select.importance import Indices

Repaired = tuple[nn.Module, Repair | None, list[str]]


def repair_network(
    kind: str,
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    groups: Sequence[Group],
    kept: Mapping[str, Indices],
    calibration: Calibration | None = None,
) -> Repaired:
    """The repaired network, what was done, and notes.

    Parameters
    ----------
    kind : {"none", "merge", "batchnorm", "least_squares"}
    model, small : torch.nn.Module
        The original, and what `plan` made of it, which may be changed or come back as it is.
    plan : Plan
    groups : sequence of Group
    kept : mapping of str to ndarray of int
        By group name.
    calibration : Calibration, optional
        For the kinds that learn from inputs.
    """
    if kind == "none":
        return small, None, []
    if kind == "merge":
        return _merged(model, small, plan, groups, kept)
    assert calibration is not None
    if kind == "batchnorm":
        return _reestimated(model, small, calibration)
    try:
        return refit(model, small, plan, calibration)
    except TraceError as error:
        note = f"least squares left off: {error}"
        warnings.warn(RepairWarning(note), stacklevel=3)
        return small, None, [note]


def _merged(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    groups: Sequence[Group],
    kept: Mapping[str, Indices],
) -> Repaired:
    """Dropped filters handed to the most similar kept ones, where scaled is what they stay."""
    modules = dict(model.named_modules())
    between = [
        g.name
        for g in groups
        if any(_changes(modules[m.module]) for m in g.followers if m.module in modules)
    ]
    notes = []
    if between:
        notes.append(
            f"merge left off for {len(between)} layers (the first is {between[0]}): a depthwise "
            "convolution, InstanceNorm or GroupNorm treats their channels one by one"
        )
    notes += merge(model, small, plan, groups, kept, leave=between)
    return small, None, notes


def _changes(module: nn.Module) -> bool:
    """Whether multiples of a channel are no longer multiples of it behind a layer."""
    return is_depthwise(module) or isinstance(module, (_InstanceNorm, nn.GroupNorm))


def _reestimated(model: nn.Module, small: nn.Module, calibration: Calibration) -> Repaired:
    """BatchNorm statistics anew, if that brings the outputs nearer to the original's."""
    repaired = reestimate(small, calibration.fit)
    expected, sliced, got = (
        outputs(network, calibration.unseen) for network in (model, small, repaired)
    )
    before, after = output_error(sliced, expected), output_error(got, expected)
    if not after <= before:
        note = (
            "BatchNorm re-estimation left off: the output's error would grow from "
            f"{before:.3g} to {after:.3g} of its variance"
        )
        warnings.warn(RepairWarning(note), stacklevel=4)
        return small, None, [note]
    numbers = inputs_in(calibration.fit), inputs_in(calibration.held_back)
    return repaired, Repair((), before, after, *numbers), []
