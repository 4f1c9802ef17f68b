"""How long clustering takes on more ranks, and over slower networks, than there are here.

    python benchmarks/distributed_plan.py              # as root, on Linux: measures, then predicts
    python benchmarks/distributed_plan.py --predict    # from what was measured before

Constants of work (processor seconds a pair, a row, a number that is added) come from runs of two
ranks here; bytes follow from the design. Predictions stand beside runs over networks of known
speed, between network namespaces of this machine, whose ranks share its cores. The plan is for
networks, ranks and numbers of points that nobody has tried.

Not predicted: rows that run out of candidates (all features pass by once more for a few of them),
the search for exemplars at the end, files, and how many iterations there will be.

Writes benchmarks/results/distributed_plan.*.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.distributed_ranks import Case, Measured, inputs, over_ranks
from benchmarks.measuring import RESULTS, machine, table, tables, write
from benchmarks.namespaces import machines
from epruner.cluster.candidates import first_candidates

CHUNK = 1 << 15  # columns that are summed at a time
PART = 4096  # rows of a visiting block that are met at a time
BLOCKS = 32  # of rows, whose sums are added in order
LEAST_STRIP = 32  # rows that get candidates at a time
ENTRY = 12  # bytes of a candidate as it is sent: its column, its similarity
# What a rank holds for each of all n points: three arrays of float64 of the solver, its sums, what
# the others tell of theirs, roles before and after, and norms.
BYTES_PER_COLUMN = 5 * 8 + 2 + 4


@dataclass(frozen=True)
class Network:
    name: str
    bits_per_second: float
    seconds: float  # of a message of no length

    def takes(self, size: float, messages: float = 1) -> float:
        """Seconds to send so many bytes, in so many messages of which each waits for the last."""
        return 8 * size / self.bits_per_second + messages * self.seconds

    def under(self, engine: Network) -> Network:
        """What is left of it where messages take an engine's time, too."""
        slower = min(self.bits_per_second, engine.bits_per_second)
        return Network(self.name, slower, self.seconds + engine.seconds)


@dataclass(frozen=True)
class Work:
    """Measured constants: processor seconds and bytes."""

    pair_s: float  # a pair of the sweep
    row_s: float  # a row, an iteration
    number_s: (
        float  # a number that a rank adds to a sum, passes on and is told, for each of its blocks
    )
    list_bytes: float  # a row's candidates on their way to its owner
    row_bytes: float  # memory for a row, without what is counted by the design


@dataclass(frozen=True)
class Machine:
    ranks: int
    cores: float  # of a rank
    network: Network


def blocks_of(ranks: int) -> float:
    """Blocks of rows of a rank; above BLOCKS ranks as many as ranks, which the code has not yet."""
    return max(BLOCKS, ranks) / ranks


