"""The device's benchmark from end to end on small inputs, its kernels on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_shim import HostEngine, Make

from benchmarks import gpu as script
from benchmarks import gpu_parts
from epruner.cluster.backends.cuda import cluster, device, solver


class PhasedHost(HostEngine):
    """Without a clock."""

    seconds: dict[str, float]

    def phases(self) -> dict[str, float]:
        return dict(self.seconds)


@pytest.fixture
def cupy(kernels: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """NumPy where the benchmark asks for CuPy."""
    engine = make()

    @contextmanager
    def engine_for(arrays: Sequence[object]) -> Iterator[HostEngine]:
        yield engine

    def phased(device: int) -> PhasedHost:
        host = PhasedHost(kernels)
        host.seconds = {"start_s": 0.0}
        return host

    pool = SimpleNamespace(free_all_blocks=lambda: None, total_bytes=lambda: 0)
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    properties = {"name": b"No card", "totalGlobalMem": 1 << 30}
    for module in (gpu_parts, cluster, solver):
        monkeypatch.setattr(module, "engine_for", engine_for)
    monkeypatch.setattr(device, "load_cupy", lambda: np)
    monkeypatch.setattr(gpu_parts, "PhasedEngine", phased)
    monkeypatch.setattr(gpu_parts, "SINGLE_SIZES", (17,))
    monkeypatch.setattr(gpu_parts, "GRID", (9,))
    monkeypatch.setattr(gpu_parts, "MANY", 60)
    monkeypatch.setattr(gpu_parts, "NETWORKS", {"small": [(16, 20), (16, 20), (20, 30)]})
    return SimpleNamespace(
        asarray=np.asarray,
        asnumpy=np.asarray,
        get_default_memory_pool=lambda: pool,
        cuda=SimpleNamespace(
            Device=lambda: SimpleNamespace(id=0),
            Event=lambda: event,
            get_elapsed_time=lambda start, end: 1.0,
            runtime=SimpleNamespace(
                getDeviceProperties=lambda device: properties, driverGetVersion=lambda: 13000
            ),
        ),
        __version__="none",
    )


def last(rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    return list(rows)[-1]


def test_the_kernels_pass_the_benchmarks_own_checks(cupy: SimpleNamespace) -> None:
    for row in gpu_parts.correctness(cupy):
        assert row["compared"] > 0
        assert row["wrong"] == []
    network = last(gpu_parts.networks(cupy))
    assert network["layers_alike"] == network["layers_compared"] > 0
    assert last(gpu_parts.single(cupy))["same_as_native"]
    features = last(gpu_parts._features(cupy, 60))
    assert features["converged"]
    assert features["clusters"] > 1


def test_a_wrong_answer_is_found_and_named(
    cupy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    solve = solver.solve

    def wrong(S: Any, preference: Any, options: Any) -> Any:
        found = solve(S, preference, options)
        flags = np.array(found.is_exemplar)
        flags[0] = not flags[0]
        return replace(found, is_exemplar=flags)

    monkeypatch.setattr(solver, "solve", wrong)
    *grid, large = gpu_parts.correctness(cupy)
    for row in grid:
        named = [name for name in row["wrong"] if name.endswith("wrong")]
        assert len(named) == row["compared"] // 3 > 0
    assert large["wrong"] == ["not the same as native"]


def test_a_part_that_fails_or_takes_too_long_keeps_its_rows(
    cupy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def part(_: Any) -> Iterator[dict[str, Any]]:
        yield {"n": 1, "a": 1}
        yield {"n": 1, "a": 1, "b": 2}
        yield {"n": 2}
        raise RuntimeError("illegal memory access")

    monkeypatch.setitem(gpu_parts.PARTS, "ceilings", (part, 10))
    monkeypatch.setattr(script, "load_cupy", lambda: cupy)
    out = tmp_path / "rows.json"
    assert script.run_part("ceilings", out) == 1
    rows = [{"n": 1, "a": 1, "b": 2}, {"n": 2}, {"error": "RuntimeError: illegal memory access"}]
    assert json.loads(out.read_text()) == rows
    found, complete = script.attempt("ceilings", 0.01, out)  # a process that is stopped at once
    assert not complete
    assert found == rows
    fresh, complete = script.attempt("ceilings", 0.01, tmp_path / "other.json")
    assert not complete
    assert fresh == [{"error": "stopped after 0 s"}]


def test_results_hold_goals_and_tables(tmp_path: Path) -> None:
    results: dict[str, list[dict[str, Any]]] = {
        "machine": [{"card": "Some Card"}],
        "ceilings": [{"copy_gb_s": 1000.0}],
        "single": [{"n": 20000, "dense_gb_s": 700.0}],
        "features_100k": [{"n": 100_000, "seconds": 2.0}],
    }
    results["goals"] = script.goals(results)
    met = {row["goal"]: row.get("met") for row in results["goals"]}
    assert met["dense n = 20,000, share of copy"] is True
    assert met["n = 100,000 from features, s"] is False
    assert met["wrong answers"] is None  # not all kinds were compared
    script.write(results, tmp_path)
    assert "| 700 |" in (tmp_path / "some-card.md").read_text()
    assert json.loads((tmp_path / "some-card.json").read_text())["goals"] == results["goals"]
