"""Points to cluster, from a file: an array, a sparse matrix or a table. Nothing is unpickled."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from epruner._files import check_source
from epruner.cli import tables

_ARRAYS = (".npy", ".npz")


@dataclass(frozen=True)
class Points:
    """Rows of numbers.

    Parameters
    ----------
    source : str
        The file that they are from.
    values : ndarray or SciPy sparse matrix of shape (n, d)
        An array of an npy file is mapped, not read.
    table : Table, optional
        What a table tells beyond its numbers.
    """

    source: str
    values: Any
    table: tables.Table | None = None

    @property
    def names(self) -> list[str] | None:
        """What the rows are called, if anything."""
        return None if self.table is None else self.table.names

    @property
    def drawable(self) -> bool:
        """Whether the features give places in a plane."""
        return not sparse.issparse(self.values) and self.values.shape[1] > 1

    def require_finite(self) -> None:
        """Raise a ValueError that names the first NaN or infinity, if there is one."""
        if sparse.issparse(self.values):
            stored = self.values.tocoo()
            bad = np.flatnonzero(~np.isfinite(stored.data))[:1]
            places = np.transpose([stored.row[bad], stored.col[bad]])
        else:
            places = np.argwhere(~np.isfinite(self.values))
        if len(places):
            i, j = map(int, places[0])
            where = f"[{i}, {j}]" if self.table is None else self.table.place(i, j)
            raise ValueError(
                f"{self.source}: {where} is {self.values[i, j]}, and features must be finite: fill "
                "it in, or leave out its row or column"
            )


def read(
    path: str,
    *,
    key: str | None = None,
    columns: Sequence[str] = (),
    id_column: str | None = None,
    header: bool | None = None,
) -> Points:
    """Read points from an npy, npz, csv or tsv file.

    Parameters
    ----------
    path : str
    key : str, optional
        Of the array in an npz file that holds several.
    columns, id_column, header
        Of a table; see `epruner.cli.tables.read`.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When the file is damaged, or what it holds is no table of real numbers.
    """
    source = check_source(path)
    kind = source.suffix.lower()
    if kind not in (*_ARRAYS, *tables.SUFFIXES):
        known = ", ".join((*_ARRAYS, *tables.SUFFIXES))
        raise ValueError(f"cannot read {path}: its suffix must be one of {known}")
    if key is not None and kind != ".npz":
        raise ValueError(f"--key names an array of an .npz file, and {path} is none")
    if kind in _ARRAYS and (columns or id_column is not None or header is not None):
        raise ValueError(f"--column, --id and --header are for tables of text, not for {path}")
    if source.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    try:
        if kind in tables.SUFFIXES:
            table = tables.read(source, columns=columns, id_column=id_column, header=header)
            return Points(path, table.values, table)
        values = _read_npy(source) if kind == ".npy" else _read_npz(source, key)
    except (ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"{path} holds an array of shape {values.shape}; points are the rows of a table, its "
            "columns the features, and neither may be none"
        )
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds values of type {values.dtype}, not real numbers")
    return Points(path, values)


def _read_npy(source: Path) -> Any:
    try:
        # copy on write: similarities take preferences on their diagonal, and the file never changes
        return np.lib.format.open_memmap(source, mode="c")
    except ValueError as error:
        if "mmap length" in str(error):
            raise ValueError("it is cut short: there are fewer numbers than it says") from error
        raise


def _read_npz(source: Path, key: str | None) -> Any:
    if not zipfile.is_zipfile(source):
        raise ValueError("it is no archive as numpy.savez writes it, or cut short")
    with np.load(source, allow_pickle=False) as archive:
        names = archive.files
        if key is None and {"format", "shape", "data"} <= set(names):
            return sparse.load_npz(source)
        if key is None and len(names) != 1:
            raise ValueError(f"it holds {len(names)} arrays; --key names one: {', '.join(names)}")
        if key is not None and key not in names:
            raise ValueError(f"it holds no array {key!r}; there are {', '.join(names)}")
        return archive[key or names[0]]
