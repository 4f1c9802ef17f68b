"""`analyse`: what can go from a network, what cannot and why; and what of it is chosen to go."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from torch import nn

from epruner._tables import Table, amount, percent
from epruner.pruning.data.evidence import Evidence, gather, kind_of
from epruner.pruning.errors import BudgetWarning, RepairWarning, TraceError
from epruner.pruning.graph.blocks import find_blocks, inside, within
from epruner.pruning.graph.groups import Group, Skipped, find_groups, plan_of
from epruner.pruning.graph.prunable import (
    approximated,
    by_group,
    in_order,
    nothing,
    resizable,
    wanted_groups,
    with_values,
)
from epruner.pruning.graph.trial import sound_groups
from epruner.pruning.latency.layers import LayerTimes, measure_layers
from epruner.pruning.latency.stopwatch import compared
from epruner.pruning.latency.target import meet_measured
from epruner.pruning.network.batches import Batches
from epruner.pruning.network.copies import tracing_copy
from epruner.pruning.network.inputs import (
    Arguments,
    as_arguments,
    check_model,
    in_float32,
    matches,
)
from epruner.pruning.network.layers import layers_of
from epruner.pruning.network.ranks import Ranks, ranks_of, weights_of
from epruner.pruning.network.tree import tensors_in
from epruner.pruning.options import (
    Budget,
    Constraints,
    Method,
    Request,
    make_request,
)
from epruner.pruning.plan.plan import Plan
from epruner.pruning.report.progress import Stages
from epruner.pruning.report.records import Timing
from epruner.pruning.report.report import left_alone
from epruner.pruning.select.allocation import Choice, Counts, Measure, Search, Sizes, prices
from epruner.pruning.select.blocks import WEIGHTS, Block, block_losses
from epruner.pruning.select.elimination import Elimination, by_elimination, eliminate
from epruner.pruning.select.features import features_of
from epruner.pruning.select.fisher import (
    Loss,
    Scores,
    by_fisher,
    fisher_scores,
    ranking_errors,
)
from epruner.pruning.select.importance import IMPORTANCE, Indices, Matrix, checked
from epruner.pruning.select.problems import Layer, make_layers
from epruner.pruning.select.readers import Reader, measured
from epruner.pruning.select.recipes import Recipe
from epruner.pruning.select.substitution import substitution_losses

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Selection:
    """What goes and what stays, and how that came about.

    Parameters
    ----------
    plan : Plan
    groups : tuple of Group
        That were pruned.
    kept : mapping of str to ndarray of int
        By group name, the channels that stay; none of groups in blocks that are passed by.
    layers : tuple of Layer
        Of the groups, with what was compared.
    choice : Choice
        Numbers of filters and the clusterings they came from.
    skipped : tuple of Skipped
        Layers left alone, each with its reason.
    notes : tuple of str
    timing : Timing or None
        Where the budget is one of time.
    """

    plan: Plan
    groups: tuple[Group, ...]
    kept: Mapping[str, Indices]
    layers: tuple[Layer, ...]
    choice: Choice
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    timing: Timing | None = None


class Analysis:
    """What can go from a network, what cannot and why, and what everything costs.

    Printing it gives a table. Made by `analyse`; the network itself is not kept (a weak reference
    tells its modules by name as long as it is there), a private copy is.

    Attributes
    ----------
    groups : tuple of Group
        Channels that can be removed together, proved by trial, in the order of the network.
    skipped : tuple of Skipped
        Layers that must stay whole, each with its reason.
    costs : Costs
        Multiply-adds and parameters of every module for the example inputs.
    arguments : (args, kwargs)
        The example inputs.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> analysis = epruner.analyse(model, (1, 8))
    >>> [(group.name, group.channels) for group in analysis.groups]
    [('0', 32)]
    >>> analysis.costs.totals().macs  # 8 * 32 + 32 * 4
    384
    """

    def __init__(self, model: nn.Module, inputs: Any, stages: Stages) -> None:
        self.arguments: Arguments = as_arguments(model, inputs)
        self._original: weakref.ref[nn.Module] | None = weakref.ref(model)
        with stages.run("analysis"):
            self._model, parametrized = tracing_copy(model)
            self._kind = type(self._model).__name__
            args, kwargs = (in_float32(part) for part in self.arguments)
            structure = find_groups(self._model, args, kwargs)
            groups, computed = resizable(structure.groups, parametrized)
        with stages.run("trial"):
            groups, unsound = sound_groups(self._model, args, kwargs, groups, seed=0)
        self.costs = structure.costs
        self.groups = tuple(groups)
        self._names = list(layers_of(self._model))
        skipped = [*structure.skipped, *computed, *unsound]
        self.skipped = in_order(skipped, self._names)

    def check(self, model: nn.Module) -> None:
        """Refuse another network than the one that was analysed.

        Parameters
        ----------
        model : torch.nn.Module
            Whose parameters and buffers must have the names and shapes of those analysed; their
            values may differ.

        Raises
        ------
        ValueError
            Modules or sizes differ.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 4))
        >>> analysis = epruner.analyse(model, (1, 8))
        >>> analysis.check(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)))
        Traceback (most recent call last):
            ...
        ValueError: the analysis is of another network: '0.weight' has shape (32, 8) there and ...
        """
        mine = {name: tensor.shape for name, tensor in self._model.state_dict().items()}
        for name, tensor in model.state_dict().items():
            if mine.get(name, tensor.shape) != tensor.shape:
                raise ValueError(
                    f"the analysis is of another network: {name!r} has shape "
                    f"{tuple(mine[name])} there and {tuple(tensor.shape)} in model"
                )

    def __getstate__(self) -> dict[str, Any]:  # a weak reference cannot be pickled
        return {**vars(self), "_original": None}

    def __str__(self) -> str:
        """Plain text: what can go, what all of it costs, what cannot go and why."""
        return "\n\n".join([self.table().to_text()] * bool(self.groups) + [self._summary()])

    def table(self) -> Table:
        """One row a layer whose channels can go: how many, what goes with them, what it costs.

        Returns
        -------
        Table
            Prints with ``to_text`` and ``to_markdown``.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> print(epruner.analyse(model, (1, 8)).table().to_markdown())
        | layer | kind | filters | MACs | share | params | readers | together with |
        | :-- | :-- | --: | --: | --: | --: | --: | :-- |
        | 0 | Linear | 32 | 256 | 66.7 % | 288 | 1 |  |
        """
        total = self.costs.totals()
        rows = []
        for group in self.groups:
            for member in group.producers:
                cost = self.costs.modules[member.module]
                kind = type(self._model.get_submodule(member.module)).__name__
                others = len(group.producers) - 1
                together = f"{others} other layer{'s' * (others > 1)}" if others else ""
                if group.norms:
                    together = f"{together} (norms: scope='all', calibrate=)".strip()
                elif group.stream:
                    together = f"{together} (stream: scope='all')".strip()
                rows.append(
                    (
                        member.module,
                        kind,
                        str(group.channels),
                        amount(cost.macs),
                        percent(cost.macs / total.macs if total.macs else 0),
                        amount(cost.params_at(cost.outputs, cost.inputs)),
                        f"{len(group.consumers)}",
                        together,
                    )
                )
        header = ("layer", "kind", "filters", "MACs", "share", "params", "readers", "together with")
        return Table(header, rows, left=frozenset({0, 1, 7}))

    def _summary(self) -> str:
        total = self.costs.totals()
        lines = [
            f"{self._kind}: {amount(total.macs)} multiply-adds, {amount(total.params)} parameters; "
            f"{len(self.groups)} groups of channels can go"
        ]
        return "\n".join([*lines, *left_alone(self.skipped)])

    def select(
        self,
        *,
        macs: float | None = None,
        params: float | None = None,
        latency: float | None = None,
        beta: float | Mapping[str, float] | None = None,
        budget: Budget | None = None,
        recipe: str | Recipe | None = None,
        method: str | Method = "auto",
        loss: Loss | None = None,
        calibrate: Any = None,
        group: ProcessGroup | None = None,
        constraints: Constraints | None = None,
        layers: Iterable[str | nn.Module] | None = None,
        ignore: Iterable[str | nn.Module] = (),
        scope: str = "inner",
        random_state: int = 0,
        n_threads: int | None = None,
    ) -> Plan:
        """Choose what stays.

        Parameters
        ----------
        macs, params, latency, beta, budget, recipe : as for `epruner.prune`
            How much, one of them or numbers in `constraints`.
        method, loss, calibrate, group : as for `epruner.prune`
            How filters are chosen; of `method` all but the repair.
        constraints, layers, ignore, scope : as for `epruner.prune`
            Where, and what must hold of the numbers.
        random_state, n_threads : as for `epruner.prune`
            Seed, and threads of the clustering.

        Returns
        -------
        Plan
            Pure data; ``plan.apply(model)`` makes the smaller network. With ``scope="blocks"`` one
            of those that `prune` repairs to see which is best.

        Raises
        ------
        TypeError, ValueError
            As `epruner.prune`.

        Warns
        -----
        BudgetWarning
            The budget could not be met.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> analysis = epruner.analyse(model, (1, 8))
        >>> plans = [analysis.select(macs=share) for share in (0.75, 0.5, 0.25)]
        >>> [len(plan.modules["0"].out) for plan in plans]  # filters that stay of the 32
        [24, 16, 8]
        """
        ranks = ranks_of(group)
        with ranks.agree():
            kind = kind_of(self._model, calibrate)
            request = make_request(
                (self._original and self._original()) or self._model,
                macs=macs,
                params=params,
                latency=latency,
                beta=beta,
                budget=budget,
                recipe=recipe,
                method=method,
                repair="none",
                evidence=kind,
                constraints=constraints,
                layers=layers,
                ignore=ignore,
                scope=scope,
                random_state=random_state,
                n_threads=n_threads,
                loss=loss,
            )
        ranks.require_same(
            {
                "model's weights": weights_of(self._model),
                "inputs": tensors_in(self.arguments),
            },
            calibrate=kind,
            **request.settings(),
        )
        with ranks.together(), closing(Stages(show=False)) as stages:
            evidence = gather(
                request.evidence,
                self._model,
                calibrate,
                self.arguments,
                labelled=request.method.needs_labels(),
                seed=request.random_state,
                stages=stages,
                ranks=ranks,
            )
            if evidence.kind != request.evidence:
                request = request.without_evidence(method, "none")
            chosen = self.choose(request, evidence, stages, ranks)[-1]
        for note in chosen.choice.notes:
            warnings.warn(BudgetWarning(note), stacklevel=2)
        return chosen.plan

    def choose(
        self, request: Request, evidence: Evidence, stages: Stages, ranks: Ranks
    ) -> list[Selection]:
        """What `select` does, with all that a report tells of it.

        Where blocks may go, several: without passing any by, and with losses of blocks taken for
        less and for more. What is left of their errors after the repair tells which is better.

        :meta private:
        """
        method, constraints = request.method, request.constraints
        groups, skipped = wanted_groups(
            self.groups,
            self.skipped,
            self._names,
            layers=request.layers,
            ignore=request.ignore,
            scope=request.scope,
            approximate=request.approximate,
        )
        if not groups:
            raise ValueError(nothing(skipped))
        goal = request.goal
        betas: Mapping[str, float] = {}
        if isinstance(goal.beta, Mapping):
            betas = by_group("beta", goal.beta, self._names, groups)
        fixed_at = by_group("n_filters", constraints.n_filters, self._names, groups)
        if goal.kind == "n_filters":
            groups, unnamed = with_values(groups, fixed_at, "n_filters")
            skipped += unnamed
        elif betas:
            groups, unnamed = with_values(groups, {**betas, **fixed_at}, "beta")
            skipped += unnamed
        with stages.run("ranking"):
            looks = replace(method, repair="none").needs_evidence()
            shown = tracing_copy(evidence.model)[0] if looks else self._model
            batches = evidence.calibration.fit
            ranked, losses, notes = _ranked(method, shown, groups, batches)
            scores: dict[str, Scores] = {}
            if method.needs_labels():
                scores = fisher_scores(shown, groups, evidence.calibration, request.loss)
            errors = {name: found.errors for name, found in ranked.items() if found.sure}
            if method.allocation == "fisher":
                errors = ranking_errors(groups, scores)
            layers, placed = make_layers(
                dict(self._model.named_modules()),
                groups,
                min_filters=constraints.min_filters,
                round_to=constraints.round_to,
                described=features_of(
                    method.features,
                    shown if method.features == "activations" else self._model,
                    groups,
                    batches,
                    example=in_float32(self.arguments),
                    seed=request.random_state,
                ),
                losses=losses or None,
                n_threads=request.n_threads,
            )
            notes += placed
            blocks: list[Block] = []
            if request.scope == "blocks":
                free = [group for group in groups if group.name not in fixed_at]
                blocks, others = self._blocks(request, free, shown, batches)
                skipped += others
        if method.importance == "reconstruction":
            choose = by_elimination(ranked)
        elif method.importance == "fisher":
            choose = by_fisher(scores)
        elif isinstance(method.importance, str):
            choose = IMPORTANCE[method.importance]
        else:
            choose = checked(method.importance)
        sizes = Sizes(self.costs, groups, [block.name for block in blocks])
        times = None
        if request.goal.kind == "latency":
            with stages.run("timing"):
                model, arguments = self._as_used()
                build = partial(_with_so_many, model, groups)
                times = ranks.first(lambda: measure_layers(build, layers, sizes, arguments, blocks))
            layers = [x if x.name in fixed_at else times.rounded(x) for x in layers]
        found: list[Selection] = []
        weighed = [[block.weighed(weight) for block in blocks] for weight in WEIGHTS]
        with stages.run("selection"):
            for some in [[], *weighed] if blocks else [[]]:
                choice, timing = self._allocate(
                    request,
                    layers,
                    sizes,
                    times,
                    betas,
                    fixed_at,
                    errors,
                    some,
                    ranks,
                    by_losses=bool(losses),
                )
                kept = {
                    x.name: x.members(
                        choose,
                        choice.clusterings.get(x.name),
                        choice.counts[x.name],
                        request.random_state,
                    )
                    for x in layers
                    if choice.counts[x.name]
                }
                plan = _plan(groups, kept, choice.counts)
                if found and (not plan.passed or plan == found[-1].plan):
                    continue
                pruned = [g for g in groups if len(kept.get(g.name, ())) < g.channels]
                found.append(
                    Selection(
                        plan,
                        tuple(groups),
                        kept,
                        tuple(layers),
                        choice,
                        in_order(skipped, self._names),
                        (*notes, *approximated(pruned)),
                        timing,
                    )
                )
        sums = [crc32(selection.plan.to_json().encode()) for selection in found]
        ranks.require_same(**{"the checksum of the plan": sums})
        return found

    def _allocate(
        self,
        request: Request,
        layers: Sequence[Layer],
        sizes: Sizes,
        times: LayerTimes | None,
        betas: Mapping[str, float],
        fixed_at: Mapping[str, int | float],
        errors: Mapping[str, Scores],
        blocks: Sequence[Block],
        ranks: Ranks,
        *,
        by_losses: bool,
    ) -> tuple[Choice, Timing | None]:
        """How many filters every layer keeps, and what that takes if the budget is one of time."""
        goal, method = request.goal, request.method
        # a number that is given is meant, a floor by default is not
        free_floor = request.constraints.min_filters is None
        fixed = {
            x.name: _fixed_count(replace(x, floor=1) if free_floor else x, fixed_at[x.name])
            for x in layers
            if x.name in fixed_at
        }
        groups = [x.group for x in layers]

        def cost(counts: Counts) -> float:
            """What a budget is in, or what comes nearest to it without a run of the network."""
            if times is not None:
                return times(counts)
            totals = sizes.totals(counts)
            return totals.params if goal.kind == "params" else totals.macs

        if method.allocation == "fisher":  # whatever a filter costs
            price_of = dict.fromkeys((x.name for x in layers), 1.0)
        else:
            price_of = prices(layers, cost)
        search = Search(
            layers,
            fixed=fixed,
            prices=price_of,
            errors=errors,
            blocks=blocks,
            by_losses=by_losses,
            exemplars=method.importance == "exemplar",
            seed=request.random_state,
            n_threads=request.n_threads,
        )
        if goal.kind in ("beta", "n_filters"):
            free = [x for x in layers if x.name not in fixed]
            at = {
                x.name: betas[x.name] if betas else float(goal.beta)  # type: ignore[arg-type]
                for x in free
            }
            return search.at_betas(free, at), None
        meet = partial(
            search.meet,
            cost if goal.measure is None else self._measure(goal.measure, groups, ranks),
            allocation=method.allocation,
            proxy=cost,
            patience=5000 if goal.measure is None else 40,
        )
        if times is None:
            return meet(goal.share), None
        model, arguments = self._as_used()
        return meet_measured(
            goal.share,
            meet,
            lambda counts: ranks.first(
                lambda: compared(model, _with_so_many(model, groups, counts), arguments)
            ),
        )

    def _blocks(
        self,
        request: Request,
        groups: Sequence[Group],
        shown: nn.Module,
        batches: Batches,
    ) -> tuple[list[Block], list[Skipped]]:
        """Residual blocks that may go with all their channels, and modules that are none."""
        args, kwargs = (in_float32(part) for part in self.arguments)
        names, refused = find_blocks(self._model, args, kwargs)
        free = {group.name for group in groups}
        layers: dict[str, tuple[str, ...]] = {}
        for name in names:
            mine = {x.name for x in self.groups if within(x, name) and not x.stream}
            named = [layer for layer in self._names if inside(layer, name)]
            ignored = any(matches(layer, p) for layer in named for p in request.ignore)
            if mine <= free and not ignored and (mine or request.layers is None):
                layers[name] = tuple(sorted(mine))
        if not layers:
            why = f": {refused[0].name}: {refused[0].reason}" if refused else ""
            raise ValueError(f"scope='blocks': this model has no residual block that may go{why}")
        losses = block_losses(shown, list(layers), batches)
        return [Block(name, layers[name], losses[name]) for name in layers], refused

    def _as_used(self) -> tuple[nn.Module, Arguments]:
        """The network and its example inputs in their own precision, while the network is there."""
        if self._original is not None and (model := self._original()) is not None:
            return model, self.arguments
        args, kwargs = (in_float32(part) for part in self.arguments)
        return self._model, (args, kwargs)

    def _measure(
        self, function: Callable[[nn.Module], float], groups: Sequence[Group], ranks: Ranks
    ) -> Measure:
        """A user's measure, which may be a time, as a function of the numbers of filters."""

        def measure(counts: Counts) -> float:
            value = ranks.first(lambda: function(_with_so_many(self._model, groups, counts)))
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"measure must return a finite number, got {value!r}")
            return float(value)

        return measure


