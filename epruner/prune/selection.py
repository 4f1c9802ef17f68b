"""Filter matrices to exemplars: one clustering problem a layer, similarities computed once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from epruner.cluster import Clustering, affinity_propagation_many
from epruner.cluster.similarity import median_preference, negative_squared_distances
from epruner.prune.criteria import Candidates, Criterion, Indices, Matrix
from epruner.prune.filters import joint_matrix
from epruner.prune.graph import Group

Clusterings = tuple[Clustering, ...]


@dataclass(frozen=True)
class Layer:
    """A group of channels with what choosing among them needs.

    Parameters
    ----------
    group : Group
    features, similarities, medians : tuple of ndarray
        One entry per block of channels (see `Group.blocks`), of shapes (n, d), (n, n), (n,), with
        n the channels of a block.
    unit : int
        The number of channels kept is a multiple of this.
    floor : int
        At least this many channels stay.
    """

    group: Group
    features: tuple[Matrix, ...]
    similarities: tuple[Matrix, ...]
    medians: tuple[Matrix, ...]
    unit: int
    floor: int

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.group.name

    @property
    def channels(self) -> int:
        """Channels before pruning."""
        return self.group.channels

    def fit(self, count: float) -> int:
        """The nearest number of channels that is allowed."""
        steps = max(1, math.floor(count / self.unit + 0.5)) * self.unit
        if steps < self.floor:
            steps = -(-self.floor // self.unit) * self.unit
        return min(steps, self.channels)

    def exemplar_count(self, clusterings: Clusterings) -> int:
        """Channels that exemplars stand for, before floors and rounding; never none.

        All blocks keep the same number, the rounded mean of theirs.
        """
        blocks = self.group.blocks
        found = sum(len(clustering.exemplars) for clustering in clusterings)
        return max(1, math.floor(found / blocks + 0.5)) * blocks

    def members(
        self, criterion: Criterion, clusterings: Clusterings | None, count: int, seed: int
    ) -> Indices:
        """Which `count` channels stay, ascending."""
        width = self.channels // self.group.blocks
        parts = []
        for block, (rows, s) in enumerate(zip(self.features, self.similarities, strict=True)):
            found = clusterings[block].exemplars if clusterings else np.empty(0, np.intp)
            candidates = Candidates(rows, s, found, seed, self.name)
            chosen = criterion(candidates, count // self.group.blocks)
            parts.append(chosen + block * width)
        return np.concatenate(parts)


def make_layer(
    modules: Mapping[str, nn.Module],
    group: Group,
    *,
    min_keep: float | None,
    round_to: int,
    described: Matrix | None = None,
) -> Layer:
    """Read a group's filters and compare them all with each other.

    Parameters
    ----------
    modules : mapping of str to torch.nn.Module
    group : Group
    min_keep : int, float or None
        Channels (int) or share of them (float) that stay at least; None is the larger of 1 and
        5 %.
    round_to : int
        The number kept is a multiple of this, if the layer has so many.
    described : ndarray of shape (channels, d), optional
        What to compare the filters by instead of their weights.
    """
    rows = (
        described
        if described is not None
        else joint_matrix(modules[member.module] for member in group.producers)
    )
    features = tuple(np.split(rows, group.blocks))
    similarities = tuple(negative_squared_distances(block) for block in features)
    medians = tuple(median_preference(s, 1.0) for s in similarities)
    unit = math.lcm(group.blocks, round_to)
    if unit > group.channels:
        unit = group.channels
    share = 0.05 if min_keep is None else min_keep if isinstance(min_keep, float) else 0.0
    absolute = min_keep if isinstance(min_keep, int) else 1
    floor = min(max(1, absolute, math.ceil(share * group.channels)), group.channels)
    return Layer(group, features, similarities, medians, unit, floor)


def cluster(
    layers: Sequence[Layer], betas: Mapping[str, float], *, seed: int, n_threads: int | None
) -> dict[str, Clusterings]:
    """Cluster all layers at once, each at its own beta.

    Parameters
    ----------
    layers : sequence of Layer
    betas : mapping of str to float
        By layer name; the preference of filter k is beta times the median of column k.
    seed : int
        Of the tie-breaking.
    n_threads : int or None

    Returns
    -------
    dict of str to tuple of Clustering
        One per block of channels.
    """
    problems = [s for layer in layers for s in layer.similarities]
    preferences = [m * m.dtype.type(betas[layer.name]) for layer in layers for m in layer.medians]
    with warnings.catch_warnings():
        # filters all alike (two in a block, or all dead) are no news to whoever prunes them
        warnings.filterwarnings("ignore", message="All samples have mutually equal")
        results = iter(
            affinity_propagation_many(
                problems,
                preference=preferences,
                damping=0.5,
                max_iter=200,
                convergence_iter=15,
                random_state=seed,
                n_threads=n_threads,
            )
        )
    return {layer.name: tuple(next(results) for _ in layer.similarities) for layer in layers}
