"""What stays where: the plan of a pruning, as plain data.

Module names, channel indices, sizes, and nothing of torch among them. It is written as JSON beside
the tensors of a saved network and rebuilds the small network from a fresh full-size one of the same
class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import nn

from epruner._tables import Table
from epruner.pruning.plan.apply import BN_MODES, INITS, Attributes, initialise, resized
from epruner.pruning.plan.parts import ModulePlan
from epruner.pruning.plan.views import View

FORMAT = "epruner-plan"
VERSION = 1


@dataclass(frozen=True)
class Plan:
    """A whole pruning: every module that changes, and what of it stays.

    Parameters
    ----------
    modules : mapping of str to ModulePlan
        By dotted name, as in ``model.named_modules()`` (or ``named_parameters()`` or
        ``named_buffers()`` for a tensor that belongs to no known layer type). The projections
        ``q_proj``, ``k_proj`` and ``v_proj`` of a `torch.nn.MultiheadAttention` are modules here.
    attributes : mapping of str to mapping of str to (int, int)
        By module, numbers that it holds and that change: name, before and after. A place in a list
        or a tuple is named as in ``sizes[1]``.
    views : mapping of str to tuple of View
        By module, sizes that its forward writes and that are inferred.
    passed : tuple of str
        Modules that are passed by: in their place stands one that returns what it reads.

    Raises
    ------
    ValueError
        An attribute that is no pair of integers.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> plan = epruner.analyse(model, (1, 8)).select(macs=0.5)
    >>> print(plan)
    module   outputs    inputs
    ------  --------  --------
    0       16 of 32       all
    2            all  16 of 32
    """

    modules: Mapping[str, ModulePlan]
    attributes: Attributes = field(default_factory=dict)
    views: Mapping[str, tuple[View, ...]] = field(default_factory=dict)
    passed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        attributes = {name: _pairs(name, counts) for name, counts in self.attributes.items()}
        object.__setattr__(self, "modules", MappingProxyType(dict(self.modules)))
        object.__setattr__(self, "attributes", MappingProxyType(attributes))
        views = {name: tuple(sorted(found)) for name, found in self.views.items()}
        object.__setattr__(self, "views", MappingProxyType(views))

    def __reduce__(self) -> tuple[Any, ...]:  # a mapping proxy can be neither copied nor pickled
        attributes = {name: dict(counts) for name, counts in self.attributes.items()}
        return Plan, (dict(self.modules), attributes, dict(self.views), self.passed)

    def to_json(self) -> str:
        """The plan as compact JSON.

        Returns
        -------
        str
            On one line, with the version of its format.

        Examples
        --------
        >>> from epruner import Plan
        >>> from epruner.pruning.plan.parts import ModulePlan
        >>> Plan({"fc": ModulePlan(out=(0, 2), out_before=3)}).to_json()
        '{"format":"epruner-plan","version":1,"modules":{"fc":{"out":[0,2],"out_before":3}}}'
        """
        record: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "modules": {name: module.to_dict() for name, module in self.modules.items()},
        }
        if self.attributes:
            record["attributes"] = {name: dict(counts) for name, counts in self.attributes.items()}
        if self.views:
            record["views"] = {
                name: [[view.method, view.call, view.size] for view in found]
                for name, found in self.views.items()
            }
        if self.passed:
            record["passed"] = list(self.passed)
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Rebuild a plan from `to_json`.

        Parameters
        ----------
        text : str
            What `to_json` gave.

        Returns
        -------
        Plan
            Equal to that which was written.

        Raises
        ------
        ValueError
            `text` is not JSON, not a plan, or a plan of a version this package does not know.
        TypeError
            `text` is no string.

        Examples
        --------
        >>> from epruner import Plan
        >>> from epruner.pruning.plan.parts import ModulePlan
        >>> plan = Plan({"fc": ModulePlan(out=(0, 2), out_before=3)})
        >>> Plan.from_json(plan.to_json()) == plan
        True
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
        attributes = record.get("attributes", {})
        if not isinstance(attributes, dict) or not all(
            isinstance(counts, dict) for counts in attributes.values()
        ):
            raise ValueError("not a pruning plan: 'attributes' must map names to objects")
        parts = {name: ModulePlan.from_dict(module) for name, module in modules.items()}
        passed = record.get("passed", [])
        if not isinstance(passed, list) or not all(isinstance(name, str) for name in passed):
            raise ValueError("not a pruning plan: 'passed' must list names")
        return cls(parts, attributes, _views(record.get("views", {})), tuple(passed))

    def apply(
        self,
        model: nn.Module,
        *,
        init: str = "exemplar",
        bn: str = "slice",
        random_state: int = 0,
    ) -> nn.Module:
        """Prune a full-size model like the one this plan was made for.

        Parameters
        ----------
        model : torch.nn.Module
            Full-size, same class and sizes as the original. It is not modified.
        init : {"exemplar", "random", "random_projection"}
            Weights of the small network: those that stay (the same bits as the pruned network if
            `model` has the original's weights); drawn anew in every pruned layer; or with the
            inputs of the consumers (but grouped and recurrent ones) from a sparse random projection
            of all of them.
        bn : {"slice", "reset"}
            Keep the rows of pruned BatchNorm layers, or start these layers anew.
        random_state : int
            Seed of what is drawn.

        Returns
        -------
        torch.nn.Module
            A pruned deep copy. A module of `views` is of a subclass made for it, which cannot be
            pickled.

        Raises
        ------
        ValueError
            `model` lacks a module or an attribute of the plan or has it in another size; an unknown
            start.

        Examples
        --------
        >>> from epruner import Plan
        >>> from epruner.pruning.plan.parts import ModulePlan
        >>> from torch import nn
        >>> made = ModulePlan(out=(0, 2), out_before=3)
        >>> read = ModulePlan(in_=(0, 2), in_before=3)
        >>> Plan({"0": made, "1": read}).apply(nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 4)))
        Sequential(
          (0): Linear(in_features=8, out_features=2, bias=True)
          (1): Linear(in_features=2, out_features=4, bias=True)
        )
        """
        for option, value, choices in (("init", init, INITS), ("bn", bn, BN_MODES)):
            if value not in choices:
                names = ", ".join(map(repr, choices))
                raise ValueError(f"{option} must be one of {names}, got {value!r:.80}")
        small = resized(model, self.modules, self.attributes, self.views, self.passed)
        initialise(model, small, self.modules, init=init, bn=bn, seed=random_state)
        return small

    def table(self) -> Table:
        """One row a module or attribute: how many outputs and inputs stay, what it becomes.

        Returns
        -------
        Table
            Prints with ``to_text`` and ``to_markdown``.

        Examples
        --------
        >>> from epruner import Plan
        >>> from epruner.pruning.plan.parts import ModulePlan
        >>> plan = Plan({"fc": ModulePlan(out=(0, 2), out_before=3)})
        >>> print(plan.table().to_text())
        module  outputs  inputs
        ------  -------  ------
        fc       2 of 3     all
        """

        def side(kept: tuple[int, ...] | None, before: int | None) -> str:
            return "all" if kept is None else f"{len(kept)} of {before}"

        rows = [
            (name, side(part.out, part.out_before), side(part.in_, part.in_before))
            for name, part in self.modules.items()
        ]
        rows += [
            (f"{name}.{attribute}".lstrip("."), f"{after} of {before}", "")
            for name, counts in self.attributes.items()
            for attribute, (before, after) in counts.items()
        ]
        rows += [
            (f"{name}.{view.method}".lstrip("."), "infers a size", "")
            for name, found in self.views.items()
            for view in found
        ]
        rows += [(name, "passed by", "") for name in self.passed]
        return Table(("module", "outputs", "inputs"), rows)

    def __str__(self) -> str:
        return self.table().to_text()


def _views(record: Any) -> dict[str, tuple[View, ...]]:
    """The sizes to infer, from plain JSON."""
    try:
        found = {name: tuple(View(*view) for view in views) for name, views in record.items()}
        sound = all(
            isinstance(view.method, str) and type(view.call) is type(view.size) is int
            for views in found.values()
            for view in views
        )
    except (AttributeError, TypeError):
        sound = False
    if not sound:
        raise ValueError("not a pruning plan: 'views' must map names to [method, call, size]")
    return found


def _pairs(name: str, counts: Mapping[str, Sequence[int]]) -> Mapping[str, tuple[int, int]]:
    """The attributes of one module as they can be neither changed nor wrong."""
    for attribute, pair in counts.items():
        if not isinstance(pair, (tuple, list)) or [type(x) for x in pair] != [int, int]:
            raise ValueError(
                f"attribute {attribute!r} of {name!r} must be (before, after), two integers, got "
                f"{pair!r:.60}"
            )
    return MappingProxyType({key: (pair[0], pair[1]) for key, pair in counts.items()})
