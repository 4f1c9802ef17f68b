"""Exemplars as an importance for the pruners of Torch-Pruning."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from epruner import _install
from epruner.cluster import affinity_propagation_many
from epruner.cluster.similarity import median_preference, negative_squared_distances
from epruner.pruning.network.filters import filter_rows

try:
    from torch_pruning import pruner as _pruner
except ImportError as error:
    raise ImportError(f"{__name__} needs Torch-Pruning: {_install.command('prune')}") from error

_BETAS = tuple(np.geomspace(0.05, 12.8, 17).tolist())


class ExemplarImportance(_pruner.importance.Importance):  # type: ignore[misc]
    """Importance of filters by the prices at which they stay exemplars.

    The filters of a group are clustered by affinity propagation at rising prices for an exemplar:
    filter k is preferred by beta times the median of its similarities, the rule of EPruner (Lin et
    al., arXiv 2101.07985). At each price an exemplar scores 1, and another filter the part of the
    price that its distance from its exemplar is, at most 1; the mean over the prices is the
    importance. So filters that others stand for go first, whatever the ratio.

    The prices are the same in all layers, relative to each layer's own similarities. With
    ``global_pruning=True`` layers of redundant filters therefore lose more of them.

    Parameters
    ----------
    betas : sequence of float, default 17 from 0.05 to 12.8 in geometric steps
        Prices; the larger, the fewer exemplars.
    random_state : int, default=0
        Key of what breaks ties, as between filters that are equal.
    n_threads : int or None, default=None
        Threads for the clustering, as for `epruner.affinity_propagation_many`.

    Notes
    -----
    Filters are compared by the weights that make a channel: the outputs of all convolutions and
    linear layers of the group side by side, on the CPU in float32 (float64 where the weights are).
    A group in which nothing makes channels is left to the pruner (None).
    """

    def __init__(
        self,
        betas: tuple[float, ...] = _BETAS,
        *,
        random_state: int = 0,
        n_threads: int | None = None,
    ) -> None:
        if len(betas) == 0 or not all(0 < beta < np.inf for beta in betas):
            raise ValueError(f"betas={betas!r} must be one or more positive numbers")
        self.betas = tuple(betas)
        self.random_state = random_state
        self.n_threads = n_threads

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor | None:
        """Return the importance of each channel of a group, in [0, 1].

        Parameters
        ----------
        group : torch_pruning.dependency.Group

        Returns
        -------
        Tensor of shape (n,) or None
            On the device of the group's weights.

        Raises
        ------
        ValueError
            If a weight is NaN or infinite.
        """
        found = _features(group)
        if found is None:
            return None
        features, device = found
        return torch.as_tensor(self._scores(features), dtype=torch.float32, device=device)

    def _scores(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        n = len(features)
        if n == 1:
            return np.ones(1)
        S = negative_squared_distances(features, self.n_threads)
        preferences = [median_preference(S, beta) for beta in self.betas]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="All samples have mutually equal")
            clusterings = affinity_propagation_many(
                [S] * len(preferences),
                preference=preferences,
                damping=0.7,
                max_iter=1000,
                random_state=self.random_state,
                n_threads=self.n_threads,
            )
        scores = np.zeros(n)
        for p, clustering in zip(preferences, clusterings, strict=True):
            exemplar = np.where(
                clustering.labels >= 0, clustering.exemplars[clustering.labels], np.arange(n)
            )
            price = np.maximum(-p.astype(np.float64), np.finfo(S.dtype).tiny)
            distance = -S[np.arange(n), exemplar].astype(np.float64)
            part = np.minimum(distance / price, 1)
            part[exemplar == np.arange(n)] = 1
            scores += part / len(preferences)
        return scores


def _features(group: Any) -> tuple[NDArray[np.floating[Any]], torch.device] | None:
    """Return what makes each channel of a group (n, d), and where its weights are."""
    n = len(group[0].idxs)
    parts: list[Tensor] = []
    for item in group:
        layer, roots = item.dep.target.module, item.root_idxs
        makes = isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) and (
            group._DG.is_out_channel_pruning_fn(item.dep.handler)
        )
        if not makes or None in roots:
            continue
        times = np.bincount(roots, minlength=n)
        if times.min() == times.max() > 0:  # a channel may be made by several filters of a layer
            chosen = torch.as_tensor(item.idxs)[torch.as_tensor(roots).argsort(stable=True)]
            filters = filter_rows(layer)
            parts.append(filters[chosen.to(filters.device)].reshape(n, -1))
    if not parts:
        return None
    device = parts[0].device
    return torch.cat([part.to(device) for part in parts], dim=1).cpu().numpy(), device
