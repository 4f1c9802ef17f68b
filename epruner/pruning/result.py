"""What `prune` returns, and how its figures are put together."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike

import numpy as np
from torch import nn

from epruner import _pictures
from epruner.cluster.similarity import negative_squared_distances
from epruner.pruning.graph.costs import Costs, Totals
from epruner.pruning.graph.groups import Group
from epruner.pruning.plan.plan import Plan
from epruner.pruning.report.records import LayerReport
from epruner.pruning.report.report import Report
from epruner.pruning.select.allocation import Choice, Sizes
from epruner.pruning.select.importance import Indices, Matrix
from epruner.pruning.select.problems import Clusterings, Layer


@dataclass(frozen=True)
class LayerClusters:
    """The clustering of one layer, for looking at.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Filter matrix.
    labels : ndarray of int, shape (n,)
        Cluster of each filter, -1 where it has none.
    exemplars : ndarray of int, shape (clusters,)
        As affinity propagation found them.
    kept : ndarray of int, shape (filters that stayed,)
        Filters that stayed, ascending.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> found = epruner.prune(model, (1, 8), beta=1.0).clusters_of("0")
    >>> found.features.shape, found.exemplars.tolist() == found.kept.tolist()
    ((32, 8), True)
    """

    features: Matrix
    labels: Indices
    exemplars: Indices
    kept: Indices


@dataclass(frozen=True)
class PruningResult:
    """A pruned network and how it came about.

    Parameters
    ----------
    model : torch.nn.Module
        The smaller network, in the mode of the original.
    plan : Plan
        Which channels stayed; rebuilds the network from a full-size one.
    report : Report
        What was done to every layer and what came of it; prints as a table.
    clusters : mapping of str to LayerClusters
        By layer name; only layers that were clustered.
    groups : tuple of Group
        The pruned groups of coupled channels: producers, followers and consumers with index maps.
    kept : mapping of str to ndarray of int
        By group name, the channels that stayed; not of groups in blocks that are passed by.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> result = epruner.prune(model, (1, 8), macs=0.5)
    >>> result.report.before.macs, result.report.after.macs, len(result.kept["0"])
    (384, 192, 16)
    """

    model: nn.Module
    plan: Plan
    report: Report
    clusters: Mapping[str, LayerClusters] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    kept: Mapping[str, Indices] = field(default_factory=dict)

    def clusters_of(self, layer: str) -> LayerClusters:
        """The clustering of a layer.

        Parameters
        ----------
        layer : str
            A layer that was clustered, one of ``clusters``.

        Returns
        -------
        LayerClusters
            What was compared, the clusters and who stayed.

        Raises
        ------
        ValueError
            The layer was not clustered; the message names some that were.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> result = epruner.prune(model, (1, 8), beta=1.0)
        >>> result.clusters_of("0").labels.shape
        (32,)
        """
        if layer not in self.clusters:
            close = difflib.get_close_matches(layer, self.clusters, n=3, cutoff=0.3)
            raise ValueError(
                f"{layer!r} was not clustered; layers that were are like "
                f"{', '.join(close or list(self.clusters)[:3])}"
            )
        return self.clusters[layer]

    def plot_layer(self, layer: str, path: str | PathLike[str]) -> None:
        """Draw a heat map of one layer's filter similarities, ordered by cluster.

        Parameters
        ----------
        layer : str
            A layer that was clustered, one of ``clusters``.
        path : path-like
            The suffix chooses the format: png, svg, pdf and what else matplotlib writes.

        Raises
        ------
        ImportError
            When matplotlib (extra ``plot``) is absent.
        ValueError
            When the layer was not clustered or the suffix names no format.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> epruner.prune(model, (1, 8), beta=1.0).plot_layer("0", "layer.png")
        """
        from epruner.pruning.report.plots import draw_similarity

        found = self.clusters_of(layer)
        similarities = negative_squared_distances(found.features)
        figure = draw_similarity(similarities, found.labels, found.kept, name=layer)
        _pictures.save(figure, path)


def totals_of(model: nn.Module, counted: Totals) -> Totals:
    return Totals(
        macs=counted.macs,
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs_with_norm=counted.macs_with_norm,
    )


def layer_reports(
    model: nn.Module, costs: Costs, problems: Sequence[Layer], choice: Choice, sizes: Sizes
) -> tuple[LayerReport, ...]:
    after = sizes.sizes(choice.counts)
    rows = {}
    for layer in problems:
        clusterings = choice.clusterings.get(layer.name)
        strength = choice.strengths.get(layer.name)
        count = choice.counts[layer.name]
        for member in layer.group.producers:
            cost = costs.modules[member.module]
            small = after[member.module]
            rows[member.module] = LayerReport(
                name=member.module,
                kind=type(model.get_submodule(member.module)).__name__,
                before=layer.channels,
                after=count,
                preference=strength,
                n_iter=None if clusterings is None else max(c.n_iter for c in clusterings),
                converged=None if clusterings is None else all(c.converged for c in clusterings),
                floor=bool(
                    clusterings
                    and strength is not None
                    and count > layer.exemplar_count(clusterings)
                    and count == layer.fit(layer.exemplar_count(clusterings))
                ),
                macs_before=cost.macs,
                macs_after=cost.macs_at(*small),
                params_before=cost.params_at(cost.outputs, cost.inputs),
                params_after=cost.params_at(*small),
            )
    return tuple(rows[name] for name, _ in model.named_modules() if name in rows)


def layer_clusters(layer: Layer, clusterings: Clusterings, kept: Indices) -> LayerClusters:
    width = layer.channels // layer.group.blocks
    labels, exemplars, offset = [], [], 0
    for block, clustering in enumerate(clusterings):
        labels.append(np.where(clustering.labels < 0, -1, clustering.labels + offset))
        exemplars.append(clustering.exemplars + block * width)
        offset += len(clustering.exemplars)
    return LayerClusters(
        layer.features[0] if len(layer.features) == 1 else np.concatenate(layer.features),
        np.concatenate(labels),
        np.concatenate(exemplars),
        kept,
    )
