"""What every layer's time is at other widths, from a few networks that were run.

The whole network and some with fewer channels, in every group another share, run in turn; each
layer is timed where it stands, with the inputs, the memory formats and the caches that it has
there. The time of a layer with o outputs and i inputs is then

    t(o, i) = a + b o + c i + d o i,    a, b, c, d >= 0

fitted by least squares to median times, for all layers of one kind and size together. What a pass
takes beside its n layers is a n + b e + c m, with e the elements that these write and m the
multiply-adds of matrix products between them (the inside of attention). So a predicted time grows
with every width, as a search needs it, and costs arithmetic only.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import reduce
from itertools import combinations
from operator import or_
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from epruner.pruning.latency import stopwatch
from epruner.pruning.network.inputs import Arguments
from epruner.pruning.network.tree import tensors_in
from epruner.pruning.select.allocation import Counts, Sizes
from epruner.pruning.select.blocks import Block
from epruner.pruning.select.problems import Layer

Floats = npt.NDArray[np.float64]
Size = tuple[int, int]  # (outputs, inputs)
Kind = tuple[str, int]  # a module as it prints itself, and the elements that it writes

SHARES = (0.25, 0.5, 0.75)
COARSE, FINE, OFF = 16, 8, 3  # multiples that devices may like, and a step that leaves them
STEPS = 6  # a layer of fewer multiples than this is not limited to them
EQUAL = 1.005  # times that differ by less than this factor
LEAST, MOST, SECONDS = 3, 25, 15.0  # rounds, and after which time none begins


class LayerTimes:
    """Seconds of a forward pass by the numbers of filters, and which multiples of them are fast.

    Parameters
    ----------
    layers : sequence of Layer
    sizes : Sizes
        Of the groups of these layers.
    kinds : mapping of str to (str, int)
        By name of a module that was timed, what it is and how many elements it writes; those that
        have the same are fitted together.
    tried : sequence of dict of str to int
        Numbers of filters that were timed, as `trials` gives them.
    seconds : sequence of mapping of str to float
        For each, the time of every module that it has and, under "", of all the rest.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        sizes: Sizes,
        kinds: Mapping[str, Kind],
        tried: Sequence[Counts],
        seconds: Sequence[Mapping[str, float]],
    ) -> None:
        self._sizes = sizes
        self._kinds = kinds
        self._whole = sizes.sizes({})
        self._products = set(_outermost(self._whole)) - kinds.keys()
        at = [sizes.sizes(counts) for counts in tried]
        found: dict[tuple[Kind, Size], list[float]] = {}
        for size, taken in zip(at, seconds, strict=True):
            for name, kind in kinds.items():
                if name in taken:
                    found.setdefault((kind, size[name]), []).append(taken[name])
        self._found = {key: statistics.fmean(values) for key, values in found.items()}
        self._fits = {kind: self._fit(kind) for kind in set(kinds.values())}
        rest = np.array([self._beside(*pair) for pair in zip(tried, at, strict=True)])
        self._rest = _non_negative(rest, np.array([s[""] for s in seconds]))
        *_, middle, finer, off = at
        self._grains = {x.name: self._grain(x, middle, finer, off) for x in layers}

    def __call__(self, counts: Mapping[str, int]) -> float:
        """Seconds of a pass with so many filters."""
        size = self._sizes.sizes(counts)
        there = self._there(counts)
        layers = sum(self._fits[kind] @ _terms(*size[name]) for name, kind in there.items())
        return float(layers + self._rest @ self._beside(counts, size))

    def rounded(self, layer: Layer) -> Layer:
        """The layer, limited to multiples of filters that take no longer than what is below."""
        return replace(layer, unit=max(layer.unit, self._grains[layer.name]))

    def _fit(self, kind: Kind) -> Floats:
        found = [(size, seconds) for (other, size), seconds in self._found.items() if other == kind]
        terms = np.array([_terms(*size) for size, _ in found])
        return _non_negative(terms, np.array([seconds for _, seconds in found]))

    def _beside(self, counts: Mapping[str, int], size: Mapping[str, Size]) -> Floats:
        """What the time beside the layers is made of: n, e, m."""
        there = self._there(counts)
        written = sum(
            elements * size[name][0] / self._whole[name][0] for name, (_, elements) in there.items()
        )
        return np.array([len(there), written, self._sizes.macs(counts, self._products)])

    def _there(self, counts: Mapping[str, int]) -> dict[str, Kind]:
        """Modules that were timed, without those of blocks that are passed by."""
        absent = self._sizes.absent(counts)
        return {name: kind for name, kind in self._kinds.items() if name not in absent}

    def _grain(self, layer: Layer, *at: Mapping[str, Size]) -> int:
        members = (*layer.group.producers, *layer.group.followers, *layer.group.consumers)
        names = {member.module for member in members} & self._kinds.keys()
        middle, finer, off = (
            sum(self._found[self._kinds[name], size[name]] for name in names) for size in at
        )
        if not _varied(layer) or middle > EQUAL * off:
            return 1
        wide = layer.channels >= STEPS * COARSE
        return COARSE if wide and middle <= EQUAL * finer else FINE


