"""
How do I get ten clusters?
==========================

Affinity propagation takes a preference, not a number of clusters. With scikit-learn one searches by
hand, one fit for each guess; ``n_clusters=`` does it in one call. The left panel shows the guesses,
the right one what both take on the machine that built this page.
"""

from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import AffinityPropagation as TheirAffinityPropagation
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score, euclidean_distances

from epruner import AffinityPropagation, plots

X = load_digits().data[:800]
WANTED = 10

# By hand: multiples of the median similarity, doubled until there are too few clusters, then halved
# intervals.
start = perf_counter()
S = -euclidean_distances(X, squared=True)
median = np.median(S)
factor, too_small, too_large = 1.0, 0.0, np.inf
guesses: list[tuple[float, int]] = []
while not guesses or guesses[-1][1] != WANTED:
    theirs = TheirAffinityPropagation(
        affinity="precomputed",
        preference=factor * median,
        damping=0.7,
        max_iter=1000,
        random_state=0,
    ).fit(S)
    found = len(theirs.cluster_centers_indices_)
    guesses.append((factor, found))
    too_small, too_large = (factor, too_large) if found > WANTED else (too_small, factor)
    factor = 2 * factor if too_large == np.inf else (too_small + too_large) / 2
by_hand = perf_counter() - start

start = perf_counter()
ours = AffinityPropagation(n_clusters=WANTED).fit(X)
in_one_call = perf_counter() - start

figure, (left, right) = plt.subplots(
    1, 2, figsize=(10, 4), width_ratios=(3, 2), layout="constrained"
)
factors, found_numbers = np.array(guesses).T
left.plot(factors, found_numbers, "o", color="#0072B2", label="a guess, scikit-learn")
left.plot(
    ours.preference_[0] / median, WANTED, "*", color="#D55E00", markersize=15, label="n_clusters=10"
)
for number, guess in enumerate(guesses, 1):
    left.annotate(str(number), guess, (0, 8), textcoords="offset points", ha="center")
left.axhline(WANTED, color="0.7", linewidth=1, zorder=0)
left.set_xscale("log", base=2)
left.xaxis.set_major_formatter("{x:g}")
left.set_ylim(0, 1.12 * max(found_numbers))
left.set_xlabel("preference, as a multiple of the median similarity")
left.set_ylabel("number of clusters")
left.legend(frameon=False)
right.bar(["by hand", "n_clusters=10"], [by_hand, in_one_call], color=["#0072B2", "#D55E00"])
right.set_ylabel("seconds")
right.margins(y=0.1)
for place, seconds in enumerate((by_hand, in_one_call)):
    right.annotate(
        f"{seconds:.2f} s", (place, seconds), (0, 3), textcoords="offset points", ha="center"
    )
plt.show()

# %%
# Both are clusterings into ten. They had different preferences, so the exemplars may differ.

print(f"by hand        {by_hand:6.2f} s, {len(guesses)} fits")
print(f"n_clusters=10  {in_one_call:6.2f} s")
print(f"adjusted Rand index between both: {adjusted_rand_score(theirs.labels_, ours.labels_):.2f}")

# %%
# What was found
# --------------
#
# ``preference_`` and ``damping_`` tell what gave the ten clusters: the same values give them again,
# here and in scikit-learn.

figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
plots.plot_exemplars(ours, (8, 8), ax=ax)
plt.show()

print(f"preference={ours.preference_[0]:.6g}, damping={ours.damping_}")
again = AffinityPropagation(preference=ours.preference_[0], damping=ours.damping_).fit(X)
assert np.array_equal(again.labels_, ours.labels_)
