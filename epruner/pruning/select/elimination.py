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

_WAITING = 16  # channels of which the rows wait


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
    states = [_State(reader) for reader in readers]
    channels = list(range(n))  # that the states have rows for
    alive = list(range(n))  # places of those that are left
    order: list[int] = []
    errors = np.zeros(n + 1)
    while alive:
        if 2 * len(alive) <= len(channels):
            for state in states:
                state.shrink(alive)
            channels, alive = [channels[i] for i in alive], list(range(len(alive)))
        costs = torch.stack([state.costs(alive) for state in states]).sum(0)
        best = int(costs.argmin())
        place = alive.pop(best)
        order.append(channels[place])
        errors[len(alive)] = errors[len(alive) + 1] + max(float(costs[best]), 0.0)
        for state in states:
            state.remove(place)
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


class _State:
    """One reader's G^-1 and weights while channels go.

    That a channel goes takes a multiple of its rows from all others: of G^-1 for the diagonal
    blocks at once, for the rest of it in one matrix product for many channels.
    """

    def __init__(self, reader: Reader) -> None:
        self._n = reader.channels
        ridge = RIDGE * float(reader.gram.diagonal().mean()) + 1e-30
        eye = torch.eye(len(reader.gram), dtype=torch.float64)
        weights = reader.weights
        if weights.shape[1] > len(weights):  # only W W' counts: any other root of it will do
            weights = torch.linalg.qr(weights.T, mode="r").R.T
        self._weights = weights.clone()
        self._set(torch.linalg.inv(reader.gram + ridge * eye))

    def _set(self, inverse: Tensor) -> None:
        n, k = self._n, len(inverse) // self._n
        self._inverse = inverse  # without what waits
        self._diagonal = inverse.view(n, k, n, k).diagonal(dim1=0, dim2=2).permute(2, 0, 1).clone()
        self._rows = inverse.new_empty((_WAITING, k, n * k))  # that wait, and their multiples
        self._gains = torch.empty_like(self._rows)
        self._waiting = 0

    def costs(self, alive: Sequence[int]) -> Tensor:
        """What each channel's loss is that the others cannot make good: (alive,)."""
        self._inverted = torch.zeros_like(self._diagonal)
        self._inverted[alive] = _inverses(self._diagonal[alive])
        own = self._weights.view(self._n, -1, self._weights.shape[1])[alive]
        return (own * (self._inverted[alive] @ own)).sum((1, 2))

    def remove(self, place: int) -> None:
        """Let a channel go, after `costs`."""
        k, n, waiting = self._diagonal.shape[1], self._n, self._waiting
        own = slice(place * k, (place + 1) * k)
        earlier = self._rows[:waiting].flatten(0, 1)  # (waiting k, n k)
        rows = self._inverse[own] - self._gains[:waiting].flatten(0, 1)[:, own].T @ earlier
        gains = self._inverted[place] @ rows
        self._weights.addmm_(gains.T, self._weights[own].clone(), alpha=-1)
        gain, row = (x.view(k, n, k).permute(1, 2, 0) for x in (gains, rows))  # (n, k, k)
        self._diagonal.baddbmm_(gain, row.transpose(1, 2), alpha=-1)
        self._rows[waiting], self._gains[waiting] = rows, gains
        self._waiting += 1
        if self._waiting == _WAITING:
            self._settle()

    def _settle(self) -> None:
        rows, gains = (x[: self._waiting].flatten(0, 1) for x in (self._rows, self._gains))
        self._inverse.addmm_(gains.T, rows, alpha=-1)
        self._waiting = 0

    def shrink(self, alive: Sequence[int]) -> None:
        """Forget the channels that went."""
        self._settle()
        k = self._diagonal.shape[1]
        kept = (torch.tensor(alive)[:, None] * k + torch.arange(k)).flatten()
        self._weights = self._weights[kept]
        self._n = len(alive)
        self._set(self._inverse[kept][:, kept])


def _inverses(blocks: Tensor) -> Tensor:
    """Of symmetric matrices (n, k, k), that are singular at worst by rounding."""
    if blocks.shape[-1] == 1 and bool((blocks > 0).all()):
        return blocks.reciprocal()
    found: Tensor
    found, failed = torch.linalg.inv_ex(blocks)
    if failed.any() or not torch.isfinite(found).all():
        found = torch.linalg.pinv(blocks, hermitian=True)
    return found
