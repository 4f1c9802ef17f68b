"""
Pruning a network without one image
===================================

What does a network still know when most of its multiply-adds are gone? The same filters stay in
all lines of the picture; what differs is how the weights that stay make up for those that went.
Sliced and left alone, the network forgets; the default, which shows it nothing but noise, keeps
most of what it knew, and a few hundred images without labels keep more.
"""

import matplotlib.pyplot as plt

import epruner
from examples.digits import SHAPE, accuracy, split, trained_network

model = trained_network()  # a residual network that reads scikit-learn's digits
images = split()[0][:300]  # no label is looked at

shares = [0.7, 0.5, 0.3, 0.2, 0.12]
found: dict[str, list[float]] = {
    "sliced": [],
    "merged": [],
    "repaired by noise (default)": [],
    "repaired with 300 images": [],
    "and distilled": [],
}
net = epruner.analyse(model, SHAPE)
for share in shares:
    plan = net.select(macs=share)  # which filters stay: chosen by noise, too
    sliced = plan.apply(model)
    merged, _ = epruner.repair(model, sliced, plan, inputs=net, repair="merge")
    by_noise, _ = epruner.repair(model, sliced, plan, inputs=net)
    by_images, _ = epruner.repair(model, sliced, plan, calibrate=images)
    networks = [sliced, merged, by_noise, by_images]
    if share <= 0.3:  # above, there is nothing left to gain
        distilled, _ = epruner.distill(model, by_images, images, steps=120, lr=1e-3)
        networks.append(distilled)
    for line, network in zip(found.values(), networks, strict=False):
        line.append(100 * accuracy(network))

colours = ["#595959", "#E69F00", "#0072B2", "#009E73", "#CC79A7"]
figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
axes.axhline(100 * accuracy(model), color="black", linestyle=":", linewidth=1)
axes.text(12, 100 * accuracy(model) + 1, "the whole network", fontsize=9)
for (name, line), colour, marker in list(zip(found.items(), colours, "vsoD^", strict=True))[::-1]:
    axes.plot([100 * s for s in shares[-len(line) :]], line, color=colour, marker=marker, label=name)
axes.set(
    xlabel="multiply-adds left (% of the whole network's)",
    ylabel="accuracy on images it has not seen (%)",
    ylim=(0, 105),
)
axes.grid(color="#DDDDDD", linewidth=0.6)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()
