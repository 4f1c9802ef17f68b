"""What the companions claim, each beside the same run without it, seed by seed.

    python benchmarks/companions.py                  # everything, two processes of one thread
    python benchmarks/companions.py siamese manidp

Runs the examples' own `run`, and prunes a ResNet-56 by function and by norm; that needs its
checkpoint (EPRUNER_DATA), the text the wheel that the example names. Writes
results/companions.json. Options were chosen on other seeds than 0, 1 and 2, and 30 to 41.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import epruner
from benchmarks import cifar
from benchmarks.measuring import RESULTS, machine
from epruner import Constraints, Method
from epruner.companions.functionality import functional_importance

THREE = range(3)
TWELVE = range(30, 42)
SEEDS: Mapping[str, tuple[str, Iterable[int]]] = {
    "orthoreg": ("examples.orthoreg:run", [*THREE, *TWELVE]),
    "functionality": ("examples.functionality:run", THREE),
    "functionality_resnet": ("benchmarks.companions:resnet", [0]),
    "manidp": ("examples.manidp:run", THREE),
    "discovery": ("examples.discovery:run", [*THREE, *TWELVE]),
    "discovery_text": ("examples.discovery:run_text", [*THREE, *TWELVE]),
    "siamese": ("examples.siamese:run", THREE),
}


@torch.no_grad()
def resnet(seed: int) -> dict[str, dict[str, float]]:
    """A fifth of the filters of a ResNet-56 gone, not repaired: by function and by norm."""
    model = cifar.network("theo")
    images, labels = cifar.lossless("test", 500)
    learn, _ = cifar.lossless("train", 256)
    net = epruner.analyse(model, images[:1])
    found = {}
    for name, importance, features in (
        ("functional", functional_importance(model, learn, inputs=net), "visual"),
        ("l1", "l1", "weights"),
    ):
        start = time.process_time()
        plan = net.select(
            constraints=Constraints(n_filters={"*": 0.8}),
            method=Method("uniform", importance, features),
            random_state=seed,
        )
        seconds = time.process_time() - start
        scores = torch.cat([plan.apply(model)(batch) for batch in images.split(100)])
        found[name] = {
            "loss": float(F.cross_entropy(scores, labels)),
            "accuracy": float((scores.argmax(1) == labels).double().mean()),
            "cpu_seconds": round(seconds, 1),
        }
    return found


def measured(where: str, seed: int) -> dict[str, Any]:
    """One run, in a process of its own, and what it took of a processor."""
    torch.set_num_threads(1)
    module, _, name = where.partition(":")
    run: Callable[[int], Any] = getattr(import_module(module), name)
    start = time.process_time()
    found = run(seed)
    values = found if isinstance(found, dict) else asdict(found)
    return {"seed": seed, "cpu_s": round(time.process_time() - start, 1), **values}


def main() -> None:
    """Measure those named, or all, and write what they gave beside the others."""
    file = RESULTS / "companions.json"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for name in sys.argv[1:] or SEEDS:
            where, seeds = SEEDS[name]
            rows = [pool.submit(measured, where, seed) for seed in seeds]
            results = {
                "command": f"python benchmarks/companions.py {name}",
                "machine": machine() | {"torch": torch.__version__},
                "rows": [row.result() for row in rows],
            }
            print(name, json.dumps(results["rows"]), flush=True)
            found = json.loads(file.read_text()) if file.exists() else {}
            file.write_text(json.dumps(found | {name: results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
