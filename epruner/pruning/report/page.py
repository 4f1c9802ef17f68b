"""A report as HTML: one file that needs nothing else; without its script for notebooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from itertools import product
from typing import TYPE_CHECKING, Any

from epruner._tables import amount, change, milliseconds, percent
from epruner.pruning.options import ALLOCATIONS, REPAIRS
from epruner.pruning.report.records import LayerReport, Repair, by_reason
from epruner.pruning.select.features import FEATURES
from epruner.pruning.select.importance import IMPORTANCE

if TYPE_CHECKING:
    from epruner.pruning.report.report import Report

_WIDTH, _HEIGHT = 900, 260  # of the drawing
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 46
_NUMBERED = 24  # layers that have room for a number each
_KINDS = (
    "Each layer by what it is fit to, all before it repaired.",
    "Filled: the residual stream after a layer; hollow: a layer's own output; each with all before "
    "it repaired.",
)
_ONE_LINE = 60  # characters of an argument


def page(report: Report, title: str) -> str:
    """A whole document, whose table sorts itself.

    Parameters
    ----------
    report : Report
    title : str
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n"
        "<style>body { margin: 1.5rem; } main { margin: 0 auto; }</style>\n</head>\n<body>\n"
        f'<main class="epruner-report">\n<h1>{escape(title)}</h1>\n'
        f"{content(report)}\n</main>\n<script>\n{_file('page.js')}</script>\n</body>\n</html>\n"
    )


def fragment(report: Report) -> str:
    """For a notebook: the same, without a script."""
    return f'<div class="epruner-report">{content(report)}</div>'


def content(report: Report) -> str:
    """Everything between the head and the script."""
    parts = [f"<style>\n{_file('page.css')}</style>", _totals(report), _done(report)]
    parts.append(_layers(report) if report.layers else "<p>no layer was pruned</p>")
    if report.repair and report.repair.layers:
        parts.append(_errors(report.repair))
    if report.skipped:
        parts.append(_left_alone(report))
    parts.append(_settings(report))
    return "\n".join(parts)


