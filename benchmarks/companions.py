"""What the companions claim, each beside the same run without it, seed by seed.

    python benchmarks/companions.py                  # everything, two processes of one thread
    python benchmarks/companions.py siamese manidp

Runs the examples' own `run`. Prunes a ResNet-56 by function and by norm, and two by gradient after
two epochs with OrthoReg and without: that needs their checkpoints and images (EPRUNER_DATA), the
text the wheel that the example names. Writes results/companions.json. Options were chosen on other
seeds than 0, 1 and 2, and 30 to 41. Half an hour in all.
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
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
import epruner
from benchmarks import cifar
from benchmarks.measuring import RESULTS, machine
from epruner import Constraints, Method
from epruner.companions.functionality import functional_importance
from epruner.companions.orthoreg import OrthoReg
from examples import manidp, orthoreg

THREE = range(3)
TWELVE = range(30, 42)
CASES: Mapping[str, tuple[str, Iterable[int | str]]] = {
    "orthoreg": ("benchmarks.companions:chains", [*THREE, *TWELVE]),
    "functionality": ("examples.functionality:run", THREE),
    "functionality_resnet": ("benchmarks.companions:by_function", ["theo"]),
    "manidp": ("examples.manidp:run", THREE),
    "manidp_times": ("benchmarks.companions:one_at_a_time", list(manidp.TIMED)),
    "discovery": ("examples.discovery:run", [*THREE, *TWELVE]),
    "discovery_text": ("examples.discovery:run_text", [*THREE, *TWELVE]),
    "siamese": ("examples.siamese:run", THREE),
    "orthoreg_resnet": ("benchmarks.companions:resnets", ["theo", "akamaster"]),
}


def chains(seed: int) -> dict[str, dict[str, float]]:
    """The example of OrthoReg, without the groups of filters one by one."""
    return {
        name: {
            "accuracy": side.accuracy,
            "pruned": side.pruned,
            "cosine": side.cosine,
            "correlation": side.correlation,
        }
        for name, side in vars(orthoreg.run(seed)).items()
    }


def one_at_a_time(network: str) -> dict[str, float]:
    """Milliseconds of one input with half of the channels on, and what is computed of it."""
    whole, skipping, macs = manidp.timed(network)
    return {"whole_ms": whole, "skipping_ms": skipping, "macs": macs}


def resnets(network: str) -> dict[str, dict[str, float]]:
    """A trained ResNet-56, trained on with the term and without; then pruned in one shot."""
    images, labels = cifar.lossless("train", 7728)
    test, expected = cifar.lossless("test", 1000)
    found = {}
    for name in ("without", "regularized"):
        model = cifar.network(network)
        torch.manual_seed(0)
        order = torch.randperm(len(images))
        loader = [(images[batch], labels[batch]) for batch in order.split(128)]
        term = OrthoReg(model) if name == "regularized" else None
        epruner.finetune(model, loader, epochs=2, regularizer=term)
        model.eval()
        net = epruner.analyse(model, images[:1])
        learn = [(images[:2000], labels[:2000])]
        found[name] = {"whole": accuracy(model, test, expected)} | {
            f"{macs}": accuracy(
                net.select(macs=macs, method="fisher", calibrate=learn).apply(model), test, expected
            )
            for macs in (0.7, 0.6)
        }
    return found


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose class is found."""
    scores = torch.cat([model(batch) for batch in images.split(100)])  # type: ignore[no-untyped-call]
    return float((scores.argmax(1) == labels).double().mean())


@torch.no_grad()
def by_function(network: str) -> dict[str, dict[str, float]]:
    """A fifth of the filters of a ResNet-56 gone, not repaired: by function and by norm."""
    model = cifar.network(network)
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
        )
        seconds = time.process_time() - start
        scores = torch.cat([plan.apply(model)(batch) for batch in images.split(100)])
        found[name] = {
            "loss": float(F.cross_entropy(scores, labels)),
            "accuracy": float((scores.argmax(1) == labels).double().mean()),
            "cpu_seconds": round(seconds, 1),
        }
    return found


def measured(where: str, case: int | str) -> dict[str, Any]:
    """One run, in a process of its own, and what it took of a processor."""
    torch.set_num_threads(1)
    module, _, name = where.partition(":")
    run: Callable[[int | str], Any] = getattr(import_module(module), name)
    start = time.process_time()
    found = run(case)
    values = found if isinstance(found, dict) else asdict(found)
    return {"case": case, "cpu_s": round(time.process_time() - start, 1), **values}


def main() -> None:
    """Measure those named, or all, and write what they gave beside the others."""
    file = RESULTS / "companions.json"
    with (
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone,
    ):
        for name in sys.argv[1:] or CASES:
            where, cases = CASES[name]
            workers = alone if name == "manidp_times" else pool
            rows = [workers.submit(measured, where, case) for case in cases]
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
