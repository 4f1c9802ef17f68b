"""
Can I cluster a graph?
======================

A sparse matrix of similarities is a graph: a pair that it does not store is never linked. Zachary's
karate club is the classic: 34 members and who met whom outside of the club, before it split in two.
Left, only pairs that met may be linked; right, also pairs that have a friend in common. Colours are
clusters, squares their exemplars, and outlines tell who went with which side.
"""

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
from scipy.sparse import csr_array, eye_array
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from epruner import AffinityPropagation

club = nx.karate_club_graph()
met = nx.to_scipy_sparse_array(club, format="csr", dtype=float)  # in how many contexts
friends = (met > 0).astype(float) + eye_array(34, format="csr")
common = csr_array(friends @ friends)  # how many each pair knows in common, themselves included
officers = np.array([club.nodes[i]["club"] == "Officer" for i in club])

# A preference below all stored similarities: to be an exemplar must pay.
fits = [
    AffinityPropagation(affinity="precomputed", preference=-3, damping=0.9).fit(S)
    for S in (met, common)
]

places = nx.kamada_kawai_layout(club)
figure, axes = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
titles = ["pairs that met", "pairs with common friends"]
for ax, model, title in zip(axes, fits, titles, strict=True):
    colours = np.array(["#E69F00", "#56B4E9", "white"])[model.labels_]  # white: label -1
    nx.draw_networkx_edges(club, places, ax=ax, edge_color="0.8")
    for i in club:
        is_exemplar = i in model.cluster_centers_indices_
        ax.plot(
            *places[i],
            marker="s" if is_exemplar else "o",
            markersize=16 if is_exemplar else 12,
            markerfacecolor=colours[i],
            markeredgecolor="#0072B2" if officers[i] else "#D55E00",
            markeredgewidth=2,
        )
        ax.annotate(str(i), places[i], ha="center", va="center_baseline", fontsize=7)
    ax.set_title(title)
    ax.set_axis_off()
plt.show()

# %%
# Both times the exemplars are members 0 and 33: the instructor and the officer whose quarrel split
# the club. Who met neither of them cannot be linked to an exemplar on the left, and has the label
# -1.

print("                           exemplars  without  on the side they took")
for model, title in zip(fits, titles, strict=True):
    linked = model.labels_ >= 0
    side = officers[model.cluster_centers_indices_][model.labels_[linked]]
    print(
        f"{title:25}  {model.cluster_centers_indices_!s:9}  {np.sum(~linked):7}"
        f"  {np.sum(side == officers[linked])} of {np.sum(linked)}"
    )

# %%
# What is lost without the other pairs?
# -------------------------------------
#
# The other usual graph joins each point to its nearest neighbours, as
# ``affinity="nearest_neighbors"`` does. Time and memory then grow with the stored pairs. Below,
# digits are clustered so, and again with the same preferences and all pairs. The default preference
# of each point keeps clusters smaller than its list of neighbours; with a much lower one, larger
# clusters would be torn.

X = load_digits().data
print(f"all pairs: {len(X) * (len(X) - 1):,}\n")
print("Clusters by nearest neighbours, by all pairs, and their adjusted Rand index")
print("neighbours  stored pairs  nearest  all  index")
for n_neighbors in (10, 30, 100):
    near = AffinityPropagation(
        affinity="nearest_neighbors", n_neighbors=n_neighbors, damping="auto"
    ).fit(X)
    full = AffinityPropagation(preference=near.preference_, damping=0.9, max_iter=1000).fit(X)
    print(
        f"{n_neighbors:10}  {n_neighbors * len(X):12,}  {len(near.cluster_centers_indices_):7}"
        f"  {len(full.cluster_centers_indices_):3}"
        f"  {adjusted_rand_score(near.labels_, full.labels_):5.3f}"
    )
