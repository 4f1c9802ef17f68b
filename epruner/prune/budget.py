"""How many filters each layer keeps so that the whole network costs what was asked.

The number of exemplars is a step function of beta, and not even a monotone one. So a budget is met
in three steps, each deterministic: bisect one beta for all layers; between the two nearest answers
(one above the budget, one below) move all layers proportionally; fill what is left one filter at a
time, the dearest layer that still fits first. Nothing runs the network: costs are arithmetic on
shapes, and only messages are solved again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from epruner.prune.count import Costs
from epruner.prune.graph import Group
from epruner.prune.report import Totals
from epruner.prune.selection import Clusterings, Layer, cluster

Counts = dict[str, int]
Measure = Callable[[Counts], float]

TOLERANCE = 0.01
# Bisection of beta: 0.02 keeps practically everything that differs at all, and beyond 64 a layer
# has practically collapsed.
BETA_RANGE = (0.02, 64.0)
BISECTIONS = 10


class Sizes:
    """Totals of the network when groups keep so many channels, by arithmetic."""

    def __init__(self, costs: Costs, groups: Sequence[Group]) -> None:
        self._costs = costs
        # (module, 0 for outputs and 1 for inputs, entries per channel, group, its channels)
        self._uses = [
            (member.module, side, member.fold, group.name, group.channels)
            for group in groups
            for side, members in enumerate(((*group.producers, *group.followers), group.consumers))
            for member in members
            if member.module in costs.modules
        ]

    def totals(self, counts: Mapping[str, int]) -> Totals:
        """Size of the whole network; groups that are not in `counts` are whole."""
        return self._costs.totals(self.sizes(counts))

    def sizes(self, counts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of every module that a group touches."""
        sizes: dict[str, list[int]] = {}
        for module, side, fold, group, channels in self._uses:
            cost = self._costs.modules[module]
            size = sizes.setdefault(module, [cost.outputs, cost.inputs])
            size[side] -= (channels - counts.get(group, channels)) * fold
        return {module: (size[0], size[1]) for module, size in sizes.items()}


@dataclass(frozen=True)
class Choice:
    """Numbers of filters, and the clusterings they came from.

    Parameters
    ----------
    counts : dict of str to int
        Filters that stay, by layer.
    clusterings : dict of str to Clusterings
    betas : dict of str to float
        Empty where exemplars did not set the numbers.
    notes : tuple of str
    """

    counts: Counts
    clusterings: dict[str, Clusterings]
    betas: dict[str, float]
    notes: tuple[str, ...] = ()


