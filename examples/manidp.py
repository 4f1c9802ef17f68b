"""Easy digits take fewer channels than hard ones: ManiDP beside static pruning.

A small residual network learns scikit-learn's handwritten digits. From there two ways lead down to
the same multiply-adds, with as many epochs and the same optimiser each: gates that let every image
switch off channels, and `epruner.prune`. Half of the images are never seen before the end::

    python -m examples.manidp
    python -m examples.manidp --seed 3 --picture digits.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import epruner
from epruner.companions import manidp
from examples.cifar_resnet import resnet56

SHAPE = (1, 1, 8, 8)
TRAINING: dict[str, Any] = {"epochs": 30, "optimizer": "adamw", "lr": 0.006}
FALL = 12  # epochs in which gates close; in the others the network learns to live with them
OPTIONS: dict[str, Any] = {"share": 0.3, "sparsity": 0.1, "similarity": 0.1}


class Block(nn.Module):
    """Two 3x3 convolutions with many channels between them, added onto what they read."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return torch.relu(y + self.short(x))


class Network(nn.Module):
    """(n, 1, h, w) -> (n, 10): a stem and three blocks, four times as wide inside."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            Block(width, 4 * width, width, 1),
            Block(width, 4 * width, 2 * width, 2),
            Block(2 * width, 8 * width, 2 * width, 1),
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes."""
        x = self.blocks(self.bn(self.stem(x)).relu())
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Batches:
    """Labelled images in an order drawn anew each epoch, 64 at a time; what is left over waits."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images) // 64

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.randperm(len(self._images)).split(64)[: len(self)]:  # type: ignore[no-untyped-call]
            yield self._images[chosen], self._labels[chosen]


@dataclass(frozen=True)
class Comparison:
    """Two ways down to the same multiply-adds, from one network.

    Parameters
    ----------
    whole, gated, static : float
        Accuracy on images never seen, in percent.
    gated_macs, static_macs : float
        Multiply-adds over those of the whole network, those of gates included; of the gated network
        the mean over the images.
    easy_channels, hard_channels : float
        Channels that are on, the mean over the quarter of the images on which the whole network's
        loss is least, and most.
    right_channels, wrong_channels : float
        The same over those that the gated network gets right, and wrong.
    """

    whole: float
    gated: float
    static: float
    gated_macs: float
    static_macs: float
    easy_channels: float
    hard_channels: float
    right_channels: float
    wrong_channels: float


@dataclass(frozen=True)
class Trained:
    """The networks of one run, and the images that judge."""

    whole: nn.Module
    gated: manidp.GatedNetwork
    static: nn.Module
    images: Tensor
    labels: Tensor


def train(seed: int) -> Trained:
    """Learn the whole network, and from it the gated and the statically pruned one."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        held_out, seen = torch.randperm(len(images)).chunk(2)
        batches = Batches(images[seen], labels[seen])
        whole = Network()
        epruner.finetune(whole, batches, epochs=8, optimizer="adamw", lr=3e-3, weight_decay=0.05)
        whole.eval()
        gated = manidp.gate(whole, SHAPE)
        term = manidp.Regularizer(gated, epochs=FALL, **OPTIONS)
        epruner.finetune(gated, batches, regularizer=term, **TRAINING)
        gated.eval()
        macs = manidp.multiply_adds(gated, images[held_out]).share
        pruned = epruner.prune(whole, SHAPE, macs=macs, calibrate=images[seen][:300])
        epruner.finetune(pruned.model, batches, **TRAINING)
    return Trained(whole, gated, pruned.model.eval(), images[held_out], labels[held_out])


def judge(trained: Trained) -> Comparison:
    """Measure the networks on images that none of them has seen."""
    images, labels = trained.images, trained.labels
    with torch.no_grad():
        scores = [model(images) for model in (trained.whole, trained.gated, trained.static)]
    right = [(found.argmax(1) == labels).double() for found in scores]
    cost = manidp.multiply_adds(trained.gated, images)
    channels = cost.channels.double()
    order = F.cross_entropy(scores[0], labels, reduction="none").argsort()
    quarter = len(order) // 4
    whole, gated, static = (100 * float(each.mean()) for each in right)
    return Comparison(
        whole=whole,
        gated=gated,
        static=static,
        gated_macs=cost.share,
        static_macs=epruner.analyse(trained.static, SHAPE).costs.totals().macs / cost.whole,
        easy_channels=float(channels[order[:quarter]].mean()),
        hard_channels=float(channels[order[-quarter:]].mean()),
        right_channels=float(channels[right[1] == 1].mean()),
        wrong_channels=float(channels[right[1] == 0].mean()),
    )


