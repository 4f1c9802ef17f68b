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
    "dense": "epruner.cluster.solvers.native:solve_dense",
    "native": "epruner.cluster.solvers.native:solve",
    "numba": "epruner.cluster.solvers.numba:solve",
    "reference": "epruner.cluster.solvers.reference:solve",
    "cupy": "epruner.cluster.solvers.cupy:solve",
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
    check(name)
    return _fastest() if name == "auto" else _load(name)


def check(name: str) -> None:
    """Raise `ValueError` if there is no solver called `name`."""
    if name not in BACKENDS:
        raise ValueError(f"backend={name!r} is not one of {', '.join(BACKENDS)}")


def _load(name: str) -> Solver:
    module, function = _TABLE[name].split(":")
    solver: Solver = getattr(import_module(module), function)
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
