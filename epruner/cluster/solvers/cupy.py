"""The solver on a CUDA device: shared memory for small problems, else lists, else dense passes."""

import numpy as np
from numpy.typing import NDArray

from epruner.cluster.gpu.arrays import adopt, engine_for
from epruner.cluster.gpu.messages import pass_messages
from epruner.cluster.gpu.problems import Matrices
from epruner.cluster.outcome import Messages, Options


def solve(S: NDArray[np.floating], preference: NDArray[np.floating], options: Options) -> Messages:
    """Pass messages on CuPy's current device, or on that of `S`."""
    return _run(S, preference, options, "auto")


def solve_lists(
    S: NDArray[np.floating], preference: NDArray[np.floating], options: Options
) -> Messages:
    """Pass messages between listed pairs only, however long the lists get."""
    return _run(S, preference, options, "lists")


def solve_dense(
    S: NDArray[np.floating], preference: NDArray[np.floating], options: Options
) -> Messages:
    """Pass messages between all pairs, one pass over memory per iteration."""
    return _run(S, preference, options, "dense")


def _run(
    S: NDArray[np.floating], preference: NDArray[np.floating], options: Options, regime: str
) -> Messages:
    with engine_for([S, preference]) as engine:
        problem = Matrices(engine, [adopt(S, "S")])
        own = adopt(preference, "preference").astype(problem.dtype)
        passed = pass_messages(problem, own, options, regime)
        is_exemplar = engine.host(passed.is_exemplar).astype(bool)
        return Messages(is_exemplar, int(passed.n_iter[0]), bool(passed.converged[0]))
