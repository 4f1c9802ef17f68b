"""Pictures are drawn from the results files, and say so: none is made by hand."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from documents import results
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image
from pixels import TOLERANCE, difference

pictures = pytest.importorskip("benchmarks.pictures", reason="needs the checkout")

PAGES = ROOT / "docs" / "benchmarks"
READMES = ("clustering", "pruning")

Row = dict[str, Any]
Marks = list[Any]  # points; bars and their names; ends of ties; what is written
Way = tuple[str, str, str | int]  # method, repair, inputs
USUAL = -1  # as many inputs as the methods of a network were given


def drawn(axes: Any, label: str) -> list[tuple[float, float]]:
    """The points of the line that has this name."""
    (line,) = (line for line in axes.get_lines() if line.get_label() == label)
    return [(float(x), float(y)) for x, y in line.get_xydata()]


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
    rows = [row["fast"] for row in other[0]["rows"]]
    rows[4]["epruner_s"] *= 1.01  # nothing that could be seen
    assert pictures.digest(*other) != pictures.digest(*was)
    for row in rows:
        row["epruner_s"] *= 2
    pictures.figure_of("clustering", *other).savefig(tmp_path / "other.png", dpi=pictures.DPI)
    there = ROOT / "docs" / "pictures" / "clustering.png"
    assert difference(there, tmp_path / "other.png") > TOLERANCE


def shown(ax: Any) -> dict[str, Marks]:
    """All that stands in axes, by its name in the legend; what has none, by what it is."""
    if not ax.axison:  # a map: its places mean nothing
        return {"title": [ax.get_title("center")]}
    places = ax.get_yticks()  # of bars, and of the marks in line with these words
    words = dict(zip(places, ax.yaxis.get_major_formatter().format_ticks(places), strict=True))

    def at(x: float, y: float) -> tuple[float, str]:
        return float(x), words[round(y, 9)]

    legends = {
        to_hex(line.get_color()): line.get_label()
        for axes in ax.figure.axes
        for line in axes.get_lines()
    }
    found: dict[str, Marks] = {
        "title": [ax.get_title("left") or ax.get_title("center")],
        "words": [text.get_text() for text in ax.texts],
        "bars": [at(bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in ax.patches],
    }
    for line in ax.get_lines():
        name = line.get_label()
        points = [(float(x), float(y)) for x, y in line.get_xydata()]
        found.setdefault("line" if name.startswith("_") else name, []).extend(points)
    for marks in ax.collections:
        if isinstance(marks, LineCollection):
            ends = [tuple(at(x, y) for x, y in ends) for ends in marks.get_segments()]
            found.setdefault("ties", []).extend(ends)
            continue
        name = marks.get_label()
        name = legends[to_hex(marks.get_facecolor()[0])] if name.startswith("_") else name
        found.setdefault(name, []).extend(at(x, y) for x, y in np.asarray(marks.get_offsets()))
    return {name: marks for name, marks in found.items() if marks and marks != [""]}


NETWORKS = {
    "theo": "ResNet-56",
    "akamaster": "another ResNet-56",
    "resnet20": "ResNet-20",
    "mobilenetv2": "MobileNetV2",
    "efficientnet-lite0": "EfficientNet-Lite0",
    "encoder": "sentence encoder",
}
RIVALS = {
    "epruner": "epruner_s",
    "scikit-learn": "scikit_learn_s",
    "naffprop": "naffprop_s",
    "R's apcluster": "apcluster_s",
}
DATA = {
    "gaussian, 16-d": "Gaussian, 16-d",
    "digits": "digits",
    "filters": "filter-like, 64-d",
    "gaussian": "Gaussian, 64-d",
}
WAYS: dict[str, Way] = {
    "L1, sliced": ("l1", "none", 0),
    "L1, refit to inputs": ("l1", "least_squares", USUAL),
    "default, without data": ("auto", "auto", "noise"),
    "exemplars, from inputs": ("exemplar", "auto", USUAL),
    "default, from inputs": ("auto", "auto", USUAL),
    "default, distilled": ("auto", "distill", USUAL),
}
BARS: dict[str, Way] = {  # from below
    "distilled, 7,728 images": ("auto", "distill", 7728),
    "distilled, synthetic inputs": ("auto", "distill", "synthetic"),
    "distilled, 400 images": ("auto", "distill", 400),
    "default, synthetic inputs": ("auto", "auto", "synthetic"),
    "default, 400 images": ("auto", "auto", 400),
    "default, without data": ("auto", "auto", "noise"),
    "L1, refit to 400 images": ("l1", "least_squares", 400),
    "L1, BatchNorm anew, 400 images": ("l1", "batchnorm", 400),
    "L1, merged": ("l1", "merge", 0),
    "L1, sliced": ("l1", "none", 0),
}
VARIANTS = {
    "all (not pruned)": "unpruned",
    "L1": "l1",
    "FPGM": "fpgm",
    "exemplars of weights": "exemplar",
    "random": "random",
    "exemplars' places, random weights": "exemplar, random init",
}


def line(rows: list[Row], x: str, y: str, factor: float = 1) -> Marks:
    """Points of the rows that have both."""
    return [(factor * row[x], row[y]) for row in rows if row.get(y) is not None]


def sizes(data: str) -> list[Row]:
    """Calls of the function with the median as preference."""
    given = [row for row in results("clustering")["rows"] if row["factor"] == 1]
    everyday = [r for r in results("clustering_everyday")["rows"] if r["case"] == "function"]
    return [row for row in [*everyday, *given] if row["data"] == data]


def compared() -> list[Row]:
    """All that was compared with scikit-learn, from the least gain on."""
    clustering, everyday = results("clustering"), results("clustering_everyday")
    rows = [*clustering["rows"], *clustering["layers"], *everyday["rows"]]
    return sorted(rows, key=lambda row: float(row["vs_scikit_learn"]))


def in_words(row: Row) -> str:
    if "file" in row:
        return f"{row['layers']} layers of a ResNet-56"
    words = [DATA.get(row["data"], str(row["data"])), f"n = {row['n']:,}"]
    if row.get("case", "function") != "function":
        words.append(row["case"])
    if row.get("factor", 1) != 1:
        words.append(f"p = {row['factor']:g} medians")
    return f"{', '.join(words)}: {row['clusters']} clusters"


def gaussian(ties: str) -> list[Row]:
    rows = results("drop_in")["rows"]
    return [{"n": row["n"]} | row[ties] for row in rows if row["data"] == "gaussian"]


def from_features(key: str) -> dict[str, Marks]:
    few = [*results("neighbors")["agreement"], *results("neighbors_million")["scale"]]
    return {
        "exact, all pairs, 64-d": line(results("clustering_scale")["rows"], "n", key),
        "nearest neighbours, 32-d": line(few, "n", key),
    }


def by_ranks(key: str) -> dict[str, Marks]:
    features, graph = results("distributed")["cases"]
    return {
        f"{features[0]['n']:,} points, 64 features": line(features[1:], "ranks", key),
        f"{graph[0]['n']:,} points, a graph": line(graph[1:], "ranks", key),
    }


def of_network(network: str) -> list[Row]:
    return [row for row in results("methods")["rows"] if row["network"] == network]


def of_way(network: str, way: Way) -> list[Row]:
    """From most multiply-adds to fewest."""
    method, repair, inputs = way
    if inputs == USUAL:
        (inputs,) = {r["inputs"] for r in of_network(network) if r["repair"] == "least_squares"}
    found = [
        row for row in of_network(network)
        if (row["method"], row["repair"], row["inputs"]) == (method, repair, inputs)
    ]  # fmt: skip
    return sorted(found, key=lambda row: -float(row["macs"]))


def whole(network: str) -> float:
    (base,) = {row["base"] for row in of_network(network)}
    return float(base)


def by_macs(network: str, *names: str) -> dict[str, Marks]:
    base = whole(network)
    return {
        "title": [NETWORKS[network]],
        "whole network": [(0.0, base), (1.0, base)],
        **{name: line(of_way(network, WAYS[name]), "macs", "score", 100) for name in names},
    }


def least(key: str) -> list[float]:
    """A figure of each bar, of theo's network at the fewest multiply-adds."""
    return [of_way("theo", way)[-1][key] for way in BARS.values()]


