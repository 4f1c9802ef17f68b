"""The report as a page: complete, self-contained, and alive in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Run
from torch import nn

import epruner
from epruner import Constraints, Method
from epruner.pruning.report.page import call_of
from epruner.pruning.report.report import Report

VOID = {"meta", "br", "path", "circle"}


def model() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 12), (12, 24), (24, 20)):
        layers += [nn.Conv2d(inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 5))
    network(images())
    return network.eval()


def images() -> torch.Tensor:
    return torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def report() -> Report:
    options: dict[str, Any] = {"macs": 0.5, "calibrate": images(), "ignore": ["3"]}
    return epruner.prune(model(), (1, 3, 12, 12), **options).report


class Page(HTMLParser):
    """Text and attributes of a page whose tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def written(report: Report, tmp_path: Path) -> str:
    report.to_html(tmp_path / "report.html", title="A <net>")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_everything_is_there_and_nothing_is_fetched(report: Report, tmp_path: Path) -> None:
    page = Page(written(report, tmp_path))
    text = " ".join(page.text)
    assert "A <net>" in text
    for layer in report.layers:
        assert layer.name in text
        assert f"{layer.after}" in text
    for skipped in report.skipped:
        assert skipped.reason in text
    assert report.repair is not None
    assert f"{report.repair.after:.3g}" in text
    assert "Error along the depth" in text
    assert not {name for name, _ in page.attributes} & {"src", "href"}
    assert not re.search(r"https?://|url\(|@import", "".join(page.text))


def test_names_are_escaped_wherever_they_stand(report: Report, tmp_path: Path) -> None:
    hostile = '"><script>alert(1)</script>'
    assert report.repair is not None
    refit = replace(report.repair.layers[0], name=hostile)
    changed = replace(
        report,
        layers=(replace(report.layers[0], name=hostile, kind=hostile),),
        skipped=tuple(replace(x, name=hostile, reason=hostile) for x in report.skipped),
        notes=(hostile,),
        passed=(hostile,),
        repair=replace(report.repair, layers=(refit,)),
        settings={**report.settings, "layers": [hostile]},
    )
    assert "<script>alert" not in written(changed, tmp_path)
    assert "<script" not in changed._repr_html_()


@pytest.mark.filterwarnings("ignore::epruner.BudgetWarning")  # times of a busy machine
def test_reports_of_other_kinds_have_pages(report: Report, tmp_path: Path) -> None:
    Page(written(replace(report, layers=(), skipped=(), repair=None, settings={}), tmp_path))
    net = model()
    for options in ({"beta": 0.7, "method": "paper"}, {"latency": 0.8, "method": "l1"}):
        result = epruner.prune(net, (1, 3, 12, 12), **options)  # type: ignore[arg-type]
        Page(written(result.report, tmp_path))


CALLS: list[dict[str, Any]] = [
    {"macs": 0.5},
    {"params": 0.6, "method": "l1", "repair": "none", "random_state": 3},
    {"beta": {"0": 0.7, "3": 0.9}, "method": "paper"},
    {"macs": 0.6, "constraints": Constraints(min_filters=0.3, round_to=2, n_filters={"0": 7})},
    {"constraints": Constraints(n_filters={"*": 0.5}), "method": Method("uniform", "fpgm")},
    {"macs": 0.7, "layers": ["0", "3"], "ignore": ["6"], "scope": "all"},
]


@pytest.mark.parametrize("options", CALLS)
@pytest.mark.filterwarnings("ignore::epruner.BudgetWarning")
def test_settings_as_code_do_the_same_again(options: dict[str, Any]) -> None:
    net = model()
    result = epruner.prune(net, (1, 3, 12, 12), **options)
    code = call_of(json.loads(json.dumps(result.report.settings)))
    again = eval(code, {"epruner": epruner, "model": net, "inputs": (1, 3, 12, 12)})
    assert again.plan == result.plan
    assert {**again.report.settings, "why": None} == {**result.report.settings, "why": None}


def test_functions_stand_by_their_names(report: Report) -> None:
    def spread(candidates: Any, count: int) -> Any:
        return range(count)

    method = Method("uniform", spread).to_dict()
    code = call_of({**report.settings, "method": method, "evidence": "inputs"})
    assert "importance=spread" in code
    assert "calibrate=inputs_to_learn_from" in code


def test_commands_write_it(run: Run, tmp_path: Path) -> None:
    words = ["prune", "--model", "examples.cifar_resnet:resnet20", "--input-shape", "1,3,32,32"]
    words += ["--macs", "0.6", "--method", "l1", "--repair", "none", "--out", "small.safetensors"]
    assert run(*words, "--html", "report.html")[0] == 0
    page = Page(Path("report.html").read_text(encoding="utf-8"))
    assert "examples.cifar_resnet:resnet20, pruned" in page.text
    code, _, err = run("inspect", "small.safetensors", "--html", "report.html")
    assert code == 2
    assert "--force" in err
    assert run("inspect", "small.safetensors", "--html", "again.html")[0] == 0
    assert "small.safetensors" in Page(Path("again.html").read_text(encoding="utf-8")).text


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

# Presses heads of the table and writes down what the first column then says, and what went wrong.
PRESSES = """<script>
const column = () => [...document.querySelectorAll("tbody th")].map((cell) => cell.textContent);
const heads = [...document.querySelectorAll("thead th")];
const press = (name) => heads.find((x) => x.textContent.trim() === name).firstChild.click();
const seen = [column()];
for (const name of ["filters", "filters", "filters", "layer"]) { press(name); seen.push(column()); }
const sorted = heads.map((head) => head.ariaSort);
document.body.innerHTML = "";
document.body.dataset.seen = JSON.stringify({ seen, sorted, failures });
</script></body>"""
LISTENS = """<head><script>
const failures = [];
addEventListener("error", (event) => failures.push(event.message));
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_columns_sort_in_a_browser(report: Report, tmp_path: Path) -> None:
    assert BROWSER is not None
    text = written(report, tmp_path).replace("<head>", LISTENS).replace("</body>", PRESSES)
    (tmp_path / "pressed.html").write_text(text, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'pressed.html'}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    (found,) = [value for name, value in Page(dom).attributes if name == "data-seen"]
    told = json.loads(found)
    assert told["failures"] == []
    names = [layer.name for layer in report.layers]
    by_filters = [x.name for x in sorted(report.layers, key=lambda x: x.before)]
    first, up, down, back, by_name = told["seen"]
    assert first == back == names
    assert up == by_filters
    assert down == [x.name for x in sorted(report.layers, key=lambda x: -x.before)]
    assert by_name == sorted(names, key=int)
    assert told["sorted"].count("ascending") == 1
