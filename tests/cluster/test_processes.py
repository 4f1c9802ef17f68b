"""Threads, processes and signals around a solve."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from joblib import Parallel, delayed
from numpy.typing import NDArray
from processes import AWAIT_CHILD, environment, in_a_process
from threadpoolctl import threadpool_limits

from epruner import affinity_propagation, affinity_propagation_many
from epruner.cluster import backends, resources
from epruner.cluster.similarity import negative_squared_distances
from epruner.cluster.types import Options


def gaussian(n: int, seed: int = 0) -> NDArray[Any]:
    X = np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)
    return negative_squared_distances(X)


def labels(seed: int) -> list[int]:
    """Labels of a problem large enough to be worth several threads."""
    result: list[int] = affinity_propagation(gaussian(600, seed), damping=0.8, n_threads=2)[
        1
    ].tolist()
    return result


def test_omp_num_threads_is_honoured() -> None:
    code = "from epruner.cluster import resources; print(resources.effective_n_threads(None))"
    assert in_a_process(code, OMP_NUM_THREADS="1") == "1"


def test_threadpoolctl_limits_are_honoured() -> None:
    with threadpool_limits(1):
        assert resources.effective_n_threads(None) == 1


def test_an_explicit_number_wins() -> None:
    with threadpool_limits(1):
        assert resources.effective_n_threads(3) == 3


@pytest.mark.parametrize("backend", ["native", "dense"])
def test_no_number_of_threads_ends_the_process(backend: str) -> None:
    code = (
        "import numpy as np\n"
        "from test_processes import gaussian\n"
        "from epruner import affinity_propagation\n"
        "S = gaussian(700)\n"
        f"found = affinity_propagation(S, backend={backend!r}, damping=0.7, n_threads=100_000)\n"
        f"one = affinity_propagation(S, backend={backend!r}, damping=0.7, n_threads=1)\n"
        "print((found[1] == one[1]).all())"
    )
    assert in_a_process(code) == "True"


def control_group(
    monkeypatch: pytest.MonkeyPatch, top: Path, membership: str, files: dict[str, str]
) -> None:
    (top / "membership").write_text(membership)
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(content)
    monkeypatch.setattr(resources, "_MEMBERSHIP", top / "membership")
    monkeypatch.setattr(resources, "_CGROUPS", top)


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # a container sees its own as the top
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "100000 100000\n"}, 1),
        ("0::/a\n", {"b/cpu.max": "100000 100000\n"}, None),  # another's
        (
            "5:memory:/x\n4:cpu,cpuacct:/docker/1f\n",
            {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        (
            "4:cpu,cpuacct:/s\n",
            {"cpu/s/cpu.cfs_quota_us": "-1\n", "cpu/s/cpu.cfs_period_us": "100000\n"},
            None,
        ),
        ("", {}, None),
    ],
)
def test_cpu_quotas_are_honoured(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    membership: str,
    files: dict[str, str],
    cores: int | None,
) -> None:
    control_group(monkeypatch, tmp_path, membership, files)
    monkeypatch.setattr(resources, "_quota", resources._quota.__wrapped__)
    monkeypatch.setattr(resources, "_openmp_threads", lambda: 8)
    monkeypatch.setattr(resources, "_cores", lambda: 8)
    assert resources.effective_n_threads(None) == (8 if cores is None else cores)
    assert resources.effective_n_threads(5) == 5  # a user who insists


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        (
            "0::/a/b\n",
            {"a/memory.max": "5000000\n", "a/memory.current": "1000000\n", "a/b/memory.max": "max"},
        ),
        (
            "3:memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": "5000000\n",
                "memory/a/memory.usage_in_bytes": "1000000\n",
            },
        ),
    ],
)
def test_memory_limits_of_the_own_control_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, membership: str, files: dict[str, str]
) -> None:
    control_group(monkeypatch, tmp_path, membership, files)
    assert resources.available_memory() == 4_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory")
def test_a_limit_of_the_address_space_is_honoured() -> None:
    code = (
        "import resource\n"
        "import numpy as np\n"
        "from epruner import AffinityPropagation\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * resource.getpagesize() + 2 * 10**8\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "X = np.random.default_rng(0).normal(size=(5000, 2))\n"
        "try:\n"
        "    AffinityPropagation(memory='matrix').fit(X)\n"
        "except MemoryError as error:\n"
        "    print(error)"
    )
    assert "needs about 0.8 GB, 0.2 GB are available; use memory='tiles'" in in_a_process(code)


def test_a_build_that_found_no_openmp_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    serial = SimpleNamespace(
        serial_because="its compiler had none: install it", max_threads=lambda: 1
    )
    monkeypatch.setattr(resources, "native", serial)
    resources._warn_of_one_thread.cache_clear()
    with pytest.warns(RuntimeWarning, match="one thread, as its compiler had none: install it"):
        resources.effective_n_threads(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resources.effective_n_threads(2)
    resources._warn_of_one_thread.cache_clear()


FORK = """
import os, sys, time
from test_processes import labels
expected = labels(0)
child = os.fork()
if child == 0:
    os._exit(0 if labels(0) == expected else 3)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_forked_child_does_not_hang() -> None:
    in_a_process(FORK + AWAIT_CHILD)


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_joblib(backend: str) -> None:
    found = Parallel(n_jobs=2, backend=backend)(delayed(labels)(seed) for seed in range(3))
    assert found == [labels(seed) for seed in range(3)]


