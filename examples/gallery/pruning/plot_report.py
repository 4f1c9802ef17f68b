"""
Reading a report, and overriding a layer
========================================

What was done to which layer, what was left alone and why, and what if you know better? Three
prunings to half the multiply-adds: as the library chose, with a block that is left whole, and with
multiples of eight filters. What one layer keeps, the others have to give.
"""

import matplotlib.pyplot as plt
import numpy as np

import epruner
from epruner import Constraints
from examples.digits import SHAPE, accuracy, split, trained_network

model = trained_network()  # a residual network that reads scikit-learn's digits
images = split()[0][:300]  # without labels
net = epruner.analyse(model, SHAPE)  # once for all prunings

results = {
    "as chosen": epruner.prune(model, net, macs=0.5, calibrate=images),
    'ignore=["stage1.0"]': epruner.prune(
        model, net, macs=0.5, calibrate=images, ignore=["stage1.0"]
    ),
    "Constraints(round_to=8)": epruner.prune(
        model, net, macs=0.5, calibrate=images, constraints=Constraints(round_to=8)
    ),
}

layers = results["as chosen"].report.layers
rows = np.arange(len(layers))
figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
axes.barh(rows, [layer.before for layer in layers], height=0.84, color="#E5E5E5", label="before")
colours = ("#0072B2", "#E69F00", "#009E73")
for number, (asked, result) in enumerate(results.items()):
    after = {layer.name: layer.after for layer in result.report.layers}
    kept = [after.get(layer.name, layer.before) for layer in layers]
    label = f"{asked}: {accuracy(result.model):.1%} right"
    places = rows + 0.27 * (number - 1)
    bars = axes.barh(places, kept, height=0.24, color=colours[number], label=label)
    axes.bar_label(bars, padding=3, fontsize=9)
axes.set_yticks(rows, [layer.name for layer in layers])
axes.set(xlabel="filters", ylim=(len(layers) - 0.5, -0.5))
axes.spines[["top", "right"]].set_visible(False)
figure.legend(loc="outside upper left", ncols=2, frameon=False)
plt.show()

# %%
# What is in a report
# -------------------
# ``print(result.report)`` says it in a terminal, ``result.report.to_html("report.html")`` in one
# file for a browser, with a table that sorts itself; ``result.report.plot("report.png")`` draws the
# layers. In a notebook a report shows itself:

report = results["as chosen"].report
# sphinx_gallery_capture_repr_block = ("_repr_html_",)
report

# %%
# Left alone, and why
# -------------------
# Nothing is left alone silently: every layer that was not pruned has its reason.

for skipped in report.skipped:
    print(f"{skipped.name:<18} {skipped.reason}")

# %%
# The reasons say what would help. With ``scope="all"`` the channels that several layers add onto
# may go, too; a layer's own number is set by name or pattern.

everything = epruner.prune(model, net, macs=0.5, calibrate=images, scope="all")
wide = Constraints(n_filters={"stage2.*.conv1": 24})
given = epruner.prune(model, net, macs=0.5, calibrate=images, constraints=wide)
for asked, result in (("scope='all'", everything), ("24 filters in stage 2", given)):
    print(f"{asked}: {accuracy(result.model):.1%} right")
    for layer in result.report.layers:
        print(f"    {layer.name:<18} {layer.after:>2} of {layer.before}")
