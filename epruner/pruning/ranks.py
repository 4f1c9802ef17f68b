"""The processes that share some work. Mostly there is one, and nothing of ranks is imported."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias
from zlib import crc32

from torch import nn

if TYPE_CHECKING:
    import torch.distributed as dist

    from epruner.distributed.group import Array, Group

    Ranks: TypeAlias = "Group | Alone"


class Alone:
    """One process in place of a `Group`, that has nobody to agree with."""

    rank, size = 0, 1

    def agree(self) -> AbstractContextManager[None]:
        return nullcontext()

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def naming(self) -> AbstractContextManager[None]:
        return nullcontext()

    def require_same(self, **values: Any) -> None:
        pass

    def gather(self, array: Array) -> list[Array]:
        return [array]

    def gather_text(self, text: str) -> list[str]:
        return [text]

    def sum(self, array: Array) -> Array:
        return array


def ranks_of(group: dist.ProcessGroup | None) -> Ranks:
    """The ranks of a process group; this process alone where there is none."""
    if group is None:
        return Alone()
    from epruner.distributed.group import Group

    return Group(group)


def replica(model: nn.Module, group: dist.ProcessGroup | None) -> Callable[..., Any]:
    """Forward pass of a model that trains on this rank's part of every batch."""
    if group is None:
        return model
    from epruner.distributed.training import replica as parallel

    return parallel(model, group)


def outline(model: nn.Module) -> str:
    """What must be the same of the models of all ranks, in short."""
    tensors = [
        f"{name} {tuple(p.shape)} {p.dtype} {p.requires_grad}"
        for name, p in model.named_parameters()
    ]
    count = sum(p.numel() for p in model.parameters())
    return f"{type(model).__name__}, {count:,} parameters, {crc32('; '.join(tensors).encode()):08x}"
