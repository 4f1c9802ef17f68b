"""What stays of one module, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class ModulePlan:
    """What one module (or bare parameter or buffer) keeps.

    Parameters
    ----------
    out : tuple of int or None
        Kept output channels in ascending order; None keeps all. For layers whose input and output
        channels are the same thing (BatchNorm, depthwise convolution, PReLU, a bare tensor) only
        `out` is used.
    in_ : tuple of int or None
        Kept input channels in ascending order; None keeps all. The JSON key is ``in``.
    out_before, in_before : int or None
        Sizes before pruning of the sides that change, to check that a fresh model fits.

    Raises
    ------
    ValueError
        Channels that do not ascend within their number before, none at all, or no such number.

    Examples
    --------
    >>> from epruner.pruning.plan.parts import ModulePlan
    >>> ModulePlan(out=(0, 2), out_before=3).out
    (0, 2)
    """

    out: tuple[int, ...] | None = None
    in_: tuple[int, ...] | None = None
    out_before: int | None = None
    in_before: int | None = None

    def __post_init__(self) -> None:
        _check_side("out", self.out, self.out_before)
        _check_side("in", self.in_, self.in_before)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the sides that do not change.

        Returns
        -------
        dict of str to list of int or int
            With the keys ``out``, ``out_before``, ``in`` and ``in_before``.

        Examples
        --------
        >>> from epruner.pruning.plan.parts import ModulePlan
        >>> ModulePlan(in_=(0, 2), in_before=3).to_dict()
        {'in': [0, 2], 'in_before': 3}
        """
        record: dict[str, Any] = {}
        if self.out is not None:
            record |= {"out": list(self.out), "out_before": self.out_before}
        if self.in_ is not None:
            record |= {"in": list(self.in_), "in_before": self.in_before}
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ModulePlan:
        """Rebuild what a module keeps from `to_dict`.

        Parameters
        ----------
        record : mapping of str to list of int or int
            What `to_dict` gave.

        Returns
        -------
        ModulePlan
            Equal to that which was written.

        Raises
        ------
        ValueError
            Unknown keys, or values that are no channels.

        Examples
        --------
        >>> from epruner.pruning.plan.parts import ModulePlan
        >>> ModulePlan.from_dict({"out": [0, 2], "out_before": 3}).out
        (0, 2)
        """
        unknown = set(record) - {"out", "out_before", "in", "in_before"}
        if unknown:
            raise ValueError(
                f"unknown keys {sorted(unknown)} in a plan's module; was it written by a newer "
                "version of epruner?"
            )
        return cls(
            out=_indices(record.get("out")),
            in_=_indices(record.get("in")),
            out_before=record.get("out_before"),
            in_before=record.get("in_before"),
        )


def _indices(values: object) -> tuple[int, ...] | None:
    if values is None:
        return None
    if not isinstance(values, Sequence) or not all(type(v) is int for v in values):
        raise ValueError(f"channel indices must be a list of integers, got {values!r:.60}")
    return tuple(values)


def _check_side(side: str, kept: tuple[int, ...] | None, before: int | None) -> None:
    if kept is None:
        return
    if type(before) is not int:
        raise ValueError(f"a plan that keeps some {side} channels needs {side}_before")
    if not kept:
        raise ValueError(f"a plan must keep at least one {side} channel")
    ascending = all(a < b for a, b in pairwise(kept))
    if not ascending or kept[0] < 0 or kept[-1] >= before:
        raise ValueError(
            f"kept {side} channels must ascend within 0..{before - 1}, got {list(kept)!r:.60}"
        )
