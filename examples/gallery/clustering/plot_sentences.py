"""
What are these sentences about?
===============================

An exemplar of sentences is a sentence: it can be read, which the mean of their vectors cannot. Here
the first sentences of the docstrings in Python's standard library are clustered by the words that
they share; what the words mean nobody knows here. Each block is one of the largest clusters, its
exemplar in bold, then its nearest members.
"""

import importlib
import inspect

import matplotlib.pyplot as plt
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from epruner import AffinityPropagation

MODULES = (
    "asyncio bz2 calendar collections csv datetime decimal email functools glob gzip heapq "
    "http.client inspect io ipaddress itertools json logging math os os.path pathlib pickle random "
    "re shutil socket ssl statistics string subprocess tarfile tempfile textwrap threading time "
    "traceback types unittest urllib.request uuid wave zipfile"
)

names: dict[str, str] = {}  # of each sentence, the function or class that it describes
for module in MODULES.split():
    for name, thing in sorted(vars(importlib.import_module(module)).items()):
        paragraph = (inspect.getdoc(thing) or "").split("\n\n")[0]
        sentence = " ".join(paragraph.split()).split(". ")[0].rstrip(".")
        if callable(thing) and name[0] != "_" and 20 < len(sentence) < 70 and "(" not in sentence:
            names.setdefault(sentence, f"{module}.{name}")

vectorizer = TfidfVectorizer(stop_words="english", min_df=2, ngram_range=(1, 2))
vectors = vectorizer.fit_transform(names).toarray()
telling = np.count_nonzero(vectors, axis=1) > 1  # the others share at most one word with any
sentences, vectors = np.array(list(names))[telling], vectors[telling]
model = AffinityPropagation(affinity="cosine", damping=0.9, max_iter=1000).fit(vectors)

sizes = np.bincount(model.labels_)
largest = np.argsort(-sizes, kind="stable")[:8]
colours = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#595959", "#000000"]
figure, axes = plt.subplots(4, 2, figsize=(11, 6.4), layout="constrained")
for ax, c, colour in zip(axes.T.flat, largest, colours, strict=True):
    members = np.flatnonzero(model.labels_ == c)
    likeness = vectors[members] @ model.cluster_centers_[c]
    ax.set(xlim=(0, 1), ylim=(0, 4.6))
    ax.set_axis_off()
    ax.axvspan(0, 0.012, ymax=0.85, color=colour)
    for line, i in enumerate(members[np.argsort(-likeness, kind="stable")[:4]]):
        bold = "bold" if line == 0 else "normal"
        ax.text(0.03, 3.5 - line, sentences[i], va="center", fontsize=9, fontweight=bold)
    ax.text(0.03, 4.1, f"{sizes[c]} sentences", fontsize=8, color="#595959")
plt.show()

print(f"{len(sentences)} sentences, {len(sizes)} clusters, converged: {model.converged_}")

# %%
# Where a sentence belongs
# ------------------------
#
# New sentences go to the exemplar whose words are most like theirs.

new = [
    "Close the file descriptor of a pipe",
    "Return true if something is a class",
    "The effective user id of this process",
]
asked = vectorizer.transform(new).toarray()
for sentence, vector, c in zip(new, asked, model.predict(asked), strict=True):
    exemplar = sentences[model.cluster_centers_indices_[c]]
    print(f"{sentence}\n    -> {exemplar}  (cosine {vector @ model.cluster_centers_[c]:.2f})")

# %%
# How alike must they be?
# -----------------------
#
# Two sentences without a common word have a cosine of 0, and so do most. That is the median, and
# the default preference. A larger one asks for more to be in common.

print("preference  clusters  alone  mean cosine to the exemplar")
for preference in (0.0, 0.2, 0.4, 0.6):
    model = AffinityPropagation(
        affinity="cosine", preference=preference, damping=0.9, max_iter=1000
    ).fit(vectors)
    cosines = np.sum(vectors * model.cluster_centers_[model.labels_], axis=1)
    alone = np.sum(np.bincount(model.labels_) == 1)
    clusters = len(model.cluster_centers_indices_)
    print(f"{preference:10}  {clusters:8}  {alone:5}  {cosines.mean():27.2f}")
