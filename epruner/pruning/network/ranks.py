"""Those who share some work: the ranks of a process group, or this process alone.

Mostly it is alone, and then nothing of torch.distributed is imported.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from epruner.pruning.errors import TraceError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class Ranks:
    """This process alone; `ranks_of` makes the ranks of a process group.

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

    def naming(self) -> AbstractContextManager[None]:
        """Name the rank whose loss makes torch's own collective operations in here fail."""
        return nullcontext()

    def require_same(
        self, tensors: Mapping[str, Iterable[Tensor]] | None = None, /, **values: Any
    ) -> None:
        """Raise a ValueError on all ranks if tensors or JSON values differ from those of rank 0."""

    def first(self, work: Callable[[], T]) -> T:
        """What some work gives on rank 0, for all of them: what is timed differs."""
        return work()

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every rank; they may differ in length, of nothing else."""
        return [tensor]

    def gather_text(self, text: str) -> list[str]:
        """The text of every rank."""
        return [text]

    def exchange(self, parts: list[Tensor]) -> list[Tensor]:
        """Give parts[q] to every rank q, and get what each has for this one."""
        return parts

    def total(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Sums over the ranks, in their order and in float64."""
        return parts

    def replica(self, model: nn.Module) -> Callable[..., Any]:
        """Forward pass of a model that learns from this rank's part of every batch."""
        return model


class _RanksOfGroup(Ranks):
    def __init__(self, process_group: ProcessGroup) -> None:
        from epruner.distributed.group import Group, RankError

        self.lost = (RankError,)
        self._process_group, self._group = process_group, Group(process_group)
        self.rank, self.size = self._group.rank, self._group.size

    def agree(self) -> AbstractContextManager[None]:
        return self._group.agree(TraceError, FloatingPointError)

    def together(self) -> AbstractContextManager[None]:
        return self._group.together()

    def naming(self) -> AbstractContextManager[None]:
        return self._group.naming()

    def require_same(
        self, tensors: Mapping[str, Iterable[Tensor]] | None = None, /, **values: Any
    ) -> None:
        hashes = {f"the hash of {name}": _hash(some) for name, some in (tensors or {}).items()}
        self._group.require_same(**values, **hashes)

    def first(self, work: Callable[[], T]) -> T:
        with self.agree():
            mine = pickle.dumps(work()) if self.rank == 0 else b""
        found: T = pickle.loads(self._group.gather(np.frombuffer(mine, dtype=np.uint8))[0].data)
        return found

    def gather(self, tensor: Tensor) -> list[Tensor]:
        everyone = self._group.gather(tensor.detach().cpu().numpy())
        return [torch.from_numpy(x).to(tensor.device) for x in everyone]

    def gather_text(self, text: str) -> list[str]:
        return self._group.gather_text(text)

    def exchange(self, parts: list[Tensor]) -> list[Tensor]:
        found = self._group.exchange([x.detach().cpu().numpy() for x in parts])
        return [torch.from_numpy(x).to(parts[0].device) for x in found]

    def total(self, *parts: Tensor) -> tuple[Tensor, ...]:
        flat = torch.cat([part.detach().cpu().double().reshape(-1) for part in parts])
        summed = torch.from_numpy(self._group.sum(flat.numpy()))
        pieces = torch.split(summed, [part.numel() for part in parts])
        return tuple(x.view(part.shape).to(part) for x, part in zip(pieces, parts, strict=True))

    def replica(self, model: nn.Module) -> Callable[..., Any]:
        from epruner.distributed.training import replica

        return replica(model, self._process_group)


ALONE = Ranks()


def ranks_of(group: ProcessGroup | None) -> Ranks:
    """The ranks of a process group; without one this process alone."""
    return ALONE if group is None else _RanksOfGroup(group)


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