def passed(network: str, kind: str) -> Marks:
    rows = [row for row in results("blocks")["rows"] if row["network"] == network]
    rows.sort(key=lambda row: float(row["latency"]))
    return line(rows, f"{kind}_share", f"{kind}_accuracy", 100)


def trained(when: str) -> list[float]:
    rows = {row["variant"]: row[when] for row in results("finetune")["rows"]}
    return [rows[variant] for variant in VARIANTS.values()]


def importance(network: str, scope: str, name: str) -> Marks:
    (scores,) = (
        row["top1"] for row in results("torch_pruning_importances")["rows"]
        if (row["network"], row["scope"], row["importance"]) == (network, scope, name)
    )  # fmt: skip
    return [(100 * float(cut), score) for cut, score in scores.items()]


def share_of_whole(network: str, name: str) -> float:
    return 100 * float(of_way(network, WAYS[name])[-1]["score"]) / whole(network)


def others() -> dict[str, str]:
    """Networks beside theo's, from below, and what their ticks say."""
    names = [name for name in reversed(NETWORKS) if name != "theo"]
    macs = {name: of_way(name, WAYS["default, from inputs"])[-1]["macs"] for name in names}
    return {name: f"{NETWORKS[name]}, {100 * macs[name]:.0f} %" for name in names}


