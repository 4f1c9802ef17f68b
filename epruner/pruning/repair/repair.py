"""Which repair is made, and what is left off with a note."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from epruner.pruning.data.calibration import inputs_in
from epruner.pruning.data.evidence import Evidence
from epruner.pruning.errors import RepairWarning, TraceError
from epruner.pruning.graph.groups import Group
from epruner.pruning.network.copies import working_copy
from epruner.pruning.network.outputs import output_error, outputs
from epruner.pruning.plan.plan import Plan
from epruner.pruning.repair.carry import refit_carried
from epruner.pruning.repair.least_squares import reestimate, refit
from epruner.pruning.repair.merge import merge
from epruner.pruning.report.progress import Stages
from epruner.pruning.report.records import Repair
from epruner.pruning.training.distill import learn_answers

Repaired = tuple[nn.Module, Repair | None, list[str]]


def repair_network(
    kind: str,
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    groups: Sequence[Group],
    evidence: Evidence,
    *,
    seed: int,
    stages: Stages,
) -> Repaired:
    """The repaired network, what was done, and notes.

    Parameters
    ----------
    kind : {"none", "merge", "batchnorm", "least_squares", "distill"}
    model, small : torch.nn.Module
        The original, and what `plan` made of it, which may be changed or come back as it is.
    plan : Plan
    groups : sequence of Group
    evidence : Evidence
        For the kinds that learn from inputs.
    seed : int
        Of what is drawn.
    stages : Stages
    """
    if kind == "none":
        return small, None, []
    if kind == "merge":
        return _merged(model, small, plan, groups)
    calibration = evidence.calibration
    if kind == "batchnorm":
        return _reestimated(model, small, evidence)
    try:
        if evidence.kind == "noise":
            found = refit_carried(small, plan, evidence.model, calibration)
        else:
            found = refit(model, small, plan, calibration)
    except TraceError as error:
        note = f"least squares left off{', merge in its place' if groups else ''}: {error}"
        warnings.warn(RepairWarning(note), stacklevel=3)
        merged, _, notes = _merged(model, small, plan, groups)
        return merged, None, [note, *notes]
    record = found.record and replace(found.record, inputs=evidence.kind)
    if kind == "distill":
        return distilled(model, found.model, record, list(found.notes), evidence, seed, stages)
    return found.model, record, list(found.notes)


def distilled(
    model: nn.Module,
    small: nn.Module,
    record: Repair | None,
    notes: list[str],
    evidence: Evidence,
    seed: int,
    stages: Stages,
    **options: Any,
) -> Repaired:
    """A network trained on from where least squares led, with a record of both."""
    calibration = evidence.calibration
    trained, steps, before, after = learn_answers(
        model, small, calibration, seed=seed, advance=stages.advance, **options
    )
    if not steps:
        notes = [*notes, "distillation left off: no step brought the outputs nearer"]
        warnings.warn(RepairWarning(notes[-1]), stacklevel=4)
        return small, record, notes
    if record is None:
        numbers = inputs_in(calibration.fit), inputs_in(calibration.held_back)
        record = Repair((), before, after, *numbers, inputs=evidence.kind)
    return trained, replace(record, after=after, steps=steps), notes


def _merged(model: nn.Module, small: nn.Module, plan: Plan, groups: Sequence[Group]) -> Repaired:
    """Dropped filters handed to the most similar kept ones, where scaled is what they stay."""
    modules = dict(model.named_modules())
    between = [group.name for group in groups if not _mergeable(group, modules)]
    notes = []
    if between:
        notes.append(
            f"merge left off for {len(between)} layers (the first is {between[0]}): more than one "
            "BatchNorm and an activation stands between them and what reads them"
        )
    notes += merge(model, small, plan, groups, leave=between)
    return small, None, notes


def _mergeable(group: Group, modules: Mapping[str, nn.Module]) -> bool:
    """Whether what reads a group sees its filters as `folded_matrix` has them.

    Behind a depthwise convolution, another norm or a bare scale a multiple of a channel need not be
    the same multiple of it.
    """
    norms = 0
    for member in group.followers:
        module = modules.get(member.module)
        if isinstance(module, _BatchNorm) and member.fold == 1 and module.running_mean is not None:
            norms += 1
        elif not isinstance(module, nn.PReLU):
            return False
    return norms <= len(group.producers)


def _reestimated(model: nn.Module, small: nn.Module, evidence: Evidence) -> Repaired:
    """BatchNorm statistics anew, if that brings the outputs nearer to the original's."""
    calibration = evidence.calibration
    repaired = reestimate(small, calibration.fit)
    unseen = calibration.unseen
    with unseen.ranks.agree():
        expected, sliced, got = (
            outputs(working_copy(network), unseen) for network in (model, small, repaired)
        )
    before, after = (output_error(x, expected, unseen) for x in (sliced, got))
    if not after <= before:
        note = (
            "BatchNorm re-estimation left off: the output's error would grow from "
            f"{before:.3g} to {after:.3g} of its variance"
        )
        warnings.warn(RepairWarning(note), stacklevel=4)
        return small, None, [note]
    numbers = inputs_in(calibration.fit), inputs_in(calibration.held_back)
    return repaired, Repair((), before, after, *numbers, inputs=evidence.kind), []
