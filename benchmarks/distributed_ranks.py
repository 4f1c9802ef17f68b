"""Clustering over ranks that are started on this machine, each of them measured.

`over_ranks` is for scripts; as a program this file is one rank.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from benchmarks.from_features import points
from benchmarks.measuring import reset_peak, resident
from epruner import AffinityPropagation

ROOT = Path(__file__).resolve().parents[1]
NEIGHBORS = 30
Array = NDArray[Any]
Measured = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Gaussian points of d features or, where d is 0, a graph: rows of NEIGHBORS stored pairs."""

    n: int
    d: int = 64
    damping: float = 0.8
    max_iter: int = 500


@dataclass(frozen=True)
class Place:
    """How a rank is started, and where others find rank 0."""

    command: Sequence[str] = ()
    environment: tuple[tuple[str, str], ...] = ()
    meeting: str = "127.0.0.1"


def write_inputs(case: Case, folder: Path) -> None:
    """Files that ranks map, each its rows."""
    if case.d:
        np.save(folder / "points.npy", points(case.n, case.d))
        return
    X = np.random.default_rng(0).uniform(size=(case.n, 3))
    distances, columns = cKDTree(X).query(X, NEIGHBORS + 1)
    np.save(folder / "columns.npy", columns[:, 1:].astype(np.int32))
    np.save(folder / "similarities.npy", (-(distances[:, 1:] ** 2)).astype(np.float32))


def rows_of(case: Case, folder: Path, first: int, last: int) -> Any:
    """What a rank gives to `fit`."""

    def mapped(name: str) -> Array:
        rows: Array = np.load(folder / name, mmap_mode="r")[first:last]
        return rows

    if case.d:
        return mapped("points.npy")
    columns, similarities = mapped("columns.npy"), mapped("similarities.npy")
    offsets = NEIGHBORS * np.arange(last - first + 1, dtype=np.int64)
    parts = similarities.reshape(-1), columns.reshape(-1), offsets
    return sparse.csr_matrix(parts, shape=(last - first, case.n))


# ---- One rank -----------------------------------------------------------------------------------


@contextmanager
def metered(d: int) -> Iterator[dict[str, Measured]]:
    """Seconds, processor seconds, calls and bytes sent by this rank in each phase of a fit.

    Bytes of rows of features, of `d` columns, are counted apart, too.
    """
    from epruner.distributed.features import SharedFeatures
    from epruner.distributed.graph import SharedGraph
    from epruner.distributed.group import Group
    from epruner.distributed.messages import SharedActiveSet
    from epruner.distributed.sweep import RingSweep

    phases: list[tuple[type, str, str]] = [
        (RingSweep, "__init__", "deal"),
        (RingSweep, "run", "sweep"),
        (RingSweep, "lists", "lists"),
        (SharedActiveSet, "finish", "reduction"),
        *(
            (source, method, phase)
            for source in (SharedFeatures, SharedGraph)
            for method, phase in [
                ("iterate", "iterations"), ("refill", "refills"), ("decode", "decode")
            ]
        ),
    ]  # fmt: skip
    spent = {
        phase: {"s": 0.0, "cpu_s": 0.0, "bytes": 0, "feature_bytes": 0, "calls": 0}
        for *_, phase in phases
    }
    sent = {"bytes": 0, "feature_bytes": 0}
    send = Group.send

    def counted(self: Group, array: Array, to: int) -> Any:
        sent["bytes"] += array.nbytes
        sent["feature_bytes"] += array.nbytes * (array.ndim == 2 and array.shape[1] == d)
        return send(self, array, to)

    def with_meter(method: Callable[..., Any], phase: dict[str, Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            before = dict(sent)
            start, used = time.perf_counter(), time.process_time()
            answer = method(*arguments, **named)
            phase["s"] += time.perf_counter() - start
            phase["cpu_s"] += time.process_time() - used
            phase["calls"] += 1
            for key, value in before.items():
                phase[key] += sent[key] - value
            return answer

        return run

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Group, "send", counted))
        for owner, name, phase in phases:
            method = with_meter(getattr(owner, name), spent[phase])
            stack.enter_context(mock.patch.object(owner, name, method))
        yield spent