class Search:
    """Searches over one strength for all layers; clusterings once made are kept.

    Parameters
    ----------
    layers : sequence of Layer
    fixed : dict of str to int
        Layers whose number of filters is given.
    exemplars : bool
        Whether the members will be exemplars, so that layers of a given number need them.
    seed, n_threads
        Of the clustering.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        fixed: Counts,
        exemplars: bool,
        seed: int,
        n_threads: int | None,
    ) -> None:
        self._layers = layers
        self._exemplars = exemplars
        self._free = [layer for layer in layers if layer.name not in fixed]
        self._fixed = fixed
        self._seed = seed
        self._n_threads = n_threads
        self._seen: dict[float, dict[str, Clusterings]] = {}

    def at_beta(self, beta: float) -> Counts:
        """Numbers of exemplars at one beta for all layers, floors and rounding applied."""
        if beta not in self._seen:
            self._seen[beta] = self._cluster(self._free, {x.name: beta for x in self._free})
        found = self._seen[beta]
        return self._fixed | {x.name: x.fit(x.exemplar_count(found[x.name])) for x in self._free}

    def at_share(self, share: float) -> Counts:
        """The same share of every layer."""
        return self._fixed | {x.name: x.fit(share * x.channels) for x in self._free}

    def exact(self, layers: Sequence[Layer], counts: Counts) -> dict[str, Clusterings]:
        """Clusterings with as nearly `counts` exemplars as any beta gives, a beta per layer.

        Empty if the members will not be exemplars.
        """
        if not self._exemplars:
            return {}
        low = {layer.name: math.log(BETA_RANGE[0]) for layer in layers}
        high = {layer.name: math.log(BETA_RANGE[1]) for layer in layers}
        best: dict[str, Clusterings] = {}
        misses: dict[str, int] = {}
        searched = list(layers)
        for _ in range(BISECTIONS + 2):
            if not searched:
                break
            middle = {x.name: (low[x.name] + high[x.name]) / 2 for x in searched}
            found = self._cluster(searched, {name: math.exp(b) for name, b in middle.items()})
            for layer in searched:
                name = layer.name
                miss = sum(len(c.exemplars) for c in found[name]) - counts[name]
                if name not in misses or abs(miss) < abs(misses[name]):
                    best[name], misses[name] = found[name], miss
                if miss > 0:
                    low[name] = middle[name]
                else:
                    high[name] = middle[name]
            searched = [x for x in searched if misses[x.name]]
        return best

    def meet(self, measure: Measure, target: float, *, uniform: bool, single_steps: bool) -> Choice:
        """Numbers of filters whose measure is just not above `target`.

        Parameters
        ----------
        measure : callable
            Cost of a network with these numbers of filters; larger with more of them.
        target : float
        uniform : bool
            The same share of every layer instead of the number of exemplars at the same beta.
        single_steps : bool
            Whether `measure` is cheap enough to try filters one at a time.

        Returns
        -------
        Choice
            Its notes say if the target could not be met within 1 %, and why.
        """
        whole = self._fixed | {x.name: x.channels for x in self._free}
        least = self._fixed | {x.name: x.fit(1) for x in self._free}
        over, under = whole, least
        over_cost, under_cost = measure(whole), measure(least)
        low, high = (0.0, 1.0) if uniform else (math.log(b) for b in BETA_RANGE)
        at_beta = math.exp(high)
        for _ in range(BISECTIONS):
            if not under_cost <= target < over_cost:
                break
            middle = (low + high) / 2
            counts = self.at_share(middle) if uniform else self.at_beta(math.exp(middle))
            cost = measure(counts)
            fits = cost <= target
            if fits and cost >= under_cost:
                under, under_cost, at_beta = counts, cost, math.exp(middle)
            elif not fits and cost <= over_cost:
                over, over_cost = counts, cost
            # a larger share keeps more, a larger beta less
            if fits is uniform:
                low = middle
            else:
                high = middle
            if fits and cost >= target * (1 - TOLERANCE / 10):
                break
        if over_cost <= target:
            counts = whole
        elif under_cost > target:
            counts = least
        else:
            counts = self._between(under, over, measure, target)
            if single_steps:
                counts = self._fill(counts, measure, target)
        notes = _shortfall(self._free, counts, measure(counts), target, measure(whole))
        if uniform:
            return Choice(counts, self.exact(self._layers, counts), {}, notes)
        self.at_beta(at_beta)
        clusterings = self._seen[at_beta] | self._clusterings_of_fixed(counts)
        return Choice(counts, clusterings, {x.name: at_beta for x in self._free}, notes)

    def _clusterings_of_fixed(self, counts: Counts) -> dict[str, Clusterings]:
        return self.exact([x for x in self._layers if x.name in self._fixed], counts)

    def _between(self, under: Counts, over: Counts, measure: Measure, target: float) -> Counts:
        """The farthest that fits on the straight way from `under` to `over`."""
        low, high = 0.0, 1.0
        best = under
        for _ in range(12):
            middle = (low + high) / 2
            counts = dict(under)
            for layer in self._free:
                a, b = under[layer.name], over[layer.name]
                steps = (b - a) / layer.unit * middle
                counts[layer.name] = min(a + int(steps) * layer.unit, layer.channels)
            if measure(counts) <= target:
                best, low = counts, middle
            else:
                high = middle
        return best

    def _fill(self, counts: Counts, measure: Measure, target: float) -> Counts:
        """Add filters while they fit: in each round one a layer, the dearest layer first."""
        counts = dict(counts)
        cost = measure(counts)

        def one_more(layer: Layer) -> Counts:
            more = min(counts[layer.name] + layer.unit, layer.channels)
            return counts | {layer.name: more}

        # the sort is stable: of layers that cost the same the first in the network comes first
        order = sorted(self._free, key=lambda x: -measure(one_more(x)))
        grew = True
        while grew and cost < target * (1 - TOLERANCE / 10):
            grew = False
            for layer in order:
                trial = one_more(layer)
                if trial == counts:
                    continue
                if (trial_cost := measure(trial)) <= target:
                    counts, cost, grew = trial, trial_cost, True
        return counts

    def _cluster(
        self, layers: Sequence[Layer], betas: Mapping[str, float]
    ) -> dict[str, Clusterings]:
        return cluster(layers, betas, seed=self._seed, n_threads=self._n_threads)


def _shortfall(
    layers: Sequence[Layer], counts: Counts, cost: float, target: float, whole: float
) -> tuple[str, ...]:
    if abs(cost - target) <= TOLERANCE * target:
        return ()
    note = (
        f"the budget is {target / whole:.4g} of the network; the closest met is {cost / whole:.4g}"
    )
    if cost > target:
        bound = [x.name for x in layers if counts[x.name] == x.fit(1)]
        shown = ", ".join(bound[:3]) + (f" and {len(bound) - 3} more" if len(bound) > 3 else "")
        note += f", with these layers at their floors: {shown or 'none'}"
        note += "; a lower min_keep, more layers or scope='all' allow less"
    else:
        note += "; single filters are too coarse to come closer"
    return (note,)
