"""How many filters each layer keeps so that the whole network costs what was asked.

What is searched is one number for all layers: a beta, a share, or a price of a multiply-add. The
number of exemplars is a step function of either, and not even a monotone one. So a budget is met in
steps, each deterministic: search; between the two nearest answers (one above the budget, one below)
move all layers proportionally; fill what is left one filter at a time, the dearest layer that still
fits first; where that is too coarse, let one layer give so that another can take. Only a `Budget`
of the user's runs anything: other costs are arithmetic on shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt

from epruner.pruning.graph.blocks import inside
from epruner.pruning.graph.costs import Costs, Totals
from epruner.pruning.graph.groups import Group
from epruner.pruning.select.blocks import Block
from epruner.pruning.select.problems import Clusterings, Layer, cluster

Counts = dict[str, int]
Measure = Callable[[Counts], float]

TOLERANCE = 0.01
# beta = 0.02 keeps practically everything that differs at all; beyond 64 a layer has practically
# collapsed. Searched is -log(beta), which grows with what is kept.
WEAKNESS_RANGE = (-math.log(64.0), -math.log(0.02))
FIRST_WEAKNESS = -math.log(0.7)
CHEAPNESS_RANGE = (-16.0, 16.0)  # -log of what a share of the network is worth in lost variance
FIRST_CHEAPNESS = -3.0
TRIALS = 9
UNIFORM_TRIALS = 20
CLOSE = 0.03  # an answer this close to what is wanted needs no better beta


class Sizes:
    """Totals of the network when groups keep so many channels, by arithmetic.

    Parameters
    ----------
    costs : Costs
    groups : sequence of Group
    blocks : sequence of str
        Names of modules that are not there where their number is 0.
    """

    def __init__(self, costs: Costs, groups: Sequence[Group], blocks: Sequence[str] = ()) -> None:
        self._costs = costs
        self._blocks = {
            block: frozenset(name for name in costs.modules if inside(name, block))
            for block in blocks
        }
        # (module, 0 for outputs and 1 for inputs, entries per channel, group, its channels)
        self._uses = [
            (member.module, side, member.fold, group.name, group.channels)
            for group in groups
            for side, members in enumerate(
                ((*group.producers, *group.followers, *group.products), group.consumers)
            )
            for member in members
            if member.module in costs.modules
        ]

    def totals(self, counts: Mapping[str, int]) -> Totals:
        """Size of the whole network; groups that are not in `counts` are whole."""
        return self._costs.totals(self.sizes(counts), self.absent(counts))

    def absent(self, counts: Mapping[str, int]) -> frozenset[str]:
        """Modules and matrix products that go with their block."""
        gone = (names for block, names in self._blocks.items() if counts.get(block) == 0)
        return frozenset().union(*gone)

    def macs(self, counts: Mapping[str, int], names: Iterable[str]) -> int:
        """Multiply-adds of some of the modules and matrix products that a group touches."""
        sizes = self.sizes(counts)
        there = set(names) - self.absent(counts)
        return sum(self._costs.modules[name].macs_at(*sizes[name]) for name in there)

    def sizes(self, counts: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of every module and matrix product that a group touches."""
        sizes: dict[str, list[int]] = {}
        for module, side, fold, group, channels in self._uses:
            cost = self._costs.modules[module]
            size = sizes.setdefault(module, [cost.outputs, cost.inputs])
            size[side] -= (channels - counts.get(group, channels)) * fold
        return {module: (size[0], size[1]) for module, size in sizes.items()}


def prices(layers: Sequence[Layer], cost: Measure) -> dict[str, float]:
    """What one filter of each layer costs, as a share of the whole network."""
    whole = {x.name: x.channels for x in layers}
    full = cost(whole)
    return {
        x.name: (full - cost(whole | {x.name: x.channels - x.unit})) / (x.unit * full)
        for x in layers
    }


