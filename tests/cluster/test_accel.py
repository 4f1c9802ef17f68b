"""scikit-learn's estimator under `epruner.accel` is what it was, but for the time it takes."""

import importlib
import logging
import os
import pickle
import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import sklearn.cluster
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.cluster import AffinityPropagation
from sklearn.datasets import load_digits, load_iris, make_blobs, make_circles, make_moons
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import euclidean_distances

from epruner import accel, merge_exemplars

EXAMPLES = os.environ.get("EPRUNER_SKLEARN_EXAMPLES")  # folder `examples` of its repository

X = load_iris().data
THEIRS = AffinityPropagation.fit


@pytest.fixture(autouse=True)
def _uninstalled() -> Iterator[None]:
    yield
    accel.uninstall()
    assert AffinityPropagation.fit is THEIRS


def gallery() -> Iterator[tuple[NDArray[Any], dict[str, Any]]]:
    """The problems that scikit-learn's gallery shows affinity propagation on."""
    centers = [[1, 1], [-1, -1], [1, -1]]
    yield make_blobs(300, centers=centers, cluster_std=0.5, random_state=0)[0], {"preference": -50}
    shapes = [
        (make_circles(500, factor=0.5, noise=0.05, random_state=30)[0], 0.77, -240),
        (make_moons(500, noise=0.05, random_state=30)[0], 0.75, -220),
        (make_blobs(500, cluster_std=[1.0, 2.5, 0.5], random_state=170)[0], 0.9, -200),
        (make_blobs(500, random_state=170)[0] @ [[0.6, -0.6], [-0.4, 0.8]], 0.9, -200),
        (make_blobs(500, random_state=30)[0], 0.9, -200),
        (np.random.RandomState(30).rand(500, 2), 0.9, -200),
    ]
    for points, damping, preference in shapes:
        scaled = (points - points.mean(axis=0)) / points.std(axis=0)
        yield scaled, {"damping": damping, "preference": preference}


def assert_same(one: Any, other: Any) -> None:
    """Attributes, to the last bit."""
    assert vars(one).keys() == vars(other).keys()
    for name, value in vars(one).items():
        expected = vars(other)[name]
        if scipy.sparse.issparse(value):
            value, expected = value.toarray(), expected.toarray()
        np.testing.assert_array_equal(value, expected, err_msg=name)
        assert np.asarray(value).dtype == np.asarray(expected).dtype or np.size(value) == 0


def both(make: Callable[[], Any], X: Any) -> tuple[Any, Any]:
    """The same fit without and with, from the same random numbers."""
    fits = []
    for prepare in (accel.uninstall, accel.install):
        prepare()
        np.random.seed(3)  # noqa: NPY002 (what random_state=None stands for)
        fits.append(make().fit(X))
    return fits[0], fits[1]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("case", range(7))
def test_the_gallery_gets_its_labels(case: int) -> None:
    points, options = list(gallery())[case]
    assert_same(*both(lambda: AffinityPropagation(random_state=0, **options), points))


@pytest.mark.parametrize(
    ("points", "options"),
    [
        (load_digits().data[:600], {}),
        (load_digits().data[:600].astype(np.float32), {"random_state": 4}),
        (load_digits().data[:300].astype(np.int64), {"damping": 0.7}),
        (np.random.default_rng(0).integers(0, 3, (150, 3)), {"damping": 0.9}),
        (scipy.sparse.csr_array(load_digits().data[:200]), {"random_state": 0}),
        (X, {"preference": list(range(-150, 0)), "damping": 0.8}),
        (X[:1], {}),
        (np.ones((5, 2)), {}),
    ],
    ids=["digits", "float32", "integers", "ties", "sparse", "preferences", "one", "equal"],
)
@pytest.mark.filterwarnings("ignore:All samples have mutually equal")
def test_nothing_changes(points: Any, options: dict[str, Any]) -> None:
    theirs, ours = both(lambda: AffinityPropagation(**options), points)
    if options.get("damping") == 0.9:  # oscillates first: rounding decides for how long
        theirs.n_iter_ = ours.n_iter_
    assert_same(ours, theirs)
    np.testing.assert_array_equal(ours.predict(points[:3]), theirs.predict(points[:3]))


@pytest.mark.parametrize("copy", [True, False])
def test_similarities_are_written_where_scikit_learn_writes_them(copy: bool) -> None:
    inputs: list[NDArray[Any]] = []

    def make() -> Any:
        inputs.append(-euclidean_distances(X, squared=True))
        return AffinityPropagation(affinity="precomputed", copy=copy, random_state=0)

    fits = []
    for prepare in (accel.uninstall, accel.install):
        prepare()
        model = make()
        fits.append(model.fit(inputs[-1]))
        assert (fits[-1].affinity_matrix_ is inputs[-1]) == (not copy)
    assert_same(*fits)
    np.testing.assert_array_equal(inputs[0], inputs[1])


