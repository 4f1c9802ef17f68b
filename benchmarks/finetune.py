"""Does the criterion still matter after fine-tuning? Equal widths, equal recipe, JPEG CIFAR-10.

    python benchmarks/finetune.py --images 50000 --epochs 3 --test 10000

Every network keeps as many filters in each layer as the exemplars at 40 % of the multiply-adds.
Rows are appended to results/finetune.json as they come.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.cifar import accuracy, jpeg, network
from benchmarks.measuring import command
from epruner import Method, finetune, prune

RESULTS = Path(__file__).parent / "results"
VARIANTS = {
    "exemplar": "exemplar",
    "l1": "l1",
    "random": "random",
    "exemplar, random init": "exemplar",
    "fpgm": "fpgm",
    "unpruned": None,
}


class Augmented:
    """Shuffled batches, cropped and mirrored at random, the same for every variant."""

    def __init__(self, images: Tensor, labels: Tensor, batch: int, seed: int) -> None:
        self._images, self._labels, self._batch = images, labels, batch
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self._images) // self._batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._images), generator=self._generator)
        for index in order[: len(self) * self._batch].split(self._batch):  # type: ignore[no-untyped-call]
            padded = F.pad(self._images[index], (4, 4, 4, 4))
            dy, dx, mirror = torch.randint(0, 9, (3,), generator=self._generator).tolist()
            images = padded[:, :, dy : dy + 32, dx : dx + 32]
            yield images.flip(3) if mirror % 2 else images, self._labels[index]


def main() -> None:
    """Run all variants of one network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="theo", choices=("theo", "akamaster"))
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    recipe = {
        "network": args.network,
        "macs": 0.4,
        "train_images": args.images,
        "test_images": args.test,
        "epochs": args.epochs,
        "batch": 128,
        "optimizer": "SGD, Nesterov momentum 0.9, lr 0.02, weight decay 5e-4, cosine",
        "augmentation": "crop from 4 pixels of padding and mirror, one draw a batch",
    }
    machine = f"{platform.machine()}, {torch.get_num_threads()} torch threads, {args.device}"
    print(json.dumps(recipe), machine, flush=True)
    train, test = jpeg("train", args.images), jpeg("test", args.test)
    original = network(args.network)
    rows = []
    for name, importance in VARIANTS.items():
        model: nn.Module = network(args.network)
        if importance is not None:
            method = Method("exemplar", importance, repair="none")
            model = prune(original, (1, 3, 32, 32), macs=0.4, method=method).model
        if name.endswith("random init"):
            torch.manual_seed(0)
            for module in model.modules():
                if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                    module.reset_parameters()
        model = model.to(args.device)
        start = time.perf_counter()
        before = accuracy(model.cpu(), *test)
        loader = Augmented(*train, batch=128, seed=0)
        history = finetune(model.to(args.device), loader, epochs=args.epochs)
        after = accuracy(model.cpu(), *test)
        rows.append(
            {
                "variant": name,
                "before": round(before, 2),
                "after": round(after, 2),
                "losses": [round(epoch.loss, 4) for epoch in history],
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        document = {"command": command(), "machine": machine, "recipe": recipe, "rows": rows}
        (RESULTS / "finetune.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
