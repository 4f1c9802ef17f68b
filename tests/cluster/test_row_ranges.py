"""Active sets that share the rows of a problem find what one finds, to the bit."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

native = pytest.importorskip("epruner.cluster._native", exc_type=ImportError)

Array = NDArray[Any]
N = 300  # five blocks
DAMPING = 0.8


def similarities() -> Array:
    X = np.random.default_rng(5).standard_normal((N, 2))
    S: Array = -np.square(X[:, None] - X[None]).sum(-1)
    return S


def new_set(S: Array, first: int, last: int) -> Any:
    """The rows from `first` to `last`, with all their pairs listed."""
    rows = last - first
    own = native.ActiveSet(np.zeros(rows), DAMPING, 200, 15, 0, False, 1, first, N)
    offsets = np.arange(rows + 1, dtype=np.int64) * N
    columns = np.tile(np.arange(N, dtype=np.int32), rows)
    own.fill_from_csr(offsets, columns, S[first:last].ravel())
    own.restart(np.full(rows, -6.0), DAMPING)
    return own


def iterate(sets: list[Any]) -> None:
    """One iteration of sets that hold all rows in their order."""
    sums = np.empty(N)
    for own in sets:
        assert own.run_rows() == "running"
        own.add_support(0, sums)
    at, totals = 0, []
    for own in sets:
        rows = own.is_exemplar.size
        own.finish_rows(sums[at : at + rows].copy())
        totals.append(own.total[at : at + rows].copy())
        at += rows
    for own in sets:
        own.total[:] = np.concatenate(totals)


def flags(sets: list[Any]) -> Array:
    return np.concatenate([own.is_exemplar for own in sets])


@pytest.mark.parametrize("cuts", [[0, N], [0, 64, N], [0, 128, 192, 192, 256, N]])
def test_any_division_gives_the_same_bits(cuts: list[int]) -> None:
    S = similarities()
    whole = new_set(S, 0, N)
    sets = [new_set(S, a, b) for a, b in pairwise(cuts)]
    for t in range(1, 41):
        assert whole.iterate(1) in ("running", "converged")
        iterate(sets)
        assert all((own.total == whole.total).all() for own in sets)
        assert (flags(sets) == whole.is_exemplar).all()
        assert {own.iteration for own in sets} == {t}
    assert 1 < whole.is_exemplar.sum() < N


def test_messages_that_were_saved_go_on_to_the_bit() -> None:
    S = similarities()
    sets = [new_set(S, 0, 128), new_set(S, 128, N)]
    for _ in range(7):
        iterate(sets)
    again = [new_set(S, 0, 128), new_set(S, 128, N)]
    for own, saved in zip(again, [own.save() for own in sets], strict=True):
        own.restore(saved)
    for _ in range(20):
        iterate(sets)
        iterate(again)
        assert (again[0].total == sets[0].total).all()
    assert (flags(again) == flags(sets)).all()


def test_damaged_messages_are_refused() -> None:
    own = new_set(similarities(), 0, N)
    iterate([own])
    saved = own.save()
    for name, value in (
        ("mu", saved["mu"][1:]),
        ("mu", saved["mu"].astype(np.float32)),
        ("active_column", np.full_like(saved["active_column"], N)),
        ("n_active", -saved["n_active"] - 1),
        ("n_stored_blocks", saved["n_stored_blocks"] + 1000),
        ("lack", saved["lack"] + 9),
    ):
        with pytest.raises(ValueError, match="no messages of such points"):
            own.restore(saved | {name: value})
    with pytest.raises(ValueError, match="no messages of such points: total"):
        own.restore({name: value for name, value in saved.items() if name != "total"})


@pytest.mark.parametrize(("first", "last"), [(3, 64), (0, 100), (64, 400)])
def test_a_range_holds_whole_blocks(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="points must be those of whole blocks"):
        native.ActiveSet(np.zeros(last - first), DAMPING, 200, 15, 0, False, 1, first, N)
