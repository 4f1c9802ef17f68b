"""One function per command. torch is imported when a command needs it, not before."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epruner.cli import options

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import nn

    from epruner.cli.images import Images
    from epruner.pruning.result import PruningResult


Command = Callable[[argparse.Namespace], None]
Cell = tuple[tuple[str, Any], str, str | None]  # how much to prune, method, repair


def _on_torch(command: Command) -> Command:
    """Run a command on as many of torch's threads as it is given; say so where torch is missing."""

    @wraps(command)
    def run(args: argparse.Namespace) -> None:
        from epruner.pruning.threads import torch_threads

        with torch_threads(getattr(args, "threads", None)):
            command(args)

    return run


def _over_ranks(
    timeout: timedelta | None = None,
) -> Callable[[Callable[[argparse.Namespace, dist.ProcessGroup | None], None]], Command]:
    """Run a command in every process that torchrun has started, as one group."""

    def grouped(command: Callable[[argparse.Namespace, dist.ProcessGroup | None], None]) -> Command:
        @wraps(command)
        def run(args: argparse.Namespace) -> None:
            from epruner.distributed.launch import launched

            with launched(timeout) as group:
                command(args, group)

        return run

    return grouped


@_over_ranks()
def cluster(args: argparse.Namespace, group: dist.ProcessGroup | None) -> None:
    """Cluster points by affinity propagation; each cluster has an exemplar among them."""
    from epruner._files import check_target
    from epruner.cli import clusters
    from epruner.cli.points import read

    targets = {}
    for path in filter(None, (args.out, args.exemplars)):  # before the minutes of work
        clusters.check_format(path)
        targets[path] = check_target(path, overwrite=args.force)
    _check_pictures(args, args.plot)
    _check_apart([args.out, args.exemplars, args.plot], [args.file])
    points = read(
        args.file, key=args.key, columns=args.column, id_column=args.id, header=args.header
    )
    if args.plot and (args.similarities or not points.drawable):
        raise ValueError("--plot draws points by their features: two or more, and not sparse")
    if args.n_neighbors is not None and args.affinity != "nearest_neighbors":
        raise ValueError("--n-neighbors goes with --affinity nearest_neighbors")
    table = {**options.SIMILARITY, **options.GRANULARITY, **options.ITERATION}
    settings = _given(args, table) | {"random_state": args.seed, "n_threads": args.threads}
    settings["preference_quantile"] = settings.pop("quantile", None)
    kept = _given(args, ("checkpoint", "checkpoint_every"))
    if kept and group is None:
        raise ValueError("--checkpoint is for several processes: start epruner with torchrun")
    how: dict[str, Any] = {
        "similarities": args.similarities,
        "verbose": sys.stderr.isatty() and not args.json,
    }
    if group is None:
        found = clusters.fit(points, settings=settings, **how)
    else:
        of_all = clusters.fit_over_ranks(points, group, settings=settings | kept, **how)
        if of_all is None:
            return
        found = of_all
    if args.out:
        clusters.write_labels(found, targets[args.out])
    if args.exemplars:
        clusters.write_exemplars(found, targets[args.exemplars])
    if args.plot:
        from epruner import _pictures
        from epruner.plots import plot_clusters

        figure = _pictures.new_figure(6.4, 5.6)
        plot_clusters(found.model, points.values, ax=figure.subplots())
        _pictures.save(figure, args.plot)
    if args.json:
        _print_json(found.to_dict())
        return
    print(found)
    for path in filter(None, (args.out, args.exemplars, args.plot)):
        print(f"wrote {path} ({_bytes(Path(path).stat().st_size)})")


