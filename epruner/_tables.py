"""Numbers and tables as people read them: plain text or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    Parameters
    ----------
    header : sequence of str, length n
        Names of the columns.
    rows : sequence of sequences of str, each of length n
        What stands in them.
    left : set of int
        Columns aligned to the left; the others are numbers and align to the right.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> table = epruner.analyse(model, (1, 8)).table()
    >>> table.header[:3], list(table.rows[0][:3])
    (('layer', 'kind', 'filters'), ['0', 'Linear', '32'])
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[int] = frozenset({0})

    def to_text(self) -> str:
        """Columns padded with blanks, a rule under the header, no trailing blanks.

        Returns
        -------
        str
            Without a line break at the end.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> print(epruner.analyse(model, (1, 8)).table().to_text())
        layer  kind    filters  MACs   share  params  readers  together with
        -----  ------  -------  ----  ------  ------  -------  -------------
        0      Linear       32   256  66.7 %     288        1
        """
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        rule = ["-" * width for width in widths]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i in self.left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (self.header, rule, *self.rows)
        )

    def to_markdown(self) -> str:
        """The rows as a pipe table, as GitHub and most renderers read it.

        Returns
        -------
        str
            Without a line break at the end.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> print(epruner.analyse(model, (1, 8)).select(macs=0.5).table().to_markdown())
        | module | outputs | inputs |
        | :-- | --: | --: |
        | 0 | 16 of 32 | all |
        | 2 | all | 16 of 32 |
        """
        rule = [":--" if i in self.left else "--:" for i in range(len(self.header))]
        escaped = ([cell.replace("|", "\\|") for cell in row] for row in (self.header, *self.rows))
        lines = ["| " + " | ".join(row) + " |" for row in escaped]
        return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def amount(value: float) -> str:
    """A count with three or four digits and a unit: 49360 -> '49.36 k'."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:g}"


def percent(share: float) -> str:
    """0.5625 -> '56.2 %'."""
    return f"{100 * share:.1f} %"


def milliseconds(seconds: float) -> str:
    """0.0123 -> '12.3 ms'."""
    return f"{1e3 * seconds:.3g} ms"


def change(old: float, new: float) -> str:
    """Relative change with its sign: (4, 1) -> '-75.0 %'."""
    return f"{100 * (new / old - 1):+.1f} %" if old else "-"
