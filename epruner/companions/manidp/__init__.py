"""ManiDP: each input switches off the channels that it does not need.

Gates in front of convolutions are learned with the weights; what an input costs then depends on
how hard it is. After Tang et al., "Manifold Regularized Dynamic Network Pruning", CVPR 2021
(arXiv 2103.05861).
"""

from epruner.companions.manidp.counting import MultiplyAdds, multiply_adds
from epruner.companions.manidp.gates import GatedNetwork, gate
from epruner.companions.manidp.skipping import skipping
from epruner.companions.manidp.static import Static, to_static
from epruner.companions.manidp.training import Regularizer

__all__ = [
    "GatedNetwork",
    "MultiplyAdds",
    "Regularizer",
    "Static",
    "gate",
    "multiply_adds",
    "skipping",
    "to_static",
]
