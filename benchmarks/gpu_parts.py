"""The parts of `gpu.py`: each yields its rows as they come, and changes the last one at will."""

from __future__ import annotations

import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from problems import KINDS, Case, problem, verdict

from epruner.cluster import affinity_propagation_many
from epruner.cluster.backends import cuda
from epruner.cluster.backends.cuda import problems, solver
from epruner.cluster.backends.cuda.cluster import decode
from epruner.cluster.backends.cuda.device import CudaEngine, engine_for
from epruner.cluster.similarity import median_preference, negative_squared_distances
from epruner.cluster.types import Options

Row = dict[str, Any]
BETA = 0.73
SINGLE_SIZES = (512, 2048, 8192, 20000)
GRID = (2, 17, 65, 130, 250)
MANY = 2000  # points to compare with the compiled solver


# ---- Clocks ---------------------------------------------------------------------------------


def on_device(cupy: Any, run: Callable[[int], object], repeats: int = 9) -> float:
    """Median milliseconds of `run(q)` between CUDA events, after two runs to warm up."""
    for q in range(2):
        run(q)
    times = []
    for q in range(repeats):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        run(q)
        end.record()
        end.synchronize()
        times.append(float(cupy.cuda.get_elapsed_time(start, end)))
    return statistics.median(times)


def on_wall(run: Callable[[int], object], repeats: int = 5, warm: int = 1) -> float:
    """Median milliseconds of `run(q)`, which returns once its results are on the host."""
    for q in range(warm):
        run(q)
    return statistics.median(once(partial(run, q)) for q in range(repeats))


def once(run: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


class PhasedEngine(CudaEngine):
    """A card that adds up wall time by phase; the phase is that of the last kernel launched."""

    PHASES: ClassVar = {
        "medians": "medians",
        "select": "selection",
        "active": "iterating",
        "assign": "decoding",
    }

    def __init__(self, device: int) -> None:
        super().__init__(device)
        self.seconds: dict[str, float] = {}
        self._phase, self._since = "start", time.perf_counter()

    def launch(self, kernel: str, blocks: int, threads: int, *args: Any, shared: int = 0) -> None:
        self.enter(self.PHASES.get(kernel.split("_")[0], self._phase))
        super().launch(kernel, blocks, threads, *args, shared=shared)

    def phases(self) -> dict[str, float]:
        """Seconds of each phase so far."""
        self.enter("between")
        return {f"{name}_s": round(took, 3) for name, took in self.seconds.items()}

    def enter(self, phase: str) -> None:
        if phase == self._phase:
            return
        self.xp.cuda.get_current_stream().synchronize()
        now = time.perf_counter()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0) + now - self._since
        self._phase, self._since = phase, now


# ---- Inputs ---------------------------------------------------------------------------------


