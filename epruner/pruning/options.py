"""What a user may ask for: how much, by which method, under which constraints.

All are frozen, check themselves, print themselves as the code that makes them, and are what a
report records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from types import MappingProxyType
from typing import Any

from torch import nn

from epruner.cluster.resources import effective_n_threads
from epruner.pruning.network.inputs import as_patterns
from epruner.pruning.select.features import FEATURES, Features
from epruner.pruning.select.fisher import Loss, cross_entropy
from epruner.pruning.select.importance import IMPORTANCE, Importance
from epruner.pruning.select.recipes import Recipe, published

ALLOCATIONS = ("exemplar", "uniform", "reconstruction", "fisher")
REPAIRS = ("none", "merge", "batchnorm", "least_squares", "distill")
# What cannot do without something that the network was shown, and what noise will not do for.
NEEDS_EVIDENCE = {
    "allocation": ("reconstruction", "fisher"),
    "importance": ("reconstruction", "fisher"),
    "features": ("losses", "activations"),
    "repair": ("batchnorm", "least_squares", "distill"),
}
NEEDS_MORE_THAN_NOISE = ("batchnorm", "distill")
NEEDS_LABELS = "fisher"


def check_share(option: str, value: object) -> float:
    """A share in (0, 1]."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:  # type: ignore[operator]
        raise ValueError(
            f"{option} must be in (0, 1], the share of the network to get down to, got {value!r}"
        )
    return float(value)  # type: ignore[arg-type]


def check_choice(
    option: str, value: object, choices: Sequence[str], *, function: bool = False, noun: str = ""
) -> None:
    """One of some names, or a function where one may be given."""
    if function and callable(value):
        return
    if not isinstance(value, str) or value not in choices:
        more = " or a function" if function else f" or {noun}" if noun else ""
        raise (ValueError if isinstance(value, str) else TypeError)(
            f"{option} must be one of {', '.join(map(repr, choices))}{more}, got {value!r:.80}"
        )


def _check_pattern(option: str, pattern: object) -> None:
    if not isinstance(pattern, str):
        raise TypeError(
            f"{option} must map names or patterns of layers to values, got the key {pattern!r:.80}"
        )


def label_of(choice: object) -> str:
    """A name for a choice: itself, or what a function calls itself."""
    if isinstance(choice, str):
        return choice
    while isinstance(choice, partial):
        choice = choice.func
    return str(getattr(choice, "__name__", type(choice).__name__))


