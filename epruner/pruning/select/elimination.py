"""Channels ranked by how well the layer after them could do without: Gram elimination.

Of a layer that reads c channels, one is left out after the other, each time the one whose loss the
others can make good best: with G the Gram matrix of what the layer reads and W its weights, the
channel with the least tr(W_c' ([G^-1]_cc)^-1 W_c). The weights of the others are then those of the
least squares fit without it, and G^-1 is downdated (block optimal brain surgeon).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from epruner.pruning.graph.groups import Group, Member
from epruner.pruning.network.inputs import Arguments
from epruner.pruning.network.layers import scale_shift
from epruner.pruning.select.importance import Candidates, Importance, Indices, l1
from epruner.pruning.trace.normal import RIDGE, inner, input_rows
from epruner.pruning.trace.record import record_all
from epruner.pruning.trace.replay import Replay
from epruner.pruning.trace.targets import Site, find_sites, fit_positions
from epruner.pruning.trace.trace import Value

# Beyond this many columns the taps of a kernel are taken to be independent of each other.
MAX_COLUMNS = 2304


@dataclass(frozen=True)
class Elimination:
    """The order in which the channels of a group go.

    Parameters
    ----------
    order : ndarray of int, shape (n,)
        The first goes first.
    errors : ndarray of float, shape (n + 1,)
        Squared error of the layers that read them when k are left, over the variance of what
        these layers write onto (their sum, for several).
    sure : bool
        Whether the errors rest on enough inputs. Rows that are fewer than twice the columns are
        fit too well to tell what others will lose.
    """

    order: Indices
    errors: npt.NDArray[np.float64]
    sure: bool


def eliminations(
    model: nn.Module, groups: Sequence[Group], batches: Sequence[Arguments]
) -> tuple[dict[str, Elimination], list[str]]:
    """Rank the channels of every group.

    Parameters
    ----------
    model : torch.nn.Module
        Full-size, in eval mode.
    groups : sequence of Group
    batches : sequence of (args, kwargs)

    Returns
    -------
    eliminations : dict of str to Elimination
        By group name.
    notes : list of str
        Why some groups are not among them.
    """
    modules = dict(model.named_modules())
    traces = record_all(model, batches)
    sites, _ = find_sites(model, traces[0])
    readers: dict[str, list[tuple[Group, Member]]] = {}
    for group in groups:
        for member in group.consumers:
            readers.setdefault(member.module, []).append((group, member))
    usable = [s for s in sites if s.name in readers and getattr(modules[s.name], "groups", 1) == 1]
    keep: dict[Value, int] = {}
    for site in usable:
        read = traces[0].ops[site.op].reads[0]
        keep[read] = max(keep.get(read, 0), _end(site) + 1)
    run = Replay(traces, batches, keep)
    left = Counter(group.name for site in usable for group, _ in readers[site.name])
    found: dict[str, list[_Problem]] = {}
    ranked: dict[str, Elimination] = {}
    for site in usable:
        wanted = [pair for pair in readers[site.name] if pair[0].blocks == 1]
        if not wanted:
            continue
        problems = _measure(run, site, modules, [member for _, member in wanted])
        for (group, _), problem in zip(wanted, problems, strict=True):
            found.setdefault(group.name, []).append(problem)
            left[group.name] -= 1
            if not left[group.name]:  # as soon as it can be, since the matrices are large
                ranked[group.name] = _eliminate(found.pop(group.name))
    missing = [group.name for group in groups if group.name not in ranked]
    notes = []
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        notes.append(
            f"reconstruction cannot rank the channels of {', '.join(missing[:3])}{more} (what "
            "reads them is grouped, transposed, shared or has a forward of its own); l1 stands in"
        )
    return ranked, notes


def by_elimination(ranked: Mapping[str, Elimination]) -> Importance:
    """The importance "reconstruction": the last to go stay."""

    def reconstruction(candidates: Candidates, count: int) -> Indices:
        if candidates.layer not in ranked:
            return l1(candidates, count)
        order = ranked[candidates.layer].order
        return np.sort(order[len(order) - count :])

    return reconstruction


@dataclass
class _Problem:
    """One layer that reads the channels: G (n k, n k), W (n k, o) in units of its target."""

    gram: Tensor
    weights: Tensor
    channels: int
    rows: int


def _end(site: Site) -> int:
    """The op after which the error counts: the addition, or the norm of a layer that has one."""
    return site.at if site.other is not None else max(site.op, site.norm_op)


def _measure(
    run: Replay, site: Site, modules: Mapping[str, Any], members: Sequence[Member]
) -> list[_Problem]:
    module = modules[site.name]
    chosen = fit_positions(site, module, run.traces)
    columns = [_columns(member, module) for member in members]  # (n, k) each
    averaged = [index.numel() > MAX_COLUMNS for index in columns]
    sizes = [len(i) if a else i.numel() for i, a in zip(columns, averaged, strict=True)]
    grams = [torch.zeros(size, size, dtype=torch.float64) for size in sizes]
    sums = [torch.zeros(size, dtype=torch.float64) for size in sizes]
    total, total_square, values, count = torch.zeros(1, dtype=torch.float64), 0.0, 0, 0
    for batch, trace in enumerate(run.traces):
        run.advance(batch, _end(site) + 1)
        rows = input_rows(run.value(batch, trace.ops[site.op].reads[0]), module, chosen)[0]
        rows = rows.cpu()
        count += len(rows)
        target = run.value(batch, trace.ops[_end(site)].writes[0])
        dim = -1 if isinstance(module, nn.Linear) else 1
        others = [d for d in range(target.dim()) if d != dim % target.dim()]
        total = total + target.sum(others, dtype=torch.float64).cpu()
        total_square += float(torch.linalg.vector_norm(target, dtype=torch.float64)) ** 2
        values += target.numel() // target.shape[dim]
        for index, average, gram, mean in zip(columns, averaged, grams, sums, strict=True):
            taps = index.T if average else index.reshape(1, -1)
            for tap in taps:
                part = rows[:, tap]
                gram += inner(part[None])[0] / len(taps)
                mean += part.sum(0) / len(taps)
    if not all(bool(torch.isfinite(gram).all()) for gram in grams):
        raise ValueError(
            f"activations of layer {site.name!r} are NaN or infinite on the calibration inputs; "
            "check that they are scaled and normalised as in training"
        )
    # of all outputs together, each about its own mean; less than rounding leaves of it is none
    square = total_square / values
    variance = max(square - float((total / values).square().sum()), 1e-12 * square, 1e-30)
    weight = module.weight.detach().double().flatten(1).T.cpu()  # (d, o)
    norm = modules.get(site.norm or "")
    if isinstance(norm, _BatchNorm):
        weight = weight * scale_shift(norm)[0].cpu()
    weight = weight / variance**0.5
    return [
        _Problem(
            gram / count - torch.outer(mean, mean) / count**2,  # the bias takes up the mean
            weight[index].reshape(len(index), -1) if average else weight[index.reshape(-1)],
            len(index),
            count,
        )
        for index, average, gram, mean in zip(columns, averaged, grams, sums, strict=True)
    ]


def _columns(member: Member, module: nn.Module) -> Tensor:
    """Columns of the unfolded input that each channel of the group fills: (n, k)."""
    taps = int(np.prod(module.kernel_size)) if isinstance(module, _ConvNd) else 1
    by_channel = member.index.reshape(-1, member.fold)  # sorted by channel of the group
    columns = by_channel[:, :, None] * taps + np.arange(taps)
    return torch.from_numpy(columns.reshape(len(by_channel), -1))


def _eliminate(problems: Sequence[_Problem]) -> Elimination:
    n = problems[0].channels
    states = []
    for problem in problems:
        ridge = RIDGE * float(problem.gram.diagonal().mean()) + 1e-30
        eye = torch.eye(len(problem.gram), dtype=torch.float64)
        weights = problem.weights
        if weights.shape[1] > len(weights):  # only W W' counts: any other root of it will do
            weights = torch.linalg.qr(weights.T, mode="r").R.T
        states.append((torch.linalg.inv(problem.gram + ridge * eye), weights.clone()))
    channels = list(range(n))  # that the states have rows for
    alive = list(range(n))  # places of those that are left
    order: list[int] = []
    errors = np.zeros(n + 1)
    while alive:
        if 2 * len(alive) <= len(channels):  # the rest of the states is zero
            states = [
                (_blocks(_blocks(x, alive, len(channels)).T, alive, len(channels)).T.contiguous(),
                 _blocks(w, alive, len(channels)))
                for x, w in states
            ]  # fmt: skip
            channels, alive = [channels[i] for i in alive], list(range(len(alive)))
        m = len(channels)
        costs = torch.zeros(len(alive), dtype=torch.float64)
        inverses = []
        for inverse, weights in states:
            k = len(inverse) // m
            blocks = inverse.view(m, k, m, k)[alive, :, alive, :]  # (alive, k, k)
            inverses.append(_inverses(blocks))
            own = weights.view(m, k, -1)[alive]
            costs += (own * (inverses[-1] @ own)).sum((1, 2))
        best = int(costs.argmin())
        place = alive.pop(best)
        order.append(channels[place])
        errors[len(alive)] = errors[len(alive) + 1] + max(float(costs[best]), 0.0)
        for (inverse, weights), blocks in zip(states, inverses, strict=True):
            k = len(inverse) // m
            rows = slice(place * k, (place + 1) * k)
            gain = inverse[:, rows] @ blocks[best]
            weights.addmm_(gain, weights[rows].clone(), alpha=-1)
            inverse.addmm_(gain, inverse[rows].clone(), alpha=-1)
            weights[rows] = 0
            inverse[rows] = 0
            inverse[:, rows] = 0
    sure = all(problem.rows >= 2 * len(problem.gram) for problem in problems)
    return Elimination(np.asarray(order, dtype=np.intp), errors, sure)


def _blocks(x: Tensor, places: Sequence[int], of: int) -> Tensor:
    """Some of the equal blocks of rows of a matrix."""
    return x.reshape(of, -1, x.shape[1])[list(places)].reshape(-1, x.shape[1])


def _inverses(blocks: Tensor) -> Tensor:
    """Of symmetric matrices (n, k, k), that are singular at worst by rounding."""
    if blocks.shape[-1] == 1 and bool((blocks > 0).all()):
        return blocks.reciprocal()
    found: Tensor
    found, failed = torch.linalg.inv_ex(blocks)
    if failed.any() or not torch.isfinite(found).all():
        found = torch.linalg.pinv(blocks, hermitian=True)
    return found
