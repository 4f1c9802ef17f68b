"""Runs kernels.cu on the CPU: the device's kernels and host code, with NumPy's arrays."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epruner.cluster.backends.cuda.device import Array

HERE = Path(__file__).resolve().parent


def kernel_names(source: str) -> list[str]:
    """Return the names of all kernels in the source, macros expanded."""
    plain = re.findall(r"__global__ void ([a-z]\w*)\(", source)
    _, by_number, by_row = re.split(r"#define EPRUNER_\w*KERNELS", source)
    number = re.findall(r"(\w+)_##suffix\(", by_number)
    row = re.findall(r"(\w+)_##suffix\(", by_row)
    return [
        *plain,
        *(f"{name}_{t}" for name in number for t in ("f32", "f64")),
        *(f"{name}_{k}_{t}" for name in row for k in ("matrix", "product") for t in ("f32", "f64")),
    ]


def compile_kernels(compiler: str, folder: Path) -> Path:
    """Compile the kernels behind cuda_shim.hpp; return the library."""
    kernels = files("epruner.cluster.backends.cuda").joinpath("kernels.cu")
    names = kernel_names(kernels.read_text())
    unit = folder / "kernels.cpp"
    unit.write_text(
        f'#include "{HERE / "cuda_shim.hpp"}"\n#include "{kernels}"\n'
        + "".join(f"SHIM_KERNEL({name})\n" for name in names)
    )
    library = folder / "kernels.so"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    command = [compiler, *flags, "-Werror", "-shared", "-fPIC", str(unit), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


class HostEngine:
    """Runs kernels on the CPU, thread by thread; an `Engine` of `backends.cuda.device`."""

    xp = np
    threads = 64
    wide = 96

    def __init__(self, library: Path, *, max_shared: int = 232448, reverse: bool = False) -> None:
        self._library = ctypes.CDLL(str(library))
        self.max_shared = max_shared
        self._reverse = reverse
        self.free = 1 << 33
        self.launched: Counter[str] = Counter()

    def launch(
        self, kernel: str, blocks: int, threads: int, *args: Array | int, shared: int = 0
    ) -> None:
        words = [a if isinstance(a, int | np.integer) else self.address(a) for a in args]
        self.launched[kernel] += 1
        getattr(self._library, f"shim_{kernel}")(
            ctypes.c_uint(blocks),
            ctypes.c_uint(threads),
            ctypes.c_size_t(shared),
            (ctypes.c_uint64 * len(words))(*map(int, words)),
            ctypes.c_bool(self._reverse),
        )

    def address(self, array: Array) -> int:
        assert array.flags.c_contiguous
        return int(array.ctypes.data)

    def host(self, array: Array) -> NDArray[Any]:
        return np.array(array)

    def repeater(self, step: Callable[[], None], times: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times):
                step()

        return run

    def free_bytes(self) -> int:
        return self.free


Make = Callable[..., HostEngine]
