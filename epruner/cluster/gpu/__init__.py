"""Affinity propagation on a CUDA device. Importing this needs neither CuPy nor a device."""

from epruner.cluster.gpu.door import FilterBatch, cluster_features, cluster_many, on_device, wanted

__all__ = ["FilterBatch", "cluster_features", "cluster_many", "on_device", "wanted"]
