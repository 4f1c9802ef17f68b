"""The report: what it prints and that nothing is lost on the way through JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from epruner._tables import amount, change
from epruner.pruning.graph.costs import Totals
from epruner.pruning.graph.groups import Skipped
from epruner.pruning.report.records import LayerReport
from epruner.pruning.report.report import Report


@pytest.fixture
def report() -> Report:
    return Report(
        layers=(
            LayerReport("layer1.0.conv1", "Conv2d", 16, 9, 0.76, 31, True, False, 10, 5, 8, 4),
            LayerReport("head|x", "Linear", 64, 3, 0.9, 200, False, True, 2_359_296, 7, 2304, 1),
        ),
        skipped=tuple(Skipped(f"layer{i}.conv2", "shared by a sum") for i in range(9)),
        before=Totals(125_490_000, 853_018, 127_620_000),
        after=Totals(49_360_000, 384_000, 51_000_000),
        settings={"beta": 0.76, "min_keep": None},
        notes=("the budget was not met",),
        seconds={"analysis": 0.5, "surgery": 1.0},
    )


def test_text_has_every_layer_total_and_reason(report: Report) -> None:
    text = str(report)
    for part in ("layer1.0.conv1", "56.2 %", "0.76", "125.49 M", "-60.7 %", "-55.0 %"):
        assert part in text
    assert "floor, not converged (200 iterations)" in text
    assert "note: the budget was not met" in text
    assert "shared by a sum" in text
    assert "and 3 more" in text
    assert "took 1.5 s (analysis 0.5, surgery 1.0)" in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_columns_line_up(report: Report) -> None:
    header, rule, *rows = report.table().to_text().splitlines()
    end = header.index("kept") + len("kept")
    assert rule[end - 1] == "-"
    assert [row[:end].split()[-1] for row in rows] == ["9", "3"]


def test_report_survives_json(report: Report) -> None:
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


@pytest.mark.parametrize(
    "damage",
    [{"layers": [{"name": "a"}]}, {"before": None}, {"after": {"macs": 1}}, {"skipped": 3}],
)
def test_from_dict_names_what_is_wrong(report: Report, damage: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a pruning report"):
        Report.from_dict(report.to_dict() | damage)


def test_markdown_and_html_escape_names(report: Report) -> None:
    assert "| head\\|x |" in report.to_markdown()
    hostile = replace(report.layers[0], name="<script>")
    assert "<script>" not in replace(report, layers=(hostile,))._repr_html_()


def test_report_without_layers_says_so(report: Report) -> None:
    empty = replace(report, layers=(), skipped=(), notes=())
    assert "no layer was pruned" in str(empty)
    assert "no layer was pruned" in empty._repr_html_()
    assert "125.49 M" in empty.to_markdown()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (49_360_000, "49.36 M"), (4.1e9, "4.10 G")],
)
def test_amount(value: float, text: str) -> None:
    assert amount(value) == text


def test_change_of_nothing() -> None:
    assert change(0, 0) == "-"
    assert change(4, 1) == "-75.0 %"
