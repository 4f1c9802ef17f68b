"""Which arrays are on a device, and how they are taken over as CuPy's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from epruner.cluster.gpu.cuda import cuda_engine, load_cupy
from epruner.cluster.gpu.engine import Array, Engine


def on_device(x: object) -> bool:
    """Tell whether `x` is an array or tensor on a CUDA device, without importing what made it."""
    if hasattr(type(x), "is_cuda"):  # a torch tensor, whose array interface fails on a CPU
        return bool(x.is_cuda)  # type: ignore[attr-defined]
    return hasattr(type(x), "__cuda_array_interface__")


def wanted(problems: Sequence[object], backend: str) -> bool:
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


def adopt(x: Any, name: str) -> Array:
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
