"""Order statistics of values that lie on several ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ranks import ranks

from epruner.distributed.group import Group
from epruner.distributed.order_statistics import quantile, values_at

Array = NDArray[Any]


def found(process_group: Any, wanted: list[int], fraction: float, values: Array) -> list[float]:
    group = Group(process_group)
    own = np.sort(values)
    return [*values_at(group, own, wanted), quantile(group, own, fraction)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_are_those_of_all_sorted(dtype: Any) -> None:
    rng = np.random.default_rng(8)
    values = np.concatenate([rng.normal(0, 1e3, 400), np.zeros(9), [-0.0, -1e-30, np.inf]])
    values = values.astype(dtype)
    rng.shuffle(values)
    parts = [values[:0], values[:300], values[300:]]
    wanted = [0, 7, 200, 203, 411, 5000]
    ordered = np.sort(values)
    for answer in ranks().run(3, found, wanted, 0.3, each=parts):
        expected = [*ordered[np.minimum(wanted, 411)], np.quantile(ordered.astype(float), 0.3)]
        assert answer == pytest.approx(expected, rel=1e-12)
        assert answer[:-1] == [float(value) for value in expected[:-1]]


def none_there(process_group: Any) -> list[float]:
    return values_at(Group(process_group), np.empty(0), [0])


def test_there_may_be_none() -> None:
    assert ranks().run(2, none_there) == [[], []]