@dataclass(frozen=True)
class Method:
    """How filters are chosen, and what is done for those that go.

    Parameters
    ----------
    allocation : {"exemplar", "uniform", "reconstruction", "fisher"}
        How many filters each layer keeps under a budget: its number of exemplars (at one beta for
        all layers, or by losses at one price of what a filter costs), the same share of every
        layer, the numbers of least loss of reconstruction at one price, or those that one ranking
        of all filters of the network leaves it. `beta` and `recipe` always set exemplars.
    importance : {"exemplar", "l1", "l2", "fpgm", "random", "reconstruction", "fisher"} or callable
        Which filters stay once their number is set; "reconstruction" keeps those that the layers
        reading them can least do without, "fisher" those whose weights times the gradient of a
        loss sum to the largest (`epruner.pruning.select.fisher`). A callable gets a layer's
        `epruner.pruning.select.importance.Candidates` and the number that stays, and returns
        their indices, ascending, shape (count,); once for each group of a grouped convolution.
    features : {"weights", "losses", "folded", "activations", "visual"} or callable
        What filters are compared by: their weights, what the layers that read them lose when one
        stands in for another, weights and bias with BatchNorm folded in, responses to inputs, how
        the layer answers what each responds to most (`epruner.pruning.select.visual`), or a
        function from a layer to a matrix with one row a filter.
    repair : {"auto", "none", "merge", "batchnorm", "least_squares", "distill"}
        Add the outgoing weights of filters that go to those of the most similar that stays;
        estimate BatchNorm statistics anew; refit every layer by least squares; and after that
        train all of them to answer as the original does. "auto" is least squares if the network
        can be shown something, and merge if not.

    Raises
    ------
    TypeError, ValueError
        A part that is none of these.

    Notes
    -----
    "reconstruction", "losses", "activations" and the last three repairs need the network to be
    shown inputs: given, synthetic or, where that is enough, noise (see `calibrate` of `prune`);
    "fisher" inputs with labels.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> method = epruner.Method("uniform", "fpgm", repair="merge")
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> epruner.prune(model, (1, 8), macs=0.5, method=method).model[0].out_features
    16
    """

    allocation: str
    importance: str | Importance
    features: str | Features = "weights"
    repair: str = "auto"

    def __post_init__(self) -> None:
        check_choice("allocation", self.allocation, ALLOCATIONS)
        others = ("reconstruction", "fisher")
        check_choice("importance", self.importance, (*IMPORTANCE, *others), function=True)
        check_choice("features", self.features, FEATURES, function=True)
        check_choice("repair", self.repair, ("auto", *REPAIRS))

    def needs_evidence(self) -> str:
        """The part that needs the network to be shown something, as it is written; "" if none.

        Returns
        -------
        str
            Such as ``"repair='least_squares'"``.

        Examples
        --------
        >>> import epruner
        >>> epruner.Method("uniform", "l1", repair="least_squares").needs_evidence()
        "repair='least_squares'"
        >>> epruner.Method("uniform", "l1", repair="merge").needs_evidence()
        ''
        """
        for name, needy in NEEDS_EVIDENCE.items():
            if (part := getattr(self, name)) in needy:
                return f"{name}={part!r}"
        return ""

    def needs_labels(self) -> bool:
        """Whether some part of it learns from labels.

        Returns
        -------
        bool
            True of "fisher".

        Examples
        --------
        >>> import epruner
        >>> epruner.Method("fisher", "fisher").needs_labels()
        True
        """
        return NEEDS_LABELS in (self.allocation, self.importance)

    def to_dict(self) -> dict[str, str]:
        """Plain JSON values; functions go by their names.

        Returns
        -------
        dict of str to str
            By the names of the parameters.

        Examples
        --------
        >>> import epruner
        >>> epruner.Method("uniform", "l1").to_dict()
        {'allocation': 'uniform', 'importance': 'l1', 'features': 'weights', 'repair': 'auto'}
        """
        return {name: label_of(part) for name, part in vars(self).items()}


# By name. benchmarks/results/methods.md is the table behind "auto".
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "exemplar": Method("exemplar", "exemplar", "losses"),
        "paper": Method("exemplar", "exemplar", repair="none"),
        "reconstruction": Method("reconstruction", "reconstruction"),
        "fisher": Method("fisher", "fisher"),
        **{name: Method("uniform", name) for name in ("l1", "l2", "fpgm", "random")},
    }
)
BEST, BEST_UNSEEN = "reconstruction", "l1"


def preset(name: str, *, evidence: str, exemplars: bool) -> tuple[Method, str]:
    """The method of a name, and why it is this one if that was not said; see `resolve`.

    Raises
    ------
    TypeError, ValueError
        No name of a method.
    """
    check_choice("method", name, ("auto", *METHODS), noun="a Method")
    if exemplars and name in ("auto", "exemplar"):
        return replace(METHODS["paper"], repair="auto"), "beta and recipe compare weights"
    if name == "auto":
        if evidence == "none":
            why = "weights alone decide where nothing can be shown; calibrate=inputs tells more"
            return METHODS[BEST_UNSEEN], why
        return METHODS[BEST], "the best that was measured"
    if name == "exemplar" and evidence == "none":
        why = "weights are compared, as there is nothing to tell what their readers lose"
        return replace(METHODS[name], features="weights"), why
    return METHODS[name], ""