@cache
def _file(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _totals(report: Report) -> str:
    rows: list[tuple[str, float, float, Callable[[float], str]]] = [
        ("multiply-adds", report.before.macs, report.after.macs, amount),
        ("parameters", report.before.params, report.after.params, amount),
    ]
    if report.timing:
        rows.append(("time of a pass", report.timing.before, report.timing.after, milliseconds))
    cards = [
        f"<div><dt>{label}</dt><dd><strong>{change(before, after)}</strong><br>"
        f"{shown(before)} &rarr; {shown(after)}{_bar(after, before, before)}</dd></div>"
        for label, before, after, shown in rows
    ]
    if (repair := report.repair) is not None:
        cards.append(
            "<div><dt>error of the output, of its variance</dt>"
            f"<dd><strong>{repair.after:.3g}</strong><br>{repair.before:.3g} before the repair"
            "</dd></div>"
        )
    return f'<dl class="totals">{"".join(cards)}</dl>'


def _done(report: Report) -> str:
    lines = [("Method", report.method), ("Repair", str(report.repair or ""))]
    lines += [("Time", str(report.timing or "")), ("Passed by", ", ".join(report.passed))]
    lines += [("Note", note) for note in report.notes]
    if report.seconds:
        stages = ", ".join(f"{stage} {time:.1f}" for stage, time in report.seconds.items())
        lines.append(("Took", f"{sum(report.seconds.values()):.1f} s ({stages})"))
    items = "".join(f"<li>{name}: {escape(text)}</li>" for name, text in lines if text)
    return f"<h2>What was done</h2><ul>{items}</ul>"


def _layers(report: Report) -> str:
    errors = {x.name: x for x in report.repair.layers} if report.repair else {}
    most = max(x.macs_before for x in report.layers)
    has_preferences = any(x.preference is not None for x in report.layers)
    heads = ["layer", "kind", "filters", "kept", "share"]
    heads += ["multiply-adds", "after", "", "parameters", "after"]
    heads += ["error sliced", "repaired"] * bool(errors)
    heads += ["preference"] * has_preferences
    heads += ["remark"] * any(map(remark_of, report.layers))
    rows = []
    for layer in report.layers:
        cells = [
            _cell(layer.kind),
            _cell(f"{layer.before}", layer.before),
            _cell(f"{layer.after}", layer.after),
            _cell(percent(layer.kept), layer.kept),
            _cell(amount(layer.macs_before), layer.macs_before),
            _cell(amount(layer.macs_after), layer.macs_after),
            _cell(_bar(layer.macs_after, layer.macs_before, most), layer.macs_after, raw=True),
            _cell(amount(layer.params_before), layer.params_before),
            _cell(amount(layer.params_after), layer.params_after),
        ]
        if errors:
            refit = errors.get(layer.name)
            cells += [
                _cell(f"{error:.3g}", error) if error is not None else _cell("", math.inf)
                for error in ((refit.before, refit.after) if refit else (None, None))
            ]
        if has_preferences:
            known = layer.preference
            cells.append(_cell("", math.inf) if known is None else _cell(f"{known:.3g}", known))
        if heads[-1] == "remark":
            cells.append(_cell(remark_of(layer)))
        name = f'<th scope="row">{escape(layer.name)}</th>'
        rows.append(f"<tr>{name}{''.join(cells)}</tr>")
    columns = "".join(
        f'<th scope="col"{_TEXT * (head in ("layer", "kind", "remark"))}>'
        f"{head or 'of the largest layer'}</th>"
        for head in heads
    )
    count = len(report.layers)
    return (
        f"<h2>{count} layer{'s' * (count > 1)} pruned</h2>"
        '<p class="muted key">Multiply-adds of a layer:<i></i><span>kept</span><i></i>gone. A '
        "layer also gets cheaper where what it reads was pruned.</p>"
        '<div class="scroll" role="region" aria-label="Pruned layers" tabindex="0">'
        f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


_TEXT = ' class="text"'


def _cell(text: str, value: float | None = None, *, raw: bool = False) -> str:
    known = _TEXT if value is None else f' data-value="{value:.9g}"'.replace("inf", "Infinity")
    return f"<td{known}>{text if raw else escape(text)}</td>"


def _bar(after: float, before: float, most: float) -> str:
    """What is kept and what is gone, of the largest."""
    kept, gone = (100 * part / most if most else 0 for part in (after, max(before - after, 0)))
    return (
        f'<span class="bar" role="img" aria-label="{amount(after)} of {amount(before)} kept">'
        f'<i style="width:{kept:.2f}%"></i><i style="width:{gone:.2f}%"></i></span>'
    )


def remark_of(layer: LayerReport) -> str:
    """What a reader should know of how a layer's number came about."""
    remarks = ["floor"] * layer.floor
    if layer.converged is False:
        remarks.append(f"not converged ({layer.n_iter} iterations)")
    return ", ".join(remarks)


def _errors(repair: Repair) -> str:
    """Errors of the layers that were refit, in their order, on a logarithmic scale."""
    layers = repair.layers
    values = [max(x, 1e-12) for layer in layers for x in (layer.before, layer.after)]
    low = math.floor(math.log10(min(values)))
    high = max(math.ceil(math.log10(max(values))), low + 1)

    def place(index: int, error: float) -> tuple[float, float]:
        across = (index + 0.5) / len(layers)
        up = (math.log10(max(error, 1e-12)) - low) / (high - low)
        return (
            _LEFT + across * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM),
        )

    drawn = []
    for power in range(low, high + 1):
        y = place(0, 10.0**power)[1]
        drawn.append(
            f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
        )
    for kind, target in product(("before", "after"), ("stream", "output")):
        points = [
            (*place(index, getattr(layer, kind)), layer)
            for index, layer in enumerate(layers)
            if layer.target == target
        ]
        if points:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in points)
            drawn.append(f'<path class="{kind} {target}" d="M{path}"/>')
        drawn += [
            f'<circle class="{kind} {target}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>'
            f"{escape(layer.name)}: {getattr(layer, kind):.3g}</title></circle>"
            for x, y, layer in points
        ]
    every = -(-len(layers) // _NUMBERED)
    for index, layer in enumerate(layers):
        if index % every == 0:
            x = place(index, 1.0)[0]
            drawn.append(
                f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
                f"{index + 1}<title>{escape(layer.name)}</title></text>"
            )
    drawn.append(
        f'<text x="{(_WIDTH + _LEFT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">'
        "layer, in the order of the network</text>"
    )
    said = (
        f"Errors of {len(layers)} layers, from the first to the last: {layers[0].before:.3g} to "
        f"{layers[-1].before:.3g} sliced, {layers[0].after:.3g} to {layers[-1].after:.3g} repaired."
    )
    where = "that were held back" if repair.held_back else "that were fit to, too few to hold back"
    return (
        "<h2>Error along the depth of the network</h2>"
        f'<p class="muted key">Squared error over the variance, on inputs {where}:<i></i>'
        f"<span>repaired</span><i></i>sliced. {_KINDS[len({x.target for x in layers}) > 1]} "
        "Numbers name layers: point at one.</p>"
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}">'
        f"{''.join(drawn)}</svg></figure>"
    )


