"""The solvers, by name. A new one is a file and a line.

A solver takes similarities (n, n), preferences (n,) and `Options`, and returns `Messages`. It may
assume clean input: C-contiguous float32 or float64, no NaN, no +inf, -inf for "never link".
Preferences, degenerate inputs, warnings and decoding are the caller's.
"""

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

from epruner.cluster.outcome import Messages, Options

Solver = Callable[[NDArray[np.floating], NDArray[np.floating], Options], Messages]

_TABLE = {
    "native": "epruner.cluster.solvers.native",
    "numba": "epruner.cluster.solvers.numba",
    "reference": "epruner.cluster.solvers.reference",
}

BACKENDS = ("auto", *_TABLE)


def get(name: str) -> Solver:
    """Return the solver called `name`; ``auto`` is the fastest that this installation has.

    Raises
    ------
    ValueError
        If there is no such solver.
    ImportError
        If the solver needs a package that is not installed; the message names it.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend={name!r} is not one of {', '.join(BACKENDS)}")
    return _fastest() if name == "auto" else _load(name)


def _load(name: str) -> Solver:
    solver: Solver = import_module(_TABLE[name]).solve
    return solver


@cache  # so that the warning comes once
def _fastest() -> Solver:
    try:
        return _load("native")
    except ImportError as error:
        missing = f"the compiled solver cannot be loaded ({error})"
    try:
        solver = _load("numba")
    except ImportError:
        warnings.warn(
            f"{missing}; falling back to the slow NumPy solver. "
            'For a fast one: pip install "epruner[numba]"',
            RuntimeWarning,
            stacklevel=2,
        )
        return _load("reference")
    warnings.warn(f"{missing}; falling back to numba", RuntimeWarning, stacklevel=2)
    return solver
