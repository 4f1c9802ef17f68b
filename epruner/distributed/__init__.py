"""The same answers from several processes, by torch.distributed.

Every rank of an initialised process group calls the same function with the same parameters and its
own part of the data. Nothing of this is imported before it is asked for, torch least of all.
"""

from epruner.distributed.estimator import AffinityPropagation, affinity_propagation
from epruner.distributed.group import RankError

__all__ = ["AffinityPropagation", "RankError", "affinity_propagation"]