@_on_torch
def prune(args: argparse.Namespace) -> None:
    """Prune a trained network and write the smaller one."""
    from epruner._files import check_target
    from epruner.pruning.io.checkpoint import save

    target = check_target(args.out, overwrite=args.force)  # before the minutes of work
    pictures = [args.plot, *(path for _, path in args.plot_layer)]
    _check_pictures(args, *pictures)
    if args.html:
        check_target(args.html, overwrite=args.force)
    _check_apart([args.out, args.html, *pictures], [args.weights])
    model, inputs = _network(args)
    budget: dict[str, Any] = {}
    for name in options.COST:
        if getattr(args, name) is not None:
            budget |= cost_arguments(name, getattr(args, name))
    if not budget and not args.n_filters:
        raise ValueError(
            "how much should go? Give --macs, --params, --latency, --beta, --recipe or --n-filters"
        )
    shown = sys.stderr.isatty() and not args.json
    result = _prune(args, model, inputs, args.method, args.repair, budget, progress=shown)
    if args.plot_layer and not result.clusters:
        raise ValueError("--plot-layer draws clusters of filters, as --method exemplar makes them")
    for layer, _ in args.plot_layer:
        result.clusters_of(layer)  # raise before anything is written
    save(result, target)
    size = target.stat().st_size
    if args.plot:
        result.report.plot(args.plot)
    if args.html:
        result.report.to_html(args.html, title=f"{args.model}, pruned")
    for layer, path in args.plot_layer:
        result.plot_layer(layer, path)
    if args.json:
        _print_json(result.report.to_dict() | {"out": args.out, "bytes": size})
    else:
        print(f"{args.model}, weights: {args.weights or 'as the factory gives them'}\n")
        print(result.report)
        print(f"\nwrote {args.out} ({_bytes(size)})")