def resnet(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """(filters, weights of each) of every convolution of a bottleneck ResNet."""
    shapes, inputs = [(64, 3 * 49)], 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for q in range(count):
            shapes += [(width, inputs), (width, 9 * width), (4 * width, width)]
            if q == 0:
                shapes.append((4 * width, inputs))
            inputs = 4 * width
    return shapes


def vgg16() -> list[tuple[int, int]]:
    """(filters, weights of each) of every convolution of VGG16."""
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    return [(out, 9 * into) for into, out in pairwise(widths)]


NETWORKS = {
    "VGG16": vgg16(),
    "ResNet-50": resnet([3, 4, 6, 3]),
    "ResNet-152": resnet([3, 8, 36, 3]),
}


def blobs(n: int, d: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """n points in d dimensions around n / 12 centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(2, n // 12), d)).astype(np.float32)
    noise = rng.standard_normal(size=(n, d), dtype=np.float32)
    return centres[rng.integers(len(centres), size=n)] + np.float32(0.3) * noise


def native() -> Any:
    """The compiled CPU solver, or None."""
    try:
        from epruner.cluster.backends import native as solver
    except ImportError:
        return None
    return solver


# ---- Parts ----------------------------------------------------------------------------------


def machine(cupy: Any) -> Iterator[Row]:
    """What this runs on, and how long the kernels take to compile (or to load, once cached)."""
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    row: Row = {
        "card": properties["name"].decode(),
        "memory_gb": round(properties["totalGlobalMem"] / 1e9, 1),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "cupy": cupy.__version__,
        "python": platform.python_version(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "native": native() is not None,
    }
    yield row
    S = negative_squared_distances(blobs(16, 4, 0))
    row["first_call_ms"] = once(lambda: cuda.cluster_many([S], [None], Options()))
    yield row


def ceilings(cupy: Any) -> Iterator[Row]:
    """What copying and multiplying reach here."""
    source = [cupy.ones(1 << 28, dtype=np.float32) for _ in range(2)]
    target = cupy.empty_like(source[0])
    copy = on_device(cupy, lambda q: cupy.copyto(target, source[q % 2]))
    row: Row = {"copy_gb_s": round(2 * target.nbytes / copy / 1e6, 1)}
    yield row
    rng = np.random.default_rng(0)
    X = [cupy.asarray(rng.random((8192, 8192), dtype=np.float32)) for _ in range(2)]
    product = on_device(cupy, lambda q: X[q % 2] @ X[1 - q % 2], 5)
    row["float32_product_tflop_s"] = round(2 * 8192**3 / product / 1e9, 2)
    yield row


def correctness(cupy: Any) -> Iterator[Row]:
    """Every regime on the converged grid against the reference, and against native."""
    for kind in KINDS:
        row: Row = {"kind": kind, "compared": 0, "wrong": []}
        for n in GRID:
            for dtype in ("float32", "float64"):
                case = Case(kind, n, dtype, 0.7, 1.0, True)
                S, p = problem(case)
                expected = verdict(case)
                if expected.is_exemplar is None:
                    continue
                for run in (solver.solve, solver.solve_active_set, solver.solve_dense):
                    found = run(S, p, case.options())
                    same = bool((found.is_exemplar == expected.is_exemplar).all())
                    float32_messages = run is solver.solve_dense and dtype == "float32"
                    if expected.n_iter is not None and not float32_messages:
                        same &= found.n_iter == expected.n_iter
                    row["compared"] += 1
                    row["wrong"] += [] if same else [f"{case} {run.__name__}"]
        yield row
    S = negative_squared_distances(blobs(MANY, 32, 0))
    p = median_preference(S, 0.3)
    runs = [solver.solve(S, p, Options(damping=0.7)) for _ in range(2)]
    row = {"kind": f"blobs, n = {MANY}", "compared": 1, "wrong": []}
    if not np.array_equal(runs[0].is_exemplar, runs[1].is_exemplar):
        row["wrong"].append("not the same from run to run")
    other = native()
    if other is not None:
        theirs = other.solve(S, p, Options(damping=0.7))
        row["compared"] += 1
        if not np.array_equal(runs[0].is_exemplar, theirs.is_exemplar):
            row["wrong"].append("not the same as native")
    yield row


def networks(cupy: Any) -> Iterator[Row]:
    """All layers as one batch: similarities, medians, messages, labels on the host."""
    for name, shapes in NETWORKS.items():
        inputs = [
            [blobs(n, d, 1000 * turn + q) for q, (n, d) in enumerate(shapes)] for turn in range(3)
        ]
        resident = [[cupy.asarray(X) for X in layers] for layers in inputs]
        betas = dict.fromkeys(range(len(shapes)), BETA)

        def run(q: int, resident: Any = resident, betas: Any = betas) -> Any:
            return cuda.FilterBatch(resident[q % 3]).cluster(betas)

        row: Row = {"network": name, "layers": len(shapes)}
        row["gpu_ms"] = on_wall(run, 7, 3)
        yield row
        compared = cuda.FilterBatch(resident[0])

        def again(q: int, compared: Any = compared, betas: Any = betas) -> Any:
            return compared.cluster(betas)

        row["gpu_again_ms"] = on_wall(again, 5)
        found = compared.cluster(betas)
        row["converged"] = sum(c.converged for c in found.values())
        yield row
        if native() is not None:
            row |= _networks_native(inputs[0], list(found.values()))
            yield row
        if name != "ResNet-50":
            row["sklearn_ms"] = _networks_sklearn(inputs[0])
            row["times_sklearn"] = row["sklearn_ms"] / row["gpu_ms"]
            yield row
        del resident, compared
        cupy.get_default_memory_pool().free_all_blocks()


def _networks_native(layers: Sequence[Any], found: Sequence[Any]) -> Row:
    theirs: list[Any] = []

    def run() -> None:
        S = [negative_squared_distances(X) for X in layers]
        p = [median_preference(s, BETA) for s in S]
        theirs[:] = affinity_propagation_many(S, preference=p, backend="native")

    row: Row = {"native_ms": once(run)}
    both = [(a, b) for a, b in zip(found, theirs, strict=True) if a.converged and b.converged]
    row["layers_compared"] = len(both)
    row["layers_alike"] = sum(np.array_equal(a.labels, b.labels) for a, b in both)
    return row


def _networks_sklearn(layers: Sequence[Any]) -> float:
    """Milliseconds of scikit-learn: one layer of each size is timed, and counts for all of them."""
    from sklearn.cluster import affinity_propagation

    total = 0.0
    for n in sorted({len(X) for X in layers}):
        alike = [X for X in layers if len(X) == n]
        middle = alike[len(alike) // 2]

        def run(X: Any = middle) -> None:
            S = negative_squared_distances(X)
            affinity_propagation(S, preference=median_preference(S, BETA), random_state=0)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            total += len(alike) * once(run)
    return total


def pruning(cupy: Any) -> Iterator[Row]:
    """`prune` of a network on the device and on the CPU: the same plan, and its stages."""
    import torch

    from epruner.pruning import prune
    from examples.cifar_resnet import resnet56

    if not torch.cuda.is_available():
        yield {"left out": "this torch has no CUDA"}
        return
    torch.manual_seed(0)
    model = resnet56().eval()
    kept = {}
    for where in ("cpu", "cuda", "cuda"):  # the first on the device warms it up
        result = prune(model.to(where), (1, 3, 32, 32), macs=0.5)
        kept[where] = {layer.name: layer.after for layer in result.report.layers}
        seconds = {f"{stage}_s": round(took, 4) for stage, took in result.report.seconds.items()}
        alike = sum(kept[where][name] == count for name, count in kept["cpu"].items())
        yield {
            "where": where,
            "layers": len(kept[where]),
            "sizes_as_on_cpu": alike,
            **seconds,
            "notes": "; ".join(result.report.notes),
        }


def single(cupy: Any) -> Iterator[Row]:
    """One problem in device memory: lists to convergence, dense passes by the iteration."""
    for n in SINGLE_SIZES:
        yield from _single(cupy, n)
        cupy.get_default_memory_pool().free_all_blocks()


def _single(cupy: Any, n: int) -> Iterator[Row]:
    with engine_for([]) as engine:
        S = [problems.distances(engine, [cupy.asarray(blobs(n, 64, q))])[0] for q in range(2)]
        own = [problems.medians(problems.Matrices(engine, [s])) for s in S]
        options = Options(damping=0.7)

        def run(q: int, options: Options, regime: str) -> solver.BatchMessages:
            one = problems.Matrices(engine, [S[q % 2]])
            return solver.pass_messages(one, own[q % 2], options, regime)

        def dense(iterations: int) -> float:
            fixed = Options(max_iter=iterations, convergence_iter=iterations + 1)
            return on_wall(lambda q: run(q, fixed, "dense"), 3)

        passed = run(0, options, "active_set")
        row: Row = {"n": n, "n_iter": int(passed.n_iter[0]), "converged": bool(passed.converged[0])}
        row["longest_list"] = passed.longest_list
        row["active_set_ms"] = on_wall(lambda q: run(q, options, "active_set"), 5)
        yield row
        row["dense_iteration_ms"] = (dense(144) - dense(48)) / 96
        row["dense_gb_s"] = round(5 * 4 * n * n / row["dense_iteration_ms"] / 1e6, 1)
        yield row
        if n > 8192:
            return
        eager = _eager(S[0], own[0])
        if eager is not None:
            row["torch_iteration_ms"] = eager
            row["times_torch"] = eager * row["n_iter"] / row["active_set_ms"]
            yield row
        host, p = cupy.asnumpy(S[0]), cupy.asnumpy(own[0])
        other = native()
        if other is not None:
            threads = replace(options, n_threads=len(os.sched_getaffinity(0)))
            row["native_ms"] = on_wall(lambda q: other.solve(host, p, threads), 3)
            theirs = other.solve(host, p, threads).is_exemplar
            found = cupy.asnumpy(passed.is_exemplar).astype(bool)
            row["same_as_native"] = bool(np.array_equal(theirs, found))
            yield row
        row["sklearn_iteration_ms"] = _sklearn_iteration(host, p)
        yield row


def _eager(S: Any, preference: Any) -> float | None:
    """Milliseconds of an iteration written in torch as one would write it, stop test included."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    S = torch.utils.dlpack.from_dlpack(S).clone()
    S.fill_diagonal_(0)
    S += torch.diag(torch.utils.dlpack.from_dlpack(preference))
    n, keep = S.shape[0], 0.7
    index = torch.arange(n, device=S.device)

    def run(iterations: int) -> None:
        R, A = torch.zeros_like(S), torch.zeros_like(S)
        history = torch.zeros((n, 15), dtype=torch.bool, device=S.device)
        for t in range(iterations):
            V = A + S
            top, where = V.topk(2, dim=1)
            rival = top[:, :1].expand(n, n).clone()
            rival[index, where[:, 0]] = top[:, 1]
            R = keep * R + (1 - keep) * (S - rival)
            positive = R.clamp(min=0)
            positive[index, index] = R[index, index]
            fresh = positive.sum(dim=0) - positive
            own = fresh[index, index].clone()
            fresh.clamp_(max=0)
            fresh[index, index] = own
            A = keep * A + (1 - keep) * fresh
            history[:, t % 15] = A.diagonal() + R.diagonal() > 0
            counts = history.sum(dim=1)
            bool(((counts == 0) | (counts == 15)).all())  # the stop test waits for the device
        torch.cuda.synchronize()

    run(3)
    return (on_wall(lambda q: run(24), 3, 0) - on_wall(lambda q: run(8), 3, 0)) / 16


def _sklearn_iteration(S: Any, preference: Any) -> float:
    from sklearn.cluster import affinity_propagation

    def run(iterations: int) -> None:
        affinity_propagation(
            S, preference=preference, damping=0.7, max_iter=iterations, random_state=0
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (once(lambda: run(6)) - once(lambda: run(2))) / 4


def features_100k(cupy: Any) -> Iterator[Row]:
    """100,000 points of 64 features."""
    return _features(cupy, 100_000)


def features_1m(cupy: Any) -> Iterator[Row]:
    """1,000,000 points of 64 features."""
    return _features(cupy, 1_000_000)


def _features(cupy: Any, n: int) -> Iterator[Row]:
    """n points to labels on the host, the matrix never held."""
    X = np.random.default_rng(0).standard_normal((n, 64), dtype=np.float32)
    options = Options(damping=0.7, max_iter=300)
    engine = PhasedEngine(cupy.cuda.Device().id)
    for size in (min(n, 2000), n):  # the first compiles and loads
        engine.phases()
        engine.seconds.clear()
        resident = cupy.asarray(X[:size])
        start = time.perf_counter()
        row: Row = {"n": size}
        points = problems.Features(engine, resident)
        own = problems.medians(points)
        yield row | engine.phases()
        passed = solver.pass_messages(points, own, options)
        yield row | engine.phases()
        found = decode(points, passed, own, options)[0]
        phases = engine.phases()
        row["seconds"] = round(time.perf_counter() - start, 3)
    row |= phases
    row["clusters"], row["n_iter"] = int(found.exemplars.size), found.n_iter
    row["converged"], row["longest_list"] = found.converged, passed.longest_list
    row["pool_gb"] = round(cupy.get_default_memory_pool().total_bytes() / 1e9, 2)
    yield row


# name: what yields its rows, the seconds it may take
PARTS: dict[str, tuple[Callable[[Any], Iterator[Row]], float]] = {
    "machine": (machine, 60),
    "ceilings": (ceilings, 30),
    "correctness": (correctness, 100),
    "networks": (networks, 120),
    "pruning": (pruning, 60),
    "features_100k": (features_100k, 45),
    "single": (single, 120),
    "features_1m": (features_1m, 130),
}
