"""What a pruning run did, layer by layer: pure data that renders itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from epruner import _pictures
from epruner._files import check_target, write_atomically
from epruner._tables import Table, amount, change, milliseconds, percent
from epruner.pruning.graph.costs import Totals
from epruner.pruning.graph.groups import Skipped
from epruner.pruning.report.page import fragment, page, remark_of
from epruner.pruning.report.plots import draw_layers
from epruner.pruning.report.records import (
    LayerRepair,
    LayerReport,
    Repair,
    Timing,
    by_reason,
)

if TYPE_CHECKING:
    from os import PathLike

_NAMES_SHOWN = 6
_NO_FEATURES = {"fisher", "random", "reconstruction", "uniform"}  # parts that compare none


@dataclass(frozen=True)
class Report:
    """What a pruning run did.

    Printing it gives a table; in a notebook it shows itself.

    Parameters
    ----------
    layers : tuple of LayerReport
        Layers whose filters were chosen from, in the order of the network.
    skipped : tuple of Skipped
        Layers left alone, each with its reason.
    before, after : Totals
        Sizes of the whole network.
    settings : mapping of str to plain JSON values
        What was asked: budget or beta, method, constraints, scope and so on.
    notes : tuple of str
        What the user should know, e.g. a budget that could not be met.
    seconds : mapping of str to float
        Wall time by stage.
    repair : Repair, optional
        What was learnt from inputs, if anything was.
    timing : Timing, optional
        What a pass takes before and after, if the budget was one of time.
    passed : tuple of str
        Residual blocks that are passed by.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> report = epruner.prune(model, (1, 8), macs=0.5).report
    >>> [(layer.name, layer.before, layer.after) for layer in report.layers]
    [('0', 32, 16)]
    >>> [f"{layer.name}: {layer.reason}" for layer in report.skipped]
    ['2: its channels are the output of the model']
    """

    layers: tuple[LayerReport, ...]
    skipped: tuple[Skipped, ...]
    before: Totals
    after: Totals
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    repair: Repair | None = None
    timing: Timing | None = None
    passed: tuple[str, ...] = ()

    def table(self) -> Table:
        """One row a pruned layer.

        Returns
        -------
        Table
            Prints with ``to_text`` and ``to_markdown``.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> print(epruner.prune(model, (1, 8), macs=0.5).report.table().to_text())
        layer  kind    filters  kept   share  MACs  after  params  after
        -----  ------  -------  ----  ------  ----  -----  ------  -----
        0      Linear       32    16  50.0 %   256    128     288    144
        """
        rows: list[tuple[str, ...]] = [
            (
                layer.name,
                layer.kind,
                str(layer.before),
                str(layer.after),
                percent(layer.kept),
                "-" if layer.preference is None else f"{layer.preference:.3g}",
                amount(layer.macs_before),
                amount(layer.macs_after),
                amount(layer.params_before),
                amount(layer.params_after),
                remark_of(layer),
            )
            for layer in self.layers
        ]
        header = (
            "layer", "kind", "filters", "kept", "share", "preference",
            "MACs", "after", "params", "after", "remark",
        )  # fmt: skip
        empty = {column for column in (5, 10) if all(row[column] in ("", "-") for row in rows)}
        shown = [column for column in range(len(header)) if column not in empty]
        return Table(
            [header[column] for column in shown],
            [[row[column] for column in shown] for row in rows],
            left=frozenset({0, 1, shown.index(10) if 10 in shown else 0}),
        )

    def totals(self) -> Table:
        """Multiply-adds, parameters, multiply-adds counted with BatchNorm; the time, if known.

        Returns
        -------
        Table
            Prints with ``to_text`` and ``to_markdown``.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> print(epruner.prune(model, (1, 8), macs=0.5).report.totals().to_text())
        whole network                  before  after   change
        -----------------------------  ------  -----  -------
        multiply-adds (MACs)              384    192  -50.0 %
        parameters                        420    212  -49.5 %
        MACs + 4 x BatchNorm elements     384    192  -50.0 %
        """
        rows: list[tuple[str, ...]] = [
            (label, amount(old), amount(new), change(old, new))
            for label, old, new in (
                ("multiply-adds (MACs)", self.before.macs, self.after.macs),
                ("parameters", self.before.params, self.after.params),
                (
                    "MACs + 4 x BatchNorm elements",
                    self.before.macs_with_norm,
                    self.after.macs_with_norm,
                ),
            )
        ]
        if (timing := self.timing) is not None:
            pair = (timing.before, timing.after)
            rows.append(("time", *map(milliseconds, pair), change(*pair)))
        return Table(("whole network", "before", "after", "change"), rows)

    def remarks(self) -> list[str]:
        """The notes, the layers left alone by reason, the time taken; one line each.

        Returns
        -------
        list of str
            What stands under the tables where the report is printed.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> remarks = epruner.prune(model, (1, 8), macs=0.5).report.remarks()
        >>> [line for line in remarks if line.startswith("left alone")]
        ['left alone (its channels are the output of the model): 2']
        """
        lines = [f"method: {self.method}"] if self.method else []
        lines += [f"repair: {self.repair}"] if self.repair else []
        lines += [f"time: {self.timing}"] if self.timing else []
        lines += [f"passed by: {', '.join(self.passed)}"] if self.passed else []
        lines += [f"note: {note}" for note in self.notes]
        lines += left_alone(self.skipped)
        if self.seconds:
            stages = ", ".join(f"{stage} {time:.1f}" for stage, time in self.seconds.items())
            lines.append(f"took {sum(self.seconds.values()):.1f} s ({stages})")
        return lines

    def __str__(self) -> str:
        """Plain text: the layers, the totals, the remarks."""
        blocks = [self.table().to_text()] if self.layers else ["no layer was pruned"]
        blocks.append(self.totals().to_text())
        if lines := self.remarks():
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)

    def to_markdown(self) -> str:
        """The same content as Markdown.

        Returns
        -------
        str
            Two tables and a list.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> text = epruner.prune(model, (1, 8), macs=0.5).report.to_markdown()
        >>> print(text.splitlines()[2])
        | multiply-adds (MACs) | 384 | 192 | -50.0 % |
        """
        blocks = [self.totals().to_markdown()]
        if self.layers:
            blocks.append(self.table().to_markdown())
        if lines := self.remarks():
            blocks.append("\n".join(f"- {line}" for line in lines))
        return "\n\n".join(blocks) + "\n"

    def to_html(self, path: str | PathLike[str], *, title: str = "Pruning report") -> None:
        """Write one HTML file that needs nothing else, to open in a browser.

        Parameters
        ----------
        path : path-like
            Written whole or not at all.
        title : str
            Of the page.

        Raises
        ------
        FileNotFoundError, PermissionError, ValueError
            The path cannot be written to.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> epruner.prune(model, (1, 8), macs=0.5).report.to_html("report.html")
        """
        write_atomically(check_target(path), page(self, title).encode())

    def _repr_html_(self) -> str:
        return fragment(self)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draw filters, multiply-adds saved and preference of every layer.

        Parameters
        ----------
        path : path-like
            The suffix chooses the format: png, svg, pdf and what else matplotlib writes.

        Raises
        ------
        ImportError
            When matplotlib (extra ``plot``) is absent.
        ValueError
            When no layer was pruned or the suffix names no format.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> epruner.prune(model, (1, 8), macs=0.5).report.plot("layers.png")
        """
        _pictures.save(draw_layers(self.layers, self.before, self.after), path)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values only; ``Report.from_dict`` gives an equal report back.

        Returns
        -------
        dict of str to plain JSON values
            By the names of the parameters.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> record = epruner.prune(model, (1, 8), macs=0.5).report.to_dict()
        >>> record["after"]
        {'macs': 192, 'params': 212, 'macs_with_norm': 192}
        """
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "skipped": [asdict(skipped) for skipped in self.skipped],
            "before": asdict(self.before),
            "after": asdict(self.after),
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "seconds": dict(self.seconds),
            "repair": self.repair
            and asdict(self.repair)
            | {
                "layers": [asdict(layer) for layer in self.repair.layers],
                "notes": list(self.repair.notes),
            },
            "timing": self.timing and asdict(self.timing),
            "passed": list(self.passed),
        }

    @property
    def method(self) -> str:
        """How filters were chosen and repaired, in one line."""
        found = self.settings.get("method")
        if not isinstance(found, Mapping):
            return ""
        line = f"{found['allocation']} numbers of filters, {found['importance']} members, "
        if {found["allocation"], found["importance"]} - _NO_FEATURES:
            line += f"{found['features']} compared, "
        line += f"repair {found['repair']}"
        if (evidence := self.settings.get("evidence", "none")) != "none":
            line += f", learnt from {evidence}{' inputs' if evidence == 'synthetic' else ''}"
        why = self.settings.get("why")
        return f"{line} ({why})" if why else line

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """Rebuild a report from ``to_dict``.

        Parameters
        ----------
        data : mapping of str to plain JSON values
            What ``to_dict`` gave.

        Returns
        -------
        Report
            Equal to that which was written.

        Raises
        ------
        ValueError
            When a field is missing, unknown or of the wrong shape.

        Examples
        --------
        >>> import json
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> report = epruner.prune(model, (1, 8), macs=0.5).report
        >>> type(report).from_dict(json.loads(json.dumps(report.to_dict()))) == report
        True
        """
        try:
            return cls(
                layers=tuple(LayerReport(**layer) for layer in data["layers"]),
                skipped=tuple(Skipped(**skipped) for skipped in data["skipped"]),
                before=Totals(**data["before"]),
                after=Totals(**data["after"]),
                settings=dict(data.get("settings", {})),
                notes=tuple(data.get("notes", ())),
                seconds=dict(data.get("seconds", {})),
                repair=_repair(data.get("repair")),
                timing=Timing(**timing) if (timing := data.get("timing")) else None,
                passed=tuple(data.get("passed", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            message = f"not a pruning report: {type(error).__name__}: {error}"
            raise ValueError(message) from error


def _repair(data: Mapping[str, Any] | None) -> Repair | None:
    if data is None:
        return None
    return Repair(
        **{
            **data,
            "layers": tuple(LayerRepair(**layer) for layer in data["layers"]),
            "notes": tuple(data.get("notes", ())),
        }
    )


def left_alone(skipped: Iterable[Skipped]) -> list[str]:
    """Layers left alone, one line a reason."""
    return [
        f"left alone ({reason}): {', '.join(names[:_NAMES_SHOWN])}"
        + (
            f" and {len(names) - _NAMES_SHOWN} more, see .skipped"
            if len(names) > _NAMES_SHOWN
            else ""
        )
        for reason, names in by_reason(skipped).items()
    ]
