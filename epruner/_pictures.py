"""What all pictures share. matplotlib is imported when one is drawn (extra ``plot``)."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from epruner import _install
from epruner._files import check_target, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart under every common colour-vision deficiency
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
VERMILLION, PURPLE, SKY = "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#595959"
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8}
ABOVE: dict[str, Any] = LEGEND | {"loc": "lower left", "bbox_to_anchor": (0, 1)}


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the path's suffix, e.g. png, svg or pdf.

    Raises
    ------
    OSError
        When the file cannot be written.
    ValueError
        When the suffix names no format.
    """
    suffix = check_format(path)
    target = check_target(path)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=150)
    write_atomically(target, buffer.getvalue())


def check_format(path: str | os.PathLike[str]) -> str:
    """The format that a path's suffix names.

    Raises
    ------
    ImportError
        When matplotlib is absent.
    ValueError
        When the suffix names no format.
    """
    suffix = Path(path).suffix.removeprefix(".").lower()
    formats = sorted(_figure_type()().canvas.get_supported_filetypes())
    if suffix not in formats:
        message = f"cannot plot to {os.fspath(path)!r}: its suffix must be one of {formats}"
        raise ValueError(message)
    return suffix


def new_figure(width: float, height: float) -> Figure:
    """A figure that no window system or global state knows of.

    Raises
    ------
    ImportError
        When matplotlib is absent.
    """
    return _figure_type()(figsize=(width, height), layout="constrained")


def outline_blocks(
    axes: Axes, starts: Sequence[int] | npt.NDArray[np.integer[Any]], width: float
) -> None:
    """Draw a square around each block on the diagonal of a heat map; the last start is the end."""
    for first, last in pairwise(starts):
        if last - first > 1:
            low, high = first - 0.5, last - 0.5
            axes.plot(
                [low, high, high, low, low],
                [low, low, high, high, low],
                color=VERMILLION,
                linewidth=width,
            )


def _figure_type() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = f"plots need matplotlib: {_install.command('plot')}"
        raise ImportError(message) from error
    return Figure
