"""
Can my scikit-learn program stay as it is?
==========================================

After :func:`epruner.accel.install`, scikit-learn's own ``AffinityPropagation`` runs on epruner. The
picture shows what the same lines of code take before and after, for growing parts of the
handwritten digits, on the machine that built this page. With scikit-learn's noise, which is the
default, the labels are the same; fast ties, the third line, may break ties otherwise.
"""

from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import AffinityPropagation
from sklearn.datasets import load_digits

import epruner.accel

X = load_digits().data
SIZES = (200, 400, 800, 1200, 1797)


def fit_all() -> tuple[list[float], list[AffinityPropagation]]:
    """Seconds, the better of two runs, and models for each size: not a word of epruner."""
    seconds, models = [], []
    for n in SIZES:
        models.append(AffinityPropagation(random_state=0))
        taken = []
        for _ in range(2):
            start = perf_counter()
            models[-1].fit(X[:n])
            taken.append(perf_counter() - start)
        seconds.append(min(taken))
    return seconds, models


before, theirs = fit_all()
epruner.accel.install()
after, ours = fit_all()
epruner.accel.install(ties="fast")
fastest, fast = fit_all()
epruner.accel.uninstall()

figure, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
for seconds, style, colour, name in (
    (before, "o-", "#0072B2", "scikit-learn"),
    (after, "s-", "#D55E00", "install()"),
    (fastest, "^--", "#D55E00", 'install(ties="fast")'),
):
    ax.loglog(SIZES, seconds, style, color=colour, label=name)
ax.set_xticks(SIZES, [f"{n:,}" for n in SIZES])
ax.minorticks_off()
ax.yaxis.set_major_formatter("{x:g}")
ax.set_xlabel("points")
ax.set_ylabel("seconds")
ax.legend(frameon=False)
plt.show()

# %%
# The same answers
# ----------------
#
# The pixels are integers, so many similarities tie, and scikit-learn breaks ties by noise. By
# default the same noise is drawn, which is most of the time that is left. With ``ties="fast"`` a
# hash breaks them, and labels can differ.

print("                     scikit-learn's noise     fast ties")
print("points  clusters     same labels  faster     same labels  faster")
for q, n in enumerate(SIZES):
    print(f"{n:6}  {len(theirs[q].cluster_centers_indices_):8}", end="")
    for models, seconds in ((ours, after), (fast, fastest)):
        same = np.array_equal(theirs[q].labels_, models[q].labels_)
        print(f"     {'yes' if same else 'no':11}  {before[q] / seconds[q]:5.1f}x", end="")
    print()

# %%
# Without touching the program
# ----------------------------
#
# ``python -m epruner.accel script.py`` runs a script in this way, and ``%load_ext epruner.accel`` a
# notebook. The class stays scikit-learn's:

print(type(ours[0]).__module__, ours[0])
