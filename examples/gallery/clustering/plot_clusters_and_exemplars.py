"""
Which points stand for the others?
==================================

Affinity propagation chooses *exemplars* among the points and ties each other point to one of them.
Here the points are 178 Italian wines with thirteen chemical measurements each. Nobody says how
many clusters there are; every line leads from a wine to the one that stands for it.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from epruner import AffinityPropagation, plots

wine = load_wine()
X = StandardScaler().fit_transform(wine.data)
model = AffinityPropagation().fit(X)

figure, ax = plt.subplots(figsize=(7, 5.6), layout="constrained")
plots.plot_clusters(model, X, ax=ax)
plt.show()

# %%
# The exemplars are wines, not means of wines: each can be looked up, tasted or shown to somebody.
# The table has the five that stand for the most others, with the grower's cultivar, which the
# clustering has not seen.

sizes = np.bincount(model.labels_)
print("wine  stands for  cultivar  same cultivar  alcohol  colour intensity")
for c in np.argsort(-sizes, kind="stable")[:5]:
    exemplar = model.cluster_centers_indices_[c]
    cultivar = wine.target[exemplar]
    same = np.mean(wine.target[model.labels_ == c] == cultivar)
    alcohol, intensity = wine.data[exemplar, [0, 9]]
    print(
        f"{exemplar:4}  {sizes[c]:10}  {cultivar:8}  {100 * same:11.0f} %  {alcohol:5.1f} %"
        f"  {intensity:16.1f}"
    )

# %%
# Fewer exemplars
# ---------------
#
# The median similarity, which is the default preference, gives many small clusters. A number can
# be asked for instead; :class:`epruner.AffinityPropagation` then searches the preference that
# gives it.

three = AffinityPropagation(n_clusters=3).fit(X)

figure, ax = plt.subplots(figsize=(7, 5.6), layout="constrained")
plots.plot_clusters(three, X, ax=ax)
plt.show()

print("wines of each cultivar (columns) in each cluster (rows)")
for c in range(3):
    print(np.bincount(wine.target[three.labels_ == c], minlength=3))

# %%
# New points
# ----------
#
# A new wine belongs to the exemplar that is most similar to it. To see how well the exemplars
# stand for wines they have never met, a third of the wines is kept aside, and each takes the
# cultivar of its exemplar.

known, new, cultivars, expected = train_test_split(
    wine.data, wine.target, test_size=1 / 3, stratify=wine.target, random_state=0
)
scaler = StandardScaler().fit(known)
model = AffinityPropagation(n_clusters=3).fit(scaler.transform(known))
predicted = cultivars[model.cluster_centers_indices_][model.predict(scaler.transform(new))]
print(f"{np.sum(predicted == expected)} of {len(new)} new wines have their exemplar's cultivar")