def resolve(
    method: str | Method, repair: str | None, *, evidence: str, exemplars: bool
) -> tuple[Method, str]:
    """The method that will be used, in full, and why if that was not said.

    Parameters
    ----------
    method : str or Method
        "auto", the name of a preset, or a method.
    repair : str or None
        Takes the place of the method's last part.
    evidence : {"none", "noise", "synthetic", "inputs"}
        What the network will be shown.
    exemplars : bool
        Whether the numbers are those of exemplars, at a beta that was given.

    Raises
    ------
    TypeError, ValueError
        No method, or one that needs more than there is.
    """
    if isinstance(method, Method):
        found, why = method, ""
    else:
        found, why = preset(method, evidence=evidence, exemplars=exemplars)
    if repair is not None:
        found = replace(found, repair=repair)
    if exemplars:
        found = replace(found, allocation="exemplar")
        if found.features == "losses":
            raise ValueError(
                "beta and recipe compare weights, not losses; give a budget, or another features"
            )
    if found.repair == "auto":
        found = replace(found, repair="merge" if evidence == "none" else "least_squares")
    if found.needs_labels() and evidence != "inputs":
        raise ValueError(
            "'fisher' learns from the gradient of a loss: give calibrate inputs with labels, "
            "batches (inputs, labels)"
        )
    if evidence == "none" and (part := found.needs_evidence()):
        raise ValueError(
            f"{part} needs calibrate, a few hundred inputs without labels: nothing else tells how "
            "this network behaves"
        )
    if evidence == "noise" and found.repair in NEEDS_MORE_THAN_NOISE:
        raise ValueError(
            f"repair={found.repair!r} needs calibrate, a few hundred inputs without labels or "
            "'synthetic'"
        )
    return found, why


