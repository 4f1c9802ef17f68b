"""Tensors put aside in a temporary file while they wait, and brought back bit for bit."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key")


class _Region:
    """Bytes of the file that hold one storage; free again once nothing refers to it."""

    def __init__(self, offset: int, nbytes: int) -> None:
        self.offset, self.nbytes = offset, nbytes


@dataclass(frozen=True)
class Aside:
    """A tensor whose storage is in the file.

    Parameters
    ----------
    region : _Region
        Shared by all tensors of the storage.
    dtype : torch.dtype
    size, stride : tuple of int
    offset : int
        In elements, from the beginning of the storage.
    """

    region: _Region
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class Spill:
    """A temporary file of whole storages.

    Tensors that share a storage are put aside together and share one when they come back, so
    that writing into one of them still changes the others. A storage that nobody wrote into
    since it came back is not written to the file again.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._end = 0
        self._free: dict[int, list[int]] = {}  # by size
        # what came back: by address, which is not reused as long as the tensor is held here
        self._clean: dict[int, tuple[Tensor, int, _Region]] = {}

    def put(self, tensors: Mapping[Key, Tensor]) -> dict[Key, Aside]:
        """Put aside all tensors that share one storage; the caller lets go of them.

        Raises
        ------
        OSError
            There is no room for the file; nothing was put aside.
        """
        first = next(iter(tensors.values()))
        storage = first.untyped_storage()
        known = self._clean.get(storage.data_ptr())
        if known is not None and known[0]._version == known[1]:
            region = known[2]
        else:
            region = self._allocate(storage.nbytes())
            raw = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._write(region, _bytes(raw))
        return {
            key: Aside(region, t.dtype, tuple(t.shape), t.stride(), int(t.storage_offset()))
            for key, t in tensors.items()
        }

    def get(self, asides: Mapping[Key, Aside]) -> dict[Key, Tensor]:
        """Bring back all tensors of one storage."""
        region = next(iter(asides.values())).region
        assert self._file is not None
        base = torch.empty(region.nbytes, dtype=torch.uint8)
        view = _bytes(base)
        self._file.seek(region.offset)
        while view:
            view = view[self._file.readinto(view) :]  # type: ignore[attr-defined]
        # views of one base, whose version then counts what is written into any of them
        if not base.is_inference():
            self._clean[base.data_ptr()] = (base, base._version, region)
        return {
            key: base.view(a.dtype).as_strided(a.size, a.stride, a.offset)
            for key, a in asides.items()
        }

    def forget(self) -> None:
        """Let go of what came back and was not put aside again."""
        self._clean.clear()

    def _allocate(self, nbytes: int) -> _Region:
        spare = self._free.setdefault(nbytes, [])
        if spare:
            offset = spare.pop()
        else:
            offset, self._end = self._end, self._end + nbytes
        region = _Region(offset, nbytes)
        weakref.finalize(region, spare.append, offset).atexit = False
        return region

    def _write(self, region: _Region, view: memoryview) -> None:
        if self._file is None:
            # nameless, so that it is gone with the process however that ends
            self._file = tempfile.TemporaryFile(buffering=0, prefix="epruner-")  # noqa: SIM115
        self._file.seek(region.offset)
        while view:
            view = view[self._file.write(view) :]

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


def _bytes(raw: Tensor) -> memoryview:
    array: Any = raw.numpy()
    return memoryview(array)


def can_spill(tensor: Tensor) -> bool:
    """Whether a tensor is its storage, shape and strides and nothing more, in main memory."""
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and tensor.untyped_storage().nbytes() % tensor.element_size() == 0
    )


def folder() -> str:
    """Where the file is made."""
    return os.fspath(tempfile.gettempdir())
