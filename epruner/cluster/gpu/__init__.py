"""Affinity propagation on a CUDA device. Importing this needs neither CuPy nor a device."""

from epruner.cluster.gpu.arrays import on_device, wanted
from epruner.cluster.gpu.cluster import cluster_features, cluster_many
from epruner.cluster.gpu.cuda import load_cupy
from epruner.cluster.gpu.filters import FilterBatch

__all__ = [
    "FilterBatch",
    "cluster_features",
    "cluster_many",
    "load_cupy",
    "on_device",
    "wanted",
]
