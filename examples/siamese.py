"""One handwritten digit, followed along a strip where others lie: does the tracker mix them up?

A Siamese network embeds an exemplar (8 x 8 pixels) and every window of a strip; the largest inner
product says where the exemplar is. It is trained on strips of one digit and noise, as trackers are
on an object before its background, once with the logistic loss alone and once with the exemplar
loss (`epruner.companions.siamese.exemplar_loss`). It is judged on digits it has never seen, in
strips with three more of them::

    python -m examples.siamese --picture siamese.png
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.companions.siamese import WEIGHT, exemplar_loss

SIZE, SLOT = 8, 16  # of a digit; columns that one digit has for itself
TRAIN = 1000  # images; the other 797 judge
EPOCHS, BATCH, RATE = 8, 32, 2e-3
PLACES = 4  # of a strip that are learned from: on the digit, and as many anywhere
NOISE = 0.1
OTHERS = 3  # in a strip: one of the digit's own class, two of other classes


@dataclass(frozen=True)
class Tracking:
    """Shares of strips whose peak is right, or lies on another digit.

    `single` and `right`: within a column of the digit, alone or among others. `wrong`: on another
    digit, by at least six of its eight columns; `wrong_same` and `wrong_other`: on that of the same
    class, and on one of the two of other classes.
    """

    single: float
    right: float
    wrong: float
    wrong_same: float
    wrong_other: float


@dataclass(frozen=True)
class Comparison:
    """The same network, digits and steps with both losses."""

    logistic: Tracking
    exemplar: Tracking


class Embedder(nn.Module):
    """Strips (n, 1, 8, w) to an embedding of every window (n, w - 7, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(),
            nn.Conv2d(32, 32, 3), nn.ReLU(),
            nn.Conv2d(32, 32, 4),
        )  # fmt: skip

    def forward(self, strips: Tensor) -> Tensor:
        return self.body(strips)[:, :, 0].transpose(1, 2)  # type: ignore[no-any-return]


def seen_again(images: Tensor, generator: torch.Generator) -> Tensor:
    """Digits (n, 8, 8) as another frame may show them: turned and scaled a little."""
    n = len(images)
    angle, scale = (torch.rand(2, n, generator=generator) * 2 - 1) * torch.tensor([[0.25], [0.1]])
    cos, sin, none = (1 + scale) * angle.cos(), (1 + scale) * angle.sin(), torch.zeros(n)
    maps = torch.stack([cos, -sin, none, sin, cos, none], 1).view(n, 2, 3)
    grid = F.affine_grid(maps, [n, 1, SIZE, SIZE], align_corners=False)
    return F.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def strips(parts: Tensor, slots: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Strips (n, 1, 8, 16 slots) that show digits (n, k, 8, 8) before noise; their columns (n, k).

    Each digit lies somewhere in a slot of its own.
    """
    n, k = parts.shape[:2]
    slot = torch.rand(n, slots, generator=generator).argsort(1)[:, :k]
    at = slot * SLOT + torch.randint(SLOT - SIZE + 1, (n, k), generator=generator)
    shown = NOISE * torch.randn(n, SIZE, slots * SLOT, generator=generator)
    columns = (at[:, :, None] + torch.arange(SIZE)).view(n, 1, -1).expand(-1, SIZE, -1)
    shown.scatter_add_(2, columns, parts.transpose(1, 2).flatten(2))
    return shown[:, None], at


def exemplars(images: Tensor, generator: torch.Generator) -> Tensor:
    """First frames (n, 1, 8, 8) of what is to be followed."""
    noise = torch.randn(images.shape, generator=generator)
    return (seen_again(images, generator) + NOISE * noise)[:, None]


def trained(images: Tensor, weight: float, seed: int) -> Embedder:
    """A network trained on strips of single digits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Embedder()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
    for epoch in range(EPOCHS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - epoch / EPOCHS)
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):  # type: ignore[no-untyped-call]
            z = network(exemplars(images[batch], generator))[:, 0]
            shown, at = strips(seen_again(images[batch], generator)[:, None], 2, generator)
            windows = network(shown)
            n, count, d = windows.shape
            near = at + torch.randint(-1, 2, (n, PLACES), generator=generator)
            anywhere = torch.randint(count, (n, PLACES), generator=generator)
            places = torch.cat([near.clamp(0, count - 1), anywhere], 1)
            labels = torch.where((places - at).abs() <= 1, 1, -1)
            chosen = windows.gather(1, places[:, :, None].expand(-1, -1, d))
            optimizer.zero_grad()
            torch.autograd.backward(exemplar_loss(z, chosen, labels, weight))
            optimizer.step()
    return network.eval()


