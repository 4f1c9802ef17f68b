"""Everything that one run on a machine with a card should do, in under eight minutes.

Checks answers before clocks: labels and iteration counts against the reference and the compiled CPU
solver. Then times whole networks in one batch, single problems from lists and from dense passes,
and 100,000 and 1,000,000 points from features; beside them the card's copy bandwidth and matrix
product, the CPU solver, the same iteration written in eager torch, and scikit-learn.

    python benchmarks/gpu.py                    writes benchmarks/results/<card>.json and .md

Works from a checkout; without the compiled extension it says so and leaves that rival out. Device
times are CUDA events on a warm card, the median of several runs over rotating inputs; where results
return to the host, wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from problems import KINDS, Case, problem, verdict  # noqa: E402

from epruner.cluster import gpu  # noqa: E402
from epruner.cluster.gpu import cuda, messages, problems  # noqa: E402
from epruner.cluster.gpu.arrays import engine_for  # noqa: E402
from epruner.cluster.gpu.decode import decode  # noqa: E402
from epruner.cluster.gpu.filters import distances  # noqa: E402
from epruner.cluster.outcome import Options  # noqa: E402
from epruner.cluster.similarity import (  # noqa: E402
    median_preference,
    negative_squared_distances,
)

Row = dict[str, Any]
BUDGET = 400.0  # seconds; parts that would start later are left out, and said so


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
    times = []
    for q in range(repeats):
        start = time.perf_counter()
        run(q)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


class PhasedEngine(cuda.CudaEngine):
    """A card that adds up wall time by phase; the phase is that of the last kernel launched."""

    PHASES: ClassVar = {
        "medians": "medians",
        "select": "selection",
        "list": "iterating",
        "assign": "decoding",
    }

    def __init__(self, device: int) -> None:
        super().__init__(device)
        self.seconds: dict[str, float] = {}
        self._phase, self._since = "start", time.perf_counter()

    def launch(self, kernel: str, blocks: int, threads: int, *args: Any, shared: int = 0) -> None:
        self.enter(self.PHASES.get(kernel.split("_")[0], self._phase))
        super().launch(kernel, blocks, threads, *args, shared=shared)

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
        from epruner.cluster.solvers import native as solver
    except ImportError:
        return None
    return solver


# ---- Parts ----------------------------------------------------------------------------------


def machine(cupy: Any) -> Row:
    """What this runs on."""
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return {
        "card": properties["name"].decode(),
        "memory_gb": round(properties["totalGlobalMem"] / 1e9, 1),
        "driver": cupy.cuda.runtime.driverGetVersion(),
        "cupy": cupy.__version__,
        "python": platform.python_version(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "native": native() is not None,
    }


def ceilings(cupy: Any) -> Row:
    """What copying and multiplying reach here."""
    source = [cupy.ones(1 << 28, dtype=np.float32) for _ in range(2)]
    target = cupy.empty_like(source[0])
    copy = on_device(cupy, lambda q: cupy.copyto(target, source[q % 2]))
    X = [cupy.random.standard_normal((8192, 8192), dtype=np.float32) for _ in range(2)]
    product = on_device(cupy, lambda q: cupy.matmul(X[q % 2], X[1 - q % 2], out=None), 5)
    return {
        "copy_gb_s": round(2 * target.nbytes / copy / 1e6, 1),
        "float32_product_tflop_s": round(2 * 8192**3 / product / 1e9, 2),
    }


def correctness(cupy: Any) -> Row:
    """Every regime on the converged grid against the reference, and against native at n = 2000."""
    from epruner.cluster.solvers import cupy as solver

    compared, wrong = 0, []
    for kind in KINDS:
        for n in (2, 17, 65, 130, 250):
            for dtype in ("float32", "float64"):
                case = Case(kind, n, dtype, 0.7, 1.0, True)
                S, p = problem(case)
                expected = verdict(case)
                if expected.is_exemplar is None:
                    continue
                for run in (solver.solve, solver.solve_lists, solver.solve_dense):
                    found = run(S, p, case.options())
                    compared += 1
                    same = bool((found.is_exemplar == expected.is_exemplar).all())
                    float32_messages = run is solver.solve_dense and dtype == "float32"
                    if expected.n_iter is not None and not float32_messages:
                        same &= found.n_iter == expected.n_iter
                    if not same:
                        wrong.append(f"{case} {run.__name__}")
    row: Row = {"compared": compared, "wrong": wrong}
    S = negative_squared_distances(blobs(2000, 32, 0))
    p = median_preference(S, 0.3)
    runs = [solver.solve(S, p, Options(damping=0.7)) for _ in range(2)]
    row["same_from_run_to_run"] = bool((runs[0].is_exemplar == runs[1].is_exemplar).all())
    if native() is not None:
        other = native().solve(S, p, Options(damping=0.7))
        row["same_as_native_2000"] = bool((runs[0].is_exemplar == other.is_exemplar).all())
    return row


def networks(cupy: Any) -> list[Row]:
    """All layers as one batch: similarities, medians, messages, labels on the host."""
    rows = []
    for name, shapes in NETWORKS.items():
        inputs = [
            [blobs(n, d, 1000 * turn + q) for q, (n, d) in enumerate(shapes)] for turn in range(3)
        ]
        resident = [[cupy.asarray(X) for X in layers] for layers in inputs]
        betas = dict.fromkeys(range(len(shapes)), 0.73)

        def run(q: int, resident: Any = resident, betas: Any = betas) -> Any:
            return gpu.FilterBatch(resident[q % 3]).cluster(betas)

        row: Row = {"network": name, "layers": len(shapes)}
        row["gpu_ms"] = on_wall(run, 7, 3)
        compared = gpu.FilterBatch(resident[0])

        def again(q: int, compared: Any = compared, betas: Any = betas) -> Any:
            return compared.cluster(betas)

        row["gpu_again_ms"] = on_wall(again, 5)
        found = run(0)
        row["converged"] = sum(c.converged for c in found.values())
        row |= _networks_on_cpu(
            inputs[0], list(betas.values()), list(found.values()), sklearn=name != "ResNet-50"
        )
        rows.append(row)
    return rows


def _networks_on_cpu(layers: Sequence[Any], found: Sequence[Any], *, sklearn: bool) -> Row:
    from sklearn.cluster import affinity_propagation

    from epruner.cluster import affinity_propagation_many

    row: Row = {}
    if native() is not None:

        def run(q: int) -> Any:
            S = [negative_squared_distances(X) for X in layers]
            p = [median_preference(s, 0.73) for s in S]
            return affinity_propagation_many(S, preference=p, backend="native")

        row["native_ms"] = on_wall(run, 1, 0)
        theirs = run(0)
        both = [(a, b) for a, b in zip(found, theirs, strict=True) if a.converged and b.converged]
        row["layers_compared"] = len(both)
        row["layers_alike"] = sum(np.array_equal(a.labels, b.labels) for a, b in both)
    if sklearn:
        start = time.perf_counter()
        for X in layers:
            S = negative_squared_distances(X)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                affinity_propagation(S, preference=median_preference(S, 0.73), random_state=0)
        row["sklearn_ms"] = 1e3 * (time.perf_counter() - start)
    return row


def single(cupy: Any, copy_gb_s: float) -> list[Row]:
    """One problem in device memory: lists to convergence, dense passes by the iteration."""
    rows = []
    for n in (512, 2048, 8192, 20000):
        rows.append(_single(cupy, n, copy_gb_s))
        cupy.get_default_memory_pool().free_all_blocks()
    return rows


def _single(cupy: Any, n: int, copy_gb_s: float) -> Row:
    with engine_for([]) as engine:
        S = [distances(engine, [cupy.asarray(blobs(n, 64, q))])[0] for q in range(2)]
        own = [problems.medians(problems.Matrices(engine, [s])) for s in S]
        options = Options(damping=0.7)

        def run(q: int, options: Options, regime: str) -> messages.BatchMessages:
            one = problems.Matrices(engine, [S[q % 2]])
            return messages.pass_messages(one, own[q % 2], options, regime)

        def dense(iterations: int) -> float:
            fixed = Options(max_iter=iterations, convergence_iter=iterations + 1)
            return on_wall(lambda q: run(q, fixed, "dense"), 3)

        passed = run(0, options, "lists")
        row: Row = {"n": n, "n_iter": int(passed.n_iter[0]), "converged": bool(passed.converged[0])}
        row["longest_list"] = passed.longest_list
        row["lists_ms"] = on_wall(lambda q: run(q, options, "lists"), 5)
        row["dense_iteration_ms"] = (dense(144) - dense(48)) / 96
        gb_s = 5 * 4 * n * n / row["dense_iteration_ms"] / 1e6
        row["dense_share_of_copy"] = round(gb_s / copy_gb_s, 3)
        if n <= 8192:
            row["torch_iteration_ms"] = _eager(cupy, S[0], own[0])
            host, p = cupy.asnumpy(S[0]), cupy.asnumpy(own[0])
            row |= _single_on_cpu(host, p, options, cupy.asnumpy(passed.is_exemplar))
        return row


def _eager(cupy: Any, S: Any, preference: Any) -> float:
    """Milliseconds of an iteration written in torch as one would write it, stop test included."""
    try:
        import torch
    except ImportError:
        return float("nan")
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


def _single_on_cpu(S: Any, preference: Any, options: Options, is_exemplar: Any) -> Row:
    from dataclasses import replace

    from sklearn.cluster import affinity_propagation

    row: Row = {}
    solver = native()
    if solver is not None:
        threads = replace(options, n_threads=len(os.sched_getaffinity(0)))
        row["native_ms"] = on_wall(lambda q: solver.solve(S, preference, threads), 3)
        theirs = solver.solve(S, preference, threads)
        row["same_as_native"] = bool((theirs.is_exemplar == is_exemplar.astype(bool)).all())

    def rival(iterations: int) -> float:
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            affinity_propagation(
                S, preference=preference, damping=0.7, max_iter=iterations, random_state=0
            )
        return 1e3 * (time.perf_counter() - start)

    row["sklearn_iteration_ms"] = (rival(9) - rival(3)) / 6
    return row


def features(cupy: Any, n: int) -> Row:
    """n points of 64 features to labels on the host, the matrix never held."""
    rng = cupy.random.default_rng(0)
    X = rng.standard_normal((n, 64), dtype=np.float32)
    options = Options(damping=0.7, max_iter=300)
    warm = 2000
    for size in (warm, n):  # the first compiles and loads
        card = PhasedEngine(cupy.cuda.Device().id)
        start = time.perf_counter()
        points = problems.Features(card, X[:size])
        own = problems.medians(points)
        passed = messages.pass_messages(points, own, options)
        found = decode(points, passed, own, options)[0]
        card.enter("end")
        seconds = time.perf_counter() - start
    return {
        "n": n,
        "seconds": seconds,
        **{f"{phase}_s": round(took, 3) for phase, took in card.seconds.items()},
        "clusters": int(found.exemplars.size),
        "n_iter": found.n_iter,
        "converged": found.converged,
        "longest_list": passed.longest_list,
        "pool_gb": round(cupy.get_default_memory_pool().total_bytes() / 1e9, 2),
    }


# ---- Output ---------------------------------------------------------------------------------


def table(rows: Iterable[Row]) -> str:
    """Rows as markdown, a column for every name that occurs."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [row.get(name, "") for name in names]
        shown = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join(lines)


