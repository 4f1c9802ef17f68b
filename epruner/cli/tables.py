"""Tables of text with numbers in them: comma-separated values and their kin."""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".csv", ".tsv")

_DELIMITERS = ("\t", ";", ",")  # commas last: they may be part of cells that others separate
_SNIFFED = 20  # rows
_LISTED = 12  # columns
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})


@dataclass(frozen=True)
class Table:
    """Numbers of a table.

    Parameters
    ----------
    values : ndarray of shape (n, d)
        The chosen columns, float64.
    columns : tuple of str, length d
        What they are called.
    names : list of str, length n, optional
        What the rows are called.
    lines : sequence of int, length n
        Where the rows end in the file, from 1.
    header : bool
        Whether the first row was taken for names of columns.
    """

    values: NDArray[np.float64]
    columns: tuple[str, ...]
    names: list[str] | None
    lines: Sequence[int]
    header: bool

    def place(self, i: int, j: int) -> str:
        """Where a number is in the file."""
        return f"column {self.columns[j]!r} in line {self.lines[i]}"


def read(
    path: Path,
    *,
    columns: Sequence[str] = (),
    id_column: str | None = None,
    header: bool | None = None,
) -> Table:
    """Read the numbers of a table in UTF-8, separated by commas, semicolons or tabs.

    Parameters
    ----------
    path : Path
    columns : sequence of str
        Names of columns, numbers from 1, or ranges of numbers such as 2-5. By default all but
        that of `id_column`.
    id_column : str, optional
        Name or number of the column that names the rows. By default the first one, where the
        header has no name for it.
    header : bool, optional
        Whether the first row names the columns. By default it does where it has text above a
        number, or counts columns above fractions.

    Raises
    ------
    ValueError
        When the table has no rows, rows of different lengths, or cells that are missing or no
        numbers; the message names column and line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(file)
            file.seek(0)
            return _parse(_reader(file, delimiter, strict=True), columns, id_column, header)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"it is not UTF-8 text: there is a byte 0x{byte:02x}") from error
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _reader(file: TextIO, delimiter: str, strict: bool = False) -> Any:
    return csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=strict)


def _delimiter(file: TextIO) -> str:
    """The first that cuts all rows seen into as many cells, or else the first row into most."""
    cells = {}
    for delimiter in _DELIMITERS:
        file.seek(0)
        rows = islice(filter(None, _reader(file, delimiter)), _SNIFFED)
        cells[delimiter] = [len(row) for row in rows]
        if cells[delimiter] and min(cells[delimiter]) == max(cells[delimiter]) > 1:
            return delimiter
    return max(_DELIMITERS, key=lambda delimiter: cells[delimiter][:1])


def _parse(
    reader: Any, columns: Sequence[str], id_column: str | None, header: bool | None
) -> Table:
    rows = ((reader.line_num, row) for row in reader if row)
    start = list(islice(rows, 2))
    if not start:
        raise ValueError("it is empty")
    first = [cell.strip() for cell in start[0][1]]
    if header is None:
        header = _is_header(first, [cell.strip() for _, row in start[1:] for cell in row])
    if header:
        del start[0]
    labels = [(header and name) or str(j) for j, name in enumerate(first, 1)]
    chosen = list(dict.fromkeys(j for text in columns for j in _places(text, labels)))
    own = None
    if id_column is not None:
        own, *more = _places(id_column, labels)
        if more:
            raise ValueError(f"one column names the rows, not {id_column}")
    elif header and not first[0] and 0 not in chosen:
        own = 0
    chosen = chosen or [j for j in range(len(first)) if j != own]
    if not chosen:
        raise ValueError("its one column names the rows; none is left to cluster by")

    pick = itemgetter(*chosen) if len(chosen) > 1 else itemgetter(slice(chosen[0], chosen[0] + 1))
    values, lines, names = array("d"), array("q"), []
    for line, row in chain(start, rows):
        if len(row) != len(first):
            raise ValueError(f"line {line} has {len(row)} cells, the first row {len(first)}")
        try:
            values.extend(map(float, pick(row)))
        except ValueError as error:
            cells = {labels[j]: row[j].strip() for j in chosen if not _is_number(row[j])}
            raise ValueError(_no_numbers(cells, line)) from error
        lines.append(line)
        if own is not None:
            names.append(row[own])
    if not lines:
        raise ValueError("it holds no rows below the one that names its columns")
    return Table(
        np.frombuffer(values).reshape(len(lines), len(chosen)),
        tuple(labels[j] for j in chosen),
        None if own is None else names,
        lines,
        header,
    )


def _is_header(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether the first row names the columns; the second is empty if there is none."""
    if not second:
        return not any(map(_is_number, first))
    counted = [cell for cell in first if cell]
    if any(counted == [str(j) for j in range(k, k + len(counted))] for k in (0, 1)):
        # as pandas calls columns without names; that of the row names it leaves empty
        return not first[0] or (len(first) > 1 and not any(map(str.isdigit, second)))
    return any(
        not (_is_number(above) or _is_missing(above)) and (_is_number(below) or _is_missing(below))
        for above, below in zip(first, second, strict=False)
    )


def _places(text: str, labels: Sequence[str]) -> list[int]:
    """The columns that an option means."""
    found = [j for j, label in enumerate(labels) if label == text]
    if len(found) > 1:
        raise ValueError(f"it has {len(found)} columns {text!r}; choose one by its number")
    if found:
        return found
    numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if numbers is None:
        known = ", ".join(labels[:_LISTED]) + (", ..." if len(labels) > _LISTED else "")
        raise ValueError(f"it has no column {text!r}; there are {known}")
    low, high = int(numbers[1]), int(numbers[2] or numbers[1])
    if not 1 <= low <= high <= len(labels):
        raise ValueError(f"it has columns 1 to {len(labels)}, not {text}")
    return list(range(low - 1, high))


def _no_numbers(cells: dict[str, str], line: int) -> str:
    """What to do about cells, by column, that cannot be read."""
    missing = [label for label, cell in cells.items() if _is_missing(cell)]
    if missing:
        label = missing[0]
        said = f" ({cells[label]})" if cells[label] else ""
        return (
            f"column {label!r} in line {line} is missing{said}: fill it in, or leave out the row, "
            "or the column with --column"
        )
    labels, cell = list(cells), next(iter(cells.values()))
    what = f"column {labels[0]!r} holds no numbers"
    if len(labels) > 1:
        listed = ", ".join(map(repr, labels[:_LISTED])) + (", ..." if len(labels) > _LISTED else "")
        what = f"columns {listed} hold no numbers"
    return (
        f"{what}: {cell[:40]!r} in line {line}; choose columns with --column, or name the rows by "
        "one with --id"
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in _MISSING
