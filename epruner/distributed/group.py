"""What ranks tell each other: arrays between two of them, to all, and sums in a fixed order.

Everything goes from rank to rank by torch.distributed's point-to-point messages, so that whatever
fails names the rank it failed at. The first to notice a loss tells the others by the store of the
process group: when they lose each other in turn, all of them name the same one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

Array = NDArray[Any]

_KINDS = (TypeError, ValueError, MemoryError, RuntimeError)
_LARGE = 1 << 12  # numbers whose sending takes longer than a few more messages
_CALLS: Counter[str] = Counter()  # of each process group, whose ranks enter calls in one order


class RankError(RuntimeError):
    """A rank failed or was lost, so none can go on. The process group is of no use any more.

    Parameters
    ----------
    rank : int
        Which one.
    reason : str
        What became of it: that it failed, with its error, or is gone.

    Examples
    --------
    >>> from epruner.distributed import RankError
    >>> error = RankError(3, "is gone")
    >>> error.rank, str(error)
    (3, 'rank 3 is gone')
    """

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(rank, reason)  # all that pickle keeps
        self.rank = rank
        self.reason = reason

    def __str__(self) -> str:
        return f"rank {self.rank} {self.reason}"


class Group:
    """The ranks of a process group.

    Parameters
    ----------
    process_group : torch.distributed.ProcessGroup, optional
        By default all ranks.

    Attributes
    ----------
    rank, size : int
    bytes_sent : int
        By this rank so far.

    Raises
    ------
    RuntimeError
        If torch.distributed is not initialised.
    ValueError
        If this process is not of the group, or the group has no backend for the CPU.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "torch.distributed is not initialised: call "
                "torch.distributed.init_process_group('gloo') first, in every process that "
                "torchrun, SLURM, Ray or Dask starts"
            )
        self._group = process_group
        self.rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)
        if self.rank < 0:
            raise ValueError("this process is no rank of the process group")
        self.bytes_sent = 0
        everyone = process_group or dist.group.WORLD
        assert everyone is not None
        name = everyone.group_name
        _CALLS[name] += 1
        self._key = f"epruner/{name}/{_CALLS[name]}"
        self._global = [dist.get_global_rank(everyone, rank) for rank in range(self.size)]
        self._require_cpu()

    def _require_cpu(self) -> None:
        if self.size == 1:
            return
        try:
            dist.all_reduce(torch.zeros(1), group=self._group)
        except RuntimeError as error:
            if "device type cpu" not in str(error):
                raise
            raise ValueError(
                f"backend {dist.get_backend(self._group)!r} does not pass what lies in the CPU's "
                "memory: init_process_group('cpu:gloo,cuda:nccl')"
            ) from None

    # ---- Between two ranks ----------------------------------------------------------------------

    def send(self, array: Array, to: int) -> Callable[[], None]:
        """Begin to send a contiguous array; return what waits until it may be written again."""
        if array.size == 0:
            return _nothing
        message = _bytes(array)
        self.bytes_sent += message.numel()
        with self._about(to):
            work = dist.isend(message, self._global[to], group=self._group)
        return self._waiting(work, to, message)

    def receive(self, array: Array, source: int) -> Callable[[], None]:
        """Begin to fill a contiguous array; return what waits until it is full."""
        if array.size == 0:
            return _nothing
        message = _bytes(array)
        with self._about(source):
            work = dist.irecv(message, self._global[source], group=self._group)
        return self._waiting(work, source, message)

    def _waiting(self, work: Any, peer: int, message: torch.Tensor) -> Callable[[], None]:
        def wait(_: torch.Tensor = message) -> None:  # which must live until then
            with self._about(peer):
                work.wait()

        return wait

    @contextmanager
    def _about(self, peer: int) -> Iterator[None]:
        """Turn what fails in here into the loss of a rank: this peer, if none was lost before."""
        try:
            yield
        except RuntimeError as error:
            reason = "did not answer in time" if "imed out" in str(error) else "is gone"
            raise self._first(RankError(peer, reason)) from error

    def _first(self, error: RankError) -> RankError:
        """Tell the others, and return what was told first."""
        mine = json.dumps([error.rank, error.reason])
        try:
            store = dist.distributed_c10d._get_default_store()
            first = store.compare_set(f"{self._key}/lost", "", mine)
            rank, reason = json.loads(first or mine)
        except RuntimeError:  # nobody holds it any more: rank 0 does, unless the launcher does
            return error if error.rank == 0 else RankError(0, "is gone")
        return RankError(rank, reason)

    @staticmethod
    def wait(waits: Iterable[Callable[[], None]]) -> None:
        """Wait for everything that was begun."""
        for wait in waits:
            wait()

    def swap(self, arrays: Sequence[Array], to: int, source: int) -> list[Array]:
        """Send arrays to one rank and return what another, or the same, sends here.

        These may differ in length, of nothing else.
        """
        lengths = np.array([len(array) for array in arrays])
        counts = np.empty_like(lengths)
        self.wait([self.receive(counts, source), self.send(lengths, to)])
        found = [
            np.empty((int(count), *array.shape[1:]), array.dtype)
            for count, array in zip(counts, arrays, strict=True)
        ]
        waits = [self.receive(array, source) for array in found]
        self.wait(waits + [self.send(np.ascontiguousarray(array), to) for array in arrays])
        return found

    # ---- Among all ranks ------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let the others know what is raised in here, whose ranks would wait for this one."""
        try:
            yield
        except RankError:
            raise
        except BaseException as error:
            self._first(RankError(self.rank, f"failed: {_said(error)}"))
            raise

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Name the rank whose loss makes torch's own collective operations in here fail."""
        try:
            yield
        except RankError:
            raise
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):
                self.barrier()  # from neighbour to neighbour, which finds it
            raise

    @contextmanager
    def agree(self, *kinds: type[Exception]) -> Iterator[None]:
        """Raise on all ranks what one of them raises in here, before any of them goes on.

        Parameters
        ----------
        *kinds : type
            Of errors, made of a message alone, that are raised on other ranks as they are.

        Raises
        ------
        ValueError, TypeError, ...
            Its own error on each rank that has one; the first of these, which names its rank, on
            the others, where one of no kind that is known is a ValueError.
        """
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        names = [kind.__name__ for kind in type(own).__mro__]
        said = "" if own is None else json.dumps([names, str(own)])
        everyone = self.gather_text(said)
        if own is not None:
            raise own
        known: dict[str, type[Exception]] = {kind.__name__: kind for kind in (*kinds, *_KINDS)}
        for rank, text in enumerate(everyone):
            if text:
                names, message = json.loads(text)
                kind = next((known[name] for name in names if name in known), ValueError)
                raise kind(f"on rank {rank}: {message}")

    def require_same(self, **values: Any) -> None:
        """Raise a ValueError on all ranks if JSON values differ from those of rank 0."""
        first, *others = map(json.loads, self.gather_text(json.dumps(values, default=_plain)))
        for rank, theirs in enumerate(others, 1):
            for name, value in first.items():
                if (other := theirs.get(name)) != value:
                    raise ValueError(
                        f"{name} is {value!r} on rank 0 and {other!r} on rank {rank}: all ranks "
                        "must be given the same"
                    )

    def gather_text(self, text: str) -> list[str]:
        """Return the text of every rank."""
        mine = np.frombuffer(text.encode(), dtype=np.uint8)
        return [array.tobytes().decode() for array in self.gather(mine)]

    def gather(self, array: Array, lengths: Sequence[int] | None = None) -> list[Array]:
        """Return the array of every rank; they may differ in length, of nothing else.

        Each goes round the ring, so every rank sends all but one of them. Their lengths go first,
        where they are not known.
        """
        array = np.ascontiguousarray(array)
        if lengths is None:
            counts = self._ring(np.array([len(array)]), [1] * self.size)
            lengths = [int(count[0]) for count in counts]
        return self._ring(array, lengths)

    def _ring(self, array: Array, lengths: Sequence[int]) -> list[Array]:
        found: list[Array] = [np.empty((0, *array.shape[1:]), array.dtype)] * self.size
        found[self.rank] = array
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        for step in range(self.size - 1):
            going, coming = (self.rank - step) % self.size, (self.rank - step - 1) % self.size
            found[coming] = np.empty((lengths[coming], *array.shape[1:]), array.dtype)
            self.wait([self.receive(found[coming], before), self.send(found[going], after)])
        return found

    def exchange(self, parts: Sequence[Array]) -> list[Array]:
        """Send parts[q] to every rank q; return what each has sent here.

        Parts may differ in length, of nothing else.
        """
        parts = [np.ascontiguousarray(part) for part in parts]
        others = [rank for rank in range(self.size) if rank != self.rank]
        lengths = np.array([[len(part)] for part in parts])
        counts = np.empty_like(lengths)
        self.wait(
            [self.receive(counts[q], q) for q in others]
            + [self.send(lengths[q], q) for q in others]
        )
        found = list(parts)
        for q in others:
            found[q] = np.empty((int(counts[q, 0]), *parts[q].shape[1:]), parts[q].dtype)
        self.wait(
            [self.receive(found[q], q) for q in others] + [self.send(parts[q], q) for q in others]
        )
        return found

    def sum(self, array: Array) -> Array:
        """Return the sum over ranks, added in their order, so that all get the same bits.

        Large arrays are added up in parts, one by each rank, so that no rank sends more than two.
        """
        array = np.atleast_1d(array)
        if array.size < _LARGE:
            everyone = self.gather(array[None], [1] * self.size)
            return reduce(np.add, np.concatenate(everyone))
        parts = np.array_split(array.reshape(-1), self.size)
        mine = reduce(np.add, self.exchange(parts))
        return np.concatenate(self.gather(mine, [len(part) for part in parts])).reshape(array.shape)

    def most(self, value: int) -> int:
        """Return the largest value of any rank."""
        return int(np.concatenate(self.gather(np.array([value]), [1] * self.size)).max())

    def in_turn(self, arrays: Sequence[Array], work: Callable[[], None]) -> None:
        """Let rank after rank do work that changes arrays; all get what the last leaves."""
        last = self.size - 1
        if self.rank > 0:
            self.wait([self.receive(array, self.rank - 1) for array in arrays])
        work()
        if self.rank < last:
            self.wait([self.send(array, self.rank + 1) for array in arrays])
        for array in arrays:
            lengths = [len(array) * (rank == last) for rank in range(self.size)]
            array[:] = self.gather(array[: lengths[self.rank]], lengths)[last]

    def barrier(self) -> None:
        """Return when all ranks have come here."""
        self.gather(np.zeros(1, dtype=np.uint8))


def _bytes(array: Array) -> torch.Tensor:
    if not array.flags.writeable:  # which torch warns about, though nothing is written
        array = array.copy()
    return torch.from_numpy(array.reshape(-1).view(np.uint8))


def _plain(value: Any) -> Any:
    """What JSON does not know: a number of NumPy's, or anything else by what it says of itself."""
    return value.item() if isinstance(value, np.generic) else repr(value)


def _nothing() -> None:
    pass


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".rstrip(": ")
