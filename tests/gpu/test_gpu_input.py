"""What the device's functions take, and what they say about what they do not, without a device.

Where a device would be asked, a stand-in answers for CuPy; arrays are NumPy's and the kernels run
on the CPU (see `cuda_shim`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cuda_shim import HostEngine, Make
from problems import Case, problem, verdict

from epruner.cluster.backends import cuda
from epruner.cluster.backends.cuda import cluster
from epruner.cluster.backends.cuda import device as cuda_device
from epruner.cluster.similarity import median_preference, negative_squared_distances
from epruner.cluster.types import Options


@pytest.fixture
def device(make: Make, monkeypatch: pytest.MonkeyPatch) -> HostEngine:
    """A device that is the CPU, with NumPy for CuPy."""
    engine = make()

    @contextmanager
    def engine_for(arrays: Sequence[object]) -> Iterator[HostEngine]:
        yield engine

    monkeypatch.setattr(cuda_device, "load_cupy", lambda: np)
    monkeypatch.setattr(cluster, "engine_for", engine_for)
    return engine


class RuntimeFailure(RuntimeError):
    """CuPy's CUDARuntimeError."""


def stand_in(
    monkeypatch: pytest.MonkeyPatch, *, devices: int | Exception, driver: int = 13000
) -> None:
    """Put a CuPy for CUDA 13.0 in place that finds these devices and this driver."""

    def count() -> int:
        if isinstance(devices, Exception):
            raise devices
        return devices

    runtime = SimpleNamespace(
        CUDARuntimeError=RuntimeFailure,
        getDeviceCount=count,
        driverGetVersion=lambda: driver,
        runtimeGetVersion=lambda: 13000,
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    cuda_device.load_cupy.cache_clear()
    monkeypatch.delenv("CUPY_TF32", raising=False)


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """Leave no stand-in behind."""
    yield
    cuda_device.load_cupy.cache_clear()


def test_without_cupy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)  # what an import finds where nothing is there
    cuda_device.load_cupy.cache_clear()
    with pytest.raises(ImportError, match=r"\[cuda13\]"):
        cuda.cluster_many([np.eye(3)], [None], Options())


def test_a_missing_driver_and_a_missing_device_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, devices=RuntimeFailure("cudaErrorInsufficientDriver"), driver=0)
    with pytest.raises(RuntimeError, match=r"no CUDA driver on this machine.*backend='native'"):
        cuda.cluster_many([np.eye(3)], [None], Options())
    stand_in(monkeypatch, devices=0)
    with pytest.raises(RuntimeError, match=r"no CUDA device.*backend='native'"):
        cuda.cluster_many([np.eye(3)], [None], Options())


def test_a_driver_too_old_for_cupy_is_said_with_both_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch, devices=RuntimeFailure("cudaErrorInsufficientDriver"), driver=12040)
    with pytest.raises(RuntimeError, match=r"CUDA 12\.4 and .* CUDA 13\.0 .* extra cuda12 "):
        cuda.cluster_features(np.eye(3))


def test_products_in_tensorfloat32_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, devices=1)
    monkeypatch.setenv("CUPY_TF32", "1")
    with pytest.raises(RuntimeError, match=r"CUPY_TF32 is set.*unset it"):
        cuda_device.load_cupy()


def test_arrays_on_two_devices_are_refused_with_their_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class There:
        __cuda_array_interface__: object = None

        def __init__(self, device: int) -> None:
            self._device = device

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, self._device

    stand_in(monkeypatch, devices=2)
    with (
        pytest.raises(ValueError, match=r"arrays are on devices \[0, 1\]: move them to one"),
        cuda_device.engine_for([There(1), There(0), np.eye(2)]),
    ):
        pass


def test_tensors_that_require_grad_are_refused() -> None:
    with pytest.raises(ValueError, match=r"S requires grad.*pass S\.detach\(\)"):
        cuda.cluster_many([torch.zeros(3, 3, requires_grad=True)], [None], Options())
    with pytest.raises(ValueError, match=r"filters\[1\] requires grad"):
        cuda.FilterBatch([torch.zeros(3, 3), torch.zeros(3, 3, requires_grad=True)])


