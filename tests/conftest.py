"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cuda_shim import Make
    from digits import Digits
    from processes import Run

ROOT = Path(__file__).resolve().parent.parent

# The installed package is what `pytest` tests: the checkout comes last here (for `examples`) and
# not at all in the interpreters that tests start.
sys.path.append(str(ROOT))
os.environ["PYTHONSAFEPATH"] = "1"


DATA = Path(os.environ.get("EPRUNER_DATA", ROOT.parent / "shared" / "data"))
HAS_DATA = (DATA / "cifar_resnets").is_dir()
HAS_TORCH = find_spec("torch") is not None

# Clustering needs no torch, and neither do its tests.
collect_ignore = (
    []
    if HAS_TORCH
    else [
        "cli",
        *(f"companions/test_{name}.py" for name in ("functionality", "manidp", "orthoreg")),
        "distributed",
        "docs",
        "gpu",
        "pruning",
    ]
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what runs on trained networks that are not here: files nobody else has."""

    def here(item: pytest.Item) -> bool:
        packages = [name for mark in item.iter_markers("needs") for name in mark.args]
        on_data = "data_dir" in getattr(item, "fixturenames", ())
        return (HAS_DATA or not on_data) and all(map(find_spec, packages))

    left_out = [item for item in items if not here(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_report_header() -> list[str]:
    """Say what the numbers of tests depend on."""
    return [
        f"data: {DATA}" if HAS_DATA else "data: none (EPRUNER_DATA), its tests are deselected",
        *([] if HAS_TORCH else ["torch: none, only clustering is tested"]),
    ]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Every test starts from torch's same random numbers and leaves its threads as they were."""
    if not HAS_TORCH:
        yield
        return
    import torch

    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    left = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert left == threads, f"the test left torch on {left} threads instead of {threads}"


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder: exit code, standard output, standard error."""
    from epruner.cli import main

    monkeypatch.chdir(tmp_path)

    def runner(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return runner


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of published checkpoints and images; without it the test is deselected."""
    return DATA


@pytest.fixture(scope="session")
def resnet_files(data_dir: Path) -> dict[str, Path]:
    """The trained CIFAR networks by short name."""
    folder = data_dir / "cifar_resnets"
    return {
        "resnet20": folder / "resnet20-12fca82f.th",
        "akamaster": folder / "resnet56-4bfd9763.th",
        "theo": folder / "theo-obadiah_resnet56.pth",
    }


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """A small residual network, trained once for all tests, with its images."""
    from digits import train

    return train(tmp_path_factory.mktemp("digits") / "digits.pth")


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The device's kernels compiled as C++, a library."""
    from cuda_shim import compile_kernels

    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler to compile the kernels with")
    return compile_kernels(compiler, tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def make(kernels: Path) -> Make:
    """Make an engine that runs the device's kernels on the CPU."""
    from cuda_shim import HostEngine

    return lambda **options: HostEngine(kernels, **options)
