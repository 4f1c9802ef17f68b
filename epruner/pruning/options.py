"""The options of `prune` that exclude or need each other, validated at the door."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
        """As the report states them, plain values."""
        if self.measure is not None:
            return {"measure": label_of(self.measure), "target": self.given}
        plain = dict(self.given) if isinstance(self.given, Mapping) else self.given
        return {self.kind: plain}


def label_of(choice: object) -> str:
    """A name for a choice of an option: itself, or what a function calls itself."""
    if isinstance(choice, str):
        return choice
    while isinstance(choice, partial):
        choice = choice.func
    return str(getattr(choice, "__name__", type(choice).__name__))


def set_goal(
    beta: float | Mapping[str, float] | None,
    macs: float | None,
    params: float | None,
    measure: Callable[[nn.Module], float] | None,
    target: float | None,
    keep: Mapping[str, int | float] | None,
    widths: str,
) -> Goal:
    if keep is not None and not isinstance(keep, Mapping):
        raise TypeError(
            f"keep must map patterns of layer names to numbers or shares of filters, got {keep!r}; "
            'for all layers write keep={"*": ...}'
        )
    if measure is not None and not callable(measure):
        raise TypeError(f"measure must be a function from a network to a number, got {measure!r}")
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
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value <= 1:
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
        if not beta:
            raise ValueError("beta is an empty mapping; give a number or at least one pattern")
        return Goal("beta", DEFAULT_BETA, given=beta)
    scalar = DEFAULT_BETA if beta is None else beta
    return Goal("beta", float(scalar), given=scalar)


def check_choice(
    option: str, value: object, choices: Sequence[str], *, or_function: bool = False
) -> None:
    if or_function and callable(value):
        return
    if not isinstance(value, str) or value not in choices:
        more = " or a function" if or_function else ""
        raise (ValueError if isinstance(value, str) else TypeError)(
            f"{option} must be one of {', '.join(map(repr, choices))}{more}, got {value!r:.80}"
        )


def check_min_keep(min_keep: int | float | None) -> None:
    whole = type(min_keep) is int and min_keep >= 0
    share = isinstance(min_keep, float) and 0 <= min_keep <= 1
    if min_keep is not None and not whole and not share:
        raise ValueError(
            f"min_keep must be a number of filters (an integer) or a share in [0, 1], "
            f"got {min_keep!r}"
        )
