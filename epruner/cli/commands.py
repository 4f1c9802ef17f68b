"""One function per command. torch is imported when a command needs it, not before."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from epruner.cli import options

if TYPE_CHECKING:
    from epruner.prune.checkpoint import SavedFile


def prune(args: argparse.Namespace) -> None:
    """Prune a trained network and write the smaller one."""
    from epruner.cli.network import build_model, make_inputs
    from epruner.prune.checkpoint import check_target, save
    from epruner.prune.pruning import prune as prune_network

    target = check_target(args.out)  # before the minutes of work
    set_threads(args.threads)
    model = build_model(args)
    result = prune_network(
        model,
        make_inputs(args),
        random_state=args.seed,
        n_threads=args.threads,
        progress=sys.stderr.isatty(),
        **pruning_arguments(args),
    )
    save(result, target)
    size = target.stat().st_size
    if args.json:
        _print_json(result.report.to_dict() | {"out": args.out, "bytes": size})
    else:
        print(result.report)
        print(f"\nwrote {args.out} ({_bytes(size)})")


def inspect(args: argparse.Namespace) -> None:
    """Print what a saved file holds, without its network's code."""
    from epruner.prune.checkpoint import read

    saved = read(args.file)
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
        print(_plan_table(saved))
        return
    settings = ", ".join(f"{key}={value}" for key, value in saved.report.settings.items())
    print(f"pruned with {settings}\n\n{saved.report}")


def demo(args: argparse.Namespace) -> None:
    """Train a small network on scikit-learn's digits, prune it, fine-tune it: a minute, offline."""
    from epruner._demo import run_demo
    from epruner.prune.checkpoint import check_target, save

    target = check_target(args.out) if args.out else None
    set_threads(args.threads)
    say: Callable[[str], None] = (lambda _: None) if args.json else _say
    outcome = run_demo(seed=args.seed, n_threads=args.threads, say=say)
    if target is not None:
        save((outcome.model, outcome.plan), target)
    if args.json:
        _print_json(outcome.to_dict())
    else:
        print(f"\n{outcome}")
        if target is not None:
            print(f"\nwrote {args.out} ({_bytes(target.stat().st_size)})")


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "prune": prune,
    "inspect": inspect,
    "demo": demo,
}


def pruning_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `epruner.prune` for the options that were given."""
    names = (*options.PRUNING, *options.COST)
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if "beta" in given:
        beta = dict(given["beta"])
        given["beta"] = beta["*"] if list(beta) == ["*"] else beta
    return given


def set_threads(threads: int | None) -> None:
    """Limit torch's threads as well as the solver's."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _plan_table(saved: SavedFile) -> str:
    from epruner.prune.tables import Table

    def side(kept: tuple[int, ...] | None, before: int | None) -> str:
        return "all" if kept is None else f"{len(kept)} of {before}"

    rows = [
        (name, side(module.out, module.out_before), side(module.in_, module.in_before))
        for name, module in saved.plan.modules.items()
    ]
    return Table(("module", "outputs", "inputs"), rows).to_text()


def _print_json(document: Mapping[str, Any]) -> None:
    print(json.dumps(document, indent=2))


def _say(line: str) -> None:
    print(line, flush=True)


def _bytes(size: int) -> str:
    from epruner.prune.report import amount

    return f"{amount(size)}B" if size >= 1000 else f"{size} B"
