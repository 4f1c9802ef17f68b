"""`prune`: the whole way from a network to a smaller one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import nn

from epruner.cluster import threads
from epruner.pruning.errors import BudgetWarning, TraceError
from epruner.pruning.graph.costs import eval_mode
from epruner.pruning.graph.groups import Group, Skipped, analyse
from epruner.pruning.graph.prunable import (
    by_layer,
    candidates,
    chosen,
    in_order,
    layer_names,
    nothing,
)
from epruner.pruning.graph.trial import make_plan, sound_groups
from epruner.pruning.network.copies import tracing_copy
from epruner.pruning.network.inputs import (
    Arguments,
    as_arguments,
    as_patterns,
    check_model,
    in_float32,
)
from epruner.pruning.options import Goal, check_choice, check_min_keep, label_of, set_goal
from epruner.pruning.plan.apply import BN_MODES, INITS, apply_plan
from epruner.pruning.repair.calibration import calibration_inputs
from epruner.pruning.repair.repair import check_compensation, repair_network
from epruner.pruning.report.progress import Stages
from epruner.pruning.report.report import Report
from epruner.pruning.result import PruningResult, layer_clusters, layer_reports, totals_of
from epruner.pruning.select.allocation import Choice, Counts, Measure, Search, Sizes
from epruner.pruning.select.elimination import Elimination, by_elimination, eliminations
from epruner.pruning.select.features import DESCRIPTORS, Descriptor, describe
from epruner.pruning.select.importance import CRITERIA, Criterion, Indices, checked
from epruner.pruning.select.problems import Clusterings, Layer, cluster, make_layers
from epruner.pruning.select.recipes import Recipe, published


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    beta: float | Mapping[str, float] | None = None,
    macs: float | None = None,
    params: float | None = None,
    measure: Callable[[nn.Module], float] | None = None,
    target: float | None = None,
    keep: Mapping[str, int | float] | None = None,
    recipe: str | Recipe | None = None,
    layers: Iterable[str | nn.Module] | None = None,
    ignore: Iterable[str | nn.Module] = (),
    scope: str = "inner",
    widths: str = "exemplar",
    criterion: str | Criterion = "exemplar",
    descriptor: str | Descriptor = "weights",
    compensate: str | None = None,
    calibrate: Any = None,
    min_keep: int | float | None = None,
    round_to: int = 1,
    init: str = "exemplar",
    bn: str = "slice",
    random_state: int = 0,
    n_threads: int | None = None,
    progress: bool = False,
) -> PruningResult:
    """Make a smaller network of the filters that exemplify the others.

    Needs no data. The filters of each layer are clustered by affinity propagation on their
    negative squared distances, with beta times the median similarity as preference; the exemplars
    stay [1]_. How many that are is set by beta, or searched so that the network meets a budget.

    Parameters
    ----------
    model : torch.nn.Module
        Never modified.
    example_inputs : Tensor, shape, tuple of arguments, or dict of keyword arguments
        Of the model's forward. Used to trace the network and to count, not to choose filters.
    beta : float or mapping of str to float, optional
        Larger prunes more. Default 0.73 if nothing else sets the sizes. A mapping goes from layer
        patterns to values; the last matching pattern counts, layers that match none stay whole.
    macs, params : float in (0, 1], optional
        Share of the multiply-adds or parameters of the whole network to get down to; beta is
        searched. Met within 1 %, from below, or a `BudgetWarning` says what was.
    measure, target : callable and float in (0, 1], optional
        Any other budget: a function from a network to a number, and the share of it to get down
        to. The function is called some fifty times.
    keep : mapping of str to int or float, optional
        Number of filters (int) or share of them (float) for layers that match a pattern; the last
        match counts. Alone it prunes only these layers; with a budget or `beta` the others too.
    recipe : str or Recipe, optional
        A published row, by name or from `epruner.recipes.published`: it sets `layers` and `beta`,
        and `min_keep` to 1 unless that is given.
    layers, ignore : iterable of str or torch.nn.Module
        Layers to prune (default: all that can be) and to leave alone, as names, names of parents,
        glob patterns or modules.
    scope : {"inner", "all"}
        "inner" prunes channels that one layer produces; "all" also channels that several layers
        add onto (residual streams), chosen by the filters of all of them side by side.
    widths : {"exemplar", "uniform", "reconstruction"}
        What sets the numbers under a budget: exemplars, the same share of every layer, or the
        least loss of reconstruction over all layers (needs `calibrate`).
    criterion : {"exemplar", "l1", "l2", "fpgm", "random", "reconstruction"} or callable
        Which filters stay once their number is set; "reconstruction" keeps those that the layers
        reading them can least do without (needs `calibrate`). A callable gets a layer's
        `epruner.pruning.select.importance.Candidates` and the number that stays, and returns their
        indices, ascending: ``criterion(candidates, count) -> ndarray of int, shape (count,)``, called
        once for each group of a grouped convolution.
    descriptor : {"weights", "folded", "activations"} or callable
        What filters are compared by: their weights, weights and bias with BatchNorm folded in,
        responses to the calibration inputs, or a function from a layer to a matrix with one row a
        filter.
    compensate : {"none", "merge", "batchnorm", "least_squares"}, optional
        Repair of the pruned network: add the outgoing weights of dropped filters to those of the
        most similar kept one (no data); estimate BatchNorm statistics anew; refit every layer by
        least squares. Default: least squares with `calibrate`, none without.
    calibrate : Tensor or iterable of tensors, tuples or dicts, optional
        A few hundred inputs, without labels, shaped like `example_inputs` but for the first size.
    min_keep : int, float or None
        At least so many (int) or this share (float) of the filters of a layer stay. Default: the
        larger of 1 and 5 %. One always stays.
    round_to : int
        Keep a multiple of this many filters where the layer has so many.
    init : {"exemplar", "random", "random_projection"}
        Weights of the small network: those of the filters that stay; drawn anew in every pruned
        layer; or with the inputs of the consumers from a sparse random projection of all of them.
    bn : {"slice", "reset"}
        Keep the rows of pruned BatchNorm layers, or start these layers anew.
    random_state : int
        Seed of everything that draws.
    n_threads : int, optional
        Of the clustering.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    PruningResult

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or value, options that exclude each other, patterns that
        match nothing, a model in which nothing can be pruned.
    TraceError
        The forward pass fails on `example_inputs`, or the model cannot be analysed.

    References
    ----------
    .. [1] Lin et al., "Network Pruning using Adaptive Exemplar Filters", arXiv 2101.07985.
    """
    check_model(model)
    arguments = as_arguments(model, example_inputs)
    found: Recipe | None = None
    if recipe is not None:
        if any(option is not None for option in (beta, macs, params, measure, keep, layers)):
            raise ValueError(
                "recipe sets layers and beta itself; give it without beta, macs, params, "
                "measure, keep and layers"
            )
        found = recipe if isinstance(recipe, Recipe) else published(recipe)
        beta = found.betas(model)
        layers = list(beta)
        min_keep = 1 if min_keep is None else min_keep
    wanted = None if layers is None else as_patterns(model, "layers", layers)
    unwanted = as_patterns(model, "ignore", ignore)
    goal = set_goal(beta, macs, params, measure, target, keep, widths)
    check_choice("scope", scope, ("inner", "all"))
    check_choice("widths", widths, ("exemplar", "uniform", "reconstruction"))
    check_choice("init", init, INITS)
    check_choice("bn", bn, BN_MODES)
    check_choice("criterion", criterion, (*CRITERIA, "reconstruction"), or_function=True)
    check_choice("descriptor", descriptor, DESCRIPTORS, or_function=True)
    needs = [f"criterion={criterion!r}"] * (criterion == "reconstruction")
    needs += [f"widths={widths!r}"] * (widths == "reconstruction")
    needs += [f"descriptor={descriptor!r}"] * (descriptor == "activations")
    repairs = check_compensation(
        compensate, calibrated=calibrate is not None, init=init, bn=bn, needs=needs
    )
    given = None if calibrate is None else calibration_inputs(model, calibrate, arguments)
    batches = () if given is None else given.fit
    check_min_keep(min_keep)
    threads.resolve(n_threads)
    if not isinstance(random_state, Integral) or random_state < 0:
        raise ValueError(f"random_state must be an integer of at least 0, got {random_state!r}")
    if type(round_to) is not int or round_to < 1:
        raise ValueError(f"round_to must be an integer of at least 1, got {round_to!r}")

    stages = Stages(progress)
    with stages.run("analysis"):
        traced, parametrized = tracing_copy(model)
        args, kwargs = in_float32(arguments[0]), in_float32(arguments[1])
        structure = analyse(traced, args, kwargs)
        groups, skipped = candidates(model, structure, parametrized, wanted, unwanted, scope)
    with stages.run("verification"):
        groups, unsound = sound_groups(traced, args, kwargs, groups, random_state)
        skipped += unsound
        if not groups:
            raise ValueError(nothing(skipped))
    notes: list[str] = []
    ranked: dict[str, Elimination] = {}
    with stages.run("similarities"):
        described = describe(descriptor, traced, groups, batches)
        if "reconstruction" in (criterion, widths):
            ranked, notes = eliminations(traced, groups, batches)
        if criterion == "reconstruction":
            choose = by_elimination(ranked)
        else:
            choose = CRITERIA[criterion] if isinstance(criterion, str) else checked(criterion)
        names = layer_names(model)
        betas = by_layer("beta", beta, names, groups) if isinstance(beta, Mapping) else {}
        fixed_at = by_layer("keep", keep or {}, names, groups)
        unnamed: list[Skipped] = []
        if goal.kind == "keep":
            groups, unnamed = chosen(groups, fixed_at, "keep")
        elif isinstance(beta, Mapping):
            groups, unnamed = chosen(groups, betas | fixed_at, "beta")
        skipped += unnamed
        modules = dict(traced.named_modules())
        problems, placed = make_layers(
            modules,
            groups,
            min_keep=min_keep,
            round_to=round_to,
            described=described,
            n_threads=n_threads,
        )
        notes += placed
    sizes = Sizes(structure.costs, groups)
    with stages.run("selection"):
        fixed = {x.name: _fixed_count(x, fixed_at[x.name]) for x in problems if x.name in fixed_at}
        search = Search(
            problems,
            fixed=fixed,
            errors={name: found.errors for name, found in ranked.items()},
            exemplars=choose is CRITERIA["exemplar"],
            seed=random_state,
            n_threads=n_threads,
        )

        def members(counts: Counts, clusterings: Mapping[str, Clusterings]) -> dict[str, Indices]:
            return {
                x.name: x.members(choose, clusterings.get(x.name), counts[x.name], random_state)
                for x in problems
            }

        if goal.kind in ("beta", "keep"):
            free = [x for x in problems if x.name not in fixed]
            at = {x.name: betas.get(x.name, goal.value) for x in free}
            clusterings = cluster(free, at, seed=random_state, n_threads=n_threads)
            counts = fixed | {x.name: x.fit(x.exemplar_count(clusterings[x.name])) for x in free}
            exact = search.exact([x for x in problems if x.name in fixed], counts)
            choice = Choice(counts, clusterings | exact, at)
        else:
            cost = _cost(goal, traced, sizes, groups)
            whole = cost({group.name: group.channels for group in groups})
            choice = search.meet(
                cost,
                goal.value * whole,
                widths=widths,
                proxy=lambda counts: sizes.totals(counts).macs,
                patience=5000 if goal.measure is None else 40,
            )
        kept = members(choice.counts, choice.clusterings)
    with stages.run("surgery"):
        plan = make_plan(groups, kept, init=init, bn=bn, seed=random_state)
        small = apply_plan(model, plan)
        _dry_run(small, arguments)
    with stages.run("repair"):
        small, repair, more = repair_network(repairs, model, small, plan, groups, kept, given)
    stages.close()
    notes = [*choice.notes, *notes, *more]
    for note in choice.notes:
        warnings.warn(BudgetWarning(note), stacklevel=2)
    after = totals_of(small, sizes.totals(choice.counts))
    settings: dict[str, Any] = {
        **goal.settings(),
        "keep": None if keep is None else dict(keep),
        "recipe": None if found is None else found.name,
        "layers": wanted if found is None else None,
        "ignore": unwanted or None,
        "scope": scope,
        "widths": widths,
        "criterion": label_of(criterion),
        "descriptor": label_of(descriptor),
        "compensate": repairs,
        "init": init,
        "bn": bn,
        "min_keep": min_keep,
        "round_to": round_to,
        "random_state": random_state,
    }
    report = Report(
        layers=layer_reports(model, structure, problems, choice, sizes),
        skipped=in_order(skipped, names),
        before=totals_of(model, structure.costs.totals()),
        after=after,
        settings=settings,
        notes=tuple(notes),
        repair=repair,
        seconds=stages.seconds,
    )
    clusters = {
        x.name: layer_clusters(x, choice.clusterings[x.name], kept[x.name])
        for x in problems
        if x.name in choice.clusterings
    }
    return PruningResult(small, plan, report, clusters, tuple(groups), kept)


def _fixed_count(layer: Layer, value: int | float) -> int:
    if isinstance(value, int) and value > layer.channels:
        raise ValueError(
            f"keep: {value} filters of {layer.name!r} asked for, which has {layer.channels}"
        )
    return layer.fit(value if isinstance(value, int) else value * layer.channels)


def _cost(
    goal: Goal,
    model: nn.Module,
    sizes: Sizes,
    groups: Sequence[Group],
) -> Measure:
    """The measure of a budget as a function of the numbers of filters."""
    if goal.kind == "macs":
        return lambda counts: sizes.totals(counts).macs
    if goal.kind == "params":
        return lambda counts: sizes.totals(counts).params
    function = goal.measure

    def measured(counts: Counts) -> float:
        # which filters stay is all the same to a size or a latency; how many is not
        kept = {
            g.name: np.concatenate(
                [
                    np.arange(counts[g.name] // g.blocks) + block * (g.channels // g.blocks)
                    for block in range(g.blocks)
                ]
            )
            for g in groups
        }
        small = apply_plan(model, make_plan(groups, kept))
        value = function(small)  # type: ignore[misc]
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"measure must return a finite number, got {value!r}")
        return float(value)

    return measured


def _dry_run(small: nn.Module, arguments: Arguments) -> None:
    with eval_mode(small), torch.no_grad():
        try:
            small(*arguments[0], **arguments[1])
        except Exception as error:
            raise TraceError(
                f"the pruned network does not run on example_inputs ({error}); please report this "
                "with the model's class"
            ) from error
