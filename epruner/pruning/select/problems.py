"""Filter matrices to exemplars: one clustering problem a layer, similarities computed once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor, nn

from epruner.cluster import Clustering
from epruner.pruning.graph.groups import Group
from epruner.pruning.network.filters import joint_rows
from epruner.pruning.select.importance import Candidates, Importance, Indices, Matrix
from epruner.pruning.select.similarities import Comparison, LossComparison, compare

Clusterings = tuple[Clustering, ...]


@dataclass(frozen=True)
class Layer:
    """A group of channels with what choosing among them needs.

    Parameters
    ----------
    group : Group
    comparison : Comparison
        Of all layers' filters, those of each block of channels (see `Group.blocks`) with each
        other.
    blocks : range
        Numbers in the comparison of this layer's blocks.
    unit : int
        The number of channels kept is a multiple of this.
    floor : int
        At least this many channels stay.
    clustered : bool
        Whether the comparison can tell exemplars.
    """

    group: Group
    comparison: Comparison
    blocks: range
    unit: int
    floor: int
    clustered: bool = True

    @property
    def name(self) -> str:
        """Name of the group."""
        return self.group.name

    @property
    def channels(self) -> int:
        """Channels before pruning."""
        return self.group.channels

    @property
    def features(self) -> tuple[Matrix, ...]:
        """Filter matrix (n, d) of each block."""
        return tuple(self.comparison.features(block) for block in self.blocks)

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
        self, importance: Importance, clusterings: Clusterings | None, count: int, seed: int
    ) -> Indices:
        """Which `count` channels stay, ascending."""
        width = self.channels // self.group.blocks
        parts = []
        for place, block in enumerate(self.blocks):
            candidates = Candidates(
                features=self.comparison.features(block),
                exemplars=clusterings[place].exemplars if clusterings else np.empty(0, np.intp),
                seed=seed,
                layer=self.name,
                compare=partial(self.comparison.similarities, block),
                first=place * width,
            )
            chosen = importance(candidates, count // self.group.blocks)
            parts.append(chosen + place * width)
        return np.concatenate(parts)


def make_layers(
    modules: Mapping[str, nn.Module],
    groups: Sequence[Group],
    *,
    min_filters: float | None,
    round_to: int,
    described: Mapping[str, Matrix],
    losses: Mapping[str, Matrix] | None = None,
    n_threads: int | None,
) -> tuple[list[Layer], list[str]]:
    """Read the filters of all groups and compare them, where the weights are.

    Parameters
    ----------
    modules : mapping of str to torch.nn.Module
    groups : sequence of Group
    min_filters : int, float or None
        Channels (int) or share of them (float) that stay at least; None is the larger of 1 and
        5 %.
    round_to : int
        The number kept is a multiple of this, if the layer has so many.
    described : mapping of str to ndarray of shape (channels, d)
        By group name, what to compare the filters by instead of their weights.
    losses : mapping of str to ndarray of shape (channels, channels), optional
        By group name, what is lost when one filter stands in for another. If given, it is what
        filters are clustered by, and the layers without are not clustered.
    n_threads : int or None

    Returns
    -------
    layers : list of Layer
    notes : list of str
        Where the filters were compared, if not where one would think.
    """
    filters: list[Tensor | Matrix] = []
    places = []
    for group in groups:
        rows: Tensor | Matrix
        if group.name in described:
            rows = described[group.name]
        else:
            rows = joint_rows((modules[m.module], m.entries) for m in group.producers)
        places.append(range(len(filters), len(filters) + group.blocks))
        filters += list(rows.reshape(group.blocks, -1, rows.shape[1]))
    comparison, notes = compare(filters, n_threads=n_threads)
    if losses is not None:
        comparison = LossComparison(
            comparison,
            {
                blocks.start: losses[group.name]
                for group, blocks in zip(groups, places, strict=True)
                if group.name in losses
            },
        )
    layers = []
    for group, blocks in zip(groups, places, strict=True):
        unit = math.lcm(group.blocks, round_to)
        if unit > group.channels:
            unit = group.channels
        share = (
            0.05 if min_filters is None else min_filters if isinstance(min_filters, float) else 0.0
        )
        absolute = min_filters if isinstance(min_filters, int) else 1
        floor = min(max(1, absolute, math.ceil(share * group.channels)), group.channels)
        clustered = losses is None or group.name in losses
        layers.append(Layer(group, comparison, blocks, unit, floor, clustered))
    return layers, notes


def cluster(
    layers: Sequence[Layer], strengths: Mapping[str, float], *, seed: int, n_threads: int | None
) -> dict[str, Clusterings]:
    """Cluster all layers at once, each at its own strength.

    Parameters
    ----------
    layers : sequence of Layer
        Of one network; those that are not clustered are left out.
    strengths : mapping of str to float
        By layer name, a beta or a price; see `Comparison.cluster`.
    seed : int
        Of the tie-breaking.
    n_threads : int or None

    Returns
    -------
    dict of str to tuple of Clustering
        One per block of channels.
    """
    layers = [layer for layer in layers if layer.clustered]
    if not layers:
        return {}
    found = layers[0].comparison.cluster(
        {block: strengths[layer.name] for layer in layers for block in layer.blocks},
        seed=seed,
        n_threads=n_threads,
    )
    return {layer.name: tuple(found[block] for block in layer.blocks) for layer in layers}
