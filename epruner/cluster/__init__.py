"""Affinity propagation for anyone who clusters. Nothing in here imports torch."""

from epruner.cluster.affinity import AffinityPropagation, affinity_propagation
from epruner.cluster.many import affinity_propagation_many
from epruner.cluster.outcome import Clustering
from epruner.cluster.preference import preference_range

__all__ = [
    "AffinityPropagation",
    "Clustering",
    "affinity_propagation",
    "affinity_propagation_many",
    "preference_range",
]
