"""`epruner cluster` in processes that a launcher has started writes what one process writes."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Run
from ranks import MOST, ranks
from scipy import sparse
from sklearn.datasets import make_blobs
from test_shared_clustering import graph

from epruner.cli import main

POINTS = make_blobs(400, 5, centers=9, random_state=6)[0].astype(np.float32)


def command(process_group: Any, folder: str, words: list[str]) -> tuple[int, str, str]:
    """Exit code and what was said on standard output and error."""
    os.environ["WORLD_SIZE"] = str(MOST)  # as a launcher says
    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    finally:
        del os.environ["WORLD_SIZE"]
    return code, out.getvalue(), err.getvalue()


def by_all(folder: Path, *words: str) -> list[tuple[int, str, str]]:
    return ranks().run(MOST, command, str(folder), list(words))


@pytest.mark.parametrize("given", ["points.npy", "points.csv", "graph.npz"])
def test_the_first_process_writes_what_one_process_writes(
    given: str, tmp_path: Path, run: Run
) -> None:
    if given == "points.npy":
        np.save(given, POINTS)
    elif given == "points.csv":
        np.savetxt(given, POINTS[:120], delimiter=",")
    else:
        sparse.save_npz(given, graph(300, 10))
    words = ["cluster", given, "--out", "labels.csv", "--exemplars", "exemplars.csv", "--json"]
    if given == "graph.npz":
        words += ["--similarities", "--preference", "-2", "--damping", "0.9"]
    code, alone, _ = run(*words)
    assert code == 0
    written = [Path(name).read_text() for name in ("labels.csv", "exemplars.csv")]
    first, *others = by_all(tmp_path, *words, "--force")
    assert first[0] == 0, first
    assert set(others) == {(0, "", "")}
    assert [Path(name).read_text() for name in ("labels.csv", "exemplars.csv")] == written
    facts, expected = json.loads(first[1]), json.loads(alone)
    for name in ("seconds", "net_similarity", "preference"):
        assert facts.pop(name) == pytest.approx(expected.pop(name), rel=1e-5, abs=60)
    assert facts == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--affinity", "nearest_neighbors"), "over several, give the links between neighbours"),
        (("--similarities",), "--similarities takes a sparse one"),
        (("--memory", "matrix"), "--memory is for one process"),
        (("--checkpoint", "x"), "and n_clusters and damping='auto' take several"),
        (
            ("--damping", "0.9", "--checkpoint", "points.npy"),
            "points.npy is a file, and a folder is needed",
        ),
    ],
)
def test_what_takes_one_process_is_refused_in_one_line(
    words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "points.npy", POINTS[:20, :5])
    for code, out, err in by_all(tmp_path, "cluster", "points.npy", *words):
        assert (code, out) == (2, "")
        assert said in err
        assert len(err.splitlines()) == 1


def test_a_checkpoint_needs_several_processes(run: Run) -> None:
    np.save("points.npy", POINTS)
    code, _, err = run("cluster", "points.npy", "--checkpoint", "messages")
    assert code == 2
    assert "start epruner with torchrun" in err
