"""
Which preference should I take?
===============================

The preference says how much each point wants to be an exemplar: the larger it is, the more
clusters. :func:`epruner.preference_path` clusters the same points with many preferences. Left, what
each gives; right, how good it is, judged with and without knowing the right answer.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, silhouette_score

from epruner import AffinityPropagation, plots, preference_path

X, digit = load_digits(return_X_y=True)
X, digit = X[:800], digit[:800]
path = preference_path(X, 20, max_iter=1000)

several = np.flatnonzero((path.n_clusters > 1) & (path.n_clusters < len(X)))
n_clusters = path.n_clusters[several]
silhouettes = np.array([silhouette_score(X, path.labels[q]) for q in several])
rand = np.array([adjusted_rand_score(digit, path.labels[q]) for q in several])

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
plots.plot_preference_path(path, ax=left)
right.semilogx(n_clusters, rand, "o-", color="#0072B2", label="agreement with the digits")
right.semilogx(n_clusters, silhouettes, "s-", color="#D55E00", label="silhouette")
right.set_xlabel("number of clusters")
right.set_ylabel("adjusted Rand index, silhouette")
right.legend(frameon=False)
plt.show()

# %%
# The net similarity grows with the preference, as it counts the preferences of the exemplars. It
# compares clusterings with the *same* preference; it does not choose one.
#
# The silhouette needs no labels and can choose. The adjusted Rand index needs the classes, so here
# it only judges the choice. Handwriting has more shapes than there are digits: a seven with a
# stroke and one without are far apart.

best = silhouettes.argmax()
print("                      clusters  silhouette  adjusted Rand index")
for name, q in (
    ("highest silhouette", best),
    ("nearest to ten", abs(n_clusters - 10).argmin()),
    ("highest Rand index", rand.argmax()),
):
    print(f"{name:20}  {n_clusters[q]:8}  {silhouettes[q]:10.2f}  {rand[q]:19.2f}")

# %%
# An entry of the path is a fit: the same preference gives the same clusters.

preference = path.preferences[several[best]]
model = AffinityPropagation(preference=preference, damping=0.9, max_iter=1000).fit(X)
assert np.array_equal(model.labels_, path.labels[several[best]])

figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
plots.plot_exemplars(model, (8, 8), ax=ax)
plt.show()

# %%
# Rules of thumb
# --------------
#
# Without a path, a quantile of the similarities is a start that does not depend on the units of
# the features. The median, which is the default, gives many clusters; the smallest similarity of
# all gives fewer, but not few: for those, take a path, or ask for a number with ``n_clusters=``.

print("quantile  preference  clusters")
for quantile in (0.5, 0.1, 0.01, 0.0):
    model = AffinityPropagation(preference_quantile=quantile, damping=0.9, max_iter=1000).fit(X)
    clusters = len(model.cluster_centers_indices_)
    print(f"{quantile:8}  {model.preference_[0]:10.0f}  {clusters:8}")
