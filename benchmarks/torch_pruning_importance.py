"""Torch-Pruning's pruner by exemplars and by its own importances, at equal multiply-adds.

Trained CIFAR networks, in one step, without repair or training: accuracy on 1,000 test images. The
ratio of each is bisected until the multiply-adds are the share asked for, or a step short of it.

    python benchmarks/torch_pruning_importance.py

Needs the networks (EPRUNER_DATA). Writes benchmarks/results/torch_pruning_importance.json and .md.
"""

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.cifar import accuracy, lossless, network
from benchmarks.measuring import Cases, run, table, timed
from epruner.integrations.torch_pruning import ExemplarImportance

EXAMPLE = torch.zeros(1, 3, 32, 32)
IMPORTANCES: dict[str, Callable[[], Any]] = {
    "exemplars": ExemplarImportance,
    "magnitude": tp.importance.MagnitudeImportance,
    "FPGM": tp.importance.FPGMImportance,
    "random": tp.importance.RandomImportance,
}
SHARES = (0.8, 0.6)
HALVINGS = 8


def multiply_adds(model: nn.Module) -> float:
    return float(tp.utils.count_ops_and_params(model, EXAMPLE)[0])


def smaller(whole: nn.Module, importance: str, ratio: float, everywhere: bool) -> nn.Module:
    """The network without a share of its channels, of each group's or of all groups' together."""
    torch.manual_seed(0)
    model = copy.deepcopy(whole)
    pruner = tp.pruner.BasePruner(
        model,
        EXAMPLE,
        importance=IMPORTANCES[importance](),
        pruning_ratio=ratio,
        global_pruning=everywhere,
        ignored_layers=[model.get_submodule("linear")],
    )
    pruner.step()
    return model


def measured(name: str, share: float, everywhere: bool) -> dict[str, Any]:
    whole = network(name)
    images, labels = lossless("test", 1000)
    row: dict[str, Any] = {
        "network": name,
        "macs": share,
        "global_pruning": everywhere,
        "whole": accuracy(whole, images, labels),
        "rows": {},
    }
    for importance in IMPORTANCES:
        low, high = 0.0, 0.95
        for _ in range(HALVINGS):
            ratio = (low + high) / 2
            seconds, model = timed(partial(smaller, whole, importance, ratio, everywhere))
            left = multiply_adds(model) / multiply_adds(whole)
            low, high = (ratio, high) if left > share else (low, ratio)
            if left <= share:
                found = left, accuracy(model, images, labels), seconds
        row["rows"][importance] = dict(zip(("macs", "accuracy", "seconds"), found, strict=True))
    return row


def tabulate(rows: list[dict[str, Any]]) -> str:
    head = ["network", "multiply-adds", "ratio", "whole", *IMPORTANCES]
    return table(
        head,
        [
            [
                row["network"],
                f"{100 * row['macs']:.0f} %",
                "of all" if row["global_pruning"] else "of each",
                f"{row['whole']:.1f}",
                *(f"{row['rows'][name]['accuracy']:.1f}" for name in IMPORTANCES),
            ]
            for row in rows
        ],
    )


def groups(_: int | None) -> dict[str, tuple[Cases, Any]]:
    cases: Cases = {
        f"{name} {share} {'of all' if everywhere else 'of each'}": partial(
            measured, name, share, everywhere
        )
        for name in ("theo", "akamaster", "resnet20")
        for share in SHARES
        for everywhere in (False, True)
    }
    return {"rows": (cases, tabulate)}


if __name__ == "__main__":
    run(__doc__ or "", "torch_pruning_importance", groups)