def test_the_function_and_what_was_imported_before_are_accelerated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    S = -euclidean_distances(X, squared=True)
    expected = sklearn.cluster.affinity_propagation(S, random_state=0, return_n_iter=True)
    accel.install()
    with caplog.at_level(logging.INFO, "epruner.accel"):
        found = sklearn.cluster.affinity_propagation(S, random_state=0, return_n_iter=True)
        AffinityPropagation(random_state=0).fit(X)  # the name of the head of this file
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith("150 points (float64), ties=scikit-learn (at most 10,000 ")


def test_installing_twice_and_uninstalling_twice_do_no_harm() -> None:
    accel.uninstall()
    for _ in range(2):
        accel.install()
        importlib.reload(sys.modules["sklearn.cluster"])
        accel.load_ipython_extension(None)
    assert AffinityPropagation.fit is not THEIRS
    for _ in range(2):
        accel.unload_ipython_extension(None)
        assert AffinityPropagation.fit is THEIRS


def test_the_estimator_is_scikit_learns() -> None:
    before = repr(AffinityPropagation(damping=0.7)), AffinityPropagation().get_params()
    accel.install()
    model = AffinityPropagation(damping=0.7)
    assert (repr(model), AffinityPropagation().get_params()) == before
    assert clone(model).get_params() == model.get_params()
    assert type(model) is sklearn.cluster.AffinityPropagation
    assert AffinityPropagation.fit.__doc__ == THEIRS.__doc__
    data = pickle.dumps(model.fit(X))
    assert b"epruner" not in data
    accel.uninstall()
    assert_same(pickle.loads(data), model)


def test_a_subclass_that_fits_by_super_is_accelerated(caplog: pytest.LogCaptureFixture) -> None:
    class Own(AffinityPropagation):  # type: ignore[misc]
        def fit(self, X: Any, y: object = None) -> Any:
            return super().fit(2 * X)

    accel.install()
    with caplog.at_level(logging.INFO, "epruner.accel"):
        assert Own(random_state=0).fit(X).labels_.size == 150
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"damping": 2.0}, X),
        ({"affinity": "cosine"}, X),
        ({"max_iter": 0}, X),
        ({"affinity": "precomputed"}, X),
        ({}, np.full((3, 2), np.nan)),
        ({}, X[0]),
        ({}, np.empty((0, 2))),
        ({"affinity": "precomputed"}, scipy.sparse.csr_matrix(np.eye(4))),
        ({"affinity": "precomputed"}, -np.arange(9).reshape(3, 3)),
    ],
)
def test_errors_are_scikit_learns(options: dict[str, Any], given: Any) -> None:
    said = []
    for prepare in (accel.uninstall, accel.install):
        prepare()
        with pytest.raises((ValueError, TypeError)) as error:
            AffinityPropagation(**options).fit(given)
        said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


@pytest.mark.parametrize("options", [{"max_iter": 5}, {"max_iter": 1, "preference": -1e9}])
def test_what_does_not_converge_warns_as_before(options: dict[str, Any]) -> None:
    fits = []
    for prepare in (accel.uninstall, accel.install):
        prepare()
        with pytest.warns(ConvergenceWarning) as said:
            fits.append(AffinityPropagation(random_state=0, **options).fit(X))
        fits[-1].said = [str(w.message) for w in said]
        with warnings.catch_warnings(action="ignore"):
            fits[-1].predicted = fits[-1].predict(X[:2])
    assert_same(*fits)


def test_verbose_says_what_it_said(capsys: pytest.CaptureFixture[str]) -> None:
    both(lambda: AffinityPropagation(verbose=True, random_state=0), X)
    theirs, ours = capsys.readouterr().out.splitlines()
    assert ours == theirs


