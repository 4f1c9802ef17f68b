"""What only a card can show: arrays, streams, compilation at first use, graphs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import trained_resnet
from problems import KINDS, Case, problem, verdict

from epruner.cluster import affinity_propagation, affinity_propagation_many, backends
from epruner.cluster.backends import cuda
from epruner.cluster.backends.cuda.device import engine_for, load_cupy, require_memory
from epruner.cluster.similarity import median_preference, negative_squared_distances
from epruner.cluster.types import Options
from epruner.pruning import prune

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cupy() -> Iterator[Any]:
    """CuPy, where it reaches a device."""
    try:
        yield load_cupy()
    except (ImportError, RuntimeError) as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("regime", ["solve", "solve_active_set", "solve_dense"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_as_reference(kind: str, dtype: str, regime: str) -> None:
    from epruner.cluster.backends.cuda import solver

    for n in (2, 17, 65, 130, 400):
        case = Case(kind, n, dtype, 0.7, 1.0, True)
        S, p = problem(case)
        expected, found = verdict(case), getattr(solver, regime)(S, p, case.options())
        if expected.is_exemplar is None:
            continue
        np.testing.assert_array_equal(found.is_exemplar, expected.is_exemplar)
        float32_messages = regime == "solve_dense" and dtype == "float32"
        if expected.n_iter is not None and not float32_messages:
            assert found.n_iter == expected.n_iter


def test_device_arrays_of_every_kind(cupy: Any) -> None:
    S, p = problem(Case("blobs", 130, "float32", 0.5, 1.0, True))
    expected = backends.get("reference")(S, p, Options())
    wide = torch.zeros(130, 260, device="cuda")
    wide[:, ::2] = torch.from_numpy(S).cuda()
    for device_S in (cupy.asarray(S), torch.from_numpy(S).cuda(), wide[:, ::2], S):
        (found,) = cuda.cluster_many([device_S], [p], Options())
        assert found.n_iter == expected.n_iter
        assert isinstance(found.labels, np.ndarray)
    (found,) = cuda.cluster_many([cupy.asarray(S)], [torch.from_numpy(p).cuda()], Options())
    assert found.n_iter == expected.n_iter


def test_public_functions_go_where_the_data_are() -> None:
    S, p = problem(Case("blobs", 130, "float32", 0.5, 1.0, True))
    there = torch.from_numpy(S).cuda()
    exemplars, labels = affinity_propagation(S, preference=p)[:2]
    for found in (
        affinity_propagation(there, preference=p),
        affinity_propagation(S, preference=p, backend="cupy"),
    ):
        np.testing.assert_array_equal(found[0], exemplars)
        np.testing.assert_array_equal(found[1], labels)
    for own in affinity_propagation_many([there, there], preference=[p, p]):
        np.testing.assert_array_equal(own.labels, labels)
    with pytest.raises(ValueError, match="backend='native' works on the CPU"):
        affinity_propagation(there, backend="native")


def test_waits_for_torchs_current_stream() -> None:
    S, p = problem(Case("blobs", 400, "float32", 0.5, 1.0, True))
    expected = backends.get("reference")(S, p, Options())
    busy = torch.randn(4096, 4096, device="cuda")
    source = torch.from_numpy(S).cuda()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        for _ in range(50):
            busy = busy @ busy
            busy /= busy.norm()
        late = source + 0 * busy.sum()
        (found,) = cuda.cluster_many([late], [p], Options())
    assert found.n_iter == expected.n_iter


def test_same_bits_from_run_to_run(cupy: Any) -> None:
    X = cupy.asarray(np.random.default_rng(0).normal(size=(5000, 16)).astype(np.float32))
    runs = [cuda.cluster_features(X, damping=0.7) for _ in range(2)]
    np.testing.assert_array_equal(runs[0].labels, runs[1].labels)
    assert runs[0].net_similarity == runs[1].net_similarity
    assert runs[0].n_iter == runs[1].n_iter


def test_filters_stay_on_the_device(cupy: Any) -> None:
    rng = np.random.default_rng(0)
    filters = [rng.normal(size=(n, 90)).astype(np.float32) for n in (16, 64, 130, 256)]
    batch = cuda.FilterBatch([torch.from_numpy(X).cuda() for X in filters])
    found = batch.cluster(dict.fromkeys(range(4), 0.8), damping=0.7, random_state=0)
    for layer, X in enumerate(filters):
        S = negative_squared_distances(X)
        np.testing.assert_allclose(batch.similarities(layer), S, rtol=1e-4)
        np.testing.assert_allclose(batch.medians(layer), np.median(S, axis=0), rtol=1e-4)
        expected = backends.get("reference")(S, median_preference(S, 0.8), Options(damping=0.7))
        if expected.converged:
            assert found[layer].converged


def test_pruning_stays_on_the_device(data_dir: Path) -> None:
    model = trained_resnet(data_dir, "theo")
    options: dict[str, Any] = {"beta": 0.76, "method": "paper"}
    expected = prune(model, (1, 3, 32, 32), **options)
    found = prune(model.cuda(), (1, 3, 32, 32), **options)
    assert not found.report.notes
    assert next(found.model.parameters()).is_cuda
    kept = {layer.name: layer.after for layer in found.report.layers}
    assert kept == {layer.name: layer.after for layer in expected.report.layers}
    for name, members in expected.kept.items():
        np.testing.assert_array_equal(found.kept[name], members)
    smaller = prune(model, (1, 3, 32, 32), macs=0.5)
    assert smaller.report.after.macs <= 0.5 * smaller.report.before.macs
    assert smaller.report.settings["evidence"] == "noise"
    assert smaller.report.repair is not None
    assert smaller.report.repair.after < smaller.report.repair.before
    assert next(smaller.model.parameters()).is_cuda


def test_arrays_on_two_devices_are_refused(cupy: Any) -> None:
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two devices")
    arrays = []
    for device in (0, 1):
        with cupy.cuda.Device(device):
            arrays.append(cupy.eye(3))
    with pytest.raises(ValueError, match=r"devices \[0, 1\]"):
        cuda.cluster_many(arrays, [None, None], Options())


def test_tensors_that_require_grad_or_hold_bfloat16_are_refused() -> None:
    S = torch.eye(3, device="cuda")
    with pytest.raises(ValueError, match="requires grad"):
        cuda.cluster_many([S.clone().requires_grad_()], [None], Options())
    with pytest.raises(TypeError, match="bfloat16"):
        cuda.cluster_many([S.bfloat16()], [None], Options())


def test_more_memory_than_there_is_is_said_with_figures() -> None:
    with engine_for([]) as engine, pytest.raises(MemoryError, match=r"needs about .* GB"):
        require_memory(engine, 1 << 50, "a test", "take less")