@dataclass(frozen=True)
class Constraints:
    """What must hold of the number of filters, whatever the budget.

    Of attention a filter is a head, of a recurrent layer a hidden unit, of gated channels a pair.

    Parameters
    ----------
    min_filters : int, float or None
        At least so many (int) or this share (float) of the filters of a layer stay. None is the
        larger of 1 and 5 %. One always stays.
    round_to : int
        Keep a multiple of this many filters where the layer has so many.
    n_filters : mapping of str to int or float
        Number of filters (int) or share of them (float) for layers that match a pattern; the last
        match counts. Without a budget only these layers are pruned.

    Raises
    ------
    TypeError, ValueError
        Values of another kind.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 4))
    >>> twelve = epruner.Constraints(n_filters={"0": 12})
    >>> epruner.prune(model, (1, 8), constraints=twelve).model[0].out_features
    12
    """

    min_filters: int | float | None = None
    round_to: int = 1
    n_filters: Mapping[str, int | float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        least = self.min_filters
        whole = type(least) is int and least >= 0
        if least is not None and not whole and not (isinstance(least, float) and 0 <= least <= 1):
            raise ValueError(
                "min_filters must be a number of filters (an integer) or a share in [0, 1], got "
                f"{least!r}"
            )
        if type(self.round_to) is not int or self.round_to < 1:
            raise ValueError(f"round_to must be an integer of at least 1, got {self.round_to!r}")
        if not isinstance(self.n_filters, Mapping):
            raise TypeError(
                "n_filters must map patterns of layer names to numbers or shares of filters, got "
                f'{self.n_filters!r}; for all layers write n_filters={{"*": ...}}'
            )
        object.__setattr__(self, "n_filters", dict(self.n_filters))  # the caller's may change
        for pattern, value in self.n_filters.items():
            _check_pattern("n_filters", pattern)
            whole = type(value) is int and value >= 1
            if not whole and not (isinstance(value, float) and 0 < value <= 1):
                raise ValueError(
                    f"n_filters[{pattern!r}] must be an integer of at least 1 or a share in "
                    f"(0, 1], got {value!r}"
                )

    def to_dict(self) -> dict[str, Any]:
        """What is not as by default, plain JSON values.

        Returns
        -------
        dict of str to plain values
            By the names of the parameters.

        Examples
        --------
        >>> import epruner
        >>> epruner.Constraints(round_to=8).to_dict()
        {'round_to': 8}
        """
        values, default = {**vars(self), "n_filters": dict(self.n_filters)}, vars(Constraints())
        return {name: value for name, value in values.items() if value != default[name]}


@dataclass(frozen=True)
class Budget:
    """Any cost of a network, and how much of it may be left.

    Parameters
    ----------
    measure : callable
        From a network to a number, e.g. a size or a latency; called some fifty times.
    share : float in (0, 1]
        Of the whole network's value.

    Raises
    ------
    TypeError
        `measure` is no function.
    ValueError
        `share` is not in (0, 1].

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> def weights(network):
    ...     return sum(p.numel() for p in network.parameters() if p.dim() > 1)
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> result = epruner.prune(model, (1, 8), budget=epruner.Budget(weights, 0.5))
    >>> weights(result.model) / weights(model)
    0.5
    """

    measure: Callable[[nn.Module], float]
    share: float

    def __post_init__(self) -> None:
        if not callable(self.measure):
            raise TypeError(
                f"measure must be a function from a network to a number, got {self.measure!r}"
            )
        check_share("share", self.share)


@dataclass(frozen=True)
class Goal:
    """What sets the numbers of filters, one of the ways to say it.

    Parameters
    ----------
    kind : {"macs", "params", "latency", "budget", "beta", "n_filters"}
    share : float
        Of a budget.
    measure : callable or None
        Of a `Budget`.
    beta : float or mapping of str to float
        Where exemplars set the numbers.
    """

    kind: str
    share: float = 1.0
    measure: Callable[[nn.Module], float] | None = None
    beta: float | Mapping[str, float] = 1.0

    def settings(self) -> dict[str, Any]:
        """As a report states it, plain values."""
        if self.measure is not None:
            return {"budget": label_of(self.measure), "share": self.share}
        if self.kind == "beta":
            return {"beta": dict(self.beta) if isinstance(self.beta, Mapping) else self.beta}
        return {} if self.kind == "n_filters" else {self.kind: self.share}


@dataclass(frozen=True)
class Request:
    """All that was asked of a selection, checked and complete.

    Parameters
    ----------
    goal : Goal
    method : Method
        Without "auto" in it.
    why : str
        Why this method, if it was not asked for by name.
    evidence : {"none", "noise", "synthetic", "inputs"}
        What the network is shown; "none" also where the method needs nothing.
    constraints : Constraints
    recipe : str or None
        Name of the published row.
    layers : tuple of str or None
        Patterns; None is all that can be pruned.
    ignore : tuple of str
    scope : {"inner", "all", "blocks"}
    approximate : bool
        Whether channels may go over which norms are taken: as `scope` has it, where there are
        inputs and a method that learns from them.
    random_state : int
    n_threads : int or None
    loss : callable
        From what the network puts out and labels to a scalar.
    """

    goal: Goal
    method: Method
    why: str = ""
    evidence: str = "none"
    constraints: Constraints = Constraints()
    recipe: str | None = None
    layers: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    scope: str = "inner"
    approximate: bool = False
    random_state: int = 0
    n_threads: int | None = None
    loss: Loss = cross_entropy

    def without_evidence(self, method: str | Method, repair: str | None) -> Request:
        """The same where nothing could be shown to the network; see `resolve`."""
        exemplars = self.goal.kind == "beta"
        found, why = resolve(method, repair, evidence="none", exemplars=exemplars)
        return replace(self, method=found, why=why, evidence="none", approximate=False)

    def settings(self) -> dict[str, Any]:
        """As a report states it, plain JSON values."""
        return {
            **self.goal.settings(),
            "recipe": self.recipe,
            "method": self.method.to_dict(),
            "why": self.why or None,
            "evidence": self.evidence,
            "constraints": self.constraints.to_dict(),
            "layers": None if self.layers is None or self.recipe else list(self.layers),
            "ignore": list(self.ignore) or None,
            "scope": self.scope,
            "random_state": self.random_state,
            **({"loss": label_of(self.loss)} if self.method.needs_labels() else {}),
        }


def make_request(
    model: nn.Module,
    *,
    macs: float | None,
    params: float | None,
    latency: float | None,
    beta: float | Mapping[str, float] | None,
    budget: Budget | None,
    recipe: str | Recipe | None,
    method: str | Method,
    repair: str | None,
    evidence: str,
    constraints: Constraints | None,
    layers: Iterable[str | nn.Module] | None,
    ignore: Iterable[str | nn.Module],
    scope: str,
    random_state: int,
    n_threads: int | None,
    loss: Loss | None,
) -> Request:
    """Check everything that can be checked before any work; see `epruner.prune`."""
    name = None
    if constraints is not None and not isinstance(constraints, Constraints):
        raise TypeError(f"constraints must be an epruner.Constraints, got {constraints!r:.80}")
    if recipe is not None:
        numbers = constraints is not None and constraints.n_filters
        if numbers or any(x is not None for x in (macs, params, latency, beta, budget, layers)):
            raise ValueError(
                "recipe sets layers and beta itself; give it without macs, params, latency, beta, "
                "budget, layers and n_filters"
            )
        if not isinstance(recipe, (str, Recipe)):
            raise TypeError(
                f"recipe must be the name of a published row or a Recipe, got {recipe!r:.80}"
            )
        found = recipe if isinstance(recipe, Recipe) else published(recipe)
        name, beta = found.name, found.betas(model)
        layers = list(beta)
        constraints = constraints or Constraints(min_filters=1)
    constraints = constraints or Constraints()
    goal = goal_of(
        macs=macs,
        params=params,
        latency=latency,
        beta=beta,
        budget=budget,
        constraints=constraints,
    )
    check_choice("scope", scope, ("inner", "all", "blocks"))
    chosen, why = resolve(method, repair, evidence=evidence, exemplars=goal.kind == "beta")
    if scope == "blocks":
        _check_blocks(goal, chosen, evidence)
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function of outputs and labels, got {loss!r:.80}")
    if loss is not None and not chosen.needs_labels():
        raise ValueError("loss is what 'fisher' takes the gradient of; this method looks at none")
    approximate = False
    if scope == "all" and evidence != "none":
        own = resolve(method, None, evidence=evidence, exemplars=goal.kind == "beta")[0]
        approximate = any(m.needs_evidence() for m in (chosen, own))  # a repair may come later
    effective_n_threads(n_threads)
    if not isinstance(random_state, Integral) or random_state < 0:
        raise ValueError(f"random_state must be an integer of at least 0, got {random_state!r}")
    return Request(
        goal,
        chosen,
        why,
        evidence if chosen.needs_evidence() else "none",
        constraints,
        name,
        None if layers is None else tuple(as_patterns(model, "layers", layers)),
        tuple(as_patterns(model, "ignore", ignore)),
        scope,
        approximate,
        int(random_state),
        n_threads,
        loss or cross_entropy,
    )


def _check_blocks(goal: Goal, method: Method, evidence: str) -> None:
    if goal.kind not in ("macs", "latency"):
        raise ValueError(
            "scope='blocks' weighs blocks against filters, which needs a budget of macs= or "
            f"latency=, got {goal.kind}="
        )
    if evidence not in ("synthetic", "inputs"):
        raise ValueError(
            "scope='blocks' needs calibrate, a few hundred inputs without labels: what is lost "
            "with a block is measured on them"
        )
    if method.allocation != "reconstruction":
        raise ValueError(
            "scope='blocks' needs a method that measures what is lost with filters, such as "
            f"'reconstruction', got allocation={method.allocation!r}"
        )


def goal_of(
    *,
    macs: float | None,
    params: float | None,
    latency: float | None,
    beta: float | Mapping[str, float] | None,
    budget: Budget | None,
    constraints: Constraints,
) -> Goal:
    """The one way in which it was said how much goes.

    Raises
    ------
    TypeError, ValueError
        None, more than one, or a value out of range.
    """
    given = {
        "macs": macs, "params": params, "latency": latency, "beta": beta, "budget": budget,
    }  # fmt: skip
    said = [name for name, value in given.items() if value is not None]
    if len(said) > 1:
        raise ValueError(f"{' and '.join(said)} exclude each other; give one of them")
    if said and said[0] in ("macs", "params", "latency"):
        return Goal(said[0], check_share(said[0], given[said[0]]))
    if budget is not None:
        if not isinstance(budget, Budget):
            raise TypeError(f"budget must be an epruner.Budget(measure, share), got {budget!r}")
        return Goal("budget", float(budget.share), budget.measure)
    if beta is not None:
        for pattern in beta if isinstance(beta, Mapping) else ():
            _check_pattern("beta", pattern)
        for each in beta.values() if isinstance(beta, Mapping) else [beta]:
            number = isinstance(each, (int, float)) and not isinstance(each, bool)
            if not number or not 0 < each < math.inf:
                raise ValueError(f"beta must be a positive number, got {each!r}")
        if beta == {}:
            raise ValueError("beta is an empty mapping; give a number or at least one pattern")
        return Goal("beta", beta=beta if isinstance(beta, Mapping) else float(beta))
    if constraints.n_filters:
        return Goal("n_filters")
    raise ValueError(
        "how much should go? Give macs=, params= or latency= (the share of multiply-adds, "
        "parameters or time to get down to, e.g. macs=0.5), budget=Budget(function, share), beta=, "
        "recipe=, or constraints=Constraints(n_filters={...})"
    )
