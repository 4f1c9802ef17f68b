"""What stays where: the plan of a pruning, as plain data.

A plan knows nothing of torch until it is applied: module names, channel indices, sizes. It is
written as JSON beside the tensors of a saved network and rebuilds the small network from a fresh
full-size one of the same class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

FORMAT = "epruner-plan"
VERSION = 1


@dataclass(frozen=True)
class ModulePlan:
    """What one module (or bare parameter) keeps.

    Parameters
    ----------
    out : tuple of int or None
        Kept output channels in ascending order; None keeps all. For layers whose input and output
        channels are the same thing (BatchNorm, depthwise convolution, PReLU, a bare parameter)
        only `out` is used.
    in_ : tuple of int or None
        Kept input channels in ascending order; None keeps all. The JSON key is ``in``.
    out_before, in_before : int or None
        Sizes before pruning of the sides that change, to check that a fresh model fits.
    add_bias : bool
        The pruned module has a bias that the original has not (a repair put it there).
    """

    out: tuple[int, ...] | None = None
    in_: tuple[int, ...] | None = None
    out_before: int | None = None
    in_before: int | None = None
    add_bias: bool = False

    def __post_init__(self) -> None:
        _check_side("out", self.out, self.out_before)
        _check_side("in", self.in_, self.in_before)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the sides that do not change."""
        record: dict[str, Any] = {}
        if self.out is not None:
            record |= {"out": list(self.out), "out_before": self.out_before}
        if self.in_ is not None:
            record |= {"in": list(self.in_), "in_before": self.in_before}
        if self.add_bias:
            record["add_bias"] = True
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ModulePlan:
        """Inverse of `to_dict`; ValueError for anything else."""
        unknown = set(record) - {"out", "out_before", "in", "in_before", "add_bias"}
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
            add_bias=bool(record.get("add_bias", False)),
        )


@dataclass(frozen=True)
class Plan:
    """A whole pruning: every module that changes, and how the weights that stay are made.

    Parameters
    ----------
    modules : mapping of str to ModulePlan
        By dotted name, as in ``model.named_modules()`` (or ``named_parameters()`` for a parameter
        that belongs to no known layer type).
    init : {"exemplar", "random", "random_projection"}
        Where the weights of the small network come from, see `epruner.prune`.
    bn : {"slice", "reset"}
        What becomes of the BatchNorm layers that lose channels.
    seed : int
        Seed of the two random initialisations.
    """

    modules: Mapping[str, ModulePlan]
    init: str = "exemplar"
    bn: str = "slice"
    seed: int = field(default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", MappingProxyType(dict(self.modules)))

    def __reduce__(self) -> tuple[Any, ...]:  # a mapping proxy can be neither copied nor pickled
        return Plan, (dict(self.modules), self.init, self.bn, self.seed)

    def to_json(self) -> str:
        """The plan as compact JSON."""
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "init": self.init,
                "bn": self.bn,
                "seed": self.seed,
                "modules": {name: module.to_dict() for name, module in self.modules.items()},
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Inverse of `to_json`.

        Raises
        ------
        ValueError
            `text` is not JSON, not a plan, or a plan of a version this package does not know.
        """
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a pruning plan: {error}") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise ValueError(f'not a pruning plan: no \'"format": "{FORMAT}"\' in it')
        if record.get("version") != VERSION:
            raise ValueError(
                f"plan of version {record.get('version')!r}, this epruner reads version {VERSION}; "
                "install a matching version"
            )
        modules = record.get("modules")
        if not isinstance(modules, dict) or not all(isinstance(m, dict) for m in modules.values()):
            raise ValueError("not a pruning plan: 'modules' must map names to objects")
        return cls(
            modules={name: ModulePlan.from_dict(module) for name, module in modules.items()},
            init=str(record.get("init", "exemplar")),
            bn=str(record.get("bn", "slice")),
            seed=int(record.get("seed", 0)),
        )

    def apply(self, model: nn.Module, *, weights: bool = True) -> nn.Module:
        """Prune a full-size model like the one this plan was made for.

        Parameters
        ----------
        model : torch.nn.Module
            Full-size, same class and sizes as the original. It is not modified.
        weights : bool
            True takes the weights that stay from `model` (the same bits as the pruned network if
            `model` has the original's weights). False only makes tensors of the right shapes, for
            a checkpoint about to be read into them.

        Returns
        -------
        torch.nn.Module
            A pruned deep copy.

        Raises
        ------
        ValueError
            `model` lacks a module of the plan or has it in another size.
        """
        from epruner.pruning.plan.apply import apply_plan  # the plan itself stays free of torch

        return apply_plan(model, self, weights=weights)


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
