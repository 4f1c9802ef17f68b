"""Several OpenMP runtimes in one process: torch's, scikit-learn's and the extension's."""

from processes import AWAIT_CHILD, in_a_process

SETTING = """
import os, sys, time
from statistics import median
import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info
from epruner import affinity_propagation
from epruner.cluster.similarity import negative_squared_distances

X = np.random.default_rng(0).normal(size=(1500, 16)).astype(np.float32)
S = negative_squared_distances(X)

def answer():
    return affinity_propagation(S, damping=0.8, n_threads=2)[1].tolist()

def seconds():
    start = time.perf_counter()
    answer()
    return time.perf_counter() - start
"""

FORK = """
import torch
weights = torch.ones(400, 400, requires_grad=True)
(weights @ weights).sum().backward()  # torch's threads run
KMeans(20, n_init=1, random_state=0).fit(X)  # scikit-learn's, too
expected = answer()
print(sum(library["user_api"] == "openmp" for library in threadpool_info()))
child = os.fork()
if child == 0:
    os._exit(0 if answer() == expected else 3)
"""

SPEED = """
answer()
alone = median(seconds() for _ in range(15))
import torch
weights = torch.ones(400, 400)
KMeans(20, n_init=1, random_state=0).fit(X)
weights @ weights
answer()
beside = median(seconds() for _ in range(15))
print(alone, beside)
"""


def test_a_child_forked_beside_torch_does_not_hang() -> None:
    assert int(in_a_process(SETTING + FORK + AWAIT_CHILD)) >= 2


def test_torch_in_the_process_does_not_slow_clustering() -> None:
    alone, beside = map(float, in_a_process(SETTING + SPEED).split())
    assert beside < 3 * alone, f"{alone:.4f} s before torch was imported, {beside:.4f} s after"
