"""What a network loses without a residual block: the share of the variance that the block adds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from epruner.pruning.network.batches import Batches
from epruner.pruning.network.layers import channel_dim, layers_of
from epruner.pruning.network.statistics import not_finite

# Of the loss of a block: layers after it, which are refit, make good more of it than of what a
# filter leaves, how much more differs from network to network.
WEIGHTS = (0.25, 1.0)


@dataclass(frozen=True)
class Block:
    """A residual block that may be passed by.

    Parameters
    ----------
    name : str
    layers : tuple of str
        Groups of channels that lie in it.
    loss : float
        Squared error of its output where that is what it reads, over the variance, but for the
        mean of every channel: in units of `Elimination.errors`.
    """

    name: str
    layers: tuple[str, ...]
    loss: float

    def weighed(self, weight: float) -> Block:
        """The same with a share of the loss."""
        return replace(self, loss=weight * self.loss)

    @property
    def gone(self) -> dict[str, int]:
        """Numbers of filters without it: none in its layers, and none of it."""
        return dict.fromkeys((self.name, *self.layers), 0)


def block_losses(model: nn.Module, names: Sequence[str], batches: Batches) -> dict[str, float]:
    """The loss of every block; see `Block`.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode.
    names : sequence of str
    batches : Batches

    Raises
    ------
    ValueError
        Activations are NaN or infinite.
    """
    added = {name: _Deviation() for name in names}
    written = {name: _Deviation() for name in names}
    read: dict[str, Tensor] = {}

    def enter(name: str, module: nn.Module, args: Any) -> None:
        read[name] = args[0].clone()  # the block may write into it

    def leave(name: str, module: nn.Module, _: object, output: Tensor) -> None:
        first = next(iter(layers_of(module).values()))
        dim = channel_dim(first, output)
        written[name].add(output, dim)
        added[name].add(output - read.pop(name), dim)

    with batches.ranks.agree(), ExitStack() as hooks, torch.no_grad():
        for name in names:
            module = model.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(partial(enter, name)))
            hooks.enter_context(module.register_forward_hook(partial(leave, name)))
        for args, kwargs in batches:
            model(*args, **kwargs)
    found = {}
    for name in names:
        loss = added[name].over(batches) / max(written[name].over(batches), 1e-30)
        if loss != loss:
            raise ValueError(not_finite(f"block {name!r}"))
        found[name] = loss
    return found


class _Deviation:
    """Sum of squares of all numbers, each about the mean of its channel."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._square, self._count = torch.zeros(2, dtype=torch.float64)

    def add(self, x: Tensor, dim: int) -> None:
        rows = x.movedim(dim, -1).flatten(0, -2).double()
        self._count += len(rows)
        self._sum = self._sum + rows.sum(0)
        self._square += float(rows.square().sum())

    def over(self, batches: Batches) -> float:
        """Of all batches, from what was added of those of this process."""
        summed, square, count = batches.total(torch.as_tensor(self._sum), self._square, self._count)
        return float(square - summed.square().sum() / count)
