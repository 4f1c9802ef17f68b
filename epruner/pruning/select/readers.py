"""What the layers that read a group of channels make of each, measured on inputs.

Of a layer that reads n channels: G, the covariance of what it reads (k columns a channel, once
unfolded), and W, its weights in units of the standard deviation of what it writes onto. From these
alone follow the loss when one channel goes and another stands in for it (`substitution`), and the
order in which they go if all others make good what is lost (`elimination`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from epruner.pruning.graph.groups import Group, Member
from epruner.pruning.network.batches import Batches
from epruner.pruning.network.layers import as_linear, scale_shift
from epruner.pruning.network.statistics import not_finite
from epruner.pruning.trace.normal import as_rows, at_positions, inner, input_rows
from epruner.pruning.trace.record import record_all
from epruner.pruning.trace.replay import Replay
from epruner.pruning.trace.targets import Call, Site, find_sites, fit_positions
from epruner.pruning.trace.trace import Value

# Beyond this many columns the taps of a kernel are taken to be independent of each other.
MAX_COLUMNS = 2304
T = TypeVar("T")


@dataclass
class Reader:
    """One layer that reads the channels: G (n k, n k), W (n k, o) in units of its target.

    Parameters
    ----------
    gram : Tensor of shape (n k, n k), float64
    weights : Tensor of shape (n k, o), float64
    channels : int
        n
    rows : int
        That the covariance is of.
    """

    gram: Tensor
    weights: Tensor
    channels: int
    rows: int

    @property
    def sure(self) -> bool:
        """Whether it rests on enough inputs.

        Rows that are fewer than twice the columns are fit too well to tell what others will lose.
        """
        return self.rows >= 2 * len(self.gram)


def measured(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Batches,
    rank: Callable[[Sequence[Reader]], T],
) -> tuple[dict[str, T], list[str]]:
    """Measure what reads each group, and rank its channels by that.

    Parameters
    ----------
    model : torch.nn.Module
        Full-size, in eval mode.
    groups : sequence of Group
    batches : Batches
    rank : callable
        From the readers of a group to what is wanted of them; called as soon as all are measured,
        since the matrices are large.

    Returns
    -------
    ranked : dict
        By group name.
    notes : list of str
        Why some groups are not among them.
    """
    modules = dict(model.named_modules())
    traces = record_all(model, batches)
    order, sites, _ = find_sites(model, traces[0])
    traces = [trace.reordered(order) for trace in traces]
    readers: dict[str, list[tuple[Group, Member]]] = {}
    for group in groups:
        for member in group.consumers:
            readers.setdefault(member.module, []).append((group, member))
    usable = [s for s in sites if s.name in readers and getattr(modules[s.name], "groups", 1) == 1]
    seen = {call.name for site in usable for call in site.calls}
    whole = {  # groups of which every reader can be measured
        group.name
        for group in groups
        if group.blocks == 1 and all(member.module in seen for member in group.consumers)
    }
    keep: dict[Value, int] = {}
    at = 0  # where the replay is when a site's turn comes, which may be beyond its beginning
    for site in usable:
        at = max(at, site.begin)
        end = max(map(_end, site.calls)) + 1
        for call in site.calls:
            read, written = traces[0].ops[call.op].reads[0], traces[0].ops[_end(call)].writes[0]
            keep[read] = max(keep.get(read, 0), at)
            keep[written] = max(keep.get(written, 0), at, end)
        at = max(at, end)
    run = Replay(traces, batches, keep)
    left = Counter(group.name for site in usable for group, _ in readers[site.name])
    found: dict[str, list[Reader]] = {}
    ranked: dict[str, T] = {}
    for site in usable:
        wanted = [pair for pair in readers[site.name] if pair[0].name in whole]
        if not wanted:
            continue
        parts = _measure(run, site, modules, batches, [member for _, member in wanted])
        for (group, _), part in zip(wanted, parts, strict=True):
            found.setdefault(group.name, []).append(part)
            left[group.name] -= 1
            if not left[group.name]:
                ranked[group.name] = rank(found.pop(group.name))
    missing = [group.name for group in groups if group.name not in ranked]
    notes = []
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        notes.append(
            f"what reads the channels cannot be measured for {', '.join(missing[:3])}{more} (it is "
            "grouped, transposed, recurrent, shared or has a forward of its own); weights decide "
            "there"
        )
    return ranked, notes


def _end(call: Call) -> int:
    """The op after which the error counts: the addition, or the norm of a layer that has one."""
    return call.at if call.other is not None else max(call.op, call.norm_op)


def _measure(
    run: Replay,
    site: Site,
    modules: Mapping[str, Any],
    batches: Batches,
    members: Sequence[Member],
) -> list[Reader]:
    module = as_linear(modules[site.name])
    chosen = [
        fit_positions(site, call, as_linear(modules[call.name]), run.traces, batches)
        for call in site.calls
    ]
    columns = [_columns(member, module) for member in members]  # (n, k) each
    averaged = [index.numel() > MAX_COLUMNS for index in columns]
    sizes = [len(i) if a else i.numel() for i, a in zip(columns, averaged, strict=True)]
    grams = [torch.zeros(size, size, dtype=torch.float64) for size in sizes]
    sums = [torch.zeros(size, dtype=torch.float64) for size in sizes]
    outputs = module.weight.shape[0]
    total = torch.zeros(outputs, dtype=torch.float64)
    total_square, count = torch.zeros(2, dtype=torch.float64)

    def read(batch: int) -> list[Tensor]:
        run.advance(batch, site.begin)
        ops = run.traces[batch].ops
        return [
            input_rows(
                run.value(batch, ops[call.op].reads[0]), as_linear(modules[call.name]), places
            )[0].cpu()
            for call, places in zip(site.calls, chosen, strict=True)
        ]

    with batches.ranks.agree():
        waiting = [read(0)]
    # a large mean would drown the covariance in rounding
    level = batches.ranks.first(lambda: waiting[0][0].mean(0))
    with batches.ranks.agree():
        for batch, trace in enumerate(run.traces):
            several = waiting.pop() if waiting else read(batch)
            run.advance(batch, max(map(_end, site.calls)) + 1)
            for call, places, rows in zip(site.calls, chosen, several, strict=True):
                rows -= level
                count += len(rows)
                given = run.value(batch, trace.ops[_end(call)].writes[0])
                target = as_rows(at_positions(given, module, places), module)[0].double().cpu()
                total += target.sum(0)
                total_square += target.square().sum()
                for index, average, gram, mean in zip(columns, averaged, grams, sums, strict=True):
                    taps = index.T if average else index.reshape(1, -1)
                    for tap in taps:
                        part = rows[:, tap]
                        gram += inner(part[None])[0] / len(taps)
                        mean += part.sum(0, dtype=torch.float64) / len(taps)
    *moments, total, total_square, count = batches.total(*grams, *sums, total, total_square, count)
    grams, sums = moments[: len(grams)], moments[len(grams) :]
    if not all(bool(torch.isfinite(gram).all()) for gram in grams):
        raise ValueError(not_finite(f"layer {site.name!r}"))
    # of all outputs together, each about its own mean; less than rounding leaves of it is none
    square = float(total_square / count)
    variance = max(square - float((total / count).square().sum()), 1e-12 * square, 1e-30)
    weight = module.weight.detach().double().flatten(1).T.cpu()  # (d, o)
    norm = modules.get(site.norm or "")
    if isinstance(norm, _BatchNorm):
        weight = weight * scale_shift(norm)[0].cpu()
    weight = weight / variance**0.5
    return [
        Reader(
            gram / count - torch.outer(mean, mean) / count**2,  # the bias takes up the mean
            weight[index].reshape(len(index), -1) if average else weight[index.reshape(-1)],
            len(index),
            int(count),
        )
        for index, average, gram, mean in zip(columns, averaged, grams, sums, strict=True)
    ]


def _columns(member: Member, module: nn.Module) -> Tensor:
    """Columns of the unfolded input that each channel of the group fills: (n, k)."""
    taps = int(np.prod(module.kernel_size)) if isinstance(module, _ConvNd) else 1
    columns = member.entries[:, :, None] * taps + np.arange(taps)
    return torch.from_numpy(columns.reshape(len(columns), -1))
