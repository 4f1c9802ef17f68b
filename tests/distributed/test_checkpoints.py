"""Messages on disk: a run that was cut off goes on to the same bits, on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ranks import Failed, ranks
from sklearn.datasets import make_blobs
from test_shared_clustering import fitted, graph, over_ranks, same

Array = NDArray[Any]

X = make_blobs(1500, 6, centers=9, random_state=2)[0].astype(np.float32)
SETTINGS: dict[str, Any] = {"damping": 0.9, "preference": -2000.0}
GRAPH: dict[str, Any] = {"affinity": "precomputed", "damping": 0.9, "preference": -2.0}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.filterwarnings("ignore:Affinity propagation did not converge")
@pytest.mark.parametrize(("data", "settings"), [(X, SETTINGS), (graph(400, 12), GRAPH)])
def test_what_was_cut_off_goes_on_to_the_bit(
    tmp_path: Path, data: Any, settings: dict[str, Any]
) -> None:
    folder = tmp_path / "messages"
    undisturbed = over_ranks(1, data, **settings)
    assert undisturbed.facts[0] > 30
    kept: dict[str, Any] = {**settings, "checkpoint": str(folder), "checkpoint_every": 10}
    cut_off = over_ranks(2, data, max_iter=25, **kept)
    assert not cut_off.facts[1]
    assert json.loads((folder / "checkpoint.json").read_text())["iteration"] == 20
    assert len(files(folder)) == 3
    same(undisturbed, over_ranks(3, data, **kept))
    same(undisturbed, over_ranks(1, data, **kept))
    assert over_ranks(2, data, max_iter=3, **kept).facts[:2] == (last_of(folder), False)


def last_of(folder: Path) -> int:
    return int(json.loads((folder / "checkpoint.json").read_text())["iteration"])


@pytest.mark.filterwarnings("ignore:Affinity propagation did not converge")
def test_messages_of_another_run_are_refused(tmp_path: Path) -> None:
    kept: dict[str, Any] = {"checkpoint": str(tmp_path), "checkpoint_every": 5}
    over_ranks(2, X, max_iter=6, **SETTINGS, **kept)
    before = files(tmp_path)

    def refused(data: Array, **changes: Any) -> str:
        settings = {**SETTINGS, **kept, **changes}
        one, other = ranks().outcomes(2, fitted, settings, each=np.array_split(data, 2))
        assert isinstance(one, Failed)
        assert one.kind == other.kind == "ValueError"
        return one.text

    assert "whose damping is 0.9 and not 0.8" in refused(X, damping=0.8)
    assert "whose data is" in refused(X + 1)
    assert "and n_clusters and damping='auto' take several" in refused(X, n_clusters=3)
    assert "checkpoint_every=0 must be at least 1" in refused(X, checkpoint_every=0)
    assert "whose preference is" in refused(X, preference=-1000.0)
    assert files(tmp_path) == before
    (tmp_path / before[1]).write_bytes(b"PK")
    assert "is missing or damaged" in refused(X)
    (tmp_path / "checkpoint.json").write_text("{}")
    assert "is no list of a checkpoint" in refused(X)


def test_a_checkpoint_is_no_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path, said in ((file, "is a file, and a folder is needed"), (file / "x", "no folder")):
        settings = {"checkpoint": str(path)}
        for error in ranks().outcomes(2, fitted, settings, each=[X[:9], X[9:20]]):
            assert said in error.text
    assert file.read_text() == ""
