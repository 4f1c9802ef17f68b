"""Exemplars as an importance for Torch-Pruning's pruners."""

from __future__ import annotations

from collections import Counter

from epruner import _install

try:
    import torch_pruning as tp
except ImportError as error:
    raise ImportError(
        "epruner.integrations.torch_pruning needs torch_pruning, which is not installed: "
        f"{_install.command('torch-pruning')}"
    ) from error

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from epruner.cluster.preference import PreferenceRule
from epruner.cluster.resources import effective_n_threads
from epruner.pruning.network.filters import filter_rows
from epruner.pruning.network.layers import has_filters
from epruner.pruning.select.importance import rank_by_exemplars
from epruner.pruning.select.similarities import HostComparison


class ExemplarImportance(tp.importance.Importance):  # type: ignore[misc]
    """Scores of a group's channels by affinity propagation, for any of Torch-Pruning's pruners.

    The filters of a group are clustered as by ``epruner.prune(method="paper")``: by negative
    squared distances of their weights, each preferred by `beta` times the median of its
    similarities. Exemplars stay longest. The order is that of net similarity, which affinity
    propagation maximises: of the other filters those go first that add least to it beside the
    exemplars and all that stay, of the exemplars those that are missed least. What a smaller ratio
    keeps, a larger one gives up last; no data is needed.

    Scores are ranks: in (0, 1) for filters that are not exemplars, in (1, 2) for exemplars, evenly
    spaced. So ``global_pruning=True`` takes the same share of every layer's other filters before
    it takes an exemplar anywhere, and the number of a layer's exemplars sets its width.

    Parameters
    ----------
    beta : float, default=1.0
        The larger, the fewer exemplars.
    random_state : int, default=0
        Key of the tie-breaking jitter.
    n_threads : int or None, default=None
        As for `epruner.affinity_propagation`.

    Raises
    ------
    ImportError
        If Torch-Pruning is missing; the message names the extra.
    TypeError, ValueError
        If `beta` or `n_threads` is no number or out of range.

    Notes
    -----
    Filters of layers that produce the same channels (both sides of a residual addition; queries,
    keys and values) are compared side by side. The pruner removes the same places from each group
    of a grouped convolution or GroupNorm, so these places are clustered, over all groups at
    once. It averages scores over attention heads, which it does not show.

    References
    ----------
    Lin et al., "Network Pruning using Adaptive Exemplar Filters", arXiv 2101.07985.

    Examples
    --------
    >>> import torch
    >>> import torch_pruning as tp
    >>> from epruner.integrations.torch_pruning import ExemplarImportance
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 4, 3))
    >>> pruner = tp.pruner.MetaPruner(
    ...     model, torch.randn(1, 3, 8, 8), importance=ExemplarImportance(), pruning_ratio=0.5,
    ...     ignored_layers=[model[1]],
    ... )
    >>> pruner.step()
    >>> model[0].out_channels
    8
    """

    def __init__(
        self, beta: float = 1.0, *, random_state: int = 0, n_threads: int | None = None
    ) -> None:
        PreferenceRule(beta=beta).check(1)
        effective_n_threads(n_threads)
        self.beta = beta
        self.random_state = random_state
        self.n_threads = n_threads

    def __call__(self, group: tp.Group) -> Tensor | None:
        """Score the channels of a group.

        Parameters
        ----------
        group : torch_pruning.Group
            On any device; the filters are clustered on the CPU.

        Returns
        -------
        Tensor of shape (channels of the group's first layer,), float32, or None
            On the device of the weights. None, as Torch-Pruning's own, where none of the group's
            layers is a convolution or linear layer that produces these channels.

        Raises
        ------
        ValueError
            Weights that are NaN or infinite.

        Examples
        --------
        >>> import torch
        >>> import torch_pruning as tp
        >>> from epruner.integrations.torch_pruning import ExemplarImportance
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Conv2d(16, 4, 3))
        >>> graph = tp.DependencyGraph().build_dependency(model, torch.randn(1, 3, 8, 8))
        >>> group = graph.get_pruning_group(model[0], tp.prune_conv_out_channels, list(range(16)))
        >>> ExemplarImportance()(group).shape
        torch.Size([16])
        """
        filters = _filters(group)
        if filters is None:
            return None
        blocks = _blocks(group, len(filters))
        places = filters.reshape(blocks, -1, filters.shape[1]).movedim(0, 1).flatten(1)
        comparison = HostComparison([places], self.n_threads)
        clustering = comparison.cluster(
            {0: self.beta}, seed=self.random_state, n_threads=self.n_threads
        )[0]
        S, exemplars = comparison.similarities(0), clustering.exemplars
        repeats = np.tril(S[np.ix_(exemplars, exemplars)] == 0, -1).any(axis=1)
        exemplars = exemplars[~repeats]  # of equal filters each may be one
        order = rank_by_exemplars(S, exemplars)[::-1]
        others = len(order) - max(1, len(exemplars))
        scores = np.empty(len(order), np.float32)
        scores[order[:others]] = _spread(others)
        scores[order[others:]] = 1 + _spread(len(order) - others)
        return torch.from_numpy(np.tile(scores, blocks)).to(filters.device)


def _spread(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """So many numbers in (0, 1), ascending, evenly spaced."""
    return (np.arange(count) + 0.5) / count


def _filters(group: tp.Group) -> Tensor | None:
    """Weights that produce each channel of a group: (channels, d), layers side by side."""
    place_of = {channel: place for place, channel in enumerate(group[0].idxs)}
    parts: list[Tensor] = []
    for item in group:
        layer = item.dep.target.module
        produces = item.dep.handler.__name__ == "prune_out_channels"
        if not produces or not isinstance(layer, (_ConvNd, nn.Linear)) or not has_filters(layer):
            continue
        if None in item.root_idxs:  # the graph does not know whose channels they are
            continue
        rows = filter_rows(layer)[item.idxs]
        # A concatenation has channels that a layer does not make; fused queries, keys and values
        # have several rows for one.
        places = [place_of[channel] for channel in item.root_idxs]
        seen: Counter[int] = Counter()
        turns = []
        for place in places:
            turns.append(seen[place])
            seen[place] += 1
        part = rows.new_zeros(len(place_of), max(turns) + 1, rows.shape[1])
        part[places, turns] = rows
        parts.append(part.flatten(1).to(parts[0].device if parts else rows.device))
    return torch.cat(parts, dim=1) if parts else None


def _blocks(group: tp.Group, channels: int) -> int:
    """In how many groups of channels the same places go, as the pruner counts them."""
    blocks = 1
    for item in group:
        layer = item.dep.target.module
        if isinstance(layer, _ConvNd) and layer.groups != layer.out_channels:
            blocks = max(blocks, layer.groups)
        elif isinstance(layer, nn.GroupNorm):
            blocks = max(blocks, layer.num_groups)
    return blocks if channels % blocks == 0 else 1
