"""Many small numerical jobs, each on one core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from threadpoolctl import ThreadpoolController

from epruner.cluster.resources import effective_n_threads

Item = TypeVar("Item")
Value = TypeVar("Value")

_WORTH_A_POOL = 1 << 26  # multiply-adds of all jobs together; below, starting threads costs more


def side_by_side(
    function: Callable[[Item], Value],
    items: Sequence[Item],
    work: Callable[[Item], int],
    n_threads: int | None,
) -> list[Value]:
    """Map a function over items, one thread each, the largest first.

    Threads inside a job do not pay for matrices of a few hundred rows. Worse, those of BLAS and
    those of OpenMP spin for a while after each use, and so take the cores from each other.

    Parameters
    ----------
    function : callable
        Uses BLAS and OpenMP, and gives the interpreter free while it does.
    items : sequence
    work : callable
        Multiply-adds of an item. One that is more than a thread's share of all runs before the
        others, with threads inside.
    n_threads : int or None

    Returns
    -------
    list
        In the order of `items`.
    """
    workers = effective_n_threads(n_threads)
    amounts = [work(item) for item in items]
    total = sum(amounts)
    if workers == 1 or len(items) < 2 or total < _WORTH_A_POOL:
        return [function(item) for item in items]
    order = sorted(range(len(items)), key=lambda index: -amounts[index])
    values: dict[int, Value] = {}
    while order and amounts[order[0]] * workers > total:
        total -= amounts[order[0]]
        values[order[0]] = function(items[order[0]])
        order.pop(0)
    controller = ThreadpoolController()
    # BLAS has one limit for the whole process, OpenMP one for each thread that calls it
    one = partial(controller.limit, limits=1)
    with (
        one(user_api="blas"),
        ThreadPoolExecutor(workers, initializer=partial(one, user_api="openmp")) as pool,
    ):
        done = pool.map(lambda index: function(items[index]), order)
        values.update(zip(order, done, strict=True))
    return [values[index] for index in range(len(items))]
