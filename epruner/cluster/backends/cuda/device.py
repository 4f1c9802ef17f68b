"""What runs kernels, and how arrays get there: CuPy's device and arrays, graphs, structs."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from epruner import _install

Array = Any  # CuPy's, or NumPy's where the kernels run on a CPU

_INSTALL = f"{_install.command('cuda13')} (or its extra cuda12 for drivers of CUDA 12)"
_PLAIN_SHARED = 48 << 10  # bytes that a kernel may have without asking
_HEADROOM = 256 << 20  # bytes left to others: the library of matrix products wants some, too
# No fused multiply-adds, as in the CPU solvers; no fast math: infinities are legal. CuPy adds
# -ftz=true: float32 numbers below 1.2e-38 are zero on the device.
COMPILE_OPTIONS = ("--std=c++17", "-fmad=false")


def source() -> str:
    """Return the text of the kernels."""
    return files(__package__).joinpath("kernels.cu").read_text(encoding="utf-8")


@cache
def load_cupy() -> Any:
    """Return the module `cupy`, once it is known to reach a device.

    Raises
    ------
    ImportError
        If CuPy is not installed; the message names the extra.
    RuntimeError
        If there is no device, or the driver is too old for this CuPy.
    """
    try:
        import cupy
    except ImportError as error:
        raise ImportError(f"clustering on a CUDA device needs CuPy: {_INSTALL}") from error
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        driver, built = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        if driver == 0:
            raise RuntimeError(
                f"CuPy found no CUDA driver on this machine ({error}); use backend='native'"
            ) from error
        raise RuntimeError(
            f"the driver offers CUDA {_version(driver)} and this CuPy is built for CUDA "
            f"{_version(built)} ({error}); install the CuPy that fits: {_INSTALL}"
        ) from error
    if count == 0:
        raise RuntimeError("CuPy found no CUDA device; use backend='native'")
    if os.environ.get("CUPY_TF32", "0") not in ("", "0"):
        raise RuntimeError(
            "CUPY_TF32 is set: similarities from products in TensorFloat-32 are off by more than "
            "the lists allow for; unset it"
        )
    return cupy


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


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


class CudaEngine:
    """Runs kernels on one device; an `Engine`.

    Use it with that device current. Work goes to CuPy's current stream.
    """

    threads = 256
    wide = 1024

    def __init__(self, device: int) -> None:
        self.xp = load_cupy()
        self.device = device
        attributes = self.xp.cuda.Device(device).attributes
        self.max_shared = int(attributes["MaxSharedMemoryPerBlockOptin"])
        self._module = self.xp.RawModule(code=source(), options=COMPILE_OPTIONS)
        self._kernels: dict[str, Any] = {}

    def launch(
        self, kernel: str, blocks: int, threads: int, *args: Array | int, shared: int = 0
    ) -> None:
        if kernel not in self._kernels:
            self._kernels[kernel] = self._module.get_function(kernel)
        function = self._kernels[kernel]
        if shared > _PLAIN_SHARED and function.max_dynamic_shared_size_bytes < shared:
            function.max_dynamic_shared_size_bytes = shared
        words = tuple(np.int64(a) if isinstance(a, int) else a for a in args)
        function((blocks,), (threads,), words, shared_mem=shared)

    def address(self, array: Array) -> int:
        return int(array.data.ptr)

    def host(self, array: Array) -> NDArray[Any]:
        found: NDArray[Any] = self.xp.asnumpy(array)
        return found

    def repeater(self, step: Callable[[], None], times: int) -> Callable[[], None]:
        graph: Any = None
        runs = 0

        def run() -> None:
            nonlocal graph, runs
            runs += 1
            if runs == 1:  # loads the kernels, which recording cannot; short runs need no more
                for _ in range(times):
                    step()
                return
            if graph is None:
                stream = self.xp.cuda.Stream(non_blocking=True)
                with stream:
                    stream.begin_capture()
                    try:
                        for _ in range(times):
                            step()
                    finally:
                        graph = stream.end_capture()
            graph.launch(self.xp.cuda.get_current_stream())

        return run

    def free_bytes(self) -> int:
        free, _ = self.xp.cuda.runtime.memGetInfo()
        return max(0, int(free) + int(self.xp.get_default_memory_pool().free_bytes()) - _HEADROOM)


@cache
def cuda_engine(device: int) -> CudaEngine:
    """Return the engine of device number `device`."""
    return CudaEngine(device)


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


def require_memory(engine: Engine, needed: int, what: str, advice: str) -> None:
    """Raise `MemoryError` if `needed` bytes for `what` do not fit on the device."""
    free = engine.free_bytes()
    if needed > free:
        raise MemoryError(
            f"{what} needs about {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free on the "
            f"device; {advice}"
        )


def on_device(x: object) -> bool:
    """Tell whether `x` is an array or tensor on a CUDA device, without importing what made it."""
    if hasattr(type(x), "is_cuda"):  # a torch tensor, whose array interface fails on a CPU
        return bool(x.is_cuda)  # type: ignore[attr-defined]
    return hasattr(type(x), "__cuda_array_interface__")


def use_device(problems: Sequence[object], backend: str) -> bool:
    """Tell whether these are to be clustered on a device: they are there, or `backend` says so."""
    there = any(on_device(S) for S in problems)
    if there and backend not in ("auto", "cupy"):
        raise ValueError(
            f"backend={backend!r} works on the CPU and the similarities are on a device: use "
            "backend='cupy', or move them first"
        )
    return there or backend == "cupy"


def refuse_gradient(x: object, name: str) -> None:
    """Raise `ValueError` for a tensor that requires grad: no gradient flows through exemplars."""
    if getattr(x, "requires_grad", False):
        raise ValueError(f"{name} requires grad; clustering has no gradient: pass {name}.detach()")


def from_tensor(x: Any, name: str) -> Any:
    """Return a torch tensor on the CPU as an array in the same memory, and all else as it is.

    bfloat16, which NumPy lacks, becomes float32. What requires grad is refused.
    """
    refuse_gradient(x, name)
    if not hasattr(type(x), "is_cuda") or x.device.type != "cpu":
        return x
    return np.asarray(x.float() if str(x.dtype) == "torch.bfloat16" else x)


def as_device_array(x: Any, name: str) -> Array:
    """Return `x` as a C-contiguous float32 or float64 CuPy array, copied only where needed.

    Torch tensors come by DLPack, which makes CuPy's current stream wait for torch's.
    """
    refuse_gradient(x, name)
    cupy = load_cupy()
    if str(getattr(x, "dtype", "")).endswith("bfloat16"):
        raise TypeError(f"{name} holds bfloat16, which NumPy and CuPy lack: pass {name}.float()")
    if not on_device(x):
        array = np.asarray(x)
    elif hasattr(x, "__dlpack__"):
        array = cupy.from_dlpack(x)
    else:
        array = cupy.asarray(x)
    if array.dtype not in (np.float32, np.float64):
        if array.dtype.kind not in "iufb":
            raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.float64)
    return cupy.ascontiguousarray(cupy.asarray(array))


@contextmanager
def engine_for(arrays: Sequence[object]) -> Iterator[Engine]:
    """Enter the device that all device arrays among `arrays` share, else CuPy's current one.

    Raises
    ------
    ValueError
        If they are on two devices.
    """
    cupy = load_cupy()
    where = {_device_of(x) for x in arrays if on_device(x)}
    if len(where) > 1:
        raise ValueError(f"arrays are on devices {sorted(where)}: move them to one")
    device = where.pop() if where else cupy.cuda.Device().id
    with cupy.cuda.Device(device):
        yield cuda_engine(device)


def _device_of(x: Any) -> int:
    if hasattr(x, "__dlpack_device__"):
        return int(x.__dlpack_device__()[1])
    return int(load_cupy().asarray(x).device.id)
