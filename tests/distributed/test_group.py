"""What ranks tell each other."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from ranks import MOST, ranks

from epruner.distributed.group import Array, Group, RankError

SIZES = list(range(1, MOST + 1))


def told(process_group: Any) -> tuple[list[Array], list[Array], Array, int]:
    group = Group(process_group)
    mine = np.full((group.rank, 3), group.rank, dtype=np.float32)  # rank 0 has none
    parts = [np.arange(to) + 10 * group.rank for to in range(group.size)]
    gathered, exchanged = group.gather(mine), group.exchange(parts)
    return gathered, exchanged, group.sum(np.array([0.1, group.rank])), group.bytes_sent


@pytest.mark.parametrize("size", SIZES)
def test_arrays_of_different_lengths_arrive(size: int) -> None:
    for rank, (gathered, exchanged, total, sent) in enumerate(ranks().run(size, told)):
        assert [part.shape for part in gathered] == [(q, 3) for q in range(size)]
        assert all((part == q).all() for q, part in enumerate(gathered))
        assert [part.tolist() for part in exchanged] == [
            [10 * q + k for k in range(rank)] for q in range(size)
        ]
        assert total[0] == sum([0.1] * size)
        assert total[1] == sum(range(size))
        assert (sent > 0) == (size > 1)


def disagree(process_group: Any, where: int) -> None:
    group = Group(process_group)
    with group.agree():
        if group.rank == where:
            raise TypeError("no such thing")


def test_an_error_of_one_rank_is_raised_on_all() -> None:
    found = ranks().outcomes(3, disagree, 1)
    assert [(error.kind, error.text) for error in found] == [
        ("TypeError", "on rank 1: no such thing"),
        ("TypeError", "no such thing"),
        ("TypeError", "on rank 1: no such thing"),
    ]


def differ(process_group: Any, value: Any) -> None:
    Group(process_group).require_same(damping=value, max_iter=3)


def test_parameters_that_differ_are_named() -> None:
    for error in ranks().outcomes(3, differ, each=[0.5, 0.5, 0.7]):
        assert (error.kind, error.text) == (
            "ValueError",
            "damping is 0.5 on rank 0 and 0.7 on rank 2: all ranks must be given the same",
        )


def test_the_loss_of_a_rank_goes_through_pickle_to_whoever_started_it() -> None:
    error = pickle.loads(pickle.dumps(RankError(2, "is gone")))
    assert (str(error), error.rank, error.reason) == ("rank 2 is gone", 2, "is gone")
