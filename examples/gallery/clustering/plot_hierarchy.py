"""
Which clusters belong together?
===============================

Affinity propagation gives one level of clusters. :func:`epruner.merge_exemplars` merges them two at
a time, each union with an exemplar of its own. In the heat map digits of a cluster lie side by
side: bright squares are tight clusters, and bright patches off the diagonal tell which are alike.
"""

import matplotlib.pyplot as plt
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from scipy.cluster.hierarchy import dendrogram
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from epruner import AffinityPropagation, merge_exemplars, plots

X, digit = load_digits(return_X_y=True)
X, digit = X[:600], digit[:600]
model = AffinityPropagation(preference_quantile=0.1, damping=0.7).fit(X)
hierarchy = merge_exemplars(model, X)

figure, ax = plt.subplots(figsize=(7.6, 5.8), layout="constrained")
plots.plot_heatmap(model, X, hierarchy, ax=ax)
plt.show()

# %%
# The tree
# --------
#
# ``hierarchy.linkage`` is SciPy's linkage matrix, so SciPy draws it. Below each leaf is its
# exemplar.

figure, ax = plt.subplots(figsize=(10, 4.4), layout="constrained")
tree = dendrogram(hierarchy.linkage, ax=ax, no_labels=True, link_color_func=lambda _: "#0072B2")
for place, leaf in enumerate(tree["leaves"]):
    image = X[model.cluster_centers_indices_[leaf]].reshape(8, 8)
    drawn = OffsetImage(image, zoom=2, cmap="gray_r")
    ax.add_artist(
        AnnotationBbox(
            drawn,
            (5 + 10 * place, 0),
            (0, -12 - 20 * (place % 2)),
            xycoords="data",
            boxcoords="offset points",
            frameon=False,
            annotation_clip=False,
        )
    )
ax.set_ylabel("squared distance of merge")
ax.spines[["top", "right", "bottom"]].set_visible(False)
plt.show()

# %%
# Cuts
# ----
#
# A cut is a clustering, with exemplars and labels. The digits' classes, which nothing here has
# seen, judge it.

print("clusters  adjusted Rand index")
for k in (len(hierarchy.merges) + 1, 20, 15, 10, 5):
    cut = hierarchy.cut(k)
    print(f"{k:8}  {adjusted_rand_score(digit, cut.labels):19.2f}")