def sweep_seconds(n: int, d: int, work: Work, on: Machine) -> float:
    """Blocks of features deal themselves out, go half-way round the ring, and lists go home."""
    net, ranks, rows = on.network, on.ranks, n / on.ranks
    deal = net.takes(4 * d * rows * (ranks - 1) / ranks, ranks - 1)
    if ranks == 1:
        return rows**2 / 2 * work.pair_s / on.cores
    whole, steps = rows**2 * work.pair_s / on.cores, ranks // 2
    passing = net.takes((4 * d + 4) * rows)
    want, parts = first_candidates(n), -(-rows // PART)
    total = deal + whole / 2 + passing  # the first block comes after own pairs are met
    for step in range(1, steps + 1):
        halved = 2 if 2 * step == ranks else 1
        # Of a row's nearest so far, one in so many is among those of the blocks met last.
        found = net.takes(ENTRY * want * rows / (step + 1), 2 * parts + 1)
        total += max(whole / halved, passing if step < steps else 0.0) + found
    return total + net.takes(work.list_bytes * rows * (ranks - 1) / ranks, ranks - 1)


def sum_seconds(n: int, work: Work, on: Machine) -> float:
    """A chain of chunks through all ranks, shares from the last to all, totals round the ring."""
    net, ranks, blocks = on.network, on.ranks, blocks_of(on.ranks)
    chunks, size = -(-n // CHUNK), min(n, CHUNK)
    adding = size * blocks * work.number_s / min(on.cores, 1.0)
    if ranks == 1:
        return chunks * adding
    passing = net.takes(8 * size, 0)
    chain = (ranks - 1) * (passing + net.seconds + adding) + (chunks - 1) * max(passing, adding)
    shares = net.takes(8 * n * (ranks - 1) / ranks)
    return chain + shares + (ranks - 1) * net.takes(8.125 * n / ranks)


def iteration_seconds(n: int, d: int, work: Work, on: Machine) -> float:
    """The rows', the sum's, and with features a round about rows that lack candidates."""
    asking = (on.ranks - 1) * on.network.takes(16) if d else 0.0
    return n / on.ranks * work.row_s / on.cores + asking + sum_seconds(n, work, on)


def iteration_bytes(n: int, ranks: int) -> float:
    """What a rank sends; the last, and any other."""
    return 0.0 if ranks == 1 else (8 * n + 8.125 * n * (ranks - 1) / ranks)


def refill_seconds(n: int, d: int, work: Work, on: Machine) -> float:
    """Rows of some ranks get whole rows of similarities: all features pass by twice."""
    passing = on.network.takes(4 * d * n / on.ranks)
    products = LEAST_STRIP * n * work.pair_s / on.cores
    return 2 * (on.ranks - 1) * passing + products


def memory(n: int, d: int, work: Work, ranks: int) -> float:
    """Peak bytes of a rank.

    Features six times (own, centred, both in the sweep's order, two visitors), lists, n sums for
    each of its blocks, and what is known of every point.
    """
    rows = n / ranks
    lists = work.row_bytes * (first_candidates(n) / first_candidates(50_000) if d else 1.0)
    return rows * (6 * 4 * d + lists) + n * (BYTES_PER_COLUMN + 8 * blocks_of(ranks))


# ---- Measured -----------------------------------------------------------------------------------

FEATURES, GRAPH, CHECKED = Case(50_000), Case(200_000, d=0, max_iter=30), Case(20_000)
NONE = Network("none", float("inf"), 0.0)
NETWORKS = [
    NONE,
    Network("1 Gbit/s, 1 ms", 1e9, 1e-3),
    Network("100 Mbit/s, 0.1 ms", 1e8, 1e-4),
]
ROUNDS, LONG = 200, 1 << 22  # messages one way and back; bytes of a long one


def messages(rank: int, meeting: str) -> Network:
    """What gloo takes for messages between two processes, where they do nothing else.

    The fastest of many, as others may use the machine.
    """
    import torch.distributed as dist

    from epruner.distributed.group import Group

    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    group, taken = Group(), {}
    for size in (1, LONG):
        there, back = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        seconds = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for q in (0, 1):
                begin = group.send if q == rank else group.receive
                begin((there, back)[q], 1 - rank)()
            seconds.append((time.perf_counter() - start) / 2)
        taken[size] = min(seconds)
    dist.destroy_process_group()
    return Network("gloo", 8 * LONG / (taken[LONG] - taken[1]), taken[1])


def gloo() -> Network:
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes,
    ):
        return next(processes.map(messages, (0, 1), [f"{folder}/meeting"] * 2))


def per_call(found: Sequence[Measured], phase: str, key: str) -> float:
    """Of the rank that has most, for each iteration."""
    of_each = [rank["phases"] for rank in found]
    return max(float(phases[phase][key] / phases["reduction"]["calls"]) for phases in of_each)


def work_of(case: Case) -> Work:
    """Constants from runs of one and of two ranks."""
    with inputs(case) as folder:
        one, found = (over_ranks(case, folder, ranks)[0] for ranks in (1, 2))
    n, rows = case.n, case.n / 2

    def mean(phase: str, key: str) -> float:
        return float(np.mean([rank["phases"][phase][key] for rank in found]))

    adding = per_call(found, "reduction", "cpu_s")
    peak = max(rank["peak_bytes"] for rank in found)
    nothing = Work(0.0, 0.0, 0.0, 0.0, 0.0)
    return Work(
        pair_s=2 * mean("sweep", "cpu_s") / (n * (n - 1) / 2),
        row_s=(per_call(found, "iterations", "cpu_s") - adding) / rows,
        number_s=per_call(one, "reduction", "cpu_s") / (n * blocks_of(1)),
        list_bytes=mean("lists", "bytes") / (rows / 2),
        row_bytes=max(0.0, (peak - memory(n, case.d, nothing, 2)) / rows),
    )


def checked(work: Work, engine: Network, ranks: int, network: Network) -> dict[str, Any]:
    """A run, and what was predicted of it: the sweep and an iteration, of the slowest rank.

    Ranks have the share of a core that they got while they passed messages: others use it, too.
    """
    case = CHECKED
    with ExitStack() as stack:
        places = []
        if network is not NONE:
            joined = machines(ranks, network.bits_per_second, network.seconds)
            places = stack.enter_context(joined)
        found, _ = over_ranks(case, stack.enter_context(inputs(case)), ranks, places=places)
    phases = [rank["phases"] for rank in found]
    used, passed = (
        sum(p["iterations"][key] - p["reduction"][key] for p in phases) for key in ("cpu_s", "s")
    )
    on = Machine(ranks, used / passed, network.under(engine))
    return {
        "n": case.n,
        "d": case.d,
        "ranks": ranks,
        "network": network.name,
        "cores": on.cores,
        "n_iter": found[0]["n_iter"],
        "sweep_s": max(sum(p[k]["s"] for k in ("deal", "sweep", "lists")) for p in phases),
        "sweep_predicted_s": sweep_seconds(case.n, case.d, work, on),
        "iteration_s": per_call(found, "iterations", "s"),
        "iteration_predicted_s": iteration_seconds(case.n, case.d, work, on),
        "sent_mb": per_call(found, "reduction", "bytes") / 1e6,
        "sent_predicted_mb": iteration_bytes(case.n, ranks) / 1e6,
    }


# ---- Planned ------------------------------------------------------------------------------------

CORES, ITERATIONS = 32, 200
PLANNED = [
    Network("1 Gbit/s", 1e9, 1e-4),
    Network("10 Gbit/s", 1e10, 5e-5),
    Network("100 Gbit/s", 1e11, 2e-5),
]
RANKS = [8, 32, 128, 512]
PROBLEMS = {"features": Case(10_000_000), "graph": Case(100_000_000, d=0)}


def planned(work: dict[str, Work], engine: Network) -> list[dict[str, Any]]:
    rows = []
    for (kind, case), ranks, network in product(PROBLEMS.items(), RANKS, PLANNED):
        on, known = Machine(ranks, CORES, network.under(engine)), work[kind]
        sweep = sweep_seconds(case.n, case.d, known, on) if case.d else 0.0
        iteration = iteration_seconds(case.n, case.d, known, on)
        rows.append(
            {
                "kind": kind,
                "n": case.n,
                "ranks": ranks,
                "network": network.name,
                "sweep_s": sweep,
                "iteration_s": iteration,
                "summing_s": sum_seconds(case.n, known, on),
                "refill_s": refill_seconds(case.n, case.d, known, on) if case.d else 0.0,
                "total_s": sweep + ITERATIONS * iteration,
                "sent_gb": iteration_bytes(case.n, ranks) / 1e9,
                "memory_gb": memory(case.n, case.d, known, ranks) / 1e9,
            }
        )
    return rows


def checks_table(rows: Sequence[dict[str, Any]]) -> str:
    head = [
        "points",
        "ranks",
        "network",
        "cores a rank",
        "sweep s",
        "predicted",
        "iteration ms",
        "predicted",
    ]
    head += ["sent an iteration MB", "predicted"]
    return table(
        head,
        [
            [
                f"{r['n']:,} x {r['d']}", str(r["ranks"]), r["network"], f"{r['cores']:.2f}",
                f"{r['sweep_s']:.1f}", f"{r['sweep_predicted_s']:.1f}",
                f"{1e3 * r['iteration_s']:.0f}", f"{1e3 * r['iteration_predicted_s']:.0f}",
                f"{r['sent_mb']:.2f}", f"{r['sent_predicted_mb']:.2f}",
            ]
            for r in rows
        ],
    )  # fmt: skip


def plan_table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["problem", "ranks", "network", "sweep min", "iteration s", "of it summing s"]
    head += [
        "a refill s",
        f"{ITERATIONS} iterations in all min",
        "sent an iteration GB",
        "memory a rank GB",
    ]
    return table(
        head,
        [
            [
                f"{r['n']:,}, {r['kind']}", str(r["ranks"]), r["network"],
                f"{r['sweep_s'] / 60:.0f}" if r["sweep_s"] else "–",
                f"{r['iteration_s']:.2f}", f"{r['summing_s']:.2f}",
                f"{r['refill_s']:.0f}" if r["refill_s"] else "–", f"{r['total_s'] / 60:.0f}",
                f"{r['sent_gb']:.2f}", f"{r['memory_gb']:.1f}",
            ]
            for r in rows
        ],
    )  # fmt: skip


def page(results: dict[str, Any]) -> str:
    return tables(results, {"checks": checks_table, "plan": plan_table})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predict", action="store_true", help="measure nothing")
    if parser.parse_args().predict:
        results = json.loads((RESULTS / "distributed_plan.json").read_text())
        engine = Network(**results["engine"])
        work = {kind: Work(**constants) for kind, constants in results["work"].items()}
    else:
        results = {"machine": machine()}
        engine, work = gloo(), {"features": work_of(FEATURES), "graph": work_of(GRAPH)}
        results["engine"] = asdict(engine)
        results["work"] = {kind: asdict(constants) for kind, constants in work.items()}
        print(results["engine"], results["work"], flush=True)
        results["checks"] = []
        for ranks, network in product([2, 4], NETWORKS):
            row = checked(work["features"], engine, ranks, network)
            results["checks"].append(row)
            print(checks_table([row]), flush=True)
    results["assumed"] = {"cores": CORES, "iterations": ITERATIONS}
    results["assumed"] |= {network.name: network.seconds for network in PLANNED}
    results["plan"] = planned(work, engine)
    write("distributed_plan", results, page(results))
    print(page(results))


if __name__ == "__main__":
    main()