def test_callers_that_fit_at_once_do_not_delay_each_other() -> None:
    """A pool of the caller's, each of whose threads would take every core for itself."""
    problems = [gaussian(2000, seed) for seed in range(2)]

    def solve(S: NDArray[Any]) -> None:
        affinity_propagation(S, damping=0.9, n_threads=2)

    def seconds(n_jobs: int) -> float:
        begin = time.monotonic()
        Parallel(n_jobs=n_jobs, backend="threading")(delayed(solve)(S) for S in problems)
        return time.monotonic() - begin

    seconds(2)
    together, in_turn = (min(seconds(n_jobs) for _ in range(4)) for n_jobs in (2, 1))
    print(f"{together:.3f} s together, {in_turn:.3f} s one after the other")
    assert together < 2 * in_turn + 0.05


@pytest.mark.parametrize("backend", ["native", "numba"])
def test_other_threads_run_during_a_solve(backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba", reason="the numba solver needs its extra")
    S = gaussian(1200)
    p = np.full(len(S), 20 * np.median(S), dtype=S.dtype)
    solve = backends.get(backend)
    options = Options(max_iter=1)
    solve(S[:50, :50].copy(), p[:50], options)  # numba compiles under the GIL
    stop = threading.Event()
    beats: list[float] = []

    def beat() -> None:
        while not stop.wait(0.001):
            beats.append(time.monotonic())

    other = threading.Thread(target=beat)
    other.start()
    begin = time.monotonic()
    solve(S, p, Options(damping=0.9, max_iter=60))
    end = time.monotonic()
    stop.set()
    other.join()
    during = sum(begin < when < end for when in beats)
    print(f"{during} beats in {end - begin:.3f} s")
    assert during >= 3


INTERRUPT = """
import signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit it ignored
import numpy as np
from test_processes import gaussian
from epruner.cluster import backends
from epruner.cluster.types import Options
S = gaussian(3000)
p = np.full(len(S), 20 * np.median(S), dtype=S.dtype)
solve = backends.get({backend!r})
solve(S[:200, :200].copy(), p[:200], Options(max_iter=30))  # an interrupt may hit compilation, too
print("ready", flush=True)
try:
    solve(S, p, Options(damping=0.99, max_iter=100000, convergence_iter=99999))
except KeyboardInterrupt:
    print(time.monotonic(), flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("backend", ["native", "numba"])
def test_ctrl_c_is_answered(backend: str) -> None:
    """The target is 0.2 s on a quiet machine; the bound leaves room for a busy one."""
    if backend == "numba":
        pytest.importorskip("numba", reason="the numba solver needs its extra")
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPT.format(backend=backend)],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(1)  # past selection, into the iterations
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        answered = process.communicate(timeout=60)[0]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    waited = float(answered) - sent
    print(f"answered after {waited:.3f} s")
    assert waited < 1.0


@pytest.mark.skipif(os.name != "posix", reason="sends SIGALRM")
@pytest.mark.parametrize("backend", ["native", "numba"])
def test_an_interrupt_at_any_moment_is_a_keyboard_interrupt(backend: str) -> None:
    """In selection, where numba wraps results and makes other errors of it, as in iterations."""
    if backend == "numba":
        pytest.importorskip("numba", reason="the numba solver needs its extra")
    S = gaussian(1500)
    p = np.full(len(S), np.median(S), dtype=S.dtype)
    solve = backends.get(backend)
    solve(S, p, Options(damping=0.7, n_threads=1))
    begin = time.monotonic()
    solve(S, p, Options(damping=0.7, n_threads=1))
    length = time.monotonic() - begin

    def interrupted(after: float) -> bool:
        try:
            signal.setitimer(signal.ITIMER_REAL, after)
            solve(S, p, Options(damping=0.7, n_threads=1))
            signal.setitimer(signal.ITIMER_REAL, 0)  # in here: it may ring before it is off
        except KeyboardInterrupt:
            return True
        return False

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        count = sum(interrupted(part * length) for part in np.linspace(0.02, 0.98, 25))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    print(f"{count} interrupted in {length:.3f} s")
    assert count >= 10


@pytest.mark.skipif(os.name != "posix", reason="sends SIGALRM")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_many_problems_are_interrupted_whoever_works_on_the_last(n_threads: int) -> None:
    """The larger problem ends; the other goes on for ever, on another thread if there is one."""
    endless = gaussian(600, seed=1)
    problems = [gaussian(700), endless]
    preferences = [float(np.median(S)) for S in problems]
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.7)
        begin = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            affinity_propagation_many(
                problems, preference=preferences, max_iter=10**8, n_threads=n_threads
            )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begin < 2
