"""A rank that is lost or fails ends the others, each with one error that names it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from processes import environment
from sklearn.datasets import make_blobs

POINTS = 3000
# A rank of a group that a file introduces to each other. It says so when it has written the first
# checkpoint, and what it has found in the end.
RANK = """
import json, sys
from datetime import timedelta
from pathlib import Path
from typing import Any
import numpy as np
import torch.distributed as dist
from epruner.distributed import AffinityPropagation
folder, rank, size, timeout = Path(sys.argv[1]), *map(int, sys.argv[2:5])
wait = timedelta(seconds=timeout)
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size, timeout=wait
)
X = np.array_split(np.load(folder / "X.npy", mmap_mode="r"), size)[rank]
settings = json.loads((folder / "settings.json").read_text())
print("begins", flush=True)
try:
    model = AffinityPropagation(**settings).fit(X)
except RuntimeError as error:
    sys.exit(f"{type(error).__name__}: {error}")
found = {"labels": model.labels_.tolist(), "n_iter": model.n_iter_, "net": model.net_similarity_}
print(json.dumps(found), flush=True)
"""


@contextmanager
def started(
    folder: Path, size: int, *, timeout: int = 60, **settings: object
) -> Iterator[list[subprocess.Popen[str]]]:
    X = make_blobs(POINTS, 8, centers=40, random_state=3)[0].astype(np.float32)
    np.save(folder / "X.npy", X)
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "meeting").unlink(missing_ok=True)
    arguments = [[str(folder), str(rank), str(size), str(timeout)] for rank in range(size)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *own],
            env=environment(OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for own in arguments
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def wait_for(path: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name} after {seconds} s"
        time.sleep(0.01)


# Messages that go on for as long as the test lets them.
ENDLESS: dict[str, Any] = {"damping": 0.9, "max_iter": 100_000, "convergence_iter": 90_000}


def test_a_lost_rank_is_named_by_the_others_and_the_run_goes_on(tmp_path: Path) -> None:
    kept = tmp_path / "messages"
    settings: dict[str, Any] = {"checkpoint": str(kept), "checkpoint_every": 5}
    with started(tmp_path, 4, **ENDLESS, **settings) as processes:
        wait_for(kept / "checkpoint.json")
        processes[2].send_signal(signal.SIGKILL)
        begun = time.monotonic()
        said = [processes[rank].communicate(timeout=60)[1] for rank in (0, 1, 3)]
        assert time.monotonic() - begun < 15
    assert {text.strip().splitlines()[-1] for text in said} == {"RankError: rank 2 is gone"}
    facts = json.loads((kept / "checkpoint.json").read_text())
    assert all((kept / name).is_file() for name in facts["files"])
    assert len(facts["files"]) == 4


def test_a_rank_that_does_not_answer_is_named_in_time(tmp_path: Path) -> None:
    kept = tmp_path / "messages"
    settings: dict[str, Any] = {"checkpoint": str(kept), "checkpoint_every": 5}
    with started(tmp_path, 2, timeout=3, **ENDLESS, **settings) as processes:
        wait_for(kept / "checkpoint.json")
        processes[1].send_signal(signal.SIGSTOP)
        _, said = processes[0].communicate(timeout=60)
    assert "rank 1 did not answer in time" in said.strip().splitlines()[-1]


def test_an_interrupt_ends_all(tmp_path: Path) -> None:
    kept = tmp_path / "messages"
    settings: dict[str, Any] = {"checkpoint": str(kept), "checkpoint_every": 5}
    with started(tmp_path, 3, **ENDLESS, **settings) as processes:
        wait_for(kept / "checkpoint.json")
        for process in processes:
            process.send_signal(signal.SIGINT)
        said = [process.communicate(timeout=60)[1] for process in processes]
    ends = [
        text.strip().splitlines()[-1].removeprefix(f"[rank{q}]: ") for q, text in enumerate(said)
    ]
    assert "KeyboardInterrupt" in ends
    assert all(end == "KeyboardInterrupt" or "RankError: rank" in end for end in ends)
