"""Batches of inputs, and sums over all of them, wherever they are.

What is learnt from inputs are sums over them. Where several processes share the work, each goes
through its own batches, and `Batches.total` adds up what they found, rank by rank. All then go on
with the same numbers, so that they decide alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from epruner.pruning.network.inputs import Arguments
from epruner.pruning.network.ranks import ALONE, Ranks


class Batches(tuple[Arguments, ...]):
    """Batches of inputs of a network, each (args, kwargs).

    Parameters
    ----------
    batches : iterable of (args, kwargs)
        Those of this process.
    ranks : Ranks
        Among whom all batches are dealt out, in order.
    stands_in : bool
        There are fewer batches than ranks: this process follows the first one, as somebody has to
        do the same things in the same order, and adds nothing to what the others find.
    """

    ranks: Ranks
    stands_in: bool

    def __new__(
        cls, batches: Iterable[Arguments] = (), ranks: Ranks = ALONE, *, stands_in: bool = False
    ) -> Batches:
        made = super().__new__(cls, batches)
        made.ranks, made.stands_in = ranks, stands_in
        return made

    def total(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Sums over all batches, from what they are over those of this process."""
        if self.stands_in:
            parts = tuple(map(torch.zeros_like, parts))
        return self.ranks.total(*parts)

    def joined(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows of all batches one below the other, from those of this process."""
        mine = torch.from_numpy(rows[: 0 if self.stands_in else None])
        return torch.cat(self.ranks.gather(mine)).numpy()

    def count(self, number: int) -> int:
        """The sum of a number over all batches."""
        return int(self.total(torch.tensor(number))[0])


NONE = Batches()
