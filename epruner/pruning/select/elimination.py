"""Channels ranked by how well the layer after them could do without: Gram elimination.

Of a layer that reads c channels, one is left out after the other, each time the one whose loss the
others can make good best: with G the Gram matrix of what the layer reads and W its weights, the
channel with the least tr(W_c' ([G^-1]_cc)^-1 W_c). The weights of the others are then those of the
least squares fit without it, and G^-1 is downdated (block optimal brain surgeon).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from epruner.pruning.select.importance import Candidates, Importance, Indices, l1
from epruner.pruning.select.readers import Reader
from epruner.pruning.trace.normal import RIDGE


@dataclass(frozen=True)
class Elimination:
    """The order in which the channels of a group go.

    Parameters
    ----------
    order : ndarray of int, shape (n,)
        The first goes first.
    errors : ndarray of float, shape (n + 1,)
        Squared error of the layers that read them when k are left, over the variance of what
        these layers write onto (their sum, for several).
    sure : bool
        Whether the errors rest on enough inputs.
    """

    order: Indices
    errors: npt.NDArray[np.float64]
    sure: bool


def eliminate(readers: Sequence[Reader]) -> Elimination:
    """Rank the channels of a group by what reads them."""
    n = readers[0].channels
    states = []
    for reader in readers:
        ridge = RIDGE * float(reader.gram.diagonal().mean()) + 1e-30
        eye = torch.eye(len(reader.gram), dtype=torch.float64)
        weights = reader.weights
        if weights.shape[1] > len(weights):  # only W W' counts: any other root of it will do
            weights = torch.linalg.qr(weights.T, mode="r").R.T
        states.append((torch.linalg.inv(reader.gram + ridge * eye), weights.clone()))
    channels = list(range(n))  # that the states have rows for
    alive = list(range(n))  # places of those that are left
    order: list[int] = []
    errors = np.zeros(n + 1)
    while alive:
        if 2 * len(alive) <= len(channels):  # the rest of the states is zero
            states = [
                (_blocks(_blocks(x, alive, len(channels)).T, alive, len(channels)).T.contiguous(),
                 _blocks(w, alive, len(channels)))
                for x, w in states
            ]  # fmt: skip
            channels, alive = [channels[i] for i in alive], list(range(len(alive)))
        m = len(channels)
        costs = torch.zeros(len(alive), dtype=torch.float64)
        inverses = []
        for inverse, weights in states:
            k = len(inverse) // m
            blocks = inverse.view(m, k, m, k)[alive, :, alive, :]  # (alive, k, k)
            inverses.append(_inverses(blocks))
            own = weights.view(m, k, -1)[alive]
            costs += (own * (inverses[-1] @ own)).sum((1, 2))
        best = int(costs.argmin())
        place = alive.pop(best)
        order.append(channels[place])
        errors[len(alive)] = errors[len(alive) + 1] + max(float(costs[best]), 0.0)
        for (inverse, weights), blocks in zip(states, inverses, strict=True):
            k = len(inverse) // m
            rows = slice(place * k, (place + 1) * k)
            gain = inverse[:, rows] @ blocks[best]
            weights.addmm_(gain, weights[rows].clone(), alpha=-1)
            inverse.addmm_(gain, inverse[rows].clone(), alpha=-1)
            weights[rows] = 0
            inverse[rows] = 0
            inverse[:, rows] = 0
    sure = all(reader.sure for reader in readers)
    return Elimination(np.asarray(order, dtype=np.intp), errors, sure)


def by_elimination(ranked: Mapping[str, Elimination]) -> Importance:
    """The importance "reconstruction": the last to go stay."""

    def reconstruction(candidates: Candidates, count: int) -> Indices:
        if candidates.layer not in ranked:
            return l1(candidates, count)
        order = ranked[candidates.layer].order
        return np.sort(order[len(order) - count :])

    return reconstruction


def _blocks(x: Tensor, places: Sequence[int], of: int) -> Tensor:
    """Some of the equal blocks of rows of a matrix."""
    return x.reshape(of, -1, x.shape[1])[list(places)].reshape(-1, x.shape[1])


def _inverses(blocks: Tensor) -> Tensor:
    """Of symmetric matrices (n, k, k), that are singular at worst by rounding."""
    if blocks.shape[-1] == 1 and bool((blocks > 0).all()):
        return blocks.reciprocal()
    found: Tensor
    found, failed = torch.linalg.inv_ex(blocks)
    if failed.any() or not torch.isfinite(found).all():
        found = torch.linalg.pinv(blocks, hermitian=True)
    return found
