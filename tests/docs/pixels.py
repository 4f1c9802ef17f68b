"""How far two pictures are from each other, whichever matplotlib drew them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SQUARE = 20  # pixels that are averaged: versions of matplotlib place text a little differently
TOLERANCE = 5.0  # root mean square, of 255; between matplotlib 3.8 and 3.11 it is below 4


def squares(file: Path) -> Any:
    """Means of a picture's squares, (rows, columns, 3)."""
    with Image.open(file) as image:
        rows, columns = image.height // SQUARE, image.width // SQUARE
        whole = image.convert("RGB").crop((0, 0, columns * SQUARE, rows * SQUARE))
    return np.asarray(whole, float).reshape(rows, SQUARE, columns, SQUARE, 3).mean(axis=(1, 3))


def difference(one: Path, other: Path) -> float:
    """Root mean square, of 255, over squares of pixels."""
    return float(np.sqrt(np.mean((squares(one) - squares(other)) ** 2)))
