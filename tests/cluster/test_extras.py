"""Clustering needs numpy and scikit-learn alone; what needs more says which extra brings it."""

import re
import subprocess
import sys
from importlib.metadata import metadata, requires, version
from pathlib import Path

import pytest

BARE = """
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    absent = {"torch", "torch_pruning", "safetensors", "rich", "matplotlib", "numba", "cupy",
              "pynndescent"}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in cls.absent else super().find_spec(name, path, target)

sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""
SAID = r'pruning needs torch, safetensors, rich, .*: pip install "\S+\[prune\]"'


def without_extras(code: str) -> subprocess.CompletedProcess[str]:
    """Run code as where only what clustering needs is installed."""
    return subprocess.run(
        [sys.executable, "-c", BARE + code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_clustering_needs_no_extra() -> None:
    done = without_extras(
        "import numpy as np, epruner\n"
        "from epruner.cluster import backends\n"
        "X = np.random.default_rng(0).normal(size=(80, 3))\n"
        "print(epruner.AffinityPropagation(damping=0.8).fit(X).converged_)\n"
        "print(backends.get('auto').__module__)\n"
    )
    assert done.stdout.split() == ["True", "epruner.cluster.backends.native"], done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import epruner.pruning",
        "import epruner; epruner.prune",
        "from epruner import load, save",
    ],
)
def test_pruning_names_its_extra(code: str) -> None:
    done = without_extras(code)
    assert done.returncode == 1
    assert re.search(f"^ImportError: {SAID}$", done.stderr, re.MULTILINE), done.stderr


def test_the_importance_for_torch_pruning_names_its_extra() -> None:
    done = without_extras("import epruner.integrations.torch_pruning")
    assert done.returncode == 1
    assert re.search(r'needs torch_pruning, .*\[torch-pruning\]"$', done.stderr), done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--out", "a.safetensors"],
        ["inspect", "a.safetensors"],
        ["prune", "--model", "a:b", "--input-shape", "1,3", "--out", "a.safetensors"],
        ["compare", "--model", "a:b", "--input-shape", "1,3", "--macs", "0.5"],
        ["export", "a.safetensors", "--model", "a:b", "--input-shape", "1,3", "--pt2", "a.pt2"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_name_their_extra_in_one_line(arguments: list[str]) -> None:
    done = without_extras(f"from epruner.cli import main\nsys.exit(main({arguments!r}))")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"epruner {arguments[0]}: error: {SAID}\n", done.stderr), done.stderr


def test_what_a_star_imports_and_help_shows_is_there() -> None:
    done = without_extras(
        "import epruner, pydoc\nfrom epruner import *\npydoc.render_doc(epruner)\n"
    )
    assert done.returncode == 0, done.stderr
    done = without_extras("import epruner\nprint(*epruner.__all__)")
    assert "AffinityPropagation" in done.stdout
    assert "prune" not in done.stdout.split()


def test_help_and_version_need_no_extra() -> None:
    done = without_extras("from epruner.cli import main\nmain(['--version'])")
    assert (done.returncode, done.stdout) == (0, f"epruner {version('epruner')}\n")
    done = without_extras("from epruner.cli import main\nmain(['prune', '--help'])")
    assert done.returncode == 0
    assert "--macs" in done.stdout


def test_the_core_depends_on_little() -> None:
    core = [line for line in requires("epruner") or [] if "extra ==" not in line]
    names = {re.split(r"[^\w-]", line)[0] for line in core}
    assert names == {"numpy", "scikit-learn", "threadpoolctl"}


def test_the_readme_on_a_package_index_has_no_link_to_a_file_beside_it() -> None:
    document = metadata("epruner")
    text = document["Description"] or document.get_payload()  # type: ignore[attr-defined]
    assert "Affinity propagation" in text
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert not [link for link in links if not link.startswith(("https://", "#"))]
    here = Path(__file__).parents[2] / "README.md"
    words = re.sub(r"!\[[^]]*\]\([^)]*\)", "", here.read_text(encoding="utf-8"))  # no pictures
    beside = re.findall(r"\]\(((?!https?://|#)[^)]*)\)", words)
    assert beside
    assert "![" not in text
    assert all(f"`{link}` in the source distribution" in text for link in beside)
