"""What is done for the filters that went: the layers that stay learn to do without them.

Layer after layer, in the order of the network, weights are refit by least squares on a few hundred
unlabelled inputs, so that each layer of the small network, reading what the small network gives
it, comes as near as it can to what the full network computes at the same place. Where a layer's
output is added to a shortcut, the target is the sum after the addition: what went wrong upstream
and arrives through the shortcut is made good here. Elsewhere it is the layer's own output.

How strongly weights are drawn towards the sliced ones, whether they change at all, and what the
report says of them is decided on inputs that were held back from the fit.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from epruner.pruning.data.calibration import Calibration, inputs_in
from epruner.pruning.errors import RepairWarning
from epruner.pruning.network.batches import Batches
from epruner.pruning.network.copies import deep_copy, with_weights_of, working_copy
from epruner.pruning.network.layers import as_linear, scale_shift
from epruner.pruning.network.outputs import output_error, outputs
from epruner.pruning.network.statistics import estimate_statistics, not_finite
from epruner.pruning.plan.apply import counterpart
from epruner.pruning.plan.plan import Plan
from epruner.pruning.report.records import LayerRepair, Repair
from epruner.pruning.trace.align import aligned
from epruner.pruning.trace.normal import (
    EXACT,
    RIDGE,
    Normal,
    as_rows,
    at_positions,
    input_rows,
    stacked,
    unknowns,
    unstack,
)
from epruner.pruning.trace.record import record_all
from epruner.pruning.trace.replay import Replay
from epruner.pruning.trace.targets import Call, Site, find_sites, fit_positions
from epruner.pruning.trace.trace import Value

# Ridges that may suit the inputs held back better, in the order in which they are tried, as long as
# each is better than the one before: the error falls to one least value and rises again.
STRONGER: tuple[float, ...] = (1e-2, 1e-1, 1.0)
WEAKER: tuple[float, ...] = (1e-4,)


@dataclass(frozen=True)
class Refit:
    """A pruned network whose layers were refit.

    Parameters
    ----------
    model : torch.nn.Module
        A copy with other weights, of the same data types.
    record : Repair or None
        None if the repair was left off.
    notes : tuple of str
    norms : mapping of str to str or None
        Of the layers refit, the BatchNorm that alone reads each.
    """

    model: nn.Module
    record: Repair | None
    notes: tuple[str, ...]
    norms: Mapping[str, str | None]


def refit(
    full: nn.Module,
    small: nn.Module,
    plan: Plan,
    calibration: Calibration,
    *,
    anchored: bool = False,
) -> Refit:
    """Refit the layers of a pruned network by least squares.

    Parameters
    ----------
    full, small : torch.nn.Module
        The original and what `plan` makes of it; neither is modified.
    plan : Plan
    calibration : Calibration
    anchored : bool
        Leave alone a layer that reads all its channels and has no BatchNorm after it, which would
        bring what was fit to made-up inputs back to true statistics.

    Raises
    ------
    ValueError
        Activations are NaN or infinite on the calibration inputs.
    TraceError
        The forward pass cannot be followed op by op.
    """
    reference = working_copy(counterpart(full, plan.modules))
    work = working_copy(small)
    ranks = calibration.fit.ranks
    batches = Batches((*calibration.fit, *calibration.held_back), ranks)
    both = aligned(*(record_all(m, batches, plan.passed) for m in (reference, work)))
    if both is None:
        note = "least squares left off: the pruned network takes another course than the original"
        warnings.warn(RepairWarning(note), stacklevel=4)
        return Refit(deep_copy(small), None, (note,), {})
    full_traces, traces = both
    order, sites, notes = find_sites(work, traces[0])
    full_traces, traces = ([t.reordered(order) for t in found] for found in (full_traces, traces))
    if anchored:
        parts = plan.modules
        sites = [s for s in sites if s.norm or (s.name in parts and parts[s.name].in_ is not None)]
    with ranks.agree():
        sliced = outputs(work, calibration.unseen)
    keep: dict[Value, int] = {}  # what layers read
    wanted: dict[Value, int] = {}  # and what they should give
    for site in sites:  # in ascending order: of several that read one value the last counts
        for call in site.calls:
            keep[traces[0].ops[call.op].reads[0]] = site.begin
            wanted[traces[0].ops[call.at].writes[0]] = site.end + 1
    replays = Replay(full_traces, batches, wanted), Replay(traces, batches, keep)
    pair = _Pair(work, plan, *replays, calibration)
    done = [(site, found) for site in sites if (found := pair.repair(site)) is not None]
    unseen = range(len(batches))[-len(calibration.unseen) :]
    with ranks.agree():
        original, repaired = zip(*(pair.finish(batch) for batch in unseen), strict=True)
    before, after = (output_error(x, original, calibration.unseen) for x in (sliced, repaired))
    if not after <= before:  # each layer gained, the network did not: rather leave it as it was
        notes.append(
            "least squares left off: the output's error would grow from "
            f"{before:.3g} to {after:.3g}"
        )
        warnings.warn(RepairWarning(notes[-1]), stacklevel=4)
        return Refit(deep_copy(small), None, tuple(notes), {})
    if pair.poor:
        notes.append(
            "too few calibration inputs: they give fewer equations than weights per output in "
            f"{len(pair.poor)} of the layers refit (the first is {pair.poor[0]}); the ridge keeps "
            "them near the sliced weights, more inputs would repair more"
        )
        warnings.warn(RepairWarning(notes[-1]), stacklevel=4)
    numbers = inputs_in(calibration.fit), inputs_in(calibration.held_back)
    record = Repair(tuple(found for _, found in done), before, after, *numbers, tuple(notes))
    norms = {site.name: site.norm for site, _ in done}
    return Refit(with_weights_of(small, work), record, tuple(notes), norms)


def reestimate(small: nn.Module, batches: Batches) -> nn.Module:
    """A copy whose BatchNorm statistics are those of the calibration inputs."""
    work = working_copy(small)
    estimate_statistics(work, batches)
    return with_weights_of(small, work)


class _Pair:
    """The full and the small network on the same inputs, op by op."""

    def __init__(
        self, work: nn.Module, plan: Plan, full: Replay, small: Replay, calibration: Calibration
    ) -> None:
        self._modules, self._plan = dict(work.named_modules()), plan
        self._full, self._small = full, small
        self._fit, self._held_back = calibration.fit, calibration.held_back
        self.poor: list[str] = []

    def finish(self, batch: int) -> tuple[list[Tensor], list[Tensor]]:
        """Outputs of the full and the small network."""
        ops = len(self._small.traces[batch].ops)
        self._full.advance(batch, ops)
        self._small.advance(batch, ops)
        return self._full.outputs(batch), self._small.outputs(batch)

    def repair(self, site: Site) -> LayerRepair | None:
        """Refit one layer; None where there was nothing to gain."""
        module = as_linear(self._modules[site.name])
        norm = self._modules.get(site.norm or "")
        chosen = [
            fit_positions(
                site,
                call,
                as_linear(self._modules[call.name]),
                self._small.traces,
                self._fit,
            )
            for call in site.calls
        ]
        normal, held_back = Normal.empty(module), Normal.empty(module)
        judge = held_back if self._held_back else normal
        start = stacked(module)  # (groups, d + 1, o)
        total, square = torch.zeros_like(judge.square), torch.zeros_like(judge.square)
        # what the layer gives is of use with the repaired weights only
        branch = [i for call in site.calls for i in (call.op, call.norm_op) if 0 <= i < site.begin]
        with self._fit.ranks.agree():
            for batch, trace in enumerate(self._small.traces):
                self._full.advance(batch, site.end + 1)
                self._small.advance(batch, site.begin, branch)
                part = normal if batch < len(self._fit) else held_back
                for call, places in zip(site.calls, chosen, strict=True):
                    read = self._small.value(batch, trace.ops[call.op].reads[0])
                    rows = input_rows(read, as_linear(self._modules[call.name]), places)
                    wanted = self._target(batch, call, norm, places)
                    part.add(rows, wanted - rows @ start.to(rows.dtype))
                    if part is judge:
                        total += wanted.sum(1)
                        square += wanted.square().sum(1)
        normal.add_up(self._fit)
        if self._held_back:
            held_back.add_up(self._held_back)
        total, square = (self._held_back or self._fit).total(total, square)
        if not normal.finite() or not held_back.finite():
            raise ValueError(not_finite(f"layer {site.name!r}"))
        before = judge.square  # (groups, o)
        units = torch.ones_like(before)
        if isinstance(norm, _BatchNorm):  # what counts is what BatchNorm makes of an output
            units = scale_shift(norm)[0].square().view_as(before)
        spread = float(((square - total.square() / judge.rows) * units).sum())
        error = float((before * units).sum())
        if not spread > 0 or error <= EXACT * spread:
            return None
        if normal.rows < unknowns(module):
            self.poor.append(site.name)

        def fit(ridge: float) -> tuple[float, float, Tensor, Tensor]:
            solved = start + normal.solve(torch.zeros_like(start), ridge, bias=has_bias)
            # as the layer will hold it, so that the comparison is one of what comes to be
            solved = solved.to(module.weight.dtype).double()
            left = judge.error(solved - start)
            return float((left * units).sum()), ridge, solved, left

        has_bias = norm is not None or module.bias is not None
        found = fit(RIDGE)
        for others in (STRONGER, WEAKER) if held_back.rows else ():
            while others and (other := fit(others[0]))[0] < found[0]:
                found, others = other, others[1:]
            if found[1] != RIDGE:
                break
        _, ridge, solved, left = found
        better = left < before
        weights = torch.where(better[:, None], solved, start)
        offset = unstack(module, weights)
        if isinstance(norm, _BatchNorm):
            _set_statistics(norm, normal, weights, offset if module.bias is None else None)
        return LayerRepair(
            site.name,
            "output" if site.calls[0].other is None else "stream",
            error / spread,
            float((torch.where(better, left, before) * units).sum()) / spread,
            ridge,
        )

    def _target(
        self, batch: int, call: Call, norm: nn.Module | None, chosen: Tensor | None
    ) -> Tensor:
        """What a call should give: (groups, rows, o), float64."""
        module = as_linear(self._modules[call.name])
        at = self._full.traces[batch].ops[call.at].writes[0]
        wanted = at_positions(self._full.value(batch, at), module, chosen)
        part = self._plan.modules.get(call.name)
        dim = -1 if isinstance(module, nn.Linear) else 1
        if part is not None and part.out is not None:
            wanted = wanted.index_select(dim, torch.tensor(part.out, device=wanted.device))
        if call.other is not None:
            wanted = wanted - at_positions(self._small.value(batch, call.other), module, chosen)
            if isinstance(norm, _BatchNorm):
                scale, shift = scale_shift(norm)
                alive = scale.abs() > 1e-12
                view = (1, -1) + (1,) * (wanted.dim() - 2)
                undone = (wanted.double() - shift.view(view)) / torch.where(alive, scale, 1).view(
                    view
                )
                wanted = undone * alive.view(view)
        return as_rows(wanted, module).double()


def _set_statistics(
    norm: _BatchNorm, normal: Normal, weights: Tensor, offset: Tensor | None
) -> None:
    """Give a BatchNorm the statistics of what it now reads, and the offset its layer cannot hold.

    What it computes in eval mode stays the same but for the offset; in training mode, where the
    batch's statistics replace these, it then computes nearly the same too, so that fine-tuning
    starts from the repaired network.
    """
    scale, shift = scale_shift(norm)
    if offset is not None:
        shift = shift + scale * offset
        weights = torch.cat([weights[:, :-1], torch.zeros_like(weights[:, -1:])], 1)
    if norm.weight is None or norm.bias is None:
        if offset is not None:
            norm.running_mean.sub_(offset)
        return
    mean, variance = (moment.reshape(-1) for moment in normal.moments(weights))
    with torch.no_grad():
        norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.running_var.copy_(variance)  # type: ignore[union-attr]
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        norm.bias.copy_(shift + scale * mean)
