"""Several OpenMP runtimes in one process: torch's, scikit-learn's and the extension's."""

from processes import AWAIT_CHILD, in_a_process

SETTING = """
import os, sys, time
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

BESIDE_TORCH = """
import torch
weights = torch.ones(400, 400)
KMeans(20, n_init=1, random_state=0).fit(X)
weights @ weights
"""

SPEED = """
answer()
print(min(seconds() for _ in range(10)))
"""


def test_a_child_forked_beside_torch_does_not_hang() -> None:
    runtimes = int(in_a_process(SETTING + FORK + AWAIT_CHILD))
    assert runtimes >= 2  # some wheels bring the very same one


def test_torch_in_the_process_does_not_slow_clustering() -> None:
    alone, beside = [], []
    for _ in range(2):  # in turn, as others use the machine, too
        alone.append(float(in_a_process(SETTING + SPEED)))
        beside.append(float(in_a_process(SETTING + BESIDE_TORCH + SPEED)))
    assert min(beside) < 3 * min(alone), f"{alone} s alone, {beside} s beside torch"
