"""Which points stand for which: affinity propagation, for anyone who clusters.

Nothing in here imports torch.
"""

from epruner.cluster.estimator import (
    AffinityPropagation,
    affinity_propagation,
    affinity_propagation_many,
)
from epruner.cluster.hierarchy import ExemplarHierarchy, merge_exemplars
from epruner.cluster.path import PreferencePath, preference_path
from epruner.cluster.preference import preference_range
from epruner.cluster.types import Clustering

__all__ = [
    "AffinityPropagation",
    "Clustering",
    "ExemplarHierarchy",
    "PreferencePath",
    "affinity_propagation",
    "affinity_propagation_many",
    "merge_exemplars",
    "preference_path",
    "preference_range",
]