def run(seed: int) -> Comparison:
    """The whole comparison, once."""
    return judge(train(seed))


@torch.no_grad()
def times(model: nn.Module, images: Tensor, share: float) -> tuple[float, float, float]:
    """Milliseconds of the whole network and of one that skips, and its share of multiply-adds.

    Images go through both in turn, one at a time; medians. Gates are drawn, as it is all the same
    to a time whether they have learned.

    Parameters
    ----------
    model : torch.nn.Module
    images : Tensor of shape (n, ...)
    share : float
        Of the channels of every gate that are on, over all images.
    """
    model.train()(images)  # BatchNorm remembers what it reads
    gated = manidp.gate(model.eval(), images[:1])
    for name, gate in gated.gates().items():
        nn.init.normal_(gate.excite.weight, std=0.3)
        gate.tau.copy_(gated.masks(images)[name].quantile(1 - share))
    networks = model, manidp.skipping(gated)
    taken: tuple[list[float], list[float]] = [], []
    for image in images.split(1):  # type: ignore[no-untyped-call]
        for network, seconds in zip(networks, taken, strict=True):
            start = perf_counter()
            network(image)
            seconds.append(perf_counter() - start)
    before, after = (1000 * median(seconds) for seconds in taken)
    return before, after, manidp.multiply_adds(gated, images).share


TIMED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "this network, 8 x 8": (Network, (1, 8, 8)),
    "eight times as wide, 32 x 32": (lambda: Network(64), (1, 32, 32)),
    "ResNet-56, 32 x 32": (resnet56, (3, 32, 32)),
}


def timed(name: str) -> tuple[float, float, float]:
    """`times` of one of these, with half of the channels on."""
    make, shape = TIMED[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return times(make(), torch.rand(25, *shape), 0.5)


def draw(trained: Trained, path: str) -> None:
    """What images take, as histograms, and the easiest and the hardest with what they take."""
    from matplotlib.figure import Figure

    cost = manidp.multiply_adds(trained.gated, trained.images)
    share = (100 * cost.per_input.double() / cost.whole).numpy()
    with torch.no_grad():
        scores = trained.whole(trained.images)
    order = F.cross_entropy(scores, trained.labels, reduction="none").argsort().numpy()
    quarter = max(1, len(order) // 4)
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    grid = figure.add_gridspec(3, 8, height_ratios=(4, 1, 1))
    axes = figure.add_subplot(grid[0, :])
    axes.hist(share, bins=20, color="#cccccc", label="all images")
    for row, (name, colour, some, shown) in enumerate(
        (
            ("easiest", "#1b7837", order[:quarter], order[:8]),
            ("hardest", "#b2182b", order[-quarter:], order[-8:]),
        )
    ):
        axes.hist(
            share[some], bins=20, range=(share.min(), share.max()), histtype="step",
            color=colour, label=f"{name} quarter: mean {share[some].mean():.1f} %",
        )  # fmt: skip
        for place, image in enumerate(shown):
            small = figure.add_subplot(grid[row + 1, place])
            small.imshow(trained.images[image, 0].numpy(), cmap="gray_r")
            small.set(xticks=[], yticks=[], ylabel="" if place else name)
            small.set_title(f"{share[image]:.1f} %", fontsize=8)
    axes.set(xlabel="multiply-adds, % of the whole network's", ylabel="images")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Compare, say what was found, time, draw."""
    parser = argparse.ArgumentParser(description="ManiDP beside static pruning, on digits.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", help="file to draw in")
    chosen = parser.parse_args()
    trained = train(chosen.seed)
    found = judge(trained)
    print("network    accuracy   multiply-adds")
    print(f"whole       {found.whole:5.1f} %         100.0 %")
    print(f"gated       {found.gated:5.1f} %         {100 * found.gated_macs:5.1f} %")
    print(f"static      {found.static:5.1f} %         {100 * found.static_macs:5.1f} %")
    print(
        f"\nchannels on: {found.easy_channels:.1f} for easy images, {found.hard_channels:.1f} for "
        f"hard ones; {found.right_channels:.1f} for images that are classified right, "
        f"{found.wrong_channels:.1f} for others"
    )
    print("\none image at a time, half of the channels on    whole   skipping  multiply-adds")
    for name in TIMED:
        before, after, macs = timed(name)
        print(f"{name:44} {before:5.1f} ms  {after:6.1f} ms         {100 * macs:.0f} %")
    if chosen.picture:
        draw(trained, chosen.picture)


if __name__ == "__main__":
    main()
