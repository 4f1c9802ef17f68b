"""The options of `prune` that exclude or need each other, validated at the door."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

DEFAULT_BETA = 0.73


@dataclass(frozen=True)
class Goal:
    """What sets the numbers: "beta", "keep", "macs", "params" or "measure"."""

    kind: str
    value: float
    measure: Callable[[nn.Module], float] | None = None
    given: Any = None

    def settings(self) -> dict[str, Any]:
        plain = dict(self.given) if isinstance(self.given, Mapping) else self.given
        return {self.kind: plain}


def set_goal(
    beta: float | Mapping[str, float] | None,
    macs: float | None,
    params: float | None,
    measure: Callable[[nn.Module], float] | None,
    target: float | None,
    keep: Mapping[str, int | float] | None,
    widths: str,
) -> Goal:
    if (measure is None) != (target is None):
        raise ValueError("measure and target go together: a function, and the share of its value")
    budgets = [
        (kind, value)
        for kind, value in (("macs", macs), ("params", params), ("measure", target))
        if value is not None
    ]
    if len(budgets) > 1 or (budgets and beta is not None):
        given = [kind for kind, _ in budgets] + ["beta"] * (beta is not None)
        raise ValueError(f"{' and '.join(given)} exclude each other; give one of them")
    if widths in ("uniform", "reconstruction") and not budgets:
        raise ValueError(
            f"widths={widths!r} needs a budget: macs=, params= or measure= and target="
        )
    for pattern, value in (keep or {}).items():
        whole = type(value) is int and value >= 1
        share = isinstance(value, float) and 0 < value <= 1
        if not whole and not share:
            raise ValueError(
                f"keep[{pattern!r}] must be an integer of at least 1 or a share in (0, 1], "
                f"got {value!r}"
            )
    for kind, value in budgets:
        if not isinstance(value, (int, float)) or not 0 < value <= 1:
            raise ValueError(
                f"{'target' if kind == 'measure' else kind} must be in (0, 1], the share of the "
                f"network to get down to, got {value!r}"
            )
        return Goal(kind, float(value), measure, value)
    if keep and beta is None:
        return Goal("keep", DEFAULT_BETA, given=keep)
    for each in beta.values() if isinstance(beta, Mapping) else [beta]:
        if each is not None and not (isinstance(each, (int, float)) and 0 < each < math.inf):
            raise ValueError(f"beta must be a positive number, got {each!r}")
    if isinstance(beta, Mapping):
        return Goal("beta", DEFAULT_BETA, given=beta)
    scalar = DEFAULT_BETA if beta is None else beta
    return Goal("beta", float(scalar), given=scalar)


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_min_keep(min_keep: int | float | None) -> None:
    whole = type(min_keep) is int and min_keep >= 0
    share = isinstance(min_keep, float) and 0 <= min_keep <= 1
    if min_keep is not None and not whole and not share:
        raise ValueError(
            f"min_keep must be a number of filters (an integer) or a share in [0, 1], "
            f"got {min_keep!r}"
        )
