"""The state of many problems while their messages are passed."""

import numpy as np

from epruner.cluster.gpu.engine import Array, cover
from epruner.cluster.gpu.problems import Problems, problem_table
from epruner.cluster.outcome import Options

RUNNING, RESUMED, STARVED, CONVERGED, EXHAUSTED = range(5)  # as in messages.cu
ITERATIONS = 16  # between two looks at the state of the problems
FEWER = "raise the preference (shorter lists), or cluster fewer points"


class Batch:
    """The kernels' ``Batch``: points and problems with what an iteration keeps about them.

    Parameters
    ----------
    problems : Problems
    preference : array of shape (points,)
        In the dtype of the problems.
    options : Options

    Attributes
    ----------
    is_exemplar : array of shape (points,)
    preference : array of shape (points,)
        float64, with the jitter.
    state, t, starving : array of shape (problems,)
        Where each problem is, its iterations so far, and whether a row of it waits for candidates.
    table : array
        The struct as it is on the device.
    """

    def __init__(self, problems: Problems, preference: Array, options: Options) -> None:
        engine = self.engine = problems.engine
        xp = engine.xp
        points, count = problems.points, len(problems.sizes)
        self.problems = problems
        self.is_exemplar = xp.zeros(points, dtype=np.int32)
        self.preference = xp.zeros(points)
        self.state = xp.zeros(count, dtype=np.int32)
        self.t = xp.zeros(count, dtype=np.int32)
        self.starving = xp.zeros(count, dtype=np.int32)
        self.kept = {
            **{name: xp.zeros(points) for name in ("a", "r", "total", "abar")},
            "streak": xp.zeros(points, dtype=np.int32),
            **{name: xp.zeros(count, dtype=np.int32) for name in ("unstable", "any")},
            "decay": xp.ones(count),
            "abar_max": xp.zeros(count),
            "abar_next": ~xp.zeros(count, dtype=np.uint64),
        }
        self.table = problem_table(
            problems,
            {
                **self.kept,
                "is_exemplar": self.is_exemplar,
                "preference": self.preference,
                "state": self.state,
                "t": self.t,
                "starving": self.starving,
                "keep": options.damping,
                "max_iter": options.max_iter,
                "convergence_iter": options.convergence_iter,
                "seed": options.seed,
            },
        )
        self.launch(f"begin_{problems.number}", points, self.table, preference)

    def launch(self, kernel: str, work: int, *args: Array | int) -> None:
        """Start a kernel with a thread for each of `work`."""
        threads = self.engine.threads
        self.engine.launch(kernel, cover(work, threads), threads, *args)
