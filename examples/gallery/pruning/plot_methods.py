"""
Which method keeps most?
========================

Which filters stay, and how many of each layer: five methods on one network at three budgets, each
followed by the same repair from 300 images without labels. Bars are wrong answers on images that
nothing was learnt from; the dotted line is the whole network. A repair makes good much of a bad
choice, and less of it the more has to go.
"""

import matplotlib.pyplot as plt
import numpy as np

import epruner
from examples.digits import SHAPE, accuracy, split, trained_network

model = trained_network()  # a residual network that reads scikit-learn's digits
images = split()[0][:300]
net = epruner.analyse(model, SHAPE)  # once for all prunings

shares = [0.4, 0.25, 0.15]
methods = {
    "random": "#BBBBBB",
    "l1": "#E69F00",
    "fpgm": "#CC79A7",
    "exemplar": "#009E73",
    "auto": "#0072B2",
}
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
places = np.arange(len(shares))
for number, (method, colour) in enumerate(methods.items()):
    pruned = [
        epruner.prune(model, net, macs=share, calibrate=images, method=method).model
        for share in shares
    ]
    wrong = [100 * (1 - accuracy(network)) for network in pruned]
    bars = axes.bar(places + 0.16 * (number - 2), wrong, width=0.15, color=colour, label=method)
    axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
axes.axhline(100 * (1 - accuracy(model)), color="black", linestyle=":", linewidth=1)
axes.set_xticks(places, [f"{share:.0%} of the\nmultiply-adds left" for share in shares])
axes.set_ylabel("wrong answers (%)")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, title="method=", loc="upper left")
plt.show()

# %%
# ``"l1"`` keeps the same share of every layer, the filters with the largest weights, ``"fpgm"``
# those farthest from all others. ``"exemplar"`` clusters filters by what the layers that read them
# would lose; ``"auto"``, the default, drops one after the other what those layers miss least. These
# two also decide how many filters each layer keeps. One image is a sixth of a percent: what differs
# by less than one percent is a matter of few images.
#
# The same from a shell, on the images of a folder::
#
#     epruner compare --model package.module:network --weights trained.pt \
#         --input-shape 1,3,32,32 --macs 0.4 0.25 0.15 --method random l1 fpgm exemplar auto \
#         --calibrate unlabelled/ --labelled test/
#
# Before any repair
# -----------------
# Sliced and left alone at milder cuts. The first three see weights only; ``"exemplar"`` and
# ``"auto"`` are shown noise here, no image.

mild = [0.8, 0.6]
print("method    " + "".join(f"{share:>8.0%}" for share in mild))
for method in methods:
    sliced = [
        epruner.prune(model, net, macs=share, method=method, repair="none").model for share in mild
    ]
    print(f"{method:<10}" + "".join(f"{accuracy(network):>8.1%}" for network in sliced))
