"""Threads, processes and signals around a solve."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
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
