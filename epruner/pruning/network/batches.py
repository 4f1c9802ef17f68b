"""Batches of inputs, and sums over all of them, wherever they are.

What is learnt from inputs are sums over them. Where several processes share the work, each goes
through its own batches, and `Batches.total` adds up what they found, rank by rank. All then go on
with the same numbers, so that they decide alike.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from epruner.pruning.errors import TraceError
from epruner.pruning.network.inputs import Arguments

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class Ranks:
    """Those who share the work: this process alone. `ranks_of` makes those of a process group.

    Attributes
    ----------
    rank, size : int
    lost : tuple of type
        What is raised where a rank is gone, after which none can go on.
    """

    rank, size = 0, 1
    lost: tuple[type[Exception], ...] = ()

    def agree(self) -> AbstractContextManager[None]:
        """Raise on all ranks what one of them raises in here, where none waits for another."""
        return nullcontext()

    def together(self) -> AbstractContextManager[None]:
        """Let the others know of an error that ends the work."""
        return nullcontext()

    def require_same(self, tensors: Mapping[str, Iterable[Tensor]], **values: Any) -> None:
        """Raise a ValueError on all ranks if tensors or JSON values differ from those of rank 0."""

    def first(self, work: Callable[[], T]) -> T:
        """What some work gives on rank 0, for all of them: what is timed differs."""
        return work()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every rank; they may differ in length, of nothing else."""
        return [tensor]

    def exchange(self, parts: list[Tensor]) -> list[Tensor]:
        """Give parts[q] to every rank q, and get what each has for this one."""
        return parts

    def total(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Sums over the ranks, in their order and in float64."""
        return parts


class _Several(Ranks):
    """The ranks of a process group."""

    def __init__(self, process_group: ProcessGroup) -> None:
        from epruner.distributed.group import Group, RankError

        self.lost = (RankError,)
        self._group = Group(process_group)
        self.rank, self.size = self._group.rank, self._group.size

    def agree(self) -> AbstractContextManager[None]:
        return self._group.agree(TraceError, FloatingPointError)

    def together(self) -> AbstractContextManager[None]:
        return self._group.together()

    def require_same(self, tensors: Mapping[str, Iterable[Tensor]], **values: Any) -> None:
        hashes = {f"the hash of {name}": _hash(some) for name, some in tensors.items()}
        self._group.require_same(**values, **hashes)

    def first(self, work: Callable[[], T]) -> T:
        with self._group.agree(TraceError):
            mine = pickle.dumps(work()) if self.rank == 0 else b""
        found: T = pickle.loads(self._group.gather(np.frombuffer(mine, dtype=np.uint8))[0].data)
        return found

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [torch.from_numpy(x) for x in self._group.gather(tensor.detach().cpu().numpy())]

    def exchange(self, parts: list[Tensor]) -> list[Tensor]:
        return [torch.from_numpy(x) for x in self._group.exchange([x.numpy() for x in parts])]

    def total(self, *parts: Tensor) -> tuple[Tensor, ...]:
        flat = torch.cat([part.detach().cpu().double().reshape(-1) for part in parts])
        summed = torch.from_numpy(self._group.sum(flat.numpy()))
        pieces = torch.split(summed, [part.numel() for part in parts])
        return tuple(x.view(part.shape).to(part) for x, part in zip(pieces, parts, strict=True))


ALONE = Ranks()


def ranks_of(group: ProcessGroup | None) -> Ranks:
    """The ranks of a process group; without one this process alone."""
    return ALONE if group is None else _Several(group)


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


def weights_of(model: nn.Module) -> list[Tensor]:
    """All that a network has learnt."""
    return [*model.parameters(), *model.buffers()]


def _hash(tensors: Iterable[Tensor]) -> str:
    """Of the values of tensors that lie in memory one by one, and of the shapes of all."""
    found = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.layout == torch.strided and not tensor.is_quantized:
            values = tensor.detach().cpu().contiguous().reshape(-1)
            found.update(values.view(torch.uint8).numpy().data)
    return found.hexdigest()
