"""What runs kernels, and how structs get to them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = Any  # CuPy's, or NumPy's where the kernels run on a CPU


class Engine(Protocol):
    """What runs kernels: a CUDA device, or a CPU in the tests."""

    @property
    def xp(self) -> Any:
        """The module of the arrays."""

    @property
    def threads(self) -> int:
        """How many threads a block has."""

    @property
    def wide(self) -> int:
        """How many, where one block works on much."""

    @property
    def max_shared(self) -> int:
        """Bytes of shared memory that a block may have."""

    def launch(
        self, kernel: str, blocks: int, threads: int, *args: Array | int, shared: int = 0
    ) -> None:
        """Start a kernel on the current stream. Every argument is an array or an integer."""

    def address(self, array: Array) -> int:
        """Return where a contiguous array starts."""

    def host(self, array: Array) -> NDArray[Any]:
        """Return a NumPy copy, once all that was started is done."""

    def repeater(self, step: Callable[[], None], times: int) -> Callable[[], None]:
        """Return what runs `step`, which only launches, so many times."""

    def free_bytes(self) -> int:
        """Memory that can still be taken."""


def cover(work: int, threads: int) -> int:
    """Return how many blocks of so many threads give each piece of `work` a thread."""
    return -(-work // threads)


def pack(engine: Engine, words: Sequence[Array | int | float]) -> Array:
    """Return a struct of 64-bit fields as an array on the device: addresses, integers, doubles."""
    return engine.xp.asarray(packed_words(engine, words))


def packed_words(engine: Engine, words: Sequence[Array | int | float]) -> NDArray[np.uint64]:
    """Return the fields of a struct as they go to the device."""
    packed = np.zeros(len(words), dtype=np.uint64)
    for place, word in enumerate(words):
        if isinstance(word, float):
            packed.view(np.float64)[place] = word
        elif isinstance(word, int):
            packed.view(np.int64)[place] = word
        else:
            packed[place] = engine.address(word)
    return packed


def require(engine: Engine, needed: int, what: str, advice: str) -> None:
    """Raise `MemoryError` if `needed` bytes for `what` do not fit on the device."""
    free = engine.free_bytes()
    if needed > free:
        raise MemoryError(
            f"{what} needs about {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free on the "
            f"device; {advice}"
        )