def trials(layers: Sequence[Layer], blocks: Sequence[Block] = ()) -> list[Counts]:
    """Numbers of filters to time.

    All; all without the blocks, if there are any; mixed shares, half, and a little less than half,
    twice.
    """
    orders = np.random.default_rng(0).permuted(np.tile(SHARES, (len(layers), 1)), axis=1)
    half = {x.name: _near(x, 0.5) for x in layers}
    whole = {x.name: x.channels for x in layers}
    passed = reduce(or_, (block.gone for block in blocks), whole)
    return [
        whole,
        *([passed] if blocks else []),
        *(
            {x.name: _near(x, share) for x, share in zip(layers, column, strict=True)}
            for column in orders.T
        ),
        half,
        *(
            {x.name: half[x.name] - less * _varied(x) for x in layers}
            for less in (COARSE - FINE, OFF)
        ),
    ]


def measure_layers(
    build: Callable[[Counts], nn.Module],
    layers: Sequence[Layer],
    sizes: Sizes,
    arguments: Arguments,
    blocks: Sequence[Block] = (),
) -> LayerTimes:
    """Run networks of several sizes and note what their layers take.

    Parameters
    ----------
    build : callable
        From numbers of filters to a network.
    layers : sequence of Layer
    sizes : Sizes
        Of the groups of these layers.
    arguments : (args, kwargs)
        Of the networks.
    blocks : sequence of Block
        That may be passed by.
    """
    tried = trials(layers, blocks)
    networks = [build(counts).eval() for counts in tried]
    modules = dict(networks[0].named_modules())
    names = [name for name in _outermost(sizes.sizes({})) if name in modules]
    watches = [
        _Watch(network, [name for name in names if name not in sizes.absent(counts)])
        for network, counts in zip(networks, tried, strict=True)
    ]
    taken: list[dict[str, list[float]]] = [{} for _ in tried]

    def note(place: int, whole: float) -> None:
        spans = watches[place].read()
        spans[""] = max(whole - sum(spans.values()), 0.0)
        for name, value in spans.items():
            taken[place].setdefault(name, []).append(value)

    with ExitStack() as stack:
        for watch in watches:
            stack.enter_context(watch.watching())
        stopwatch.in_turn(
            networks,
            arguments,
            note,
            until=lambda rounds, passed: rounds >= LEAST and (rounds >= MOST or passed >= SECONDS),
        )
    ran = watches[0].written
    kinds = {name: (repr(networks[0].get_submodule(name)), ran[name]) for name in ran}
    seconds = [{name: statistics.median(s) for name, s in each.items()} for each in taken]
    return LayerTimes(layers, sizes, kinds, tried, seconds)


class _Watch:
    """Times modules of one network in its passes."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self._modules = {network.get_submodule(name): name for name in names}
        device = stopwatch.device_of(network)
        self._device = None if device.type == "cpu" else device
        self._begun: dict[str, Any] = {}
        self._spans: list[tuple[str, Any, Any]] = []
        self.written: dict[str, int] = {}  # elements, by module

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hook the modules for the length of a with statement."""
        with ExitStack() as stack:
            for module in self._modules:
                stack.enter_context(module.register_forward_pre_hook(self._enter))
                stack.enter_context(module.register_forward_hook(self._leave))
            yield

    def read(self) -> dict[str, float]:
        """Seconds by module since it was last read; the device must have done its work."""
        taken: dict[str, float] = {}
        for name, start, end in self._spans:
            span = end - start if self._device is None else start.elapsed_time(end) / 1e3
            taken[name] = taken.get(name, 0.0) + span
        self._spans.clear()
        return taken

    def _now(self) -> Any:
        if self._device is None:
            return stopwatch.clock()
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event

    def _enter(self, module: nn.Module, _: object) -> None:
        self._begun[self._modules[module]] = self._now()

    def _leave(self, module: nn.Module, _: object, output: Any) -> None:
        end = self._now()
        name = self._modules[module]
        self._spans.append((name, self._begun[name], end))
        self.written[name] = sum(tensor.numel() for tensor in tensors_in(output))


def _outermost(names: Collection[str]) -> list[str]:
    """Without modules and matrix products that lie inside another one, and are timed with it."""
    return [name for name in names if not any(name.startswith(f"{x}.") for x in names)]


def _near(layer: Layer, share: float) -> int:
    """About this share of a layer's filters, a multiple that any device likes where it can be."""
    unit = COARSE if _varied(layer) else layer.unit
    return replace(layer, unit=unit).fit(share * layer.channels)


def _varied(layer: Layer) -> bool:
    """Whether a layer is tried at multiples and beside them."""
    return layer.unit == 1 and layer.channels >= STEPS * FINE


def _terms(outputs: int, inputs: int) -> Floats:
    return np.array([1.0, outputs, inputs, outputs * inputs])


def _non_negative(terms: Floats, values: Floats) -> Floats:
    """Least squares with coefficients of at least zero: the best of all sets of terms."""
    scale = np.maximum(np.abs(terms).max(0), 1e-300)
    best, least = np.zeros(terms.shape[1]), np.inf
    for size in range(1, terms.shape[1] + 1):
        for chosen in map(list, combinations(range(terms.shape[1]), size)):
            found = np.linalg.lstsq(terms[:, chosen] / scale[chosen], values, rcond=None)[0]
            miss = np.square(terms[:, chosen] / scale[chosen] @ found - values).sum()
            if found.min() >= 0 and miss < least * (1 - 1e-9):
                best, least = np.zeros_like(best), miss
                best[chosen] = found / scale[chosen]
    return best