def at_most_points(ties: str, key: str, name: str) -> str:
    """What is written beside a line of the README's."""
    last = [row for row in gaussian(ties) if "scikit_learn_s" in row][-1]
    return f"{name}, {last[key]:.0f} times"


SLICED, WITHOUT, GIVEN, DISTILLED = (
    "L1, sliced", "default, without data", "default, from inputs", "default, distilled",
)  # fmt: skip
EXPECTED: dict[str, Callable[[], list[dict[str, Marks]]]] = {
    "speed": lambda: [
        {"title": [title]} | {name: line(sizes(data), "n", key) for name, key in RIVALS.items()}
        for data, title in DATA.items()
    ],
    "faster": lambda: [
        {
            "bars": [(row["vs_scikit_learn"], in_words(row)) for row in compared()],
            "words": [f"{row['vs_scikit_learn']:.0f}" for row in compared()],
            "aim": [(row["target"], in_words(row)) for row in compared() if row["target"]],
        }
    ],
    "drop-in": lambda: [
        {
            "scikit-learn": line(gaussian("fast"), "n", "scikit_learn_s"),
            "accelerated, the same noise": line(gaussian("scikit-learn"), "n", "epruner_s"),
            "accelerated, fast ties": line(gaussian("fast"), "n", "epruner_s"),
        }
    ],
    "large": lambda: [
        {
            "title": ["time"],
            "matrix product": line(results("clustering_scale")["rows"], "n", "product_s"),
            **from_features("seconds"),
        },
        {
            "title": ["memory of the process at its peak"],
            "the matrix alone, float32": [
                (row["n"], row["n"] ** 2 * 4 / 1e9) for row in results("clustering_scale")["rows"]
            ],
            **from_features("peak_gb"),
        },
    ],
    "ranks": lambda: [
        {"title": [title]} | by_ranks(key)
        for title, key in {
            "time, s": "seconds",
            "processor time\nof a rank, s": "cpu_s",
            "memory\nof a rank, MB": "peak_mb",
            "sent by a rank\nan iteration, MB": "iteration_mb",
        }.items()
    ],
    "ways": lambda: [by_macs(name, *WAYS) for name in ("theo", "akamaster", "resnet20")],
    "networks": lambda: [
        by_macs(name, *WAYS) for name in ("mobilenetv2", "efficientnet-lite0", "encoder")
    ],
    "repair-time": lambda: [
        {
            "title": ["processor time"],
            "bars": [*zip(least("cpu_seconds"), BARS, strict=True)],
            "words": [f"{value:,.1f}" for value in least("cpu_seconds")],
        },
        {
            "title": [f"accuracy at {100 * least('macs')[0]:.0f} % of the multiply-adds"],
            "bars": [*zip(least("score"), BARS, strict=True)],
            "words": [f"{value:.1f}" for value in least("score")],
            "line": [(whole("theo"), 0), (whole("theo"), 1)],
        },
    ],
    "blocks": lambda: [
        {
            "title": [NETWORKS[network]],
            "with whole blocks": passed(network, "both"),
            "filters only": passed(network, "filters"),
        }
        for network in ("theo", "akamaster", "resnet20")
    ],
    "finetune": lambda: [
        {
            "before training": [*zip(trained("before"), VARIANTS, strict=True)],
            "after training": [*zip(trained("after"), VARIANTS, strict=True)],
            "words": [f"{value:.1f}" for value in trained("after")],
            "ties": [
                ((before, name), (after, name))
                for before, after, name in zip(
                    trained("before"), trained("after"), VARIANTS, strict=True
                )
            ],
        }
    ],
    "importances": lambda: [
        {
            "title": [f"{NETWORKS[network]},\n{scopes}"],
            "whole network": [(0, base), (1, base)],
            **{
                name: importance(network, scope, name)
                for name in ("magnitude", "FPGM", "exemplars", "random")
            },
        }
        for network, base in results("torch_pruning_importances")["whole"].items()
        for scope, scopes in {"each layer": "in each layer", "all": "over all layers"}.items()
    ],
    "clustering": lambda: [
        {"title": ["1,797 digits in a plane, tied to 20 of them"]},
        {
            "title": ["scikit-learn's estimator, as it is and accelerated"],
            "scikit-learn": line(gaussian("fast"), "n", "scikit_learn_s"),
            "with its noise": line(gaussian("scikit-learn"), "n", "epruner_s"),
            "fast ties": line(gaussian("fast"), "n", "epruner_s"),
            "words": [
                "scikit-learn",
                at_most_points("scikit-learn", "vs_scikit_learn", "with its noise"),
                at_most_points("fast", "vs_scikit_learn", "fast ties"),
            ],
        },
    ],
    "pruning": lambda: [
        by_macs("theo", SLICED, WITHOUT, GIVEN, DISTILLED),
        {
            "title": ["other networks, % of multiply-adds"],
            **{
                name: [(share_of_whole(network, name), at) for network, at in others().items()]
                for name in (SLICED, WITHOUT, GIVEN)
            },
            "ties": [
                ((min(kept), at), (max(kept), at))
                for network, at in others().items()
                for kept in [[share_of_whole(network, way) for way in (SLICED, WITHOUT, GIVEN)]]
            ],
        },
    ],
}


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_all_marks_of_a_picture_are_figures_of_the_results(name: str) -> None:
    expected = [{what: marks for what, marks in axes.items() if marks} for axes in EXPECTED[name]()]
    assert [shown(ax) for ax in pictures.figure_of(name).axes] == expected


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_our_lines_are_blue_and_those_without_any_skill_grey(name: str) -> None:
    ours = {"epruner", "exemplars", GIVEN, "with whole blocks", "after training", "fast ties"}
    plain = {"random", SLICED, "matrix product", "the matrix alone, float32"}
    figure = pictures.figure_of(name)
    legends = [
        (legend.legend_handles, map(Text.get_text, legend.texts)) for legend in figure.legends
    ]
    for handles, names in [*legends, *(ax.get_legend_handles_labels() for ax in figure.axes)]:
        for handle, label in zip(handles, names, strict=True):
            scatter = isinstance(handle, PathCollection)
            colour = to_hex(handle.get_facecolor()[0] if scatter else handle.get_color())
            assert (colour == pictures.BLUE.lower()) >= (label in ours)
            assert (colour == pictures.GREY.lower()) == (label in plain)


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_numbers_at_ticks_are_their_places(name: str) -> None:
    for ax in pictures.figure_of(name).axes:
        for axis in (ax.xaxis, ax.yaxis):
            places = axis.get_majorticklocs()
            for place, word in zip(places, axis.major.formatter.format_ticks(places), strict=True):
                number = re.fullmatch(r"([\d.,]+)( ms| s| GB)?", word)
                if number:
                    said = float(number[1].replace(",", "")) / (1000 if number[2] == " ms" else 1)
                    assert said == pytest.approx(place, rel=0.01)


def test_digits_are_tied_to_exemplars_of_their_colour() -> None:
    digits, _ = pictures.figure_of("clustering").axes
    ties, points = digits.collections
    segments = np.array(ties.get_segments())
    np.testing.assert_array_equal(segments[:, 0], points.get_offsets())
    ends = np.unique(segments[:, 1], axis=0)
    assert len(ends) == 20
    assert {tuple(end) for end in ends} == {tuple(image.xy) for image in digits.artists}
    np.testing.assert_array_equal(ties.get_colors()[:, :3], points.get_facecolors()[:, :3])
    colours = map(to_hex, points.get_facecolors())
    own = {(*end, colour) for end, colour in zip(segments[:, 1], colours, strict=True)}
    assert len(own) == len(ends)


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
sys.path[:0] = [{str(ROOT / "docs" / "_ext")!r}, {str(ROOT)!r}]
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
