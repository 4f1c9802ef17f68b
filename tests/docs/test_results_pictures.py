"""Pictures are drawn from the results files, and say so: none is made by hand."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

pictures = pytest.importorskip("benchmarks.pictures", reason="needs the checkout")

PAGES = ROOT / "docs" / "benchmarks"
READMES = ("clustering", "pruning")
SQUARE = 20  # pixels that are averaged: versions of matplotlib place text a little differently
TOLERANCE = 5.0  # root mean square, of 255; between matplotlib 3.8 and 3.11 it is below 4


def results(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))


def drawn(axes: Any, label: str) -> list[tuple[float, float]]:
    """The points of the line that has this name."""
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return [(float(x), float(y)) for x, y in line.get_xydata()]


def squares(file: Path) -> Any:
    """Means of a picture's squares, (rows, columns, 3)."""
    with Image.open(file) as image:
        rows, columns = image.height // SQUARE, image.width // SQUARE
        whole = image.convert("RGB").crop((0, 0, columns * SQUARE, rows * SQUARE))
    return np.asarray(whole, float).reshape(rows, SQUARE, columns, SQUARE, 3).mean(axis=(1, 3))


def difference(one: Path, other: Path) -> float:
    return float(np.sqrt(np.mean((squares(one) - squares(other)) ** 2)))


@pytest.mark.parametrize("name", READMES)
def test_pictures_of_the_readme_are_drawn_from_todays_results(name: str, tmp_path: Path) -> None:
    there = ROOT / "docs" / "pictures" / f"{name}.png"
    redraw = f"python benchmarks/pictures.py docs/pictures {name}"
    with Image.open(there) as image:
        assert image.info["Results"] == pictures.digest(*pictures.PICTURES[name].results()), redraw
    assert difference(there, pictures.save(name, tmp_path)) < TOLERANCE, redraw


@pytest.mark.slow
@pytest.mark.parametrize("name", ["discovery", "orthoreg"])
def test_pictures_of_examples_are_what_these_draw(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [name, "--picture", str(picture)])
    import_module(f"examples.{name}").main()
    assert difference(ROOT / "docs" / "pictures" / f"companions-{name}.png", picture) < TOLERANCE


def test_a_picture_of_other_results_is_found(tmp_path: Path) -> None:
    was = pictures.PICTURES["clustering"].results()
    other = copy.deepcopy(was)
    row = other[0]["rows"][4]["fast"]
    row["epruner_s"] *= 1.01  # nothing that could be seen
    assert pictures.digest(*other) != pictures.digest(*was)
    row["epruner_s"] *= 2
    pictures.figure_of("clustering", *other).savefig(tmp_path / "other.png", dpi=pictures.DPI)
    there = ROOT / "docs" / "pictures" / "clustering.png"
    assert difference(there, tmp_path / "other.png") > TOLERANCE


def test_lines_of_the_readme_are_the_figures_of_the_results() -> None:
    _, clock = pictures.figure_of("clustering").axes
    gaussian = [row for row in results("drop_in")["rows"] if row["data"] == "gaussian"]
    fast = [(row["n"], row["fast"]) for row in gaussian]
    assert drawn(clock, "fast ties") == [(n, side["epruner_s"]) for n, side in fast]
    assert drawn(clock, "scikit-learn") == [
        (n, side["scikit_learn_s"]) for n, side in fast if "scikit_learn_s" in side
    ]
    noisy = [(row["n"], row["scikit-learn"]["epruner_s"]) for row in gaussian]
    assert drawn(clock, "with its noise") == noisy


def test_lines_of_ways_are_the_figures_of_the_results() -> None:
    rows = results("methods")["rows"]
    axes = dict(
        zip(("theo", "akamaster", "resnet20"), pictures.figure_of("ways").axes, strict=True)
    )
    for network, ax in axes.items():
        found = {
            (100 * row["macs"], row["score"])
            for row in rows
            if (row["network"], row["method"], row["repair"], row["inputs"])
            == (network, "auto", "auto", "noise")
        }
        line = drawn(ax, "default, without data")
        assert set(line) == found
        assert len(line) == len(found) > 1
        (base,) = {row["base"] for row in rows if row["network"] == network}
        assert {y for _, y in drawn(ax, "whole network")} == {base}


def test_a_changed_figure_moves_its_line() -> None:
    given = pictures.PICTURES["drop-in"].results()
    row = next(row for row in given[0]["rows"] if row["n"] == 5000)
    row["fast"]["epruner_s"] *= 2
    (ax,) = pictures.figure_of("drop-in", *given).axes
    assert dict(drawn(ax, "accelerated, fast ties"))[5000] == row["fast"]["epruner_s"]


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_nothing_of_a_picture_is_cut_off(name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = pictures.figure_of(name)
    FigureCanvasAgg(figure).draw()
    box, size = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= -0.01
    assert box.y0 >= -0.01
    assert box.x1 <= size[0] + 0.01
    assert box.y1 <= size[1] + 0.01
    np.testing.assert_array_equal(figure.get_facecolor(), (1, 1, 1, 1))  # on dark pages, too


def test_every_picture_and_every_file_of_them_is_on_a_page() -> None:
    text = "\n".join(page.read_text("utf-8") for page in sorted(PAGES.glob("*.md")))
    shown = re.findall(r"^```\{results-picture\} (\S+)\n\S", text, re.MULTILINE)
    assert sorted(shown) == sorted(set(pictures.PICTURES) - set(READMES))


@pytest.mark.parametrize(
    "file", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda file: file.stem
)
def test_results_say_by_which_command_they_were_made(file: Path) -> None:
    found = json.loads(file.read_text("utf-8"))
    for document in [found] if "command" in found else found.values():
        script = re.fullmatch(r"python (benchmarks/\w+\.py)( .+)?", document["command"])
        assert script
        assert (ROOT / script[1]).is_file()


CONFIGURATION = f"""
import sys
sys.path.insert(0, {str(ROOT / "docs" / "_ext")!r})
extensions = ["myst_parser", "results"]
"""
PAGE = """# Page

```{results-picture} drop-in
What it shows.
```

```{results-machine} blocks
```
"""


def build(folder: Path, page: str) -> subprocess.CompletedProcess[str]:
    for module in ("sphinx", "myst_parser"):
        pytest.importorskip(module, reason="the site is built with it")
    source = folder / "source"
    source.mkdir()
    (source / "conf.py").write_text(CONFIGURATION, "utf-8")
    (source / "index.md").write_text(page, "utf-8")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", str(source), str(folder / "site")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_page_shows_picture_command_and_machine(tmp_path: Path) -> None:
    done = build(tmp_path, PAGE)
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "site" / "index.html").read_text("utf-8")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html))
    for name in ("drop_in", "blocks"):
        found = results(name)
        assert f"{found['command']}: {found['machine']['cpu']}, " in text
    assert 'alt="What it shows."' in html
    assert (tmp_path / "site" / "_images" / "drop-in.png").is_file()
    assert sorted(p.name for p in (tmp_path / "source").iterdir()) == ["conf.py", "index.md"]


def test_a_picture_that_is_not_there_stops_the_build(tmp_path: Path) -> None:
    done = build(tmp_path, PAGE.replace("drop-in", "drop-out"))
    assert done.returncode != 0
    assert "no picture is called 'drop-out'" in done.stderr