def distractors(classes: Tensor, generator: torch.Generator) -> Tensor:
    """For each digit three others: one of its class, and two of other classes (n, 3)."""
    same = classes[:, None] == classes
    itself = torch.eye(len(classes), dtype=torch.bool)
    own = (same & ~itself).double().multinomial(1, generator=generator)
    return torch.cat([own, (~same).double().multinomial(2, generator=generator)], 1)


@torch.no_grad()
def track(network: Embedder, images: Tensor, classes: Tensor, seed: int) -> Tracking:
    """Follow every digit once alone, and once among three others."""
    generator = torch.Generator().manual_seed(seed)
    z = network(exemplars(images, generator))[:, 0]
    parts = images[
        torch.cat([torch.arange(len(images))[:, None], distractors(classes, generator)], 1)
    ]
    parts = seen_again(parts.flatten(0, 1), generator).view_as(parts)
    share = {}
    for name, count in (("single", 1), ("right", 1 + OTHERS)):
        shown, at = strips(parts[:, :count], 1 + OTHERS, generator)
        peak = torch.einsum("nd,npd->np", z, network(shown)).argmax(1, keepdim=True)
        off = (peak - at).abs()
        share[name] = (off[:, 0] <= 1).double().mean().item()
    on = (off[:, 1:] <= 2).double().mean(0)
    same, other = on[0].item(), on[1:].sum().item()
    return Tracking(share["single"], share["right"], same + other, same, other)


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (n, 8, 8) to learn from; others to judge with, and their classes."""
    data = load_digits()
    images, classes = torch.from_numpy(data.images).float() / 16, torch.from_numpy(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    fit, held_out = order[:TRAIN], order[TRAIN:]
    return images[fit], images[held_out], classes[held_out]


def run(seed: int) -> Comparison:
    """Train with both losses from the same start on the same strips, and judge."""
    images, unseen, classes = digits(seed)
    return Comparison(
        *(track(trained(images, weight, seed), unseen, classes, seed) for weight in (0, WEIGHT))
    )


def draw(seed: int, path: str) -> None:
    """One strip, and the scores that the networks of both losses give its windows."""
    from epruner._pictures import BLUE, LEGEND, VERMILLION, new_figure, save

    images, unseen, classes = digits(seed)
    generator = torch.Generator().manual_seed(seed)
    parts = unseen[torch.cat([torch.zeros(1, 1).long(), distractors(classes, generator)[:1]], 1)]
    first = exemplars(unseen[:1], generator)
    shown, at = strips(seen_again(parts[0], generator)[None], 1 + OTHERS, generator)
    figure = new_figure(7, 3.2)
    exemplar, strip, left, scores = figure.subplots(
        2, 2, width_ratios=(1, 8), height_ratios=(1, 2)
    ).flat
    exemplar.imshow(first[0, 0].numpy(), cmap="gray_r")
    exemplar.set_title("exemplar", fontsize=8)
    strip.imshow(shown[0, 0].numpy(), cmap="gray_r", aspect="auto")
    for axes in (exemplar, strip, left):
        axes.set_axis_off()
    middle = torch.arange(shown.shape[3] - SIZE + 1) + SIZE / 2 - 0.5
    for name, weight, colour in (
        ("logistic loss alone", 0.0, VERMILLION),
        ("exemplar loss", WEIGHT, BLUE),
    ):
        network = trained(images, weight, seed)
        with torch.no_grad():
            score = (network(shown)[0] @ network(first)[0, 0]) / network(first)[0, 0].norm()
        scores.plot(middle.numpy(), score.numpy(), color=colour, label=name)
    scores.axvline(float(at[0, 0]) + SIZE / 2 - 0.5, color="black", linewidth=0.7)
    scores.set(xlim=(-0.5, shown.shape[3] - 0.5), xlabel="column", ylabel="score")
    scores.margins(y=0.3)  # room for the legend
    scores.legend(**LEGEND, loc="upper center", ncols=2)
    save(figure, path)


def main() -> None:
    """Print a table, draw a strip with its scores."""
    parser = argparse.ArgumentParser(description="One digit, followed among others.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", help="file to draw a strip and its scores in")
    chosen = parser.parse_args()
    comparison = run(chosen.seed)
    print(f"{'':20} alone  among others  peak on another: all  same class  other classes")
    for name, got in (
        ("logistic loss alone", comparison.logistic),
        ("exemplar loss", comparison.exemplar),
    ):
        print(
            f"{name:20} {got.single:.3f} {got.right:13.3f} {got.wrong:21.3f} "
            f"{got.wrong_same:11.3f} {got.wrong_other:14.3f}"
        )
    if chosen.picture:
        draw(chosen.seed, chosen.picture)


if __name__ == "__main__":
    main()