def write(results: dict[str, Any], folder: Path) -> None:
    """Write what is there so far; a run that is cut off leaves what it has."""
    folder.mkdir(parents=True, exist_ok=True)
    name = results["machine"]["card"].lower().replace(" ", "-").replace("/", "-")
    (folder / f"{name}.json").write_text(json.dumps(results, indent=2, default=str) + "\n")
    text = [f"# {results['machine']['card']}\n"]
    for part, found in results.items():
        text += [f"## {part}\n", table(found if isinstance(found, list) else [found]), ""]
    (folder / f"{name}.md").write_text("\n".join(text))


def main() -> int:
    """Run all parts; exit code 2 without a card, 1 where a part failed or an answer was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--skip-million", action="store_true", help="leave out n = 1,000,000")
    options = parser.parse_args()
    begin = time.perf_counter()
    try:
        cupy = cuda.load_cupy()
    except (ImportError, RuntimeError) as error:
        print(f"benchmarks/gpu.py needs a CUDA device: {error}", file=sys.stderr)
        return 2

    results: dict[str, Any] = {"machine": machine(cupy)}
    if not results["machine"]["native"]:
        print("the compiled extension is not here: its figures are left out")
    failed = False

    def part(name: str, run: Callable[[], Any]) -> None:
        nonlocal failed
        spent = time.perf_counter() - begin
        if spent > BUDGET:
            results[name] = {"left out": f"after {spent:.0f} s"}
            return
        try:
            results[name] = run()
        except Exception as error:  # the other parts still have something to say
            failed = True
            traceback.print_exc()
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        cupy.get_default_memory_pool().free_all_blocks()
        write(results, options.results)
        print(f"\n## {name} ({time.perf_counter() - begin:.0f} s)\n")
        found = results[name]
        print(table(found if isinstance(found, list) else [found]), flush=True)

    part("ceilings", lambda: ceilings(cupy))
    part("correctness", lambda: correctness(cupy))
    part("features_100k", lambda: features(cupy, 100_000))
    if not options.skip_million:
        part("features_1m", lambda: features(cupy, 1_000_000))
    part("networks", lambda: networks(cupy))
    copy = results["ceilings"].get("copy_gb_s", float("nan"))
    part("single", lambda: single(cupy, copy))
    wrong = results["correctness"].get("wrong", [])
    results["seconds"] = {"total": round(time.perf_counter() - begin, 1)}
    write(results, options.results)
    return 1 if failed or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