def fit(case: Case, folder: Path, threads: int, ranks: int) -> Measured:
    """Cluster as one of these ranks or, where they are 0, alone; leave labels in the folder."""
    settings: dict[str, Any] = {
        "affinity": "euclidean" if case.d else "precomputed",
        "damping": case.damping,
        "max_iter": case.max_iter,
        "n_threads": threads,
    }
    rank, size, phases = 0, max(ranks, 1), {}
    with ExitStack() as stack:
        model: Any = AffinityPropagation(**settings)
        if ranks:
            import torch
            import torch.distributed as dist

            import epruner.distributed

            torch.set_num_threads(1)
            dist.init_process_group("gloo")
            rank = dist.get_rank()
            model = epruner.distributed.AffinityPropagation(**settings)
        small = np.random.default_rng(rank).normal(size=(300, case.d or 2))
        type(model)(n_threads=threads).fit(small)  # loads what a first call loads
        if ranks:
            phases = stack.enter_context(metered(case.d))
            dist.barrier()
        X = rows_of(case, folder, case.n * rank // size, case.n * (rank + 1) // size)
        reset_peak()
        before, used, start = resident("VmRSS"), time.process_time(), time.perf_counter()
        model.fit(X)
        seconds, used = time.perf_counter() - start, time.process_time() - used
        peak = resident("VmHWM") - before
    np.save(folder / f"labels-{rank}.npy", model.labels_)
    if ranks:
        dist.destroy_process_group()
    return {
        "seconds": seconds,
        "cpu_s": used,
        "peak_bytes": peak,
        "rows": X.shape[0],
        "n_iter": model.n_iter_,
        "converged": model.converged_,
        "clusters": len(model.cluster_centers_indices_),
        "phases": phases,
    }


def main() -> None:
    warnings.simplefilter("ignore")
    case, folder, threads, ranks = json.loads(sys.argv[1])
    print(json.dumps(fit(Case(**case), Path(folder), threads, ranks)))


# ---- All of them --------------------------------------------------------------------------------


def over_ranks(
    case: Case, folder: Path, ranks: int, threads: int = 1, places: Sequence[Place] = ()
) -> tuple[list[Measured], Array]:
    """Return what each rank measured, and the labels of all points; 0 ranks are one process alone.

    Parameters
    ----------
    case : Case
        Whose inputs lie in the folder.
    folder : Path
    ranks : int
    threads : int
        Of each.
    places : sequence of Place, optional
        One of each rank; by default all are here.
    """
    places = places or [Place()] * max(ranks, 1)
    spec = json.dumps([asdict(case), str(folder), threads, ranks])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as stack:
        processes = []
        for rank, place in enumerate(places):
            environment = {
                **os.environ,
                **dict(place.environment),
                "RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": place.meeting,
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": str(threads),
            }
            command = [*place.command, sys.executable, "-m", "benchmarks.distributed_ranks", spec]
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)  # where this one is interrupted
        told = [process.communicate()[0] for process in processes]
    for rank, process in enumerate(processes):
        if process.returncode:
            raise RuntimeError(f"rank {rank} ended with {process.returncode}")
    found = [json.loads(text.splitlines()[-1]) for text in told]
    labels = [np.load(folder / f"labels-{rank}.npy") for rank in range(len(places))]
    return found, np.concatenate(labels)


@contextmanager
def inputs(case: Case) -> Iterator[Path]:
    """A folder with what ranks of a case map, which is removed in the end."""
    with TemporaryDirectory() as folder:
        write_inputs(case, Path(folder))
        yield Path(folder)


if __name__ == "__main__":
    main()