@dataclass(frozen=True)
class Choice:
    """Numbers of filters, and the clusterings they came from.

    Parameters
    ----------
    counts : dict of str to int
        Filters that stay, by layer; 0 for a block that is passed by, and for its layers.
    clusterings : dict of str to Clusterings
    strengths : dict of str to float
        The beta or price of each layer; empty where exemplars did not set the numbers.
    notes : tuple of str
    obstacle : str
        If a budget was missed, what stood in the way: the end of a sentence.
    """

    counts: Counts
    clusterings: dict[str, Clusterings]
    strengths: dict[str, float]
    notes: tuple[str, ...] = ()
    obstacle: str = ""


class Search:
    """Searches over one strength for all layers; clusterings once made are kept.

    Parameters
    ----------
    layers : sequence of Layer
    fixed : dict of str to int
        Layers whose number of filters is given.
    prices : mapping of str to float
        Per layer, what one filter costs, as a share of the network.
    errors : mapping of str to ndarray of shape (n + 1,), optional
        Per layer, what is lost when k of its filters are left.
    blocks : sequence of Block
        That may go as a whole, where layers are allocated by reconstruction.
    by_losses : bool
        Whether filters are clustered by losses, at a price, rather than at a beta.
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
        prices: Mapping[str, float],
        errors: Mapping[str, npt.NDArray[np.float64]] | None = None,
        blocks: Sequence[Block] = (),
        by_losses: bool = False,
        exemplars: bool,
        seed: int,
        n_threads: int | None,
    ) -> None:
        self._layers = layers
        self._exemplars = exemplars
        self._errors = errors or {}
        self._blocks = blocks
        self._prices = prices
        self._units = prices if by_losses else dict.fromkeys(prices, 1.0)  # of a layer's strength
        self._range = (
            (*CHEAPNESS_RANGE, FIRST_CHEAPNESS) if by_losses else (*WEAKNESS_RANGE, FIRST_WEAKNESS)
        )
        self._free = [layer for layer in layers if layer.name not in fixed]
        self._fixed = fixed
        self._seed = seed
        self._n_threads = n_threads
        self._seen: dict[float, dict[str, Clusterings]] = {}  # by weakness

    def at_weakness(self, weakness: float) -> Counts:
        """Numbers of exemplars at beta or price exp(-weakness), floors and rounding applied.

        The larger the weakness the more filters stay, as with a share.
        """
        if weakness not in self._seen:
            strengths = {x.name: self._strength(x, weakness) for x in self._free}
            self._seen[weakness] = self._cluster(self._free, strengths)
        found = self._seen[weakness]
        counts = {x.name: x.fit(x.exemplar_count(found[x.name])) for x in self._free if x.clustered}
        return self._with_the_rest(counts, otherwise=0.5)

    def _strength(self, layer: Layer, weakness: float) -> float:
        """What a layer is clustered at."""
        return math.exp(-weakness) * self._units[layer.name]

    def _with_the_rest(self, counts: Counts, *, otherwise: float) -> Counts:
        """Layers of which too little is known keep the share that the others keep."""
        shares = [counts[x.name] / x.channels for x in self._free if x.name in counts]
        share = float(np.mean(shares)) if shares else otherwise
        rest = {x.name: x.fit(share * x.channels) for x in self._free if x.name not in counts}
        return self._fixed | counts | rest

    def at_share(self, share: float) -> Counts:
        """The same share of every layer."""
        return self._fixed | {x.name: x.fit(share * x.channels) for x in self._free}

    def _exact(self, layers: Sequence[Layer], counts: Counts) -> dict[str, Clusterings]:
        """Clusterings with nearly `counts` exemplars, each layer at a beta of its own.

        Empty if the members will not be exemplars.
        """
        if not self._exemplars:
            return {}
        layers = [x for x in layers if x.clustered]
        brackets = {x.name: _Bracket(*self._range) for x in layers}
        best: dict[str, Clusterings] = {}
        misses: dict[str, int] = {}
        searched = list(layers)
        for _ in range(TRIALS):
            if not searched:
                break
            tried = {x.name: brackets[x.name].next(counts[x.name]) for x in searched}
            strengths = {x.name: self._strength(x, tried[x.name]) for x in searched}
            found = self._cluster(searched, strengths)
            for layer in searched:
                name, wanted = layer.name, counts[layer.name]
                count = sum(len(c.exemplars) for c in found[name])
                brackets[name].set(tried[name], count, wanted)
                if name not in misses or abs(count - wanted) < misses[name]:
                    best[name], misses[name] = found[name], abs(count - wanted)
            searched = [x for x in searched if misses[x.name] > CLOSE / 2 * counts[x.name]]
        return best

    def at_betas(self, layers: Sequence[Layer], betas: Mapping[str, float]) -> Choice:
        """The numbers of exemplars of some layers, each at its beta; of all others as given."""
        clusterings = self._cluster(layers, betas)
        counts = self._fixed | {
            x.name: x.fit(x.exemplar_count(clusterings[x.name])) for x in layers
        }
        exact = self._clusterings_of_fixed(counts)
        return Choice(counts, clusterings | exact, dict(betas))

    def meet(
        self, measure: Measure, share: float, *, allocation: str, proxy: Measure, patience: int
    ) -> Choice:
        """Numbers of filters that cost just not more than a share of the whole network.

        Parameters
        ----------
        measure : callable
            Cost of a network with these numbers of filters; larger with more of them.
        share : float
        allocation : {"exemplar", "uniform", "reconstruction", "fisher"}
            The number of exemplars at the same beta, the same share of every layer, or the least
            loss at the same price (per unit of `proxy`, or per filter).
        proxy : callable
            A cheap measure, to order the layers by what a filter of theirs costs, and to tell what
            a block does.
        patience : int
            How many single filters to try at most.

        Returns
        -------
        Choice
            Its notes say if the target could not be met within 1 %, and why.
        """
        everything = measure({x.name: x.channels for x in self._layers})
        target = share * everything
        whole = self._fixed | {x.name: x.channels for x in self._free}
        least = self._fixed | {x.name: x.fit(1) for x in self._free}
        for block in self._blocks:
            least |= block.gone
        over, under = whole, least
        over_cost, under_cost = measure(whole), measure(least)
        nearest: float | None = None  # strength of the answer whose cost is closest to the target
        miss = math.inf
        if under_cost <= target < over_cost:
            at, bracket, trials = self._way(allocation, proxy)
            for _ in range(trials):
                strength = bracket.next(target)
                counts = at(strength)
                cost = measure(counts)
                bracket.set(strength, cost, target)
                if under_cost <= cost <= target:
                    under, under_cost = counts, cost
                elif target < cost <= over_cost:
                    over, over_cost = counts, cost
                if abs(cost - target) < miss:
                    nearest, miss = strength, abs(cost - target)
                if miss <= CLOSE * target:
                    break
        if over_cost <= target:
            counts = whole
        elif under_cost > target:
            counts = least
        else:
            under = self._without_fewer(under, over, measure, target)
            counts = self._between(under, over, measure, target)
            counts = self._fill(counts, measure, target, proxy, patience)
            counts = self._exchange(counts, measure, target, patience)
        cost = measure(counts)
        obstacle = self._obstacle(counts, cost, target)
        notes = (
            f"the budget is {target / everything:.4g} of the network; the closest met is "
            f"{cost / everything:.4g}{obstacle}",
        ) * bool(obstacle)
        if allocation != "exemplar" or nearest is None:  # no strength for all
            exact = self._exact(_there(self._layers, counts), counts)
            return Choice(counts, exact, {}, notes, obstacle)
        strengths = dict.fromkeys(self._seen[nearest], math.exp(-nearest))
        clusterings = self._seen[nearest] | self._clusterings_of_fixed(counts)
        return Choice(counts, clusterings, strengths, notes, obstacle)

    def _way(
        self, allocation: str, proxy: Measure
    ) -> tuple[Callable[[float], Counts], _Bracket, int]:
        """What to search over, where, and how often to try."""
        if allocation == "uniform":
            return self.at_share, _Bracket(0.0, 1.0), UNIFORM_TRIALS
        if allocation == "exemplar":
            return self.at_weakness, _Bracket(*self._range), TRIALS
        whole = proxy({x.name: x.channels for x in self._layers})
        return (
            lambda cheapness: self._at_price(math.exp(-cheapness), lambda c: proxy(c) / whole),
            _Bracket(*CHEAPNESS_RANGE),
            UNIFORM_TRIALS,
        )

    def _at_price(self, price: float, share: Measure) -> Counts:
        """The numbers of filters of least loss plus price; no block that is not worth its own."""
        counts = {}
        for x in self._free:
            if x.name in self._errors:
                allowed = sorted({x.fit(k) for k in range(1, x.channels + 1)})
                cost = price * self._prices[x.name] * np.arange(x.channels + 1)
                counts[x.name] = min(allowed, key=(self._errors[x.name] + cost).__getitem__)
        counts = self._with_the_rest(counts, otherwise=1 / (1 + price))
        now = share(counts) if self._blocks else 0.0
        for block in self._blocks:
            rest = share(counts | block.gone)
            error = sum(
                float(self._errors[x][counts[x]]) for x in block.layers if x in self._errors
            )
            if block.loss < error + price * (now - rest):
                counts, now = counts | block.gone, rest
        return counts

    def _clusterings_of_fixed(self, counts: Counts) -> dict[str, Clusterings]:
        return self._exact([x for x in self._layers if x.name in self._fixed], counts)

    def _without_fewer(
        self, under: Counts, over: Counts, measure: Measure, target: float
    ) -> Counts:
        """With the blocks that stay in `over`, as many as fit, those that add most first."""
        for block in sorted(self._blocks, key=lambda block: -block.loss):
            if block.name in under and block.name not in over:
                trial = under | {name: over[name] for name in block.layers}
                del trial[block.name]
                if measure(trial) <= target:
                    under = trial
        return under

    def _between(self, under: Counts, over: Counts, measure: Measure, target: float) -> Counts:
        """The farthest that fits on the straight way from `under` to `over`."""
        low, high = 0.0, 1.0
        best = under
        for _ in range(12):
            middle = (low + high) / 2
            counts = dict(under)
            for layer in self._free:
                a, b = under[layer.name], over[layer.name]
                if not a:  # in a block that is passed by
                    continue
                steps = (b - a) / layer.unit * middle
                counts[layer.name] = min(a + int(steps) * layer.unit, layer.channels)
            if measure(counts) <= target:
                best, low = counts, middle
            else:
                high = middle
        return best

    def _fill(
        self, counts: Counts, measure: Measure, target: float, proxy: Measure, patience: int
    ) -> Counts:
        """Add filters while they fit: in each round one a layer, the dearest layer first.

        No layer gains more than a twentieth of its channels (or one step), unless the budget is
        missed without.
        """
        start, cost = counts, measure(counts)

        def one_more(layer: Layer) -> Counts:
            more = min(counts[layer.name] + layer.unit, layer.channels)
            return counts | {layer.name: more}

        # the sort is stable: of layers that cost the same the first in the network comes first
        order = sorted(_there(self._free, counts), key=lambda x: -proxy(one_more(x)))
        for enough, share in ((target * (1 - TOLERANCE / 10), 0.05), (target * (1 - TOLERANCE), 1)):
            grew = True
            while grew and cost < enough:
                grew = False
                for layer in order:
                    trial = one_more(layer)
                    gain = trial[layer.name] - start[layer.name]
                    whole = counts[layer.name] == layer.channels
                    if whole or gain > max(layer.unit, share * layer.channels):
                        continue
                    if cost >= enough or patience <= 0:
                        return counts
                    patience -= 1
                    if (trial_cost := measure(trial)) <= target:
                        counts, cost, grew = trial, trial_cost, True
        return counts

    def _exchange(self, counts: Counts, measure: Measure, target: float, patience: int) -> Counts:
        """Where single filters are too coarse: fewer in one layer, so that more fit in another.

        Two layers at a time, those first that give fewest, until the budget is met; then on from
        the best. If it stays missed, nothing changes.
        """
        start, best, best_cost = counts, counts, measure(counts)
        free = _there(self._free, counts)
        improved = True
        while improved and best_cost < target * (1 - TOLERANCE):
            counts, improved = best, False
            taken = {  # the largest that fits; larger the more the other gives
                (giver.name, taker.name): counts[taker.name]
                for giver, taker in permutations(free, 2)
            }
            fewer = {  # numbers that a layer may go down to, the nearest first
                x.name: sorted(
                    {n for k in range(1, counts[x.name]) if (n := x.fit(k)) < counts[x.name]},
                    reverse=True,
                )
                for x in free
            }
            for steps in range(max(map(len, fewer.values()), default=0)):
                for giver, taker in permutations(free, 2):
                    if steps >= len(fewer[giver.name]):
                        continue
                    given, pair = fewer[giver.name][steps], (giver.name, taker.name)
                    while taken[pair] < taker.channels and patience > 0:
                        more = min(taken[pair] + taker.unit, taker.channels)
                        trial = counts | {giver.name: given, taker.name: more}
                        patience -= 1
                        if (cost := measure(trial)) > target:
                            break
                        taken[pair] = more
                        if cost > best_cost:
                            best, best_cost, improved = trial, cost, True
                    if best_cost >= target * (1 - TOLERANCE):
                        return best
                    if patience <= 0:
                        return start
        return best if best_cost >= target * (1 - TOLERANCE) else start

    def _obstacle(self, counts: Counts, cost: float, target: float) -> str:
        passed = any(block.name in counts for block in self._blocks)  # which is a large step
        if (1 - TOLERANCE) * target <= cost <= target or (passed and cost <= target):
            return ""
        if cost > target:
            bound = [x.name for x in self._free if counts[x.name] == x.fit(1)]
            more = f" and {len(bound) - 3} more" if len(bound) > 3 else ""
            floors = f", with these layers at their floors: {', '.join(bound[:3])}{more}"
            return (
                f"{floors * bool(bound)}; a lower min_filters or round_to, more layers or "
                "scope='all' allow less"
            )
        if all(counts[x.name] == x.channels for x in self._free):
            return ", with all that n_filters leaves free whole"
        return "; the steps of single filters are too coarse to come closer"

    def _cluster(
        self, layers: Sequence[Layer], betas: Mapping[str, float]
    ) -> dict[str, Clusterings]:
        return cluster(layers, betas, seed=self._seed, n_threads=self._n_threads)


def _there(layers: Sequence[Layer], counts: Counts) -> list[Layer]:
    """Layers but for those of blocks that are passed by."""
    return [layer for layer in layers if counts[layer.name]]


class _Bracket:
    """Where to look next for the strength whose cost is the target.

    Interpolates where both ends were measured (never closer than a tenth to an end). Where only
    one was, it follows the last two measurements to the target, but never by more than a step
    that widens.
    """

    def __init__(self, low: float, high: float, first: float | None = None) -> None:
        self._low, self._high = low, high
        self._next = (low + high) / 2 if first is None else first
        self._below: tuple[float, float] | None = None
        self._above: tuple[float, float] | None = None
        self._slope = 0.0
        self._step = 1 / 6

    def set(self, strength: float, cost: float, target: float) -> None:
        """Note a measurement."""
        last = self._below if cost <= target else self._above
        if last is not None and strength != last[0]:
            self._slope = (cost - last[1]) / (strength - last[0])
        if cost <= target:
            self._low, self._below = strength, (strength, cost)
        else:
            self._high, self._above = strength, (strength, cost)

    def next(self, target: float) -> float:
        """The strength to measure next."""
        if self._below and self._above:
            (x0, y0), (x1, y1) = self._below, self._above
            share = (target - y0) / (y1 - y0) if y1 > y0 else 0.5
            return x0 + min(max(share, 0.1), 0.9) * (x1 - x0)
        known = self._below or self._above
        if known is None:
            return self._next
        self._step *= 1.5
        step = self._step
        if self._slope > 0:  # a little farther, so as to come out on the other side
            step = min(step, max(1.1 * abs(target - known[1]) / self._slope, 0.05))
        if self._below:
            return min(self._low + step, (self._low + self._high) / 2)
        return max(self._high - step, (self._low + self._high) / 2)
