"""Jobs side by side: the same values in the same order, and nobody's threads changed for good."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from epruner.cluster.similarity import negative_squared_distances
from epruner.pruning.select.parallel import side_by_side

HEAVY = 1 << 30


def blas_threads() -> set[int]:
    """Limits of the BLAS libraries that are loaded."""
    return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}


def test_values_come_in_the_order_of_the_items() -> None:
    rng = np.random.default_rng(0)
    items = [rng.standard_normal((n, 30), dtype=np.float32) for n in (5, 200, 40, 90, 7)]
    found = side_by_side(negative_squared_distances, items, lambda x: len(x) * HEAVY, 2)
    for x, s in zip(items, found, strict=True):
        assert np.array_equal(s, negative_squared_distances(x))


def test_jobs_have_one_thread_inside_but_for_the_one_that_outweighs_the_others() -> None:
    before = blas_threads()
    home = threading.get_ident()
    seen = side_by_side(
        lambda x: (threading.get_ident() == home, blas_threads()),
        [1, 2, 9, 1, 3],
        lambda x: x * HEAVY,
        2,
    )
    assert seen[2] == (True, before)
    assert all(there == (False, {1}) for place, there in enumerate(seen) if place != 2)
    assert blas_threads() == before


@pytest.mark.parametrize("n_threads", [1, 2])
def test_what_a_job_raises_comes_through(n_threads: int) -> None:
    before = blas_threads()
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda x: 1 // x, [1, 0, 1, 1], lambda _: HEAVY, n_threads)
    assert blas_threads() == before
