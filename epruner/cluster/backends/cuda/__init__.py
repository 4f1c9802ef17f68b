"""Affinity propagation where the data are on a CUDA device.

Importing this needs neither CuPy nor a device.
"""

from epruner.cluster.backends.cuda.cluster import FilterBatch, cluster_features, cluster_many
from epruner.cluster.backends.cuda.device import load_cupy, on_device, use_device

__all__ = [
    "FilterBatch",
    "cluster_features",
    "cluster_many",
    "load_cupy",
    "on_device",
    "use_device",
]
