"""
A hundred thousand points?
==========================

This photograph has nearly a hundred thousand different colours. Which sixteen of them stand for the
others? A matrix of all pairs would not fit into the memory of most machines; with
``affinity="nearest_neighbors"`` each colour is linked to the twenty nearest only. Two rounds of
that leave few enough for an exact clustering.
"""

from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_image

from epruner import AffinityPropagation

picture = load_sample_image("china.jpg")
pixels = picture.reshape(-1, 3)
colours, of_pixel, count = np.unique(pixels, axis=0, return_inverse=True, return_counts=True)
X = colours.astype(np.float32)

start = perf_counter()
palettes, label = [X], np.arange(len(X))  # label: of each colour, its place in the last palette
links = []  # how many similarities are held
for _ in range(2):
    model = AffinityPropagation(affinity="nearest_neighbors", n_neighbors=20, damping="auto")
    model.fit(palettes[-1])
    palettes.append(model.cluster_centers_)
    label = model.labels_[label]
    links.append(model.affinity_matrix_.nnz)
weight = np.bincount(label, weights=count)  # how many pixels each exemplar stands for
model = AffinityPropagation(n_clusters=16).fit(palettes[-1], sample_weight=weight)
palettes.append(model.cluster_centers_)
label_of_sixteen = model.labels_[label]
seconds = perf_counter() - start

sixteen = palettes[-1].astype(np.uint8)
figure = plt.figure(figsize=(10, 4), layout="constrained")
axes = figure.subplot_mosaic([["all", "few"], ["of", "of"]], height_ratios=(8, 1))
axes["all"].imshow(picture)
axes["all"].set_title(f"{len(colours):,} colours")
axes["few"].imshow(sixteen[label_of_sixteen][of_pixel].reshape(picture.shape))
axes["few"].set_title("16 of them")
axes["of"].imshow(sixteen[sixteen.sum(axis=1, dtype=int).argsort()][None], aspect="auto")
for ax in axes.values():
    ax.set_axis_off()
plt.show()

# %%
# What it took on the machine that built this page.

print("colours:", " -> ".join(f"{len(palette):,}" for palette in palettes))
print(f"{seconds:.1f} s")
print(f"{links[0]:,} similarities held, of {len(colours) ** 2:,} in a matrix of all pairs")

# %%
# How near is it to the picture?
# ------------------------------
#
# Sixteen exemplars are colours that occur in the picture; k-means mixes its own, and may so come
# nearer to the pixels. Weights matter: without them a rare colour counts as much as the sky.

unweighted = AffinityPropagation(n_clusters=16).fit(palettes[2])
kmeans = KMeans(16, n_init=1, random_state=0).fit(X, sample_weight=count)
print("16 colours              root mean square error, of 255")
for name, found in (
    ("exemplars", palettes[3][label_of_sixteen]),
    ("exemplars, no weights", unweighted.cluster_centers_[unweighted.labels_][label]),
    ("k-means", kmeans.cluster_centers_[kmeans.labels_]),
):
    print(f"{name:22}  {np.sqrt(np.mean(np.square(found[of_pixel.ravel()] - pixels))):30.2f}")