def test_ties_by_a_hash(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    points = load_digits().data[:500]
    theirs = AffinityPropagation(random_state=0).fit(points)
    monkeypatch.setenv("EPRUNER_TIES", "fast")
    accel.install()
    with caplog.at_level(logging.INFO, "epruner.accel"):
        ours = AffinityPropagation(random_state=0).fit(points)
    assert "ties=fast as asked, from a matrix" in caplog.text
    np.testing.assert_array_equal(ours.cluster_centers_indices_, theirs.cluster_centers_indices_)
    np.testing.assert_allclose(ours.affinity_matrix_, theirs.affinity_matrix_, rtol=1e-9)
    assert vars(ours).keys() == vars(theirs).keys()


def test_many_points_get_no_noise_and_no_matrix_where_it_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from epruner.accel import fit

    monkeypatch.setattr(fit, "_MOST_NOISY", 149)
    monkeypatch.setattr("epruner.cluster.resources.memory_fits", lambda needed: False)
    expected = AffinityPropagation(random_state=0).fit(X)
    accel.install()
    with caplog.at_level(logging.INFO, "epruner.accel"):
        ours = AffinityPropagation(random_state=0).fit(X)
    assert "ties=fast (more than 149 points), in tiles, no affinity_matrix_" in caplog.text
    np.testing.assert_array_equal(ours.labels_, expected.labels_)
    assert not hasattr(expected.fit(X), "affinity_matrix_")  # that of the fit before is gone
    with pytest.raises(ValueError, match="neither preference_ nor affinity_matrix_"):
        merge_exemplars(ours, X)


def test_an_unknown_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="ties='no' is not one of auto, scikit-learn, fast"):
        accel.install(ties="no")
    monkeypatch.setenv("EPRUNER_TIES", "")
    with pytest.raises(ValueError, match="EPRUNER_TIES='' is not one of"):
        accel.install()


def command(
    *args: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
        timeout=300,
    )


def test_its_own_tests_pass(tmp_path: Path) -> None:
    name = "sklearn.cluster.tests.test_affinity_propagation"
    pytest.importorskip(name, reason="scikit-learn is installed without its tests")
    done = command(
        "-m", "epruner.accel", "-m", "pytest", "-q", "-rN", "-p", "no:cacheprovider",
        "--doctest-modules", "--pyargs", name, "sklearn.cluster._affinity_propagation",
        cwd=tmp_path,  # away from our settings, by which a warning is an error
        SKLEARN_RUN_FLOAT32_TESTS="1", SKLEARN_TESTS_GLOBAL_RANDOM_SEED="0",
    )  # fmt: skip
    assert re.search(r"^\d\d passed", done.stdout, re.M), done.stdout + done.stderr
    assert done.returncode == 0


SCRIPT = """\
import sys
from sklearn.cluster import AffinityPropagation
print(__name__, sys.argv[1:], AffinityPropagation.fit.__module__, flush=True)
class Broken(Exception): pass
def fail():
    raise Broken("on purpose")
if len(sys.argv) > 2:
    fail()
raise SystemExit(3)
"""


def test_a_script_runs_and_fails_as_by_itself(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = command("-m", "epruner.accel", str(script), "-v")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout == "__main__ ['-v'] epruner.accel.fit\n".replace(
        "epruner.accel.fit", THEIRS.__module__
    )
    alone, under = (
        command(str(script), "a", "b"),
        command("-m", "epruner.accel", str(script), "a", "b"),
    )
    assert under.returncode == alone.returncode == 1
    assert under.stderr == alone.stderr


def test_wrong_use_is_said_in_a_line(tmp_path: Path) -> None:
    for args, said in [
        (["nowhere.py"], "no such file: nowhere.py"),
        (["--ties", "no", "x.py"], "invalid choice: 'no'"),
        ([], "required"),
    ]:
        done = command("-m", "epruner.accel", *args)
        assert done.returncode == 2
        assert said in done.stderr.splitlines()[-1]
    done = command("-m", "epruner.accel", __file__, EPRUNER_TIES="no")
    assert done.returncode == 2
    assert "EPRUNER_TIES='no'" in done.stderr


@pytest.mark.skipif(EXAMPLES is None, reason="EPRUNER_SKLEARN_EXAMPLES names no folder of them")
@pytest.mark.filterwarnings("ignore")
def test_its_gallery_runs_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(pyplot, "show", lambda: pyplot.close("all"))
    scripts = [p for p in Path(str(EXAMPLES)).rglob("*.py") if "ffinityPropag" in p.read_text()]
    assert scripts
    for script in scripts:
        labels = []
        for prepare in (accel.uninstall, accel.install):
            prepare()
            recorded = Recorder(AffinityPropagation.fit)
            with monkeypatch.context() as patch:
                patch.setattr(AffinityPropagation, "fit", recorded.fit)
                runpy.run_path(str(script))
            labels.append(recorded.labels)
        assert labels[0]
        for theirs, ours in zip(*labels, strict=True):
            np.testing.assert_array_equal(ours, theirs)


class Recorder:
    """Keeps the labels of every fit."""

    def __init__(self, fit: Callable[[Any, Any], Any]) -> None:
        self.labels: list[NDArray[Any]] = []

        def recording(model: Any, X: Any, y: object = None) -> Any:
            self.labels.append(fit(model, X).labels_)
            return model

        self.fit = recording