@_on_torch
@_over_ranks(timedelta(days=7))  # some have more to do than others, and all wait at the end
def compare(args: argparse.Namespace, group: dist.ProcessGroup | None) -> None:
    """Prune by several budgets and methods and print them side by side."""
    from epruner._tables import Table, amount, change, percent
    from epruner.pruning.network.ranks import ranks_of
    from epruner.pruning.report.report import Report

    ranks = ranks_of(group)
    budgets = [(name, value) for name in options.COST for value in getattr(args, name)]
    if not budgets:
        raise ValueError(
            "nothing to compare: give --beta, --macs, --params, --latency or --recipe values"
        )
    if args.latency and max(args.jobs, ranks.size) > 1:
        raise ValueError(
            "--latency is measured, and processes beside each other would disturb that: leave out "
            "--jobs and torchrun"
        )
    cells = [None, *product(budgets, args.method or ["auto"], args.repair or [None])]
    with ranks.agree():
        own = _side_by_side(args, cells[ranks.rank :: ranks.size], shown=ranks.rank == 0)
    shares = [json.loads(text) for text in ranks.gather_text(json.dumps(own))]
    if ranks.rank:
        return
    whole, *documents = [shares[i % ranks.size][i // ranks.size] for i in range(len(cells))]
    if args.json:
        _print_json({"accuracy": whole["accuracy"], "runs": documents})
        return
    runs = [
        (
            document["budget"],
            document["method"],
            document["settings"]["method"]["repair"],
            document["accuracy"],
            Report.from_dict(document),
        )
        for document in documents
    ]
    rows = []
    for budget, method, repair, accuracy, report in runs:
        old, new = report.before, report.after
        before = sum(layer.before for layer in report.layers)
        after = sum(layer.after for layer in report.layers)
        rows.append(
            (
                budget,
                method,
                repair,
                "-" if accuracy is None else percent(accuracy),
                percent(after / before if before else 1.0),
                str(sum(layer.floor for layer in report.layers)),
                amount(new.macs),
                change(old.macs, new.macs),
                amount(new.params),
                change(old.params, new.params),
                f"{sum(report.seconds.values()):.2f}",
            )
        )
    header = (
        "budget", "method", "repair", "accuracy", "filters", "floors",
        "MACs", "", "params", "", "seconds",
    )  # fmt: skip
    print(Table(header, rows, left=frozenset({0, 1, 2})).to_text())
    if whole["accuracy"] is not None:
        print(f"accuracy of the whole network: {percent(whole['accuracy'])}")
    for budget, method, repair, _, report in runs:
        for note in report.notes:
            print(f"{budget}, {method}, {repair}: {note}")


def _side_by_side(
    args: argparse.Namespace, cells: Sequence[Cell | None], *, shown: bool
) -> list[dict[str, Any]]:
    """What comes of cells, one after the other in this process or in `args.jobs` others."""
    if args.jobs == 1:
        return _cells(args, cells, shown=shown and sys.stderr.isatty() and not args.json)
    from joblib import Parallel, delayed, parallel_backend

    from epruner.cluster.resources import effective_n_threads

    threads = args.threads or max(1, effective_n_threads(None) // args.jobs)
    job = argparse.Namespace(**vars(args) | {"threads": threads})
    with parallel_backend("loky", inner_max_num_threads=threads):
        parts = Parallel(args.jobs)(delayed(_cell_of_job)(job, cell) for cell in cells)
    return [document for part in parts for document in part]


def _cell_of_job(args: argparse.Namespace, cell: Cell | None) -> list[dict[str, Any]]:
    from epruner.cli import show_warning
    from epruner.pruning.threads import torch_threads

    with warnings.catch_warnings(), torch_threads(args.threads):
        warnings.showwarning = show_warning
        return _cells(args, [cell], shown=False)


def _cells(
    args: argparse.Namespace, cells: Sequence[Cell | None], *, shown: bool
) -> list[dict[str, Any]]:
    """The report of every pruning, and its accuracy; of None that of the whole network."""
    from epruner.cli.images import InOrder
    from epruner.pruning.analysis import analyse
    from epruner.pruning.errors import TraceError
    from epruner.pruning.training.finetune import evaluate

    model, inputs = _network(args)
    try:
        net = analyse(model, inputs)
    except TraceError as error:
        raise ValueError(str(error)) from error
    test = None if args.labelled is None else InOrder(_images(args, args.labelled))
    documents: list[dict[str, Any]] = []
    for cell in cells:
        found: dict[str, Any] = {}
        small, report = model, {}
        if cell is not None:
            (name, value), method, repair = cell
            budget = cost_arguments(name, value)
            result = _prune(args, model, net, method, repair, budget, progress=shown)
            found = {"budget": f"{name} {value}", "method": method}
            small, report = result.model, result.report.to_dict()
        found["accuracy"] = None if test is None else evaluate(small, test)
        documents.append(found | report)
    return documents


@_on_torch
@_over_ranks()
def finetune(args: argparse.Namespace, group: dist.ProcessGroup | None) -> None:
    """Train a pruned network on, on labelled images."""
    from epruner._files import check_target
    from epruner.cli.images import InOrder, Shuffled
    from epruner.cli.network import build_model, fresh_model
    from epruner.pruning.io.checkpoint import load, save
    from epruner.pruning.io.checkpoint import read as read_file
    from epruner.pruning.network.ranks import ranks_of
    from epruner.pruning.training.finetune import evaluate
    from epruner.pruning.training.finetune import finetune as train

    target = check_target(args.out, overwrite=args.force)
    _check_apart([args.out, args.checkpoint], [args.weights])
    distillation: dict[str, Any] = {}
    if args.distill is not None:
        distillation = {"teacher": build_model(args), "distill": args.distill}
    elif args.weights is not None:
        raise ValueError("--weights are those of the network to learn from; give --distill, too")
    saved = read_file(args.file)
    model = load(fresh_model(args), args.file).to(args.device)
    ranks = ranks_of(group)
    part = slice(ranks.rank, None, ranks.size)
    loader = Shuffled(_images(args, args.train), args.batch, args.seed, part)
    test = None if args.labelled is None else InOrder(_images(args, args.labelled), part)
    before = None if test is None else evaluate(model, test, ranks)
    history = train(
        model,
        loader,
        epochs=args.epochs,
        optimizer=args.optimizer,
        schedule=args.schedule,
        lr=args.lr,
        label_smoothing=args.label_smoothing,
        **distillation,
        eval_loader=test,
        checkpoint=args.checkpoint,
        progress=sys.stderr.isatty() and not args.json,
        group=group,
    )
    if ranks.rank:
        return
    save((model.cpu().eval(), saved.plan), target)
    if args.json:
        epochs = [
            {"epoch": epoch.epoch, "loss": epoch.loss, "accuracy": epoch.accuracy}
            for epoch in history
        ]
        _print_json({"out": args.out, "before": before, "epochs": epochs})
        return
    if before is not None:
        print(f"before: accuracy {100 * before:.1f} %")
    for epoch in history:
        got = "" if epoch.accuracy is None else f", accuracy {100 * epoch.accuracy:.1f} %"
        print(f"epoch {epoch.epoch}: loss {epoch.loss:.4f}{got}")
    print(f"wrote {args.out} ({_bytes(target.stat().st_size)})")


@_on_torch
def export(args: argparse.Namespace) -> None:
    """Convert a saved file for other run-times: ONNX or torch.export."""
    from epruner._files import check_target
    from epruner.pruning.io.checkpoint import load

    if not args.onnx and not args.pt2:
        raise ValueError("nothing to write: give --onnx FILE, --pt2 FILE or both")
    for target in filter(None, (args.onnx, args.pt2)):
        check_target(target, overwrite=args.force)
    _check_apart([args.onnx, args.pt2], [args.file])
    from epruner.cli.network import fresh_model, make_inputs
    from epruner.pruning.io.export import export_onnx, export_program

    model = load(fresh_model(args), args.file)
    inputs = make_inputs(args)
    written = {}
    for kind, target, write in (
        ("onnx", args.onnx, export_onnx),
        ("pt2", args.pt2, export_program),
    ):
        if target:
            any_batch = write(model, inputs, target)
            size = Path(target).stat().st_size
            written[kind] = {"file": target, "bytes": size, "any_batch": any_batch}
            if not args.json:
                batch = "any batch size" if any_batch else "the batch size of --input-shape only"
                print(f"wrote {target} ({_bytes(size)}; {batch})")
    if args.json:
        _print_json(written)


@_on_torch
def inspect(args: argparse.Namespace) -> None:
    """Print what a saved file holds, without its network's code."""
    from epruner._files import check_target
    from epruner.pruning.io.checkpoint import read

    _check_pictures(args, args.plot)
    if args.html:
        check_target(args.html, overwrite=args.force)
    saved = read(args.file)
    if args.plot or args.html:
        if saved.report is None:
            raise ValueError(
                f"{args.file} holds no report to show: it was saved as (model, plan); only what "
                "prune returns has one"
            )
        if args.plot:
            saved.report.plot(args.plot)
        if args.html:
            saved.report.to_html(args.html, title=Path(args.file).name)
    if args.json:
        tensors = {
            name: {"shape": shape, "dtype": saved.dtypes[name]}
            for name, shape in saved.shapes.items()
        }
        _print_json(
            {
                "file": args.file,
                "bytes": saved.size,
                "tensors": tensors,
                "plan": json.loads(saved.plan.to_json()),
                "report": saved.report and saved.report.to_dict(),
            }
        )
        return
    dtypes = ", ".join(sorted(set(saved.dtypes.values())))
    print(f"{args.file}: {_bytes(saved.size)}, {len(saved.shapes)} tensors ({dtypes})")
    if saved.report is None:
        print(f"no report; {len(saved.plan.modules)} modules were resized\n")
        print(saved.plan)
        return
    settings = ", ".join(
        f"{key}={value}"
        for key, value in saved.report.settings.items()
        if value not in (None, {}) and key not in ("method", "why")
    )
    print(f"pruned with {settings}\n\n{saved.report}")


def demo(args: argparse.Namespace) -> None:
    """Cluster scikit-learn's digits, and prune a network that reads them: a minute, offline."""
    from epruner._demo import clustering
    from epruner._files import check_target

    target = check_target(args.out, overwrite=args.force) if args.out else None
    page = check_target(args.html, overwrite=args.force) if args.html else None
    if target is not None or page is not None:
        import_module("epruner.pruning")  # raises where something for it is missing
    say: Callable[[str], None] = (lambda _: None) if args.json else _say
    clustered = clustering.run(seed=args.seed, n_threads=args.threads, say=say)
    say(f"\n{clustered}\n")
    try:
        import_module("epruner.pruning")
    except ImportError as error:
        say(f"the other half of the demo prunes a network; {error}")
        pruned = None
    else:
        from epruner._demo import pruning
        from epruner.pruning.io.checkpoint import save

        pruned = pruning.run(seed=args.seed, n_threads=args.threads, say=say)
        say(f"\n{pruned}")
        if target is not None:
            save((pruned.model, pruned.plan), target)
            say(f"\nwrote {args.out} ({_bytes(target.stat().st_size)})")
        if page is not None:
            pruned.report.to_html(page, title="A network that reads digits, pruned")
            say(f"\nwrote {args.html}")
    if args.json:
        _print_json({"clustering": clustered.to_dict(), "pruning": pruned and pruned.to_dict()})


COMMANDS: Mapping[str, Command] = {
    "cluster": cluster,
    "prune": prune,
    "compare": compare,
    "inspect": inspect,
    "export": export,
    "finetune": finetune,
    "demo": demo,
}


def cost_arguments(name: str, value: Any) -> dict[str, Any]:
    """Keyword arguments of `epruner.prune` for one of the options that say how much."""
    if isinstance(value, list):
        by_pattern = dict(value)
        value = by_pattern["*"] if list(by_pattern) == ["*"] else by_pattern
    return {name: value}


def _network(args: argparse.Namespace) -> tuple[nn.Module, Any]:
    """The full-size network with its weights, and its example inputs."""
    from epruner.cli.network import build_model, make_inputs

    return build_model(args), make_inputs(args)


def _prune(
    args: argparse.Namespace,
    model: nn.Module,
    inputs: Any,
    method: str | None,
    repair: str | None,
    budget: Mapping[str, Any],
    *,
    progress: bool,
) -> PruningResult:
    from epruner.pruning.data.evidence import MADE_UP, kind_of
    from epruner.pruning.errors import TraceError
    from epruner.pruning.options import NEEDS_LABELS, Constraints, preset
    from epruner.pruning.pipeline import prune

    given: dict[str, Any] = {**budget, **_given(args, options.PRUNING)}
    if constraints := _given(args, options.CONSTRAINTS):
        constraints["n_filters"] = dict(constraints.get("n_filters", ()))
        given["constraints"] = Constraints(**constraints)
    chosen: Any = method or "auto"
    parts = _given(args, options.PARTS)
    if args.calibrate is not None:
        given["calibrate"] = args.calibrate
        if args.calibrate not in MADE_UP:
            images = _images(args, args.calibrate)
            order = images.spread(args.calibrate_images)
            labelled = NEEDS_LABELS in (chosen, *parts.values())
            given["calibrate"] = (
                list(images.batches(len(order), order)) if labelled else images.take(order)
            )
    if parts:
        exemplars = not {"beta", "recipe"}.isdisjoint(budget)
        evidence = kind_of(model, given.get("calibrate"))
        base, _ = preset(chosen, evidence=evidence, exemplars=exemplars)
        chosen = replace(base, **parts)
    try:
        return prune(
            model,
            inputs,
            method=chosen,
            repair=repair,
            random_state=args.seed,
            n_threads=args.threads,
            progress=progress,
            **given,
        )
    except TraceError as error:
        raise ValueError(str(error)) from error


def _given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Of these options those that were given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _images(args: argparse.Namespace, source: str) -> Images:
    """Images of the size that ``--input-shape`` names."""
    from epruner.cli.images import Images

    return Images(source, args.input_shape[0].sizes[1:], args.mean, args.std)


def _check_pictures(args: argparse.Namespace, *paths: str | None) -> None:
    """Raise before the work what writing the pictures would raise after it."""
    for path in filter(None, paths):
        from epruner._files import check_target
        from epruner._pictures import check_format

        check_target(path, overwrite=args.force)
        check_format(path)


def _check_apart(written: Sequence[str | None], read: Sequence[str | None]) -> None:
    """Refuse to write one file twice, or over a file that is read."""
    seen = {Path(path).resolve() for path in read if path}
    for path in filter(None, written):
        if (place := Path(path).resolve()) in seen:
            raise ValueError(f"{path} is named twice; every file that is written needs its own")
        seen.add(place)


def _print_json(document: Mapping[str, Any]) -> None:
    print(json.dumps(document, indent=2))


def _say(line: str) -> None:
    print(line, flush=True)


def _bytes(size: int) -> str:
    from epruner._tables import amount

    return f"{amount(size)}B" if size >= 1000 else f"{size} B"
