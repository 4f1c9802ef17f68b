"""Pictures: in the format asked for, readable for one layer and for fifty, lazily imported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epruner import _pictures
from epruner.pruning.graph.costs import Totals
from epruner.pruning.report.records import LayerReport
from epruner.pruning.report.report import Report

pytest.importorskip("matplotlib", reason="needs matplotlib (extra plot)")
from epruner.pruning.report.plots import draw_layers, draw_similarity


def report(n: int, beta: float | None = 0.7) -> Report:
    layers = tuple(
        LayerReport(f"features.{i}", "Conv2d", 32, 1 + i % 32, beta, 30, True, i % 5 == 0, 900, 300)
        for i in range(n)
    )
    return Report(layers, (), Totals(1800 * n, 99, 0), Totals(700 * n, 50, 0))


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_report_is_written_in_the_format_of_the_suffix(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"report.{suffix}"
    report(3).plot(file)
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert file.read_bytes().startswith(magic)


@pytest.mark.parametrize("n", [1, 50])
@pytest.mark.parametrize("beta", [0.7, None])
def test_every_layer_has_its_row(n: int, beta: float | None) -> None:
    shown = report(n, beta)
    figure = draw_layers(shown.layers, shown.before, shown.after)
    filters, saved, *preference = figure.axes
    assert [tick.get_text() for tick in filters.get_yticklabels()] == [
        f"features.{i}" for i in range(n)
    ]
    assert len(preference) == (beta is not None)
    # what the rows do not show is said in words: 1100 saved a layer, 600 of them in its row
    assert any("and 27.8 in other layers" in text.get_text() for text in saved.texts)
    assert figure.get_figheight() > 0.2 * n


def test_nothing_to_plot(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no layer was pruned"):
        report(0).plot(tmp_path / "r.png")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["r.docx", "r"])
def test_unknown_format(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"suffix must be one of .*'png'"):
        report(2).plot(tmp_path / name)


def test_matplotlib_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "matplotlib.figure", missing)
    with pytest.raises(ImportError, match=r'pip install "\S+\[plot\]"'):
        report(2).plot(tmp_path / "r.png")


def test_similarity_orders_filters_by_cluster(tmp_path: Path) -> None:
    points = np.array([0.2, 10.0, 0.0, 10.1, 0.1, 50.0])[:, None]
    similarities = -((points - points.T) ** 2)
    figure = draw_similarity(similarities, np.array([0, 1, 0, 1, 0, 2]), [2, 1, 5], name="conv1")
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "4", "0", "1", "3", "5"]
    shown = axes.images[0].get_array()
    assert shown is not None
    np.testing.assert_allclose(shown[0, :3], [0, 0.1, 0.2])
    _pictures.save(figure, tmp_path / "s.png")