def _with_so_many(model: nn.Module, groups: Sequence[Group], counts: Counts) -> nn.Module:
    """A network of that size; which filters stay is all the same to a size or a time."""
    kept = {
        g.name: np.concatenate(
            [
                np.arange(counts[g.name] // g.blocks) + block * (g.channels // g.blocks)
                for block in range(g.blocks)
            ]
        )
        for g in groups
        if counts[g.name]
    }
    return _plan(groups, kept, counts).apply(model)


def _plan(groups: Sequence[Group], kept: Mapping[str, Indices], counts: Counts) -> Plan:
    """The plan that keeps the given channels, without the blocks of which there are none."""
    names = {group.name for group in groups}
    passed = tuple(name for name, count in counts.items() if not count and name not in names)
    return replace(plan_of(groups, kept), passed=passed)


def analyse(model: nn.Module, inputs: Any, *, progress: bool = False) -> Analysis:
    """Find out what can go from a network, what cannot and why, and what everything costs.

    Parameters
    ----------
    model : torch.nn.Module
        Never modified.
    inputs : Tensor, shape, tuple of arguments, or dict of keyword arguments
        Of the model's forward. Used to trace the network and to count.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    Analysis
        Prints as a table; its `select` chooses what stays.

    Raises
    ------
    TypeError, ValueError
        No model, no inputs, or no layer with filters in it.
    TraceError
        The forward pass fails on `inputs`, or the model cannot be analysed.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> analysis = epruner.analyse(model, (1, 8))
    >>> print(analysis.table().to_text())
    layer  kind    filters  MACs   share  params  readers  together with
    -----  ------  -------  ----  ------  ------  -------  -------------
    0      Linear       32   256  66.7 %     288        1
    >>> analysis.skipped[0].name, analysis.skipped[0].reason
    ('2', 'its channels are the output of the model')
    """
    check_model(model)
    with closing(Stages(progress, ("analysis", "trial"))) as stages:
        return Analysis(model, inputs, stages)


def analysed(model: nn.Module, inputs: Any, stages: Stages) -> Analysis:
    """The analysis that was given in place of example inputs, or one made of them."""
    if not isinstance(inputs, Analysis):
        return Analysis(model, inputs, stages)
    inputs.check(model)
    return inputs


def _ranked(
    method: Method, model: nn.Module, groups: Sequence[Group], batches: Batches
) -> tuple[dict[str, Elimination], dict[str, Matrix], list[str]]:
    """What is known of the channels by what reads them, as far as the method asks for it."""
    by_losses = method.features == "losses"
    eliminated = "reconstruction" in (method.importance, method.allocation)
    if not by_losses and not eliminated:
        return {}, {}, []

    def rank(readers: Sequence[Reader]) -> tuple[Elimination | None, Matrix | None]:
        return (
            eliminate(readers) if eliminated else None,
            substitution_losses(readers) if by_losses else None,
        )

    try:
        found, notes = measured(model, groups, batches, rank)
    except TraceError as error:
        notes = [f"no layer is ranked by what reads it, weights decide: {error}"]
        warnings.warn(RepairWarning(notes[0]), stacklevel=4)
        found = {}
    ranked = {name: order for name, (order, _) in found.items() if order is not None}
    losses = {name: matrix for name, (_, matrix) in found.items() if matrix is not None}
    return ranked, losses, notes


def _fixed_count(layer: Layer, value: int | float) -> int:
    if isinstance(value, int) and value > layer.channels:
        raise ValueError(
            f"n_filters: {value} filters of {layer.name!r} asked for, which has {layer.channels}"
        )
    return layer.fit(value if isinstance(value, int) else value * layer.channels)
