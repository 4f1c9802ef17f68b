"""Commands in processes that a launcher has started, and in those that they start themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from processes import environment, in_a_process

from epruner.cli.images import Images, InOrder, Shuffled
from epruner.distributed.launch import launched
from epruner.pruning.io.checkpoint import load
from examples.cifar_resnet import resnet20

if TYPE_CHECKING:
    from processes import Run

RESNET20 = ["--model", "examples.cifar_resnet:resnet20", "--input-shape", "1,3,32,32"]
COMPARE = ["compare", *RESNET20, "--macs", "0.7", "0.5", "--method", "l1", "--threads", "1"]


def torchrun(*arguments: str) -> str:
    """What two processes print, and nothing on standard error."""
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "epruner", *arguments]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,  # whose examples are imported
        env=environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def images(tmp_path: Path) -> str:
    generator = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    pixels = generator.integers(256, size=(40, 32, 32, 3), dtype=np.uint8)
    np.savez(path, images=pixels, labels=generator.integers(10, size=40))
    return str(path)


def without_times(out: str) -> list[Any]:
    runs = json.loads(out)["runs"]
    for run in runs:
        del run["seconds"]
    return list(runs)


@pytest.mark.parametrize("size", [None, "1"])
def test_a_process_alone_is_no_group(monkeypatch: pytest.MonkeyPatch, size: str | None) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    with launched() as group:
        assert group is None
    assert not torch.distributed.is_initialized()


def test_a_launcher_that_says_too_little_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE must be a number of processes, got 'two'"):
        launched().__enter__()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="RANK"):
        launched().__enter__()


def test_a_process_alone_needs_no_torch() -> None:
    code = "import sys, epruner.distributed.launch as x\nwith x.launched() as group: print(group)\n"
    assert in_a_process(code + "assert 'torch' not in sys.modules", WORLD_SIZE="1") == "None"


def test_parts_of_batches_make_the_batches(images: str) -> None:
    every = Images(images, (3, 32, 32), [0.5], [0.5])
    parts = [slice(rank, None, 3) for rank in range(3)]
    whole, shares = Shuffled(every, 16, 1), [Shuffled(every, 16, 1, part) for part in parts]
    seen = []
    for epoch in range(2):
        for loader in (whole, *shares):
            loader.set_epoch(epoch)
        for (x, y), *own in zip(whole, *shares, strict=True):
            for part, (inputs, labels) in zip(parts, own, strict=True):
                assert torch.equal(inputs, x[part])
                assert torch.equal(labels, y[part])
            seen.append(y)
    assert not torch.equal(seen[0], seen[2])
    found = [y for part in parts for _, y in InOrder(every, part)]
    assert every.labels is not None
    assert torch.equal(torch.cat(found).sort().values, every.labels.sort().values)
    with pytest.raises(ValueError, match="a batch of 2 is less than one image for every process"):
        Shuffled(every, 2, 0, parts[2])


def test_what_is_measured_is_not_compared_side_by_side(run: Run) -> None:
    code, out, err = run("compare", *RESNET20, "--latency", "0.5", "--jobs", "2")
    assert (code, out) == (2, "")
    assert "--latency is measured" in err


@pytest.mark.slow
def test_compare_gives_the_same_in_any_number_of_processes(run: Run) -> None:
    code, out, err = run(*COMPARE, "--json")
    assert (code, err) == (0, "")
    _, beside, err = run(*COMPARE, "--json", "--jobs", "2")
    assert err == ""
    assert without_times(beside) == without_times(out)
    assert without_times(torchrun(*COMPARE, "--json")) == without_times(out)


@pytest.mark.slow
def test_finetune_under_torchrun_takes_the_steps_of_one_process(
    run: Run, tmp_path: Path, images: str
) -> None:
    small, one, two, checkpoint = (str(tmp_path / name) for name in ("s", "one", "two", "run.pt"))
    run("prune", *RESNET20, "--macs", "0.3", "--method", "l1", "--out", small)
    arguments = [
        "finetune", small, *RESNET20, "--train", images, "--labelled", images, "--epochs", "2",
        "--batch", "20", "--lr", "0.001", "--json",
    ]  # fmt: skip
    code, out, err = run(*arguments, "--out", one)
    assert (code, err) == (0, "")
    alone = json.loads(out)
    both = json.loads(torchrun(*arguments, "--out", two, "--checkpoint", checkpoint))
    assert both["before"] == alone["before"]
    for mine, theirs in zip(both["epochs"], alone["epochs"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-3)
    assert Path(checkpoint).is_file()
    states = [load(resnet20(), path).state_dict() for path in (one, two)]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=0.01, atol=1e-3)