def _left_alone(report: Report) -> str:
    items = "".join(
        f"<details{' open' * (len(names) <= 6)}><summary>{escape(reason)} "
        f'<span class="muted">({len(names)})</span></summary>'
        f"<p><code>{escape(', '.join(names))}</code></p></details>"
        for reason, names in by_reason(report.skipped).items()
    )
    return f"<h2>Left alone, and why</h2>{items}"


def _settings(report: Report) -> str:
    code = call_of(report.settings)
    return f"<h2>The same again</h2><pre><code>{escape(code)}</code></pre>" if code else ""


def call_of(settings: Mapping[str, Any]) -> str:
    """The call that was made, as code; what no code can be written for by its name.

    Parameters
    ----------
    settings : mapping of str to plain JSON values
        `Report.settings`.
    """
    found = dict(settings)
    method = found.get("method")
    if not isinstance(method, Mapping):
        return ""
    lines = ["model", "inputs"]
    if "share" in found:
        lines.append(f"budget=epruner.Budget({found['budget']}, {found['share']!r})")
    lines += [
        f"{name}={found[name]!r}"
        for name in ("macs", "params", "latency", "beta", "recipe")
        if found.get(name) is not None and not (name == "beta" and found.get("recipe"))
    ]
    if (evidence := found.get("evidence", "none")) != "none":
        lines.append("calibrate=inputs_to_learn_from" if evidence == "inputs"
                     else f"calibrate={evidence!r}")  # fmt: skip
    known = {*ALLOCATIONS, *FEATURES, *IMPORTANCE, *REPAIRS}
    parts = [
        f"{name}={value!r}" if value in known else f"{name}={value}"
        for name, value in method.items()
    ]
    lines.append(_call("method=epruner.Method", parts, indent=4))
    if found.get("loss") not in (None, "cross_entropy"):
        lines.append(f"loss={found['loss']}")
    if constraints := found.get("constraints"):
        parts = [f"{name}={value!r}" for name, value in constraints.items()]
        lines.append(_call("constraints=epruner.Constraints", parts, indent=4))
    lines += [f"{name}={found[name]!r}" for name in ("layers", "ignore") if found.get(name)]
    if found.get("scope", "inner") != "inner":
        lines.append(f"scope={found['scope']!r}")
    if found.get("random_state"):
        lines.append(f"random_state={found['random_state']!r}")
    return _call("epruner.prune", lines, indent=0)


def _call(function: str, arguments: Sequence[str], indent: int) -> str:
    one = f"{function}({', '.join(arguments)})"
    if len(one) <= _ONE_LINE:
        return one
    blank = " " * indent
    return f"{function}(\n" + "".join(f"{blank}    {each},\n" for each in arguments) + f"{blank})"
