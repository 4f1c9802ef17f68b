"""Exemplars beside Torch-Pruning's own importances, in its pruner, without fine-tuning.

The first convolution of every block of two trained ResNet-56 is pruned (the zero-padded shortcuts
of these networks are beyond Torch-Pruning), and top-1 taken on 1,000 test images.

    python benchmarks/torch_pruning_importances.py     writes results/torch_pruning_importances.*
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.cifar import accuracy, lossless, network
from benchmarks.measuring import machine, table, timed, write
from epruner.integrations.torch_pruning import ExemplarImportance

IMPORTANCES = {
    "exemplars": ExemplarImportance,
    "magnitude": tp.importance.MagnitudeImportance,
    "FPGM": tp.importance.FPGMImportance,
    "random": tp.importance.RandomImportance,
}
RATIOS = (0.1, 0.2, 0.3, 0.5)


def pruned(name: str, importance: Any, ratio: float, scope: str) -> tuple[nn.Module, float]:
    """The network without this share of the channels inside its blocks; seconds of scoring."""
    model = network(name)
    whole = [
        module
        for at, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not ("layer" in at and "conv1" in at)
    ]
    seconds = 0.0

    def clocked(group: tp.Group) -> Tensor:
        nonlocal seconds
        spent, scores = timed(lambda: importance(group))
        seconds += spent
        return scores  # type: ignore[no-any-return]

    tp.pruner.MagnitudePruner(
        model,
        torch.zeros(1, 3, 32, 32),
        clocked,
        pruning_ratio=ratio,
        global_pruning=scope == "all",
        max_pruning_ratio=0.95,  # of a layer
        ignored_layers=whole,
    ).step()
    return model, seconds


def importance_table(rows: list[dict[str, Any]]) -> str:
    head = ["network", "ranked", "importance", *(f"-{r:.0%}" for r in RATIOS), "scoring, ms"]
    lines = []
    for row in rows:
        names = [row[key] for key in ("network", "scope", "importance")]
        figures = [f"{row['top1'][str(ratio)]:.1f}" for ratio in RATIOS]
        lines.append([*names, *figures, f"{1e3 * row['scoring_s']:.0f}"])
    return table(head, lines)


def page(results: dict[str, Any]) -> str:
    whole = "\n".join(f"{name} whole: {top1:.1f}" for name, top1 in results["whole"].items())
    return f"{whole}\n\n{importance_table(results['rows'])}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {"machine": machine(), "whole": {}, "rows": []}
    images, labels = lossless("test", 1000)
    for name in ("theo", "akamaster"):
        results["whole"][name] = accuracy(network(name), images, labels)
        for scope in ("each layer", "all"):
            for title, kind in IMPORTANCES.items():
                torch.manual_seed(0)
                top1, scoring = {}, []
                for ratio in RATIOS:
                    model, seconds = pruned(name, kind(), ratio, scope)
                    top1[str(ratio)] = accuracy(model, images, labels)
                    scoring.append(seconds)
                row = {"network": name, "scope": scope, "importance": title, "top1": top1}
                results["rows"].append(row | {"scoring_s": min(scoring)})
                print(importance_table(results["rows"][-1:]), flush=True)
    write("torch_pruning_importances", results, page(results))
