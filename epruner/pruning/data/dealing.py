"""Which rank goes through which batches of inputs, and how the inputs get there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from epruner.pruning.network.ranks import Ranks


@dataclass(frozen=True)
class Share:
    """What falls to one rank.

    Parameters
    ----------
    batches : tuple of Tensor of int
        The numbers of the inputs in each, ascending.
    stands_in : bool
        See `Batches`.
    """

    batches: tuple[Tensor, ...]
    stands_in: bool

    @property
    def inputs(self) -> Tensor:
        """The numbers of all its inputs, ascending."""
        return torch.cat(self.batches) if self.batches else torch.empty(0, dtype=torch.long)


def split(inputs: Tensor, size: int) -> tuple[Tensor, ...]:
    """Batches of at most `size`: all of one size, if a few more are enough for that."""
    fewest = -(-len(inputs) // size)
    even = (n for n in range(fewest, 2 * fewest) if len(inputs) % n == 0)
    return inputs.tensor_split(next(even, fewest)) if fewest else ()


def deal(batches: tuple[Tensor, ...], ranks: int, *, late: bool = False) -> list[Share]:
    """Deal out batches to ranks in order, as evenly as can be.

    Parameters
    ----------
    batches : tuple of Tensor of int
    ranks : int
    late : bool
        Whether the last ranks get what is left over, not the first.
    """
    each, left = divmod(len(batches), ranks)
    sizes = [each + (rank < left) for rank in range(ranks)]
    bounds = accumulate(reversed(sizes) if late else sizes, initial=0)
    return [
        Share(batches[first:end] or batches[:1], stands_in=first == end)
        for first, end in pairwise(bounds)
    ]


def handed_over(
    inputs: Tensor, counts: Sequence[int], shares: Sequence[Share], ranks: Ranks
) -> Tensor:
    """The inputs of this rank's share.

    Parameters
    ----------
    inputs : Tensor of shape (n, ...)
        That this rank was given.
    counts : sequence of int
        n of every rank.
    shares : sequence of Share
        Of every rank, by the numbers that inputs have side by side in the order of the ranks.
    ranks : Ranks
    """
    *firsts, _ = accumulate(counts, initial=0)
    numbers = [share.inputs - firsts[ranks.rank] for share in shares]
    parts = [inputs[n[(n >= 0) & (n < len(inputs))]] for n in numbers]
    return torch.cat(ranks.exchange(parts))
