"""
Pruning a network without one image
===================================

What does a network still know when most of its multiply-adds are gone? The same filters stay in
all lines of the picture; what differs is how the weights that stay make up for those that went.
Sliced and left alone, the network forgets; the default, which shows it nothing but noise, keeps
most of what it knew, and a few hundred images without labels keep more.
"""

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import epruner
from examples.digits import SHAPE, accuracy, split, trained_network

model = trained_network()  # a residual network that reads scikit-learn's digits
images = split()[0][:300]  # no label is looked at


def as_they_are(tensors: list[Tensor], _: torch.Generator) -> list[Tensor]:
    """Instead of the default, which mirrors and mixes images: digits have no mirror images."""
    return tensors


shares = [0.7, 0.5, 0.3, 0.2, 0.12]
whole = 100 * accuracy(model)
ways = ["sliced", "merged", "repaired by noise (default)", "repaired with 300 images", "distilled"]
found: dict[str, list[float]] = {way: [] for way in ways}
net = epruner.analyse(model, SHAPE)
for share in shares:
    plan = net.select(macs=share)  # which filters stay: chosen by noise, too
    sliced = plan.apply(model)
    merged, _ = epruner.repair(model, sliced, plan, inputs=net, repair="merge")
    by_noise, _ = epruner.repair(model, sliced, plan, inputs=net)
    by_images, _ = epruner.repair(model, sliced, plan, calibrate=images)
    networks = [sliced, merged, by_noise, by_images]
    if share <= 0.3:  # where the repair alone loses something
        networks.append(
            epruner.distill(model, by_images, images, steps=60, lr=2e-3, augment=as_they_are)[0]
        )
    for way, network in zip(ways, networks, strict=False):
        found[way].append(100 * accuracy(network))

colours = ["#595959", "#E69F00", "#0072B2", "#009E73", "#CC79A7"]
figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
for way, colour, marker in list(zip(ways, colours, "vsoD^", strict=True))[::-1]:
    left = [100 * share for share in shares][-len(found[way]) :]
    axes.plot(left, found[way], color=colour, marker=marker, label=way)
axes.axhline(whole, color="black", linestyle="--", linewidth=1, label="whole network")
axes.set(
    xlabel="multiply-adds left (% of the whole network's)",
    ylabel="accuracy on images it has not seen (%)",
    ylim=(0, 105),
)
axes.grid(color="#DDDDDD", linewidth=0.6)
axes.spines[["top", "right"]].set_visible(False)
figure.legend(loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %%
# The same in one call
# --------------------
# :func:`epruner.prune` analyses, chooses, slices and repairs. Given images it also chooses by them
# which filters stay, and how many of each layer.

nothing = epruner.prune(model, SHAPE, macs=0.3)
some = epruner.prune(model, SHAPE, macs=0.3, calibrate=images)
print(f"whole network:     {accuracy(model):.1%}")
print(f"without one image: {accuracy(nothing.model):.1%}")
print(f"with {len(images)} images:   {accuracy(some.model):.1%}")
print(nothing.report.totals().to_text())

# %%
# What the report says of it
# --------------------------
# Every fifth input is held back from the fit. On those the report says how far the small network's
# output is from the original's, over its variance: sliced, and repaired. No label is needed to know
# it. Where the network was shown noise, it is the error on noise.

for calibrated, result in (("noise", nothing), ("images", some)):
    print(f"{calibrated}: {result.report.repair}")
