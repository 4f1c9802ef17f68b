"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cuda_shim import Make

ROOT = Path(__file__).resolve().parent.parent

# The installed package is what is tested: the checkout, which holds no compiled extension, comes
# last here (for `examples`) and not at all in the interpreters that tests start.
sys.path.append(str(ROOT))
os.environ["PYTHONSAFEPATH"] = "1"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real checkpoints and images (``EPRUNER_DATA``); the test skips without it."""
    folder = Path(os.environ.get("EPRUNER_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}: set EPRUNER_DATA to the folder that holds it")
    return folder


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
