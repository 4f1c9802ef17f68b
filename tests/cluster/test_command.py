"""``epruner cluster``: the estimator's answers from files, bad input in one line, no torch."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from conftest import ROOT
from processes import in_a_process
from scipy import sparse
from sklearn.cluster import AffinityPropagation as SklearnAffinityPropagation
from sklearn.datasets import load_digits
from test_extras import without_extras

from epruner import AffinityPropagation
from epruner.cli import options, tables
from epruner.cluster import affinities, problem, validate

if TYPE_CHECKING:
    from processes import Run

X = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
S = -np.square(X[:, None] - X).sum(-1)
NAMES = ("width", "height", "depth")


def write_table(path: str, delimiter: str = ",", header: bool = True) -> None:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([*[NAMES] * header, *X.tolist()])


@pytest.mark.parametrize(
    ("path", "write"),
    [
        ("x.npy", lambda path: np.save(path, X)),
        ("x.npz", lambda path: np.savez(path, X)),
        ("x.csv", write_table),
        ("x.csv", lambda path: write_table(path, header=False)),
        ("x.csv", lambda path: write_table(path, ";")),
        ("x.tsv", lambda path: write_table(path, "\t")),
    ],
)
def test_the_answers_are_the_estimators(run: Run, path: str, write: Callable[[str], None]) -> None:
    write(path)
    code, out, err = run("cluster", path, "--out", "labels.npy", "--exemplars", "e.npy", "--json")
    assert (code, err) == (0, "")
    model = AffinityPropagation().fit(X if path.startswith("x.np") else X.astype(np.float64))
    labels, exemplars = np.load("labels.npy"), np.load("e.npy")
    assert labels.dtype == exemplars.dtype == np.int64
    assert np.array_equal(labels, model.labels_)
    assert np.array_equal(exemplars, model.cluster_centers_indices_)
    document = json.loads(out)
    assert document["net_similarity"] == pytest.approx(model.net_similarity_)
    assert document["preference"] == pytest.approx(model.preference_[0])
    assert [e["index"] for e in document["exemplars"]] == exemplars.tolist()
    assert [e["size"] for e in document["exemplars"]] == np.bincount(labels).tolist()
    same = ("points", "features", "clusters", "converged", "iterations", "damping")
    assert [document[name] for name in same] == [60, 3, len(exemplars), True, model.n_iter_, 0.5]


def test_options_are_the_estimators(run: Run) -> None:
    np.save("x.npy", X)
    for arguments, parameters in (
        (["--n-clusters", "4", "--damping", "0.8"], {"n_clusters": 4, "damping": 0.8}),
        (["--preference", "-1e1", "--max-iter", "90"], {"preference": -10, "max_iter": 90}),
        (["--quantile", "0.2", "--memory", "tiles"], {"preference_quantile": 0.2}),
        (["--affinity", "cosine", "--convergence-iter", "30"], {"affinity": "cosine"}),
        (["--ties", "scikit-learn", "--seed", "3"], {"random_state": 3, "ties": "scikit-learn"}),
    ):
        code, _, err = run("cluster", "x.npy", *arguments, "--out", "labels.npy", "--force")
        assert (code, err) == (0, "")
        assert np.array_equal(
            np.load("labels.npy"), AffinityPropagation(**parameters).fit(X).labels_
        )


def test_options_name_what_there_is() -> None:
    assert options.ITERATION["ties"]["choices"] == validate.TIES
    assert options.ITERATION["memory"]["choices"] == affinities.MEMORY
    assert {*options.SIMILARITY["affinity"]["choices"], "precomputed"} == {*affinities.AFFINITIES}


def test_similarities_dense_and_sparse(run: Run) -> None:
    expected = AffinityPropagation(affinity="precomputed", preference=-4).fit(S)
    np.save("s.npy", S)
    np.savetxt("s.csv", S, delimiter=",")
    before = Path("s.npy").read_bytes()
    near = np.where(S > -9, S, -np.inf)
    stored = sparse.csr_matrix(np.where(S > -9, S, 0))
    sparse.save_npz("s.npz", stored)
    np.save("near.npy", near)
    for path in ("s.npy", "s.csv", "s.npz", "near.npy"):
        code, out, err = run(
            "cluster", path, "--similarities", "--preference", "-4", "--out", "l.npy", "--force"
        )
        assert (code, err) == (0, "")
        assert "similarities of 60 points" in out
        assert np.array_equal(np.load("l.npy"), expected.labels_)
    assert Path("s.npy").read_bytes() == before  # not even the diagonal


def test_sparse_features(run: Run) -> None:
    sparse.save_npz("x.npz", sparse.csr_matrix(np.where(X > 0, X, 0)))
    code, _, err = run("cluster", "x.npz", "--out", "labels.npy", "--exemplars", "e.csv")
    assert (code, err) == (0, "")
    expected = AffinityPropagation().fit(np.where(X > 0, X, 0))
    assert np.array_equal(np.load("labels.npy"), expected.labels_)
    assert Path("e.csv").read_text().startswith("label,index,size\n")


def test_an_array_is_mapped_and_not_copied(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("x.npy", X)
    arrays: list[Any] = []
    open_memmap, init = np.lib.format.open_memmap, problem.FeatureProblem.__init__

    def opened(*arguments: Any, **how: Any) -> Any:
        arrays.append(open_memmap(*arguments, **how))
        return arrays[-1]

    def clustered(self: Any, X: Any, *more: Any) -> None:
        arrays.append(X)
        init(self, X, *more)

    monkeypatch.setattr(np.lib.format, "open_memmap", opened)
    monkeypatch.setattr(problem.FeatureProblem, "__init__", clustered)
    assert run("cluster", "x.npy", "--memory", "tiles")[0] == 0
    assert isinstance(arrays[0], np.memmap)
    assert np.shares_memory(*arrays)


def test_tables_of_labels_and_exemplars(run: Run) -> None:
    rows = [[f"no. {i}, A", *row] for i, row in enumerate(X.tolist())]
    with Path("x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["flower", *NAMES], *rows])
    code, out, err = run(
        "cluster", "x.csv", "--id", "flower", "--out", "l.csv", "--exemplars", "e.csv"
    )
    assert (code, err) == (0, "")
    assert "60 points, 3 features (width, height, depth)" in out
    model = AffinityPropagation().fit(X.astype(np.float64))
    centers = model.cluster_centers_indices_
    with Path("l.csv").open(newline="") as file:
        header, *written = csv.reader(file)
    assert header == ["index", "name", "label", "exemplar"]
    assert written == [
        [str(i), f"no. {i}, A", str(k), str(centers[k])] for i, k in enumerate(model.labels_)
    ]
    with Path("e.csv").open(newline="") as file:
        header, *written = csv.reader(file)
    assert header == ["label", "index", "name", "size", *NAMES]
    sizes = np.bincount(model.labels_)
    for k, row in enumerate(written):
        i = centers[k]
        assert row[:4] == [str(k), str(i), f"no. {i}, A", str(sizes[k])]
        assert np.array_equal(np.array(row[4:], dtype=float), X[i].astype(float))
    largest = sizes.argmax()
    assert re.search(rf"^ +{largest} +{sizes[largest]} .* no\. {centers[largest]}, A$", out, re.M)


def test_exemplars_of_an_array_take_few_digits(run: Run) -> None:
    np.save("x.npy", np.array([[0.1, 2], [0.1, 2.5], [9, 9]], dtype=np.float32))
    assert run("cluster", "x.npy", "--n-clusters", "2", "--exemplars", "e.csv")[0] == 0
    header, first, _ = Path("e.csv").read_text().splitlines()
    assert header == "label,index,size,x0,x1"
    assert first in ("0,0,2,0.1,2.0", "0,1,2,0.1,2.5")


@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
def test_no_convergence_is_a_warning(run: Run) -> None:
    np.save("x.npy", X)
    code, out, err = run("cluster", "x.npy", "--max-iter", "3", "--damping", "0.6", "--json")
    assert code == 0
    assert not json.loads(out)["converged"]
    assert re.fullmatch(
        r"epruner: warning: .* after 3 iterations with damping 0\.6; try --damping auto, .*\n", err
    )
    code, out, err = run("cluster", "x.npy", "--max-iter", "3")
    assert (code, "not converged after 3 iterations" in out) == (0, True)
    assert "try --damping 0.98, --max-iter 15, or another --preference" in err


@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
def test_points_without_exemplar(run: Run) -> None:
    np.save("x.npy", X)
    code, out, _ = run(
        "cluster", "x.npy", "--max-iter", "2", "--preference", "-1e9", "--damping", "0.9",
        "--out", "l.csv", "--exemplars", "e.csv", "--json",
    )  # fmt: skip
    document = json.loads(out, parse_constant=pytest.fail)
    assert (code, document["clusters"], document["net_similarity"]) == (0, 0, None)
    assert Path("l.csv").read_text().splitlines()[:2] == ["index,label,exemplar", "0,-1,-1"]
    assert Path("e.csv").read_text() == "label,index,size,x0,x1,x2\n"


def test_the_shown_clusters_are_the_largest(run: Run) -> None:
    np.save("x.npy", X)
    code, out, _ = run("cluster", "x.npy", "--n-clusters", "20")
    sizes = np.bincount(AffinityPropagation(n_clusters=20).fit(X).labels_)
    rows = re.findall(r"^ +(\d+) +(\d+) +[\d.]+ %", out, re.MULTILINE)
    assert code == 0
    assert [int(size) for _, size in rows] == np.sort(sizes)[:-11:-1].tolist()
    assert all(sizes[int(label)] == int(size) for label, size in rows)
    assert f"and 10 smaller with {np.sort(sizes)[:10].sum()} points" in out


@pytest.mark.parametrize(
    ("content", "values", "columns"),
    [
        ("a,b\n1,2\n3,4\n", [[1, 2], [3, 4]], ("a", "b")),
        ("1,2\n3,4", [[1, 2], [3, 4]], ("1", "2")),
        ("\ufeffa;b\r\n\"1\";2\r\n\r\n3;4e1\r\n", [[1, 2], [3, 40]], ("a", "b")),
        ("a\tb, c\n1\t2\n", [[1, 2]], ("a", "b, c")),
        ('"a;b", c\n1, " 2 "\n', [[1, 2]], ("a;b", "c")),
        ("x\n1\n2\n", [[1], [2]], ("x",)),
        ("1\n2\n", [[1], [2]], ("1",)),
        ("a,b\n?,2\n", None, ("a", "b")),  # text above a missing number
        ("0,1\n0.5,1.5\n", [[0.5, 1.5]], ("0", "1")),  # pandas, columns without names
        ("0,1\n2,3\n", [[0, 1], [2, 3]], ("1", "2")),
        ('"","a"\n"1",2\n"2",3\n', [[2], [3]], ("a",)),  # R
        (",0,1\n7,2,3\n", [[2, 3]], ("0", "1")),  # pandas with its index
    ],
)  # fmt: skip
def test_tables(
    tmp_path: Path, content: str, values: list[list[float]] | None, columns: tuple[str, ...]
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content, encoding="utf-8", newline="")
    if values is None:
        with pytest.raises(ValueError, match=f"column {columns[0]!r} in line 2 is missing"):
            tables.read(path)
        return
    table = tables.read(path)
    assert table.values.tolist() == values
    assert table.columns == columns


def test_the_numbers_of_a_table_are_numpys(tmp_path: Path) -> None:
    values = np.random.default_rng(1).lognormal(0, 30, size=(200, 5))
    path = tmp_path / "x.csv"
    np.savetxt(path, values, delimiter=",", header="a,b,c,d,e", comments="", fmt="%.17g")
    assert np.array_equal(tables.read(path).values, np.loadtxt(path, delimiter=",", skiprows=1))


def test_columns_are_chosen_by_name_and_number(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("id,x,y,z,kind\na,1,2,3,q\nb,4,5,6,r\n")
    assert tables.read(path, columns=["z", "2"]).values.tolist() == [[3, 1], [6, 4]]
    assert tables.read(path, columns=["2-4", "y"]).columns == ("x", "y", "z")
    table = tables.read(path, columns=["y"], id_column="kind")
    assert (table.columns, table.names) == (("y",), ["q", "r"])
    path.write_text("5,6\n7,8\n")
    assert tables.read(path, header=True).columns == ("5", "6")
    assert tables.read(path, columns=["2"]).values.tolist() == [[6], [8]]


class Trap:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("trap",)


def write_bad_files() -> None:
    np.save("x.npy", X)
    np.savez("two.npz", a=X, b=X)
    cut = Path("x.npy").read_bytes()
    Path("cut.npy").write_bytes(cut[:-4])
    Path("head.npy").write_bytes(cut[:30])
    Path("cut.npz").write_bytes(Path("two.npz").read_bytes()[:300])
    Path("none.npy").touch()
    Path("text.npy").write_text("1,2,3\n4,5,6\n")
    np.save("trap.npy", np.array([[Trap()]], dtype=object))
    np.savez("trap.npz", np.array([[Trap()]], dtype=object))
    np.save("line.npy", X[0])
    np.save("empty.npy", X[:0])
    np.save("words.npy", np.array([["a", "b"]]))
    np.save("nan.npy", np.array([[0, 1], [2, np.nan]]))
    np.save("square.npy", S)
    sparse.save_npz("inf.npz", sparse.csr_matrix([[0, np.inf], [1, 0]]))
    sparse.save_npz("sparse.npz", sparse.csr_matrix(X))
    for name, content in {
        "x": "a,b\n1,2\n3,4\n",
        "words": "id,kind,x\na,b,1\nc,d,2\n",
        "gap": "x,y\n1,2\n3,\n",
        "na": "x,y\n1,2\n3,NA\n",
        "nan": "x,y\n1,2\n\n3,nan\n",
        "ragged": "x,y\n1,2\n3\n",
        "header": "x,y\n",
        "blank": "\n\n",
        "twice": "x,x\n1,2\n",
        "quote": 'x,y\n1,"2\n',
        "long": 'x,y\n1,"' + 200_000 * "2",
    }.items():
        Path(f"{name}.csv").write_text(content)
    Path("latin.csv").write_bytes(b"gr\xf6\xdfe,y\n1,2\n")
    Path("x.txt").write_text("1,2\n")


BAD_INPUT: list[tuple[list[str], str]] = [
    ([], "required: FILE"),
    (["absent.npy"], "no such file: absent.npy"),
    (["."], ". is a folder"),
    (["x.txt"], "cannot read x.txt: its suffix must be one of .npy, .npz, .csv, .tsv"),
    (["none.npy"], "none.npy is empty"),
    (["text.npy"], "cannot read text.npy: the magic string is not correct"),
    (["cut.npy"], "cannot read cut.npy: it is cut short"),
    (["head.npy"], "cannot read head.npy: EOF"),
    (["cut.npz"], "cannot read cut.npz: it is no archive"),
    (["trap.npy"], "Python objects in dtype"),
    (["trap.npz"], "Object arrays cannot be loaded"),
    (["line.npy"], "holds an array of shape (3,)"),
    (["empty.npy"], "holds an array of shape (0, 3)"),
    (["words.npy"], "holds values of type <U1, not real numbers"),
    (["nan.npy"], "nan.npy: [1, 1] is nan"),
    (["inf.npz"], "inf.npz: [0, 1] is inf"),
    (["sparse.npz", "--affinity", "cosine"], "takes dense features"),
    (["two.npz"], "it holds 2 arrays; --key names one: a, b"),
    (["two.npz", "--key", "c"], "it holds no array 'c'; there are a, b"),
    (["x.npy", "--key", "a"], "--key names an array of an .npz file, and x.npy is none"),
    (["x.npy", "--column", "1"], "are for tables of text, not for x.npy"),
    (["words.csv"], "columns 'id', 'kind' hold no numbers: 'a' in line 2; choose columns with"),
    (["words.csv", "--id", "id"], "column 'kind' holds no numbers: 'b' in line 2"),
    (["gap.csv"], "column 'y' in line 3 is missing: fill it in"),
    (["na.csv"], "column 'y' in line 3 is missing (NA)"),
    (["nan.csv"], "nan.csv: column 'y' in line 4 is nan"),
    (["ragged.csv"], "line 3 has 1 cells, the first row 2"),
    (["header.csv"], "header.csv: it holds no rows below"),
    (["blank.csv"], "blank.csv: it is empty"),
    (["quote.csv"], "cannot read quote.csv: unexpected end of data"),
    (["long.csv"], "cannot read long.csv: field larger than field limit"),
    (["latin.csv"], "latin.csv: it is not UTF-8 text: there is a byte 0xf6"),
    (["x.csv", "--column", "c"], "it has no column 'c'; there are a, b"),
    (["x.csv", "--column", "2-3"], "it has columns 1 to 2, not 2-3"),
    (["x.csv", "--id", "1-2"], "one column names the rows, not 1-2"),
    (["twice.csv", "--column", "x"], "it has 2 columns 'x'; choose one by its number"),
    (["x.csv", "--n-clusters", "3"], "n_clusters=3 must be between 1 and the 2 points"),
    (["x.csv", "--n-clusters", "0"], "'0' is not a positive integer"),
    (["x.csv", "--quantile", "2"], "'2' is not in [0, 1]"),
    (["x.csv", "--damping", "1"], "'1' is not in [0.5, 1), nor auto"),
    (["x.csv", "--preference", "-inf"], "expected one argument"),
    (["x.csv", "--n-clusters", "2", "--quantile", "0.1"], "not allowed with argument"),
    (["x.csv", "--similarities", "--affinity", "cosine"], "not allowed with argument"),
    (["x.npy", "--similarities"], "holds 60 rows of 3 numbers; similarities must be square"),
    (["square.npy", "--similarities", "--memory", "tiles"], "--memory is about similarities of"),
    (["x.npy", "--ties", "scikit-learn", "--memory", "tiles"], "not memory='tiles'"),
    (["x.csv", "--out", "l.txt"], "cannot write l.txt: its suffix must be one of .csv, .npy"),
    (["x.csv", "--out", "absent/l.csv"], "create it first"),
    (["x.csv", "--exemplars", "words.csv"], "words.csv is there already; --force overwrites it"),
    (["x.csv", "--out", "x.csv", "--force"], "x.csv is named twice"),
    (["x.csv", "--out", "l.csv", "--exemplars", "./l.csv"], "named twice"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=lambda v: str(v)[-50:])
def test_bad_input_is_one_clear_line(
    run: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    write_bad_files()
    before = sorted(path.name for path in tmp_path.iterdir())
    code, out, err = run("cluster", *arguments)
    assert message in err
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_cannot_be_drawn_is_refused_before_the_work(run: Run) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra plot)")
    np.save("s.npy", S)
    np.save("one.npy", X[:, :1])
    for arguments in (["s.npy", "--similarities"], ["one.npy"]):
        code, _, err = run("cluster", *arguments, "--plot", "x.png", "--out", "l.npy")
        assert (code, "--plot draws points by their features" in err) == (2, True)
    assert "its suffix must be one of" in run("cluster", "s.npy", "--plot", "x.docx")[2]
    assert not Path("l.npy").exists()


def test_a_picture(run: Run) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra plot)")
    np.save("x.npy", X)
    code, out, err = run("cluster", "x.npy", "--plot", "x.png")
    assert (code, err) == (0, "")
    assert "wrote x.png" in out
    assert Path("x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("moment", ["fit", "write"])
def test_an_interrupt_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    np.save("x.npy", X)
    Path("l.csv").write_text("older")
    if moment == "fit":
        monkeypatch.setattr(AffinityPropagation, "fit", interrupted)
    else:
        monkeypatch.setattr(os, "fsync", interrupted)
    code, out, err = run("cluster", "x.npy", "--out", "l.csv", "--force")
    assert (code, out, err) == (130, "", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.csv", "x.npy"]
    assert Path("l.csv").read_text() == "older"


def test_clustering_from_a_shell_needs_no_extra(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    arguments = ["cluster", str(tmp_path / "x.npy"), "--out", str(tmp_path / "l.npy")]
    done = without_extras(f"from epruner.cli import main\nsys.exit(main({arguments!r}))")
    assert (done.returncode, done.stderr) == (0, "")
    assert np.array_equal(np.load(tmp_path / "l.npy"), AffinityPropagation().fit(X).labels_)
    done = without_extras(
        f"from epruner.cli import main\nsys.exit(main({[*arguments[:2], '--plot', 'x.png']!r}))"
    )
    assert done.returncode == 2
    assert re.search(r'plots need matplotlib: pip install "\S+\[plot\]"\n$', done.stderr)


def test_clustering_from_a_shell_does_not_import_torch(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    program = (
        "import sys; from epruner.cli import main; main(sys.argv[1:]);"
        "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    )
    assert in_a_process(program, "cluster", str(tmp_path / "x.npy")).endswith("\n[]")


def test_the_documentation_shows_what_is_printed(run: Run) -> None:
    document = (ROOT / "docs" / "clustering" / "command-line.md").read_text(encoding="utf-8")
    exec(re.findall(r"<!-- invisible-code-block: python\n(.*?)-->", document, re.DOTALL)[0], {})
    command, shown = re.findall(r"```(?:sh)?\n(.*?)```", document, re.DOTALL)[:2]
    code, out, err = run(*shlex.split(command)[1:])
    assert (code, err) == (0, "")
    assert re.sub(r"\d+\.\d+ s\n", "0.01 s\n", out) == shown


FEW_DIGITS = """
import sklearn.datasets

load_all = sklearn.datasets.load_digits
sklearn.datasets.load_digits = lambda **how: [each[:300] for each in load_all(**how)]
"""


def test_a_demo_without_torch_clusters_and_names_the_extra() -> None:
    done = without_extras(f"{FEW_DIGITS}from epruner.cli import main\nsys.exit(main(['demo']))")
    assert (done.returncode, done.stderr) == (0, "")
    theirs = SklearnAffinityPropagation(random_state=0).fit(load_digits().data[:300])
    K = len(theirs.cluster_centers_indices_)
    assert re.search(rf"^scikit-learn +{K} +{theirs.n_iter_} ", done.stdout, re.MULTILINE)
    assert f"{K} of scikit-learn's {K} exemplars are among ours" in done.stdout
    assert re.search(r'prunes a network; .*: pip install "\S+\[prune\]"\n$', done.stdout)
    done = without_extras(f"{FEW_DIGITS}from epruner.cli import main\nmain(['demo', '--json'])")
    document = json.loads(done.stdout)
    assert document["pruning"] is None
    assert document["clustering"]["runs"][2]["clusters"] == 10
