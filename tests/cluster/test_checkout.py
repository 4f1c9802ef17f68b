"""Python started in a checkout: the source folder comes first, and holds no extension."""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT

from epruner.cluster import _native

CLUSTER = """
import sys, warnings
sys.modules["numba"] = None  # its solver would be compiled anew for each copy
import numpy as np
import epruner
from epruner.cluster import _compiled
X = np.random.default_rng(0).normal(size=(60, 8))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    warnings.filterwarnings("ignore", "epruner runs on one thread")  # a build without OpenMP
    epruner.AffinityPropagation(damping=0.8).fit(X)
print(epruner.__file__)
print(_compiled.native and _compiled.native.__file__)
print(*(w.message for w in caught))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the source folder, as a clone would be."""
    for folder in ("epruner", "csrc"):
        shutil.copytree(
            ROOT / folder,
            tmp_path / "clone" / folder,
            ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.pyd"),
        )
    return tmp_path / "clone"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """What is installed here, but for epruner (the libraries beside it in a wheel stay)."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    for place in map(Path, sys.path):
        if "site-packages" in place.parts and place.is_dir():
            for path in place.iterdir():
                here = folder / path.name
                ours = path.name == "epruner" or path.name.startswith(("epruner-", "_epruner"))
                if not ours and not here.exists():
                    here.symlink_to(path)
    return folder


def install_extension(packages: Path) -> Path:
    folder = packages / "epruner" / "cluster"
    folder.mkdir(parents=True)
    return Path(shutil.copy(_native.__file__, folder))


def started_in(folder: Path, packages: Path, *arguments: str) -> list[str]:
    """What Python prints: of a clustering run the package's file, the extension's, and warnings."""
    done = subprocess.run(
        # -S: without the site-packages of this run
        [sys.executable, "-S", *(arguments or ("-c", CLUSTER))],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
        | {"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:3]


def test_the_installed_extension_serves_the_checkout_it_was_built_from(
    checkout: Path, packages: Path
) -> None:
    extension = install_extension(packages)
    package, native, warned = started_in(checkout, packages)
    assert Path(package).parent == checkout / "epruner"
    assert Path(native) == extension
    assert warned == ""


def test_an_extension_built_from_other_sources_is_refused_by_name(
    checkout: Path, packages: Path
) -> None:
    extension = install_extension(packages)
    (checkout / "csrc" / "row_kernels.cpp").write_text("// changed since\n")
    _, native, warned = started_in(checkout, packages)
    assert native == "None"
    assert f"{extension} was compiled from other sources" in warned
    assert f'pip install "{checkout}"' in warned


def test_a_checkout_without_an_installation_says_so(checkout: Path, packages: Path) -> None:
    _, native, warned = started_in(checkout, packages)
    assert native == "None"
    assert f"found epruner's source folder {checkout / 'epruner'} first" in warned
    assert f'pip install "{checkout}"' in warned


def test_a_checkout_without_an_installation_knows_its_version(
    checkout: Path, packages: Path
) -> None:
    shutil.copy(ROOT / "pyproject.toml", checkout)
    said = started_in(checkout, packages, "-m", "epruner", "--version")[0]
    assert said == f"epruner {version('epruner')}"


def test_an_installation_for_another_python_says_so(checkout: Path, packages: Path) -> None:
    shutil.move(checkout / "epruner", packages)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    other = packages / "epruner" / "cluster" / f"_native.cpython-27{suffix}"
    other.touch()
    _, native, warned = started_in(checkout, packages)
    assert native == "None"
    assert f"one for another Python only ({other.name})" in warned


def test_an_extension_that_does_not_load_says_what_to_do(checkout: Path, packages: Path) -> None:
    extension = install_extension(packages)
    extension.write_bytes(b"no library")
    _, native, warned = started_in(checkout, packages)
    assert native == "None"
    assert "does not load" in warned
    assert "install epruner again with this Python" in warned
