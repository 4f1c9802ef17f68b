"""The device's kernels and host code on the CPU: same exemplars and iterations as the reference."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cuda_shim import HostEngine, Make, kernel_names
from problems import KINDS, Case, Floats, pairwise, problem, verdict
from sklearn.datasets import make_blobs

from epruner.cluster.backends import reference
from epruner.cluster.backends.cuda import cluster, device, problems, solver
from epruner.cluster.decode import decode
from epruner.cluster.similarity import median_preference, negative_squared_distances
from epruner.cluster.types import Options

AXES = [tuple(KINDS), (2, 3, 17, 40), (0.3, 1.0, 5.0), (True, False)]
GROUPS = [
    ("float32", 0.5),
    ("float64", 0.9),
    pytest.param("float32", 0.9, marks=pytest.mark.slow),
    pytest.param("float64", 0.5, marks=pytest.mark.slow),
]


def pass_on(
    engine: HostEngine, S: list[Floats], p: list[Floats], options: Options, regime: str = "auto"
) -> solver.BatchMessages:
    return solver.pass_messages(problems.Matrices(engine, S), np.concatenate(p), options, regime)


def few_clusters(n: int, dtype: type) -> tuple[Floats, Floats]:
    """Return similarities and preferences for which nearly all pairs have R > 0 for once."""
    X = make_blobs(n, 8, centers=4, cluster_std=3.0, random_state=1)[0]
    S: Floats = negative_squared_distances(X)
    broken_ties = 1 + 1e-3 * np.random.default_rng(0).normal(size=n)
    return S.astype(dtype), (20 * np.median(S) * broken_ties).astype(dtype)


@pytest.mark.parametrize("regime", ["small", "active_set", "dense"])
@pytest.mark.parametrize(("dtype", "damping"), GROUPS)
def test_same_as_reference(make: Make, dtype: str, damping: float, regime: str) -> None:
    rows = pairwise(AXES)
    cases = [Case(kind, n, dtype, damping, *rest) for kind, n, *rest in rows]
    cases = [case for case in cases if verdict(case).is_exemplar is not None]
    assert len(cases) > 10
    S, p = zip(*(problem(case) for case in cases), strict=True)
    before = [s.copy() for s in S]
    passed = pass_on(make(), list(S), list(p), cases[0].options(), regime)
    flags = np.split(passed.is_exemplar.astype(bool), np.cumsum([len(s) for s in S])[:-1])
    for q, (case, found) in enumerate(zip(cases, flags, strict=True)):
        np.testing.assert_array_equal(S[q], before[q], err_msg="the solver wrote to its input")
        float32_messages = regime == "dense" and dtype == "float32"
        if float32_messages and not case.broken_ties:
            continue  # their rounding is as large as the jitter
        expected = verdict(case)
        assert passed.converged[q], case
        np.testing.assert_array_equal(found, expected.is_exemplar, err_msg=str(case))
        if expected.n_iter is not None and not float32_messages:
            assert passed.n_iter[q] == expected.n_iter, case


@pytest.mark.parametrize("regime", ["small", "active_set", "dense"])
def test_order_of_threads_changes_no_bit(make: Make, regime: str) -> None:
    S, p = few_clusters(65, np.float32)
    bits = []
    for reverse in (False, True, False):
        own = solver.Batch(
            problems.Matrices(make(reverse=reverse), [S, S]), np.tile(p, 2), Options(0.7)
        )
        if regime == "small":
            solver.run_small(own, np.arange(2))
        elif regime == "active_set":
            solver.run_active_set(own, np.arange(2), lambda p: False)
        else:
            own = solver.Batch(problems.Matrices(make(reverse=reverse), [S]), p, Options(0.7))
            solver.run_dense(own)
        bits.append([own.kept["total"].tobytes(), own.is_exemplar.tobytes(), own.t.tobytes()])
    assert bits[0] == bits[1] == bits[2]


@pytest.mark.parametrize("max_iter", [1, 16, 17])
@pytest.mark.parametrize("regime", ["small", "active_set", "dense"])
def test_runs_stop_at_max_iter(make: Make, regime: str, max_iter: int) -> None:
    S, p = problem(Case("gaussian", 40, "float64", 0.5, 1.0, True))
    options = Options(max_iter=max_iter)
    passed = pass_on(make(), [S], [p], options, regime)
    expected = reference.solve(S, p, options)
    assert (passed.n_iter[0], passed.converged[0]) == (expected.n_iter, expected.converged)
    np.testing.assert_array_equal(passed.is_exemplar.astype(bool), expected.is_exemplar)


def test_long_lists_turn_dense(make: Make) -> None:
    case = Case("blobs", 200, "float64", 0.7, 5.0, True)
    S, p = problem(case)
    engine = make()
    passed = pass_on(engine, [S], [p], case.options())
    assert "dense_rows_f64" in engine.launched
    np.testing.assert_array_equal(passed.is_exemplar, verdict(case).is_exemplar)
    assert passed.n_iter[0] == verdict(case).n_iter


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("most_bursts", [0, 1, 8])
def test_few_clusters(
    make: Make, dtype: type, most_bursts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solver, "_MOST_BURSTS", most_bursts)
    S, p = zip(*(few_clusters(n, dtype) for n in (60, 150)), strict=True)
    passed = pass_on(make(), list(S), list(p), Options(0.7), "active_set")
    flags = np.split(passed.is_exemplar.astype(bool), [60])
    for q, found in enumerate(flags):
        expected = reference.solve(S[q], p[q], Options(0.7))
        assert expected.converged
        assert (passed.n_iter[q], passed.converged[q]) == (expected.n_iter, True)
        np.testing.assert_array_equal(found, expected.is_exemplar)


@pytest.mark.parametrize("n_iter", [2, 8, 12])
def test_bursts_keep_lists_short_and_change_no_message(
    make: Make, n_iter: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    S, p = few_clusters(150, np.float64)
    longest, totals = [], []
    for most_bursts in (0, 8):
        monkeypatch.setattr(solver, "_MOST_BURSTS", most_bursts)
        own = solver.Batch(problems.Matrices(make(), [S]), p, Options(0.7, max_iter=n_iter))
        longest.append(solver.run_active_set(own, np.arange(1), lambda p: False)[1])
        totals.append(own.kept["total"])
    np.testing.assert_allclose(totals[1], totals[0], rtol=1e-9)
    if n_iter == 2:  # the burst
        assert longest[1] < 75 < longest[0]


def test_lists_go_on_where_dense_passes_do_not_fit(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("blobs", 200, "float64", 0.7, 5.0, True)
    S, p = problem(case)
    monkeypatch.setattr(solver, "dense_bytes", lambda n, dtype: 1 << 60)
    engine = make()
    passed = pass_on(engine, [S], [p], case.options())
    assert "dense_rows_f64" not in engine.launched
    assert passed.longest_list > 48
    np.testing.assert_array_equal(passed.is_exemplar, verdict(case).is_exemplar)
    assert passed.n_iter[0] == verdict(case).n_iter


def test_pool_grows_when_ties_make_first_lists_long(make: Make) -> None:
    X = np.random.default_rng(0).integers(0, 2, size=(200, 2)).astype(np.float64)  # four places
    S = negative_squared_distances(X)
    own = solver.Batch(problems.Matrices(make(), [S]), np.full(200, -1.0), Options())
    pool = solver.ActiveSet(own, np.arange(1))
    assert pool.capacity > 200 * 32
    for i in range(200):
        twins = np.flatnonzero(S[i] == 0)
        entries = slice(pool.start[i], pool.start[i] + pool.listed[i])
        np.testing.assert_array_equal(np.sort(pool.column[entries]), twins[twins != i])
        assert (np.diff(pool.s[entries]) <= 0).all()


@pytest.mark.parametrize("regime", ["active_set", "dense"])
def test_too_little_memory_is_said_with_figures(make: Make, regime: str) -> None:
    S, p = problem(Case("gaussian", 65, "float64", 0.5, 1.0, True))
    engine = make()
    engine.free = 1000
    with pytest.raises(MemoryError, match=r"needs about \d+\.\d\d GB and 0\.00 GB are free"):
        pass_on(engine, [S], [p], Options(), regime)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("regime", ["active_set", "dense"])
def test_without_a_seed_there_is_no_jitter(make: Make, regime: str, dtype: type) -> None:
    S, p = problem(Case("gaussian", 65, np.dtype(dtype).name, 0.7, 1.0, True))
    options = Options(damping=0.7, seed=None)
    own = problems.Matrices(make(), [S])
    np.testing.assert_array_equal(solver.Batch(own, p, options).preference, p)
    passed = pass_on(make(), [S], [p], options, regime)
    expected = reference.solve(S, p, options)
    assert expected.converged
    assert passed.n_iter[0] == expected.n_iter
    np.testing.assert_array_equal(passed.is_exemplar.astype(bool), expected.is_exemplar)
    found = cluster.decode(own, passed, p, options)[0]
    exemplars, labels = decode(S, p, np.flatnonzero(expected.is_exemplar), None)
    np.testing.assert_array_equal(found.exemplars, exemplars)
    np.testing.assert_array_equal(found.labels, labels)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_decoding_is_the_same(make: Make, dtype: str) -> None:
    cases = [Case(kind, 40, dtype, 0.7, 1.0, False) for kind in KINDS]
    S, p = zip(*(problem(case) for case in cases), strict=True)
    options = cases[0].options()
    together = problems.Matrices(make(), list(S))
    passed = solver.pass_messages(together, np.concatenate(p), options)
    found = cluster.decode(together, passed, np.concatenate(p), options)
    flags = np.split(passed.is_exemplar, together.first[1:-1])
    for own, s, preference, is_exemplar in zip(found, S, p, flags, strict=True):
        if not is_exemplar.any():
            assert own.exemplars.size == 0
            assert (own.labels == -1).all()
            assert own.net_similarity == -np.inf
            continue
        exemplars, labels = decode(s, preference, np.flatnonzero(is_exemplar), options.seed)
        np.testing.assert_array_equal(own.exemplars, exemplars)
        np.testing.assert_array_equal(own.labels, labels)
        linked = np.flatnonzero((labels >= 0) & (exemplars[labels] != np.arange(40)))
        net = s[linked, exemplars[labels[linked]]].sum(dtype=float) + preference[exemplars].sum()
        assert own.net_similarity == pytest.approx(net, rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_need_no_matrix(make: Make, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "_TILE_BYTES", 1 << 15)  # many tiles
    X: Floats = make_blobs(150, 6, centers=12, random_state=0)[0]
    X = X.astype(dtype)
    S: Floats = negative_squared_distances(X)
    p = median_preference(S, 0.3) * (1 + 1e-3 * np.random.default_rng(0).normal(size=150))
    p, options = p.astype(dtype), Options(damping=0.7)
    points = problems.Features(make(), X)
    passed = solver.pass_messages(points, p, options)
    expected = reference.solve(S, p, options)
    assert expected.converged
    assert passed.n_iter[0] == expected.n_iter
    np.testing.assert_array_equal(passed.is_exemplar.astype(bool), expected.is_exemplar)
    found = cluster.decode(points, passed, p, options)[0]
    exemplars, labels = decode(S, p, np.flatnonzero(expected.is_exemplar), options.seed)
    np.testing.assert_array_equal(found.exemplars, exemplars)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(problems.medians(points), np.median(S, axis=1), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 7, 64, 101])
def test_medians_are_numpys(make: Make, dtype: type, n: int) -> None:
    rng = np.random.default_rng(n)
    S: list[Floats] = [
        -rng.random((n, n)).astype(dtype),
        -rng.integers(0, 4, size=(n, n)).astype(dtype),
    ]
    np.testing.assert_array_equal(
        problems.medians(problems.Matrices(make(), S)),
        np.concatenate([np.median(s, axis=1) for s in S]),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_distances_of_near_duplicates_are_exact(make: Make, dtype: type) -> None:
    X: Floats = np.random.default_rng(0).normal(size=(40, 30)).astype(dtype)
    X[20:] = X[:20]
    X[30:, 0] += dtype(1e-3)
    X += dtype(100)
    S: Floats = problems.distances(make(), [X])[0]
    np.testing.assert_array_equal(S, S.T)
    assert (np.diag(S) == 0).all()
    exact = -np.square(X[:, None].astype(np.float64) - X[None]).sum(axis=2)
    np.testing.assert_allclose(S, exact, rtol=1e-3 if dtype == np.float32 else 1e-8)
    assert (S[np.arange(10), np.arange(20, 30)] == 0).all()


def test_invalid_and_degenerate_problems_are_found(make: Make) -> None:
    fine, p = problem(Case("gaussian", 17, "float64", 0.5, 1.0, True))
    engine = make()

    def run(S: Floats, own: Floats) -> None:
        cluster.cluster_matrices(engine, [fine, S], [p, own], Options())

    for bad in (np.nan, np.inf):
        S = fine.copy()
        S[3, 4] = bad
        with pytest.raises(ValueError, match=r"problem 1 holds NaN or \+inf"):
            run(S, p)
        with pytest.raises(ValueError, match="preference of problem 1 holds NaN or infinite"):
            run(fine, np.full(17, bad))
    with pytest.warns(UserWarning, match="mutually equal similarities"):
        found = cluster.cluster_matrices(
            engine,
            [np.full((4, 4), -2.0), fine, np.full((3, 3), -2.0), np.zeros((1, 1))],
            [np.full(4, -1.0), p, np.full(3, -3.0), np.zeros(1)],
            Options(),
        )
    assert [c.exemplars.size for c in found] == [4, found[1].exemplars.size, 1, 1]
    assert found[0].net_similarity == -4
    assert found[2].net_similarity == -3 - 2 * 2
    assert found[1].converged


def test_tables_have_the_fields_of_the_kernels() -> None:
    tables = {
        "Batch": problems.BATCH_FIELDS,
        "ActiveSet": solver.ACTIVE_SET_FIELDS,
        "Clusters": cluster.CLUSTERS_FIELDS,
    }
    for name, fields in tables.items():
        struct = re.search(rf"struct {name} \{{(.*?)\n\}};", device.source(), re.DOTALL)
        assert struct is not None
        without_comments = re.sub(r"//.*", "", struct[1])
        assert tuple(re.findall(r"(\w+)\s*[,;]", without_comments)) == fields


@pytest.mark.parametrize("arch", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90"])
def test_nvrtc_takes_the_source_as_cupy_passes_it(arch: str) -> None:
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="no NVRTC: install CuPy")
    program = nvrtc.createProgram(device.source(), "kernels.cu", (), ())
    cupys_own = ("-ftz=true", f"-arch={arch}", "--device-as-default-execution-space")
    try:
        nvrtc.compileProgram(program, (*device.COMPILE_OPTIONS, *cupys_own))
    except nvrtc.NVRTCError as error:
        pytest.fail(f"{error}: {nvrtc.getProgramLog(program)}")
    assert "warning" not in nvrtc.getProgramLog(program)
    code = nvrtc.getCUBIN(program)
    for kernel in kernel_names(device.source()):
        assert kernel.encode() in code


@pytest.mark.parametrize("arch", [pytest.param("sm_80", marks=pytest.mark.slow), "sm_90"])
def test_nvcc_takes_the_source(tmp_path: Path, arch: str) -> None:
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path=home / "bin")
    if nvcc is None:
        pytest.skip("no nvcc: set CUDA_HOME to a CUDA toolkit")
    if sys.platform != "win32" and shutil.which("gcc") is None:
        pytest.skip("no gcc, which nvcc runs")
    text = tmp_path / "kernels.cu"
    text.write_text(device.source())
    command = [nvcc, "-std=c++17", "-fmad=false", f"-arch={arch}", "-cubin", "-Xptxas", "-v"]
    done = subprocess.run(
        [*command, str(text), "-o", str(tmp_path / "kernels.cubin")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