def test_types_that_hold_no_real_numbers_are_refused(device: HostEngine) -> None:
    with pytest.raises(TypeError, match=r"S holds bfloat16.*pass S\.float\(\)"):
        cuda.cluster_many([torch.eye(3, dtype=torch.bfloat16)], [None], Options())
    with pytest.raises(TypeError, match=r"problems\[1\] must hold real numbers, got dtype complex"):
        cuda.cluster_many([np.eye(3), np.eye(3, dtype=complex)], [None, None], Options())


def test_strided_integer_and_half_arrays_are_taken(device: HostEngine) -> None:
    case = Case("integers", 40, "float32", 0.7, 1.0, True)
    S, p = problem(case)
    wide = np.zeros((40, 80), dtype=np.float32)
    wide[:, ::2] = S
    for given in (
        wide[:, ::2],
        np.asfortranarray(S),
        torch.from_numpy(wide)[:, ::2],
        S.astype(int),
    ):
        (found,) = cuda.cluster_many([given], [p], case.options())
        assert found.n_iter == verdict(case).n_iter
        is_exemplar = verdict(case).is_exemplar
        assert is_exemplar is not None
        assert found.exemplars.size == np.count_nonzero(is_exemplar)
    half = cuda.cluster_many([S.astype(np.float16)], [p], case.options())
    assert half[0].n_iter == verdict(case).n_iter  # integers below 2048 survive


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((3, 4)), r"S: similarities must be a square array. Got \(3, 4\)"),
        (np.zeros((0, 0)), "S holds no points"),
    ],
)
def test_wrong_shapes_are_named(device: HostEngine, bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cuda.cluster_many([bad], [None], Options())


def test_wrong_preferences_and_features_are_named(device: HostEngine) -> None:
    S = negative_squared_distances(np.random.default_rng(0).normal(size=(5, 2)))
    with pytest.raises(ValueError, match=r"got shape \(4,\) for 5 points"):
        cuda.cluster_many([S], [np.zeros(4)], Options())
    with pytest.raises(ValueError, match=r"X must hold rows of features, got shape \(5,\)"):
        cuda.cluster_features(np.zeros(5))
    with pytest.raises(ValueError, match="X holds one point"):
        cuda.cluster_features(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="X holds NaN or infinite values"):
        cuda.cluster_features(np.full((5, 2), np.nan))
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="overflow float32"):
        cuda.cluster_features(np.array([[3e38], [-3e38]], dtype=np.float32))


def test_filters_of_two_precisions_are_clustered_in_any_selection(device: HostEngine) -> None:
    rng = np.random.default_rng(0)
    X = [rng.normal(size=(n, 30)).astype(t) for n, t in ((16, "f4"), (20, "f8"), (1, "f4"))]
    batch = cuda.FilterBatch(X)
    assert len(batch) == 3
    for layer, rows in enumerate(X[:2]):
        S = negative_squared_distances(rows)
        np.testing.assert_allclose(batch.similarities(layer), S, rtol=1e-4)
        np.testing.assert_allclose(batch.medians(layer), median_preference(S, 1.0), rtol=1e-4)
    with pytest.warns(UserWarning, match="mutually equal"):  # of the single filter
        everything = batch.cluster({0: 0.5, 1: 0.9, 2: 0.5}, damping=0.7)
    some = batch.cluster({1: 0.9}, damping=0.7)
    assert list(some) == [1]
    np.testing.assert_array_equal(some[1].labels, everything[1].labels)
    np.testing.assert_array_equal(everything[2].exemplars, [0])
    assert batch.cluster({}) == {}


def test_filters_that_do_not_fit_are_said_with_figures(device: HostEngine) -> None:
    device.free = 1000
    with pytest.raises(MemoryError, match=r"similarities of 2 layers needs about 0\.00 GB and 0"):
        cuda.FilterBatch([np.eye(16), np.eye(16)])


def test_host_arrays_are_not_on_a_device() -> None:
    assert not cuda.on_device(np.eye(2))
    assert not cuda.on_device(torch.eye(2))
    assert not cuda.on_device([[0.0]])
    assert not cuda.use_device([np.eye(2)], "auto")
    assert cuda.use_device([np.eye(2)], "cupy")
