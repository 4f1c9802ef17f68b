"""Which solver passes the messages: a table of them by name. A new one is a file and a line.

A solver takes similarities (n, n), preferences (n,) and `Options`, and returns `Messages`. It may
assume clean input: C-contiguous float32 or float64, no NaN, no +inf, -inf for "never link".
Preferences, degenerate inputs, warnings and decoding are the caller's.
"""

import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module

from epruner.cluster import _compiled
from epruner.cluster.types import Floats, Messages, Options

Solver = Callable[[Floats, Floats, Options], Messages]

_TABLE = {
    "dense": "epruner.cluster.backends.native:solve_dense",
    "native": "epruner.cluster.backends.native:solve",
    "numba": "epruner.cluster.backends.numba:solve",
    "reference": "epruner.cluster.backends.reference:solve",
    "cupy": "epruner.cluster.backends.cuda.solver:solve",
}

BACKENDS = ("auto", *_TABLE)


def get(name: str) -> Solver:
    """Return the solver called `name`; ``auto`` is the fastest that this installation has.

    Raises
    ------
    ValueError
        If there is no such solver.
    ImportError
        If the solver needs a package that is not installed, or the compiled extension is
        missing; the message says which, why, and what to do.
    """
    check(name)
    return _fastest() if name == "auto" else _load(name)


def check(name: str) -> None:
    """Raise `ValueError` if there is no solver called `name`."""
    if name not in BACKENDS:
        raise ValueError(f"backend={name!r} is not one of {', '.join(BACKENDS)}")


def _load(name: str) -> Solver:
    module, function = _TABLE[name].split(":")
    if module.endswith(".native"):
        _compiled.require(f"backend={name!r}")
    solver: Solver = getattr(import_module(module), function)
    return solver


@cache  # so that the warning comes once
def _fastest() -> Solver:
    if _compiled.native is not None:
        return _load("native")
    try:
        solver, instead = _load("numba"), "numba's is used instead, which is slower"
    except ImportError:
        solver = _load("reference")
        instead = "NumPy's is used instead, which is very slow (pip install numba helps)"
    warnings.warn(
        f"there is no compiled solver: {_compiled.missing}; {instead}",
        RuntimeWarning,
        stacklevel=2,
    )
    return solver
