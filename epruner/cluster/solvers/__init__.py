"""The solvers, by name. A new one is a file and a line.

A solver takes similarities (n, n), preferences (n,) and `Options`, and returns `Messages`. It may
assume clean input: C-contiguous float32 or float64, no NaN, no +inf, -inf for "never link".
Preferences, degenerate inputs, warnings and decoding are the caller's.
"""

from collections.abc import Callable
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from epruner.cluster.outcome import Messages, Options

Solver = Callable[[NDArray[np.floating], NDArray[np.floating], Options], Messages]

_TABLE = {
    "native": "epruner.cluster.solvers.native",
    "reference": "epruner.cluster.solvers.reference",
}

BACKENDS = ("auto", *_TABLE)


def get(name: str) -> Solver:
    """Return the solver called `name`; ``auto`` is the fastest that this installation has."""
    if name not in BACKENDS:
        raise ValueError(f"backend={name!r} is not one of {', '.join(BACKENDS)}")
    solver: Solver = import_module(_TABLE["native" if name == "auto" else name]).solve
    return solver
