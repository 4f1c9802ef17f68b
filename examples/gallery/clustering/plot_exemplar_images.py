"""
What do my clusters look like?
==============================

An exemplar is one of the images itself, sharp, where a mean would be a blur. The picture shows the
exemplars of scikit-learn's 1,797 handwritten digits, the largest cluster first, with the number
of images that each stands for.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits, load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d

from epruner import AffinityPropagation, plots

X = load_digits().data
model = AffinityPropagation(n_clusters=35).fit(X)

figure, ax = plt.subplots(figsize=(8, 5.2), layout="constrained")
plots.plot_exemplars(model, (8, 8), ax=ax)
plt.show()

# %%
# Inside a cluster
# ----------------
#
# Each row is a cluster: its exemplar, the members that are most like it, the mean of all members,
# and the members that are least like it.

sizes = np.bincount(model.labels_)
figure, axes = plt.subplots(5, 11, figsize=(8, 4.2), layout="constrained")
for row, c in zip(axes, np.argsort(-sizes, kind="stable")[:5], strict=True):
    members = np.flatnonzero(model.labels_ == c)
    distances = np.linalg.norm(X[members] - model.cluster_centers_[c], axis=1)
    members = members[np.argsort(distances, kind="stable")]
    mean = X[members].mean(axis=0)
    for ax, image in zip(row, [*X[members[:6]], mean, *X[members[-4:]]], strict=True):
        ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        ax.set_axis_off()
for place, title in ((0, "exemplar"), (3, "most alike"), (6, "mean"), (8, "least alike")):
    axes[0, place].set_title(title, fontsize=9)
plt.show()

# %%
# In colour
# ---------
#
# ``plot_exemplars`` takes colour images, too: here the patches of a photograph that stand for all
# others.

flower = load_sample_image("flower.jpg")
patches = extract_patches_2d(flower, (24, 24), max_patches=1500, random_state=0)
patches = patches.reshape(len(patches), -1) / 255
model = AffinityPropagation(n_clusters=40).fit(patches)

figure, ax = plt.subplots(figsize=(8, 5.6), layout="constrained")
plots.plot_exemplars(model, (24, 24, 3), ax=ax)
plt.show()
