"""`prune`: the whole way from a network to a smaller one; and its last station, `repair`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from epruner.pruning.analysis import Analysis, analysed
from epruner.pruning.data.calibration import with_example
from epruner.pruning.data.evidence import Evidence, gather, kind_of
from epruner.pruning.errors import BudgetWarning, RepairWarning, TraceError
from epruner.pruning.graph.costs import eval_mode
from epruner.pruning.graph.groups import Group
from epruner.pruning.network.copies import (
    compiled_parts,
    deep_copy,
    has_halves,
    uncompiled,
    working_copy,
)
from epruner.pruning.network.inputs import Arguments, as_arguments, check_model, in_float32
from epruner.pruning.network.outputs import output_error, outputs
from epruner.pruning.network.ranks import ranks_of, weights_of
from epruner.pruning.network.tree import tensors_in
from epruner.pruning.options import (
    REPAIRS,
    Budget,
    Constraints,
    Method,
    check_choice,
    make_request,
    resolve,
)
from epruner.pruning.plan.apply import counterpart
from epruner.pruning.plan.plan import Plan
from epruner.pruning.repair.repair import distilled, repair_network
from epruner.pruning.report.progress import Stages
from epruner.pruning.report.records import Repair
from epruner.pruning.report.report import Report
from epruner.pruning.result import PruningResult, layer_clusters, layer_reports, totals_of
from epruner.pruning.select.allocation import Sizes
from epruner.pruning.select.fisher import Loss
from epruner.pruning.select.recipes import Recipe
from epruner.pruning.training.distill import RATE, Augment, varied

if TYPE_CHECKING:
    import torch.distributed as dist


def prune(
    model: nn.Module,
    inputs: Any,
    *,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    beta: float | Mapping[str, float] | None = None,
    budget: Budget | None = None,
    recipe: str | Recipe | None = None,
    calibrate: Any = None,
    group: dist.ProcessGroup | None = None,
    method: str | Method = "auto",
    loss: Loss | None = None,
    repair: str | None = None,
    constraints: Constraints | None = None,
    layers: Iterable[str | nn.Module] | None = None,
    ignore: Iterable[str | nn.Module] = (),
    scope: str = "inner",
    random_state: int = 0,
    n_threads: int | None = None,
    progress: bool = False,
) -> PruningResult:
    """Make a smaller network of the filters that matter.

    Needs no data, and does better with a few hundred unlabelled inputs. The same in steps:
    `analyse`, its `select`, `Plan.apply` and `repair`.

    Parameters
    ----------
    model : torch.nn.Module
        Never modified. Where parts of it come from `torch.compile`, what comes back is as before
        that.
    inputs : Tensor, shape, tuple of arguments, dict of keyword arguments, or Analysis
        Of the model's forward. Used to trace the network and to count, not to choose filters. Or
        what `analyse` made of the model as it is now, to analyse it once for several prunings.
    macs, params : float in (0, 1], optional
        Share of the multiply-adds or parameters of the whole network to get down to. Met within
        1 %, from below, or a `BudgetWarning` says what was.
    latency : float in (0, 1], optional
        Share of the whole network's time to get down to, for `inputs` as they are (the batch, too),
        where the model is. What its layers take is measured at a few widths; the result is timed
        against the whole network, in turn, and the search repeated until it is within 3 %, three
        times at most. Beyond 5 % a `BudgetWarning` says what was met. Two runs on one machine
        choose differently; the plan is what repeats a result.
    beta : float or mapping of str to float, optional
        The published rule: filters are clustered by affinity propagation on their negative squared
        distances with beta times the median similarity as preference, and the exemplars stay [1]_.
        Larger prunes more. A mapping goes from layer patterns to values; the last matching pattern
        counts, layers that match none stay whole.
    budget : Budget, optional
        Any other cost, e.g. ``Budget(bytes_of, 0.5)`` or the time on another run-time.
    recipe : str or Recipe, optional
        A published row, by name or from `epruner.recipes.published`: it sets `layers` and `beta`,
        and at least one filter a layer unless `constraints` are given.
    calibrate : Tensor, iterable of tensors, tuples or dicts, "noise" or "synthetic", optional
        What filters are chosen and repaired by: a few hundred inputs, without labels, shaped like
        `inputs` but for the first size (a label that follows the inputs of a batch is looked at by
        "fisher" only); noise of natural statistics; or inputs made to match what BatchNorm layers
        remember (see `synthesise`; takes minutes). A part is held back, to judge
        what is learnt from the others. Default: noise, if the network has BatchNorm that was
        trained or other layers that normalise; else nothing.
    group : torch.distributed.ProcessGroup, optional
        Whose ranks share the work on the inputs: each calls this with the same arguments but for
        `calibrate`, its own part of the inputs, of any length (an empty list, too). All return what
        one process returns that is given all parts, to rounding; what is timed is timed on rank 0,
        which alone shows progress. Synthetic inputs and distillation draw other random numbers.
    method : str or Method
        "auto" (the best known), "reconstruction", "exemplar" (exemplars of what the readers of a
        filter lose), "paper" (exemplars of weights, without repair), "l1", "l2", "fpgm", "random",
        "fisher" (the gradient of a loss: `calibrate` has to give labels), or a `Method`.
    loss : callable, optional
        For "fisher": from what the network puts out and the labels of a batch to the mean over its
        inputs. Default: cross-entropy of scores (n, classes).
    repair : {"auto", "none", "merge", "batchnorm", "least_squares", "distill"}, optional
        Instead of the method's last part.
    constraints : Constraints, optional
        Least number of filters of a layer, multiples, given numbers.
    layers, ignore : iterable of str or torch.nn.Module
        Layers to prune (default: all that can be) and to leave alone, as names, names of parents,
        glob patterns or modules.
    scope : {"inner", "all", "blocks"}
        "inner" prunes channels that one layer produces; "all" also channels that several layers
        add onto (residual streams), chosen by the filters of all of them side by side, and, where
        there are inputs to repair with, those over which a LayerNorm or the like is taken: an
        approximation, and the report's notes name the norms. "blocks" prunes as "inner" does, and
        residual blocks go as a whole where that saves more for what is lost, which it does in time,
        hardly ever in multiply-adds: with `latency` or `macs`, and `calibrate` inputs to repair by.
    random_state : int
        Seed of everything that draws.
    n_threads : int, optional
        Of the clustering.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    PruningResult
        The smaller network, its plan and a report.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or value, none or several that say how much, patterns that
        match nothing, a model in which nothing can be pruned.
    TraceError
        The forward pass fails on `inputs`, or the model cannot be analysed.
    RankError
        A rank was lost.

    Warns
    -----
    BudgetWarning
        The budget could not be met; the message says what was.
    RepairWarning
        A repair was left off or rests on too little data.

    References
    ----------
    .. [1] Lin et al., "Network Pruning using Adaptive Exemplar Filters", arXiv 2101.07985.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> result = epruner.prune(model, (1, 8), macs=0.5)
    >>> result.model
    Sequential(
      (0): Linear(in_features=8, out_features=16, bias=True)
      (1): ReLU()
      (2): Linear(in_features=16, out_features=4, bias=True)
    )
    """
    ranks = ranks_of(group)
    with ranks.agree():
        check_model(model)
        kind = kind_of(model, calibrate)
        request = make_request(
            model,
            macs=macs,
            params=params,
            latency=latency,
            beta=beta,
            budget=budget,
            recipe=recipe,
            method=method,
            repair=repair,
            evidence=kind,
            constraints=constraints,
            layers=layers,
            ignore=ignore,
            scope=scope,
            random_state=random_state,
            n_threads=n_threads,
            loss=loss,
        )
        if scope == "blocks" and request.method.repair not in ("least_squares", "distill"):
            raise ValueError(
                "scope='blocks' needs repair='least_squares' or 'distill', got "
                f"{request.method.repair!r}: what a block adds has to be made good"
            )
        arguments = _arguments(model, inputs)
    ranks.require_same(
        {"model's weights": weights_of(model), "inputs": tensors_in(arguments)},
        calibrate=kind,
        **request.settings(),
    )
    undone = [
        f"torch.compile is undone around {name or 'the model'}; compile what comes back"
        for name in compiled_parts(model)
    ]
    model = uncompiled(model)
    with ranks.together(), closing(Stages(progress and ranks.rank == 0)) as stages:
        show = partial(
            gather,
            labelled=request.method.needs_labels(),
            seed=request.random_state,
            stages=stages,
            ranks=ranks,
        )
        evidence = None
        if kind == "inputs":  # before anything that takes time
            evidence = show(kind, model, calibrate, arguments)
        net = analysed(model, inputs, stages)
        if evidence is None:
            evidence = show(request.evidence, model, calibrate, net.arguments)
        if evidence.kind == "none" != request.evidence:
            request = request.without_evidence(method, repair)
        made = []
        for chosen in net.choose(request, evidence, stages, ranks):
            with stages.run("surgery"):
                small = chosen.plan.apply(model)
                _dry_run(small, net.arguments)
            with stages.run("repair"):
                small, repaired, more = repair_network(
                    request.method.repair,
                    model,
                    small,
                    chosen.plan,
                    chosen.groups,
                    evidence,
                    seed=request.random_state,
                    stages=stages,
                )
            made.append((chosen, small, repaired, more))
        if len(made) > 1:
            made.sort(key=lambda x: (bool(x[0].choice.notes), _error(model, x[1], evidence)))
        chosen, small, repaired, more = made[0]
    choice = chosen.choice
    for note in choice.notes:
        warnings.warn(BudgetWarning(note), stacklevel=2)
    sizes = Sizes(net.costs, chosen.groups, chosen.plan.passed)
    report = Report(
        layers=layer_reports(counterpart(model), net.costs, chosen.layers, choice, sizes),
        skipped=chosen.skipped,
        before=totals_of(model, net.costs.totals()),
        after=totals_of(small, sizes.totals(choice.counts)),
        settings=request.settings(),
        notes=(*undone, *evidence.notes, *choice.notes, *chosen.notes, *more),
        repair=repaired,
        timing=chosen.timing,
        seconds=stages.seconds,
        passed=chosen.plan.passed,
    )
    clusters = {
        x.name: layer_clusters(x, choice.clusterings[x.name], chosen.kept[x.name])
        for x in chosen.layers
        if x.name in choice.clusterings
    }
    return PruningResult(small, chosen.plan, report, clusters, chosen.groups, chosen.kept)


def repair(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    *,
    calibrate: Any = None,
    group: dist.ProcessGroup | None = None,
    repair: str = "auto",
    inputs: Any = None,
    random_state: int = 0,
    progress: bool = False,
) -> tuple[nn.Module, Repair | None]:
    """Let the layers of a pruned network learn to do without what went.

    Parameters
    ----------
    model, small : torch.nn.Module
        The original, and what `plan` makes of it; neither is modified.
    plan : Plan
        What stayed, as ``PruningResult.plan`` and ``Analysis.select`` have it.
    calibrate, group : as for `prune`, optional
        What is learnt from, and with whom.
    repair : {"auto", "none", "merge", "batchnorm", "least_squares", "distill"}
        See `Method`.
    inputs : as for `prune`, optional
        Example inputs, or an `Analysis`. Needed where calibration inputs do not tell how the model
        is called: there are none, it has arguments that are no tensors, or dicts name them
        otherwise.
    random_state : int
        Seed of everything that draws.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    model : torch.nn.Module
        A repaired copy of `small`.
    repair : Repair or None
        What was done, if it was learnt from inputs, given or made up.

    Raises
    ------
    TypeError, ValueError
        Among others where `small` is not what `plan` makes of `model`.
    RankError
        A rank was lost.

    Warns
    -----
    RepairWarning
        It was left off, or rests on too little data.

    Examples
    --------
    >>> import epruner, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> plan = epruner.analyse(model, (1, 8)).select(macs=0.5)
    >>> inputs = torch.randn(256, 8)
    >>> small, done = epruner.repair(model, plan.apply(model), plan, calibrate=inputs)
    >>> done.after < done.before  # errors of the outputs, on inputs that were held back
    True
    """
    ranks = ranks_of(group)
    with ranks.agree():
        _check_station(model, small, plan)
        model, small = uncompiled(model), uncompiled(small)
        check_choice("repair", repair, ("auto", *REPAIRS))
        kind = kind_of(model, calibrate)
        if kind == "inputs" and inputs is None:
            calibrate, inputs = with_example(model, calibrate)
        elif repair != "none" and inputs is None:
            raise ValueError("without calibration inputs repair needs inputs=, as given to analyse")
        asked, _ = resolve("l1", repair, evidence=kind, exemplars=False)
        arguments = ((), {}) if inputs is None else _arguments(model, inputs)
    ranks.require_same(
        {"model's weights": weights_of(model), "small's weights": weights_of(small)},
        calibrate=kind,
        repair=asked.repair,
        random_state=random_state,
    )
    groups: tuple[Group, ...] = ()
    shown = progress and ranks.rank == 0
    with ranks.together(), closing(Stages(shown, ("inputs", "repair"))) as stages:
        needed = kind if asked.needs_evidence() else "none"
        evidence = gather(
            needed, model, calibrate, arguments, seed=random_state, stages=stages, ranks=ranks
        )
        if evidence.kind == "none" != needed:
            asked, _ = resolve("l1", repair, evidence="none", exemplars=False)
        if asked.repair == "merge":
            groups = analysed(model, inputs, stages).groups
        small, done, notes = repair_network(
            asked.repair,
            model,
            deep_copy(small),
            plan,
            groups,
            evidence,
            seed=random_state,
            stages=stages,
        )
    if asked.repair == "merge":  # the others say it in their record, or have warned
        for note in notes:
            warnings.warn(RepairWarning(note), stacklevel=2)
    return small, done


def distill(
    model: nn.Module,
    small: nn.Module,
    calibrate: Any,
    *,
    inputs: Any = None,
    steps: int | None = None,
    lr: float = RATE,
    augment: Augment = varied,
    random_state: int = 0,
    progress: bool = False,
    group: dist.ProcessGroup | None = None,
) -> tuple[nn.Module, Repair | None]:
    """Let a smaller network learn to answer as the original does, without labels.

    Learned are the original's outputs and its features along the network; inputs held back decide
    which of the networks on the way is returned. ``repair="distill"`` does it after least squares.

    Parameters
    ----------
    model, small : torch.nn.Module
        The original and a smaller one with the same inputs and outputs; neither is modified. On
        the device to train on.
    calibrate : Tensor, iterable of tensors, tuples or dicts, or "synthetic"
        Inputs without labels, the more the better.
    inputs : as for `prune`, optional
        Example inputs, as for `repair`.
    steps : int, optional
        Of 64 inputs. Default: 150, and 5 times the root of the number of inputs that are learned
        from.
    lr : float
        The highest of AdamW's one-cycle schedule.
    augment : callable
        From the list of tensors of a batch and a `torch.Generator` to those that are learned from.
        Default: images are mirrored, shifted and mixed in pairs, other inputs are left as they are.
    random_state : int
        Seed of everything that draws.
    progress : bool
        Show a progress bar on standard error.
    group : torch.distributed.ProcessGroup, optional
        As for `prune`. Steps are of 64 inputs of all ranks together, as many from each, and the
        same network comes back on all.

    Returns
    -------
    model : torch.nn.Module
        A copy of `small`.
    repair : Repair or None
        None if nothing was gained.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or value, or no inputs. Over ranks also where networks or
        options differ; what is wrong on one is raised on all.
    RankError
        A rank was lost.

    Warns
    -----
    RepairWarning
        No step brought the outputs nearer, and `small` was returned as it was.

    Examples
    --------
    >>> import epruner, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> result = epruner.prune(model, (1, 8), macs=0.5)
    >>> small, done = epruner.distill(model, result.model, torch.randn(256, 8), steps=20)
    >>> done.steps, done.after < done.before
    (20, True)
    """
    ranks = ranks_of(group)
    with ranks.agree():
        check_model(model)
        if not isinstance(small, nn.Module):
            raise TypeError(f"small must be a torch.nn.Module, got {type(small).__name__}")
        if steps is not None and (type(steps) is not int or steps < 1):
            raise ValueError(f"steps must be a positive integer, got {steps!r}")
        model, small = uncompiled(model), uncompiled(small)
        kind = kind_of(model, calibrate)
        if calibrate is None or kind == "noise":
            raise ValueError("distill needs calibrate: inputs without labels, or 'synthetic'")
        if inputs is None:
            if kind != "inputs":
                raise ValueError("without calibration inputs distill needs inputs=, as for prune")
            calibrate, inputs = with_example(model, calibrate)
        arguments = _arguments(model, inputs)
    ranks.require_same(
        {"model's weights": weights_of(model), "small's weights": weights_of(small)},
        calibrate=kind,
        steps=steps,
        lr=lr,
        random_state=random_state,
    )
    shown = progress and ranks.rank == 0
    with ranks.together(), closing(Stages(shown, ("inputs", "repair"))) as stages:
        evidence = gather(
            kind, model, calibrate, arguments, seed=random_state, stages=stages, ranks=ranks
        )
        with stages.run("repair"):
            trained, done, _ = distilled(
                model, small, None, [], evidence, random_state, stages,
                steps=steps, lr=lr, augment=augment,
            )  # fmt: skip
    return trained, done


def _arguments(model: nn.Module, inputs: Any) -> Arguments:
    return inputs.arguments if isinstance(inputs, Analysis) else as_arguments(model, inputs)


def _check_station(model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Refuse a plan and networks that do not belong together."""
    check_model(model)
    if not isinstance(small, nn.Module):
        raise TypeError(
            "small must be a torch.nn.Module, what plan.apply(model) gives, got "
            f"{type(small).__name__}"
        )
    if not isinstance(plan, Plan):
        raise TypeError(f"plan must be an epruner.Plan, got {type(plan).__name__}")
    found = {name: tuple(tensor.shape) for name, tensor in uncompiled(small).named_parameters()}
    for name, tensor in plan.apply(model).named_parameters():
        if found.get(name) != (shape := tuple(tensor.shape)):
            raise ValueError(
                f"small is not what plan makes of model: {name!r} has shape {found.get(name)}, by "
                f"the plan {shape}; give plan.apply(model)"
            )


def _error(model: nn.Module, small: nn.Module, evidence: Evidence) -> float:
    """Squared error of the outputs over their variance, on inputs that were held back."""
    unseen = evidence.calibration.unseen
    with unseen.ranks.agree():
        got, expected = (outputs(working_copy(network), unseen) for network in (small, model))
    return output_error(got, expected, unseen)


def _dry_run(small: nn.Module, arguments: Arguments) -> None:
    args, kwargs = (in_float32(part) for part in arguments)
    precise = working_copy(small) if has_halves(small) else small  # as in the analysis
    with eval_mode(precise), torch.no_grad():
        try:
            precise(*args, **kwargs)
        except Exception as error:
            raise TraceError(
                f"the pruned network does not run on its example inputs ({error}); please report "
                "this with the model's class"
            ) from error
