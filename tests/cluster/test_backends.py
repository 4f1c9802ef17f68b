"""Every solver gives the reference's exemplars in the reference's number of iterations."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import KINDS, SEEDS, Case, Floats, judge, pairwise, problem, verdict
from sklearn.cluster import affinity_propagation as sklearn_affinity_propagation
from sklearn.datasets import load_digits, make_blobs

from epruner.cluster import affinity_propagation, backends
from epruner.cluster.backends import Solver
from epruner.cluster.similarity import median_preference, negative_squared_distances
from epruner.cluster.types import Messages, Options

THREADS = (1, 2, 4)
FAST = ("native", "native-dense", "numba")

DTYPES = ("float32", "float64")
DAMPINGS = (0.5, 0.7, 0.9)
FACTORS = (0.3, 1.0, 5.0)
SMALL = (2, 3, 8, 16, 17, 40, 65, 130, 200)
GRID = [
    Case(*row) for row in pairwise([tuple(KINDS), SMALL, DTYPES, DAMPINGS, FACTORS, (True, False)])
] + [
    Case("digits", 500, "float32", 0.5, 1.0, True),
    Case("blobs", 400, "float32", 0.9, 5.0, True),
    Case("gaussian", 700, "float64", 0.7, 0.3, True),
    Case("digits", 1500, "float32", 0.5, 0.5, True),
    # Few clusters: bursts, columns looked at one by one, most pairs positive at some time.
    Case("digits", 600, "float32", 0.5, 10.0, True),
    Case("digits", 600, "float64", 0.7, 30.0, True),
    Case("gaussian", 300, "float32", 0.8, 10.0, True),
    Case("blobs", 600, "float64", 0.7, 40.0, True),
    Case("moons", 400, "float32", 0.9, 20.0, True),
]
LARGE = [
    Case(kind, n, dtype, damping, factor, True)
    for (kind, n, dtype), (damping, factor) in product(
        [("digits", 1797, "float32"), ("gaussian", 3000, "float64"), ("blobs", 3000, "float32")],
        [(0.5, 1.0), (0.9, 5.0)],
    )
]


@pytest.fixture(params=FAST)
def solver(request: pytest.FixtureRequest) -> Iterator[Solver]:
    """Each fast solver in turn."""
    name = request.param
    if name == "numba":
        pytest.importorskip("numba", reason="the numba solver needs its extra")
    if name == "native-dense":
        from epruner.cluster.backends import native

        yield native.solve_dense
    else:
        yield backends.get(name)


def run_on_threads(solver: Solver, case: Case, S: Floats, p: Floats) -> Messages:
    """Run on every number of threads, check that all agree, return the outcome."""
    outcomes = [solver(S, p, case.options(n_threads=threads)) for threads in THREADS]
    for other in outcomes[1:]:
        np.testing.assert_array_equal(other.is_exemplar, outcomes[0].is_exemplar)
        assert (other.n_iter, other.converged) == (outcomes[0].n_iter, outcomes[0].converged)
    return outcomes[0]


def check(solver: Solver, case: Case) -> None:
    """Hold a solver to what may be compared on this case."""
    S, p = problem(case)
    expected = verdict(case)
    before = S.copy(), p.copy()
    outcome = run_on_threads(solver, case, S, p)
    np.testing.assert_array_equal(S, before[0], err_msg="the solver wrote to its input")
    np.testing.assert_array_equal(p, before[1], err_msg="the solver wrote to its input")
    assert 1 <= outcome.n_iter <= case.options().max_iter
    assert outcome.is_exemplar.any() or not outcome.converged
    if expected.is_exemplar is None:
        return
    assert outcome.converged
    np.testing.assert_array_equal(outcome.is_exemplar, expected.is_exemplar)
    if expected.n_iter is not None:
        assert outcome.n_iter == expected.n_iter


@pytest.mark.parametrize("case", GRID, ids=str)
def test_same_as_reference(solver: Solver, case: Case) -> None:
    check(solver, case)


def test_few_clusters_need_short_lists() -> None:
    """Nearly all pairs have R > 0 for an iteration, but few ever have R > max(0, b)."""
    X = load_digits().data
    S = negative_squared_distances(X + np.random.default_rng(0).normal(size=X.shape) * 1e-3)
    n = S.shape[0]
    p = np.full(n, 10 * np.median(S))
    outcome = backends.get("native")(S, p, Options())
    assert outcome.converged
    assert outcome.is_exemplar.sum() == 18
    assert outcome.active_set is not None
    assert outcome.active_set.n_candidates < 300 * n


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [*SMALL, 400])
def test_same_as_reference_everywhere(solver: Solver, n: int, kind: str) -> None:
    for row in product(DTYPES, DAMPINGS, FACTORS, (True, False)):
        check(solver, Case(kind, n, *row))


@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_same_as_reference_on_large_problems(solver: Solver, case: Case) -> None:
    check(solver, case)


def test_most_of_the_grid_may_be_compared() -> None:
    verdicts = [verdict(case) for case in GRID]
    comparable = sum(v.is_exemplar is not None for v in verdicts)
    counted = sum(v.n_iter is not None for v in verdicts)
    print(f"of {len(GRID)} cases {comparable} have comparable exemplars, {counted} iterations")
    assert comparable > 0.6 * len(GRID)
    assert counted > 0.5 * len(GRID)


@pytest.mark.needs("torch")
@pytest.mark.parametrize("checkpoint", ["akamaster", "theo"])
def test_filters_of_trained_networks(
    solver: Solver, checkpoint: str, resnet_files: dict[str, Path]
) -> None:
    compared = 0
    for F in _filter_matrices(resnet_files[checkpoint]):
        S = negative_squared_distances(F)
        p = median_preference(S, 0.76)
        if not (p < 0).all():  # most filters are dead
            continue
        rng = np.random.default_rng(0)
        p *= (1 + 1e-3 * rng.normal(size=p.size)).astype(p.dtype)
        expected = judge(S, p, lambda seed: Options(seed=seed))
        if expected.is_exemplar is None:
            continue
        compared += 1
        for threads in THREADS:
            outcome = solver(S, p, Options(n_threads=threads))
            np.testing.assert_array_equal(outcome.is_exemplar, expected.is_exemplar)
            if expected.n_iter is not None:
                assert outcome.n_iter == expected.n_iter
    assert compared >= 5


def _filter_matrices(path: Path) -> list[Floats]:
    """(filters, weights) of every third first convolution of the residual blocks."""
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    weights = [w for name, w in state["state_dict"].items() if name.endswith("conv1.weight")]
    blocks = [w for w in weights if w.shape[1] > 3]
    return [w.flatten(1).numpy() for w in blocks[::3]]


def _sklearn_cases() -> dict[str, Any]:
    digits = load_digits().data
    blobs, _ = make_blobs(300, n_features=4, centers=7, random_state=0)
    return {
        "digits": (digits[:400].astype(np.float32), 0.5, 1.0),
        "digits, few clusters": (digits[:300], 0.7, 8.0),
        "blobs": (blobs.astype(np.float32), 0.5, 1.0),
        "blobs, strong damping": (blobs, 0.9, 2.0),
    }


@pytest.mark.parametrize("name", list(_sklearn_cases()))
@pytest.mark.parametrize("backend", ["native", "numba", "reference"])
def test_same_as_scikit_learn(name: str, backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba", reason="the numba solver needs its extra")
    X, damping, factor = _sklearn_cases()[name]
    S = negative_squared_distances(X)
    rng = np.random.default_rng(1)
    p = (factor * np.median(S) * (1 + 1e-3 * rng.normal(size=len(S)))).astype(S.dtype)
    common = {"preference": p, "damping": damping, "return_n_iter": True, "random_state": 0}
    theirs = sklearn_affinity_propagation(S, **common)
    ours = affinity_propagation(S, backend=backend, **common)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])
    assert ours[2] == theirs[2]  # type: ignore[misc]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_seed_changes_nothing_where_data_break_ties(solver: Solver, seed: int) -> None:
    case = Case("digits", 200, "float64", 0.5, 1.0, True)
    outcome = solver(*problem(case), case.options(seed))
    np.testing.assert_array_equal(outcome.is_exemplar, verdict(case).is_exemplar)


@pytest.mark.parametrize("max_iter", [1, 2, 15, 16])
def test_stops_at_max_iter(solver: Solver, max_iter: int) -> None:
    S, p = problem(Case("digits", 130, "float64", 0.5, 1.0, True))
    options = Options(max_iter=max_iter)
    ours, theirs = solver(S, p, options), backends.get("reference")(S, p, options)
    assert (ours.n_iter, ours.converged) == (max_iter, False)
    np.testing.assert_array_equal(ours.is_exemplar, theirs.is_exemplar)


def test_a_point_that_links_to_nobody_is_its_own_exemplar(solver: Solver) -> None:
    S, p = problem(Case("forbidden", 40, "float64", 0.5, 1.0, True))
    assert solver(S, p, Options()).is_exemplar[20]


def test_nobody_may_be_linked(solver: Solver) -> None:
    S = np.full((5, 5), -np.inf)
    np.fill_diagonal(S, 0)
    outcome = solver(S, np.full(5, -1.0), Options())
    assert outcome.is_exemplar.all()
    assert outcome.converged


def test_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'abacus' is not .*native"):
        backends.get("abacus")


def _in_a_process_without(*modules: str, code: str) -> str:
    hide = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in modules)
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", hide + code],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.stdout + done.stderr


USE_AUTO = """
from epruner.cluster import backends
print(backends.get("auto").__module__)
backends.get("auto")
"""


def test_auto_falls_back_to_numba_with_one_warning() -> None:
    pytest.importorskip("numba", reason="the numba solver needs its extra")
    said = _in_a_process_without("epruner.cluster._native", code=USE_AUTO)
    assert "epruner.cluster.backends.numba\n" in said
    assert said.count("numba's is used instead") == 1


def test_auto_falls_back_to_the_reference_and_names_the_extra() -> None:
    said = _in_a_process_without("epruner.cluster._native", "numba", code=USE_AUTO)
    assert "epruner.cluster.backends.reference\n" in said
    assert said.count("pip install numba") == 1


def test_missing_numba_names_the_extra() -> None:
    code = "from epruner.cluster import backends\nbackends.get('numba')"
    said = _in_a_process_without("numba", code=code)
    assert "ImportError: backend='numba' needs numba" in said
    assert '[numba]"' in said


def test_tiles_without_the_extension_say_why() -> None:
    code = "import epruner\nepruner.AffinityPropagation(memory='tiles').fit([[0], [1], [5]])"
    said = _in_a_process_without("epruner.cluster._native", code=code)
    assert "ImportError: memory='tiles' needs the compiled solver: " in said
    assert "install" in said


def test_no_warning_where_the_extension_is_there() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert backends.get("auto") is backends.get("native")
