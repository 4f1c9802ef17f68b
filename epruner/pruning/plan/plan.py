"""What stays where: the plan of a pruning, as plain data.

Module names, channel indices, sizes, and nothing of torch among them. It is written as JSON beside
the tensors of a saved network and rebuilds the small network from a fresh full-size one of the same
class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

from epruner.pruning.plan.apply import initialise, resized
from epruner.pruning.plan.parts import ModulePlan

FORMAT = "epruner-plan"
VERSION = 1


@dataclass(frozen=True)
class Plan:
    """A whole pruning: every module that changes, and how the weights that stay are made.

    Parameters
    ----------
    modules : mapping of str to ModulePlan
        By dotted name, as in ``model.named_modules()`` (or ``named_parameters()`` or
        ``named_buffers()`` for a tensor that belongs to no known layer type).
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
        small = resized(model, self.modules)
        if weights:
            initialise(model, small, self.modules, init=self.init, bn=self.bn, seed=self.seed)
        return small
