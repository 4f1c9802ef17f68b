"""The engine on a CUDA device: CuPy's arrays, kernels compiled at first use, graphs."""

import os
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epruner import _install
from epruner.cluster.gpu.engine import Array

_INSTALL = f"{_install.command('cuda13')} (or its extra cuda12 for drivers of CUDA 12)"
_PLAIN_SHARED = 48 << 10  # bytes that a kernel may have without asking
_HEADROOM = 256 << 20  # bytes left to others: the library of matrix products wants some, too
# No fused multiply-adds, as in the CPU solvers; no fast math: infinities are legal. CuPy adds
# -ftz=true: float32 numbers below 1.2e-38 are zero on the device.
COMPILE_OPTIONS = ("--std=c++17", "-fmad=false")


def source() -> str:
    """Return the text of the kernels."""
    return files(__package__).joinpath("messages.cu").read_text(encoding="utf-8")


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


class CudaEngine:
    """Runs kernels on one device; an `epruner.cluster.gpu.engine.Engine`.

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
