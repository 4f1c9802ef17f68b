"""Proof by trial: slicing must do exactly what silencing does.

The dependency analysis is believed only as far as it can be checked. A random half of the channels
of every group is removed, and the sliced network compared with the full one in which the consumers
ignore the same channels, and norms are taken over the others: at whatever each layer reads, and at
the outputs.

A trial at the model's own values can be vacuous: a zero-initialised scale, a threshold or an empty
example hide what an operation does to the channels. Hence what is zero is redrawn; in the full
network the channels to be removed hold huge numbers, which no mean, maximum or comparison
overlooks; and a group counts as sound only if all its readers see something in those that stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from epruner.pruning.graph.groups import Group, Indices, Skipped, plan_of
from epruner.pruning.graph.norms import norms_over
from epruner.pruning.graph.numbers import Attempt, with_numbers
from epruner.pruning.network.copies import deep_copy
from epruner.pruning.network.inputs import in_float64
from epruner.pruning.network.layers import channel_dim, has_filters, rule_of
from epruner.pruning.network.tree import mapped, tensors_in
from epruner.pruning.plan.plan import Plan
from epruner.pruning.plan.views import frames

# Sliced and silenced sums differ in their order alone; in networks of hundreds of layers that comes
# to 1e-5. What differs by more is tried again in float64, where nothing of that is left.
TOLERANCE = 2e-5
COARSE = 1e-4  # where the forward pass insists on float32
FAINT = 1e-3  # what is nowhere larger is redrawn, as it may hide what it scales
HUGE = 1e6  # size of what is put into the channels to be removed

# What is called with the name of a layer, itself, and its arguments or its output.
Before = Callable[[str, nn.Module, Any], Any]
After = Callable[[str, nn.Module, Any], None]


@dataclass(frozen=True)
class Probe:
    """What a trial puts into the channels.

    Parameters
    ----------
    sign : int
        Of the first of those that are removed, in the full network; the next ones alternate, and
        from one position to the next all do.
    lifted : bool
        Whether those that stay are moved, each by a random amount about as large as all of them.
    redrawn : bool
        Whether inputs and parameters that are zero are redrawn.
    """

    sign: int = 1
    lifted: bool = False
    redrawn: bool = True


# The later ones are for groups of which those before say nothing, as their channels are zero or
# the forward pass fails.
PROBES = (Probe(), Probe(lifted=True), Probe(sign=-1, lifted=True), Probe(redrawn=False))


def sound_groups(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    groups: Sequence[Group],
    seed: int,
) -> tuple[list[Group], list[Skipped]]:
    """Groups that can be pruned exactly, all together, and those that cannot.

    Parameters
    ----------
    model : torch.nn.Module
        The tracing copy; as it was afterwards.
    args, kwargs
        Arguments of its forward.
    groups : sequence of Group
    seed : int
        Draws the halves that are dropped.
    """
    rng = np.random.default_rng(seed)
    kept = {group.name: _random_half(group, rng) for group in groups}
    faults: dict[str, str] = {}
    sound: list[Group] = []

    def admit(some: Sequence[Group], probe: Probe) -> None:
        tried, proven = _attempted(model, args, kwargs, [*sound, *some], kept, probe)
        fault = tried.fault
        if not fault:
            sound.extend(group for group in some if group.name in proven)
        elif len(some) == 1:
            faults[some[0].name] = fault
        else:  # halves, so that few culprits among many groups cost few trials
            admit(some[: len(some) // 2], probe)
            admit(some[len(some) // 2 :], probe)

    def attempt(some: Sequence[Group]) -> Attempt:
        return _attempted(model, args, kwargs, some, kept, PROBES[0])[0]

    with _redrawn(model):
        groups = with_numbers(model, groups, attempt)
        for group in groups:  # beside groups of which sizes are inferred a stream may need none
            if group.norms and (fault := attempt([group]).fault):
                faults[group.name] = fault
    rest = [group for group in groups if group.name not in faults]
    for probe in PROBES:
        with _redrawn(model) if probe.redrawn and rest else nullcontext():
            # approximations last: none keeps an exact group out
            for some in ([g for g in rest if not g.norms], *([g] for g in rest if g.norms)):
                if some:
                    admit(some, probe)
        done = {group.name for group in sound} | set(faults)
        rest = [group for group in rest if group.name not in done]
    faults |= dict.fromkeys((group.name for group in rest), _VACUOUS)
    skipped = [
        Skipped(member.module, faults[group.name])
        for group in groups
        if group.name in faults
        for member in group.producers
    ]
    return [group for group in groups if group.name not in faults], skipped


_VACUOUS = (
    "no trial on the example inputs shows that its channels can be removed: they are zero where "
    "they are read, or the forward pass does not run with other values in them"
)


def _random_half(group: Group, rng: np.random.Generator) -> Indices:
    """Of a stream that norms read two thirds, as widths that agree by chance prove nothing."""
    width = group.channels // group.blocks
    count = (2 * width + 2) // 3 if group.norms else (width + 1) // 2
    halves = [
        np.sort(rng.permutation(width)[:count]) + block * width for block in range(group.blocks)
    ]
    return np.concatenate(halves).astype(np.intp)


def _in_words(error: Exception, names: Mapping[nn.Module, str]) -> str:
    line = str(error).partition("\n")[0]
    fixed = line.startswith("The size of tensor a")  # what torch says where shapes do not broadcast
    why = ", as they meet a tensor of fixed size" if fixed else ""
    modules = [module for _, _, module in frames(error) if module is not None]
    running = [names[module] for module in modules if module in names]
    where = f"in {running[0]!r}: " if running and running[0] else ""
    return f"the network does not run without some of its channels{why} ({where}{line})"


@contextmanager
def _redrawn(model: nn.Module) -> Iterator[None]:
    """Small random numbers in place of parameters that are zero or nearly so."""
    saved = []
    for parameter in model.parameters():
        tensor = parameter.data
        if _faint(tensor):
            saved.append((tensor, tensor.clone()))
            tensor.copy_(_drawn(tensor))
    try:
        yield
    finally:
        for tensor, values in reversed(saved):  # two of them may share their memory
            tensor.copy_(values)


def _faint(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.numel() > 0
        and _largest(value) <= FAINT
    )


def _drawn(like: Tensor) -> Tensor:
    """Small positive numbers, which no square root and no logarithm objects to."""
    generator = torch.Generator().manual_seed(like.numel())
    fan_in = like[0].numel() if like.dim() else 1
    return torch.rand(like.shape, generator=generator).to(like) * (0.1 / math.sqrt(fan_in))


def _attempted(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    groups: Sequence[Group],
    kept: Mapping[str, Indices],
    probe: Probe,
) -> tuple[Attempt, set[str]]:
    """What goes wrong when all these groups are halved, and which of them the trial tells of."""
    if probe.redrawn:
        args, kwargs = mapped((args, kwargs), lambda x: _drawn(x) if _faint(x) else x)
    plan = plan_of(groups, kept)
    norms = _norms(groups, kept)
    trial = _Trial(plan, norms, probe)
    limit = TOLERANCE
    if not trial.run(model, args, kwargs):
        return Attempt("", None, {}), set()
    if not trial.fault and TOLERANCE < trial.difference < math.inf:
        wide = _Trial(plan, norms, probe)
        try:
            ran = wide.run(deep_copy(model).double(), in_float64(args), in_float64(kwargs))
        except Exception:  # whatever a forward pass written for float32 raises
            ran = False
        if ran:
            trial = wide
        else:
            limit = COARSE
    if not trial.fault and not trial.difference <= limit:
        trial.fault = (
            "removing its channels does more than silencing them (as seen in what "
            f"{trial.place}): something counts or mixes them"
        )
    proven = {group.name for group in groups if trial.tells_of(group, kept)}
    return Attempt(trial.fault, trial.error, trial.names), proven


class _Trial:
    """The full network and the sliced one, compared at what every layer reads.

    Attributes
    ----------
    fault : str
        Why they cannot be compared; empty if they can.
    difference : float
        The largest relative one of all tensors.
    place : str
        Where the first stands that differs.
    """

    def __init__(self, plan: Plan, norms: Mapping[str, Tensor], probe: Probe) -> None:
        self._plan = plan
        self._norms = norms
        self._probe = probe
        self._read: dict[str, list[list[Tensor]]] = {}  # what stays of the inputs, call by call
        self._lifts: dict[str, list[Tensor]] = {}  # of the channels that stay, call by call
        self._calls: dict[str, int] = {}
        self._filled: dict[str, Tensor] = {}  # by layer: which of the channels it reads hold values
        self._sides = {
            (name, reads): _split(kept, size)
            for name, part in plan.modules.items()
            for reads, kept, size in (
                (False, part.out, part.out_before),
                (True, part.in_, part.in_before),
            )
            if kept is not None and size is not None
        }
        self._generator = torch.Generator().manual_seed(probe.sign + 1)
        self.fault = ""
        self.error: Exception | None = None
        self.names: dict[nn.Module, str] = {}  # of the sliced network, where it raised an error
        self.difference = 0.0
        self.place = ""

    def run(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Compare; False if the full network does not run with the values of the probe."""
        layers = {  # named here, as a grouped convolution may be sliced to a depthwise one
            name for name, module in model.named_modules() if has_filters(module)
        }
        try:
            with (
                self._silent(model),
                self._hooked(model, layers, self._record, self._fill),
                norms_over(model, self._norms),
            ):
                expected = _run(model, args, kwargs)
        except Exception:  # anything that a forward pass can raise
            return False
        small = self._plan.apply(model)
        try:
            with self._hooked(small, layers, self._compare, self._lift):
                got = _run(small, args, kwargs)
        except Exception as error:
            self.names = {module: name for name, module in small.named_modules()}
            self.fault, self.error = _in_words(error, self.names), error
            return True
        if [t.shape for t in got] != [t.shape for t in expected]:
            self.fault = "the model's output changes its shape with its channels"
        elif any(self._read.values()):
            self.fault = "without some of its channels the network runs fewer of its layers"
        else:
            self._note("the model returns", got, expected)
        return True

    def tells_of(self, group: Group, kept: Mapping[str, Indices]) -> bool:
        """Whether every reader saw something in the channels that stay, and in the others."""
        stays = np.isin(np.arange(group.channels), kept[group.name])
        return bool(stays.all()) or all(
            member.module in self._filled
            and bool(self._filled[member.module][member.index[side[member.root]]].any())
            for member in group.consumers
            for side in (stays, ~stays)
        )

    @contextmanager
    def _silent(self, model: nn.Module) -> Iterator[None]:
        """Let layers that read their own outputs (recurrent ones) not read those that go."""
        saved = []
        for name, module in model.named_modules():
            if (name, False) in self._sides and rule_of(module).reads_itself:
                saved += [(tensor.data, tensor.data.clone()) for tensor in module.parameters()]
                rule_of(module).silence(module, self._sides[name, False][1].tolist())
        try:
            yield
        finally:
            for tensor, values in saved:
                tensor.copy_(values)

    @contextmanager
    def _hooked(
        self, model: nn.Module, layers: Set[str], before: Before, after: After
    ) -> Iterator[None]:
        """Let functions see what goes into the layers, and what comes out of those that change."""

        def enter(name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
            return before(name, module, (args, kwargs))

        def leave(name: str, module: nn.Module, _: object, output: Any) -> None:
            after(name, module, output)

        with ExitStack() as hooks:
            for name, module in model.named_modules():
                if name in layers:
                    hook = partial(enter, name)
                    hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
                if (name, False) in self._sides:
                    hooks.enter_context(module.register_forward_hook(partial(leave, name)))
            yield

    def _record(self, name: str, module: nn.Module, inputs: Any) -> Any:
        """Before a layer of the full network: note what stays, and silence the rest."""
        tensors = _read_by(module, inputs)
        channels = self._channels(name, module, tensors, reads=True)
        if channels is None:
            self._read.setdefault(name, []).append([t.clone() for t in tensors])
            return inputs
        whole, (dim, stays, gone) = tensors[0], channels
        part = whole.index_select(dim, stays)
        self._read.setdefault(name, []).append([part])
        self._filled[name] = _nonzero(whole, dim).cpu()
        silent = whole.index_fill(dim, gone, 0)
        return mapped(inputs, lambda leaf: silent if leaf is whole else leaf)

    def _fill(self, name: str, module: nn.Module, output: Any) -> None:
        """After a layer of the full network: put the values of the probe into its channels."""
        tensors = tensors_in(output)
        if channels := self._channels(name, module, tensors, reads=False):
            written, (dim, stays, gone) = tensors[0], channels
            if self._probe.lifted:
                scale = 1 + _largest(written.index_select(dim, stays))
                lift = torch.randn(len(stays), generator=self._generator).to(written) * scale
                self._lifts.setdefault(name, []).append(lift)
                wide = lift.new_zeros(written.shape[dim]).index_copy(0, stays, lift)
                written.add_(_along(dim, wide, written))
            # other numbers in every call, as what two of them made may be compared
            calls = self._calls[name] = self._calls.get(name, 0) + 1
            huge = _huge(written, dim, len(gone)) * self._probe.sign * calls
            written.index_copy_(dim, gone, huge)

    def _compare(self, name: str, module: nn.Module, inputs: Any) -> Any:
        """Before a layer of the sliced network: is it what the full one read here?"""
        seen = self._read.get(name)
        self._note(f"{name!r} reads", _read_by(module, inputs), seen.pop(0) if seen else [])
        return inputs

    def _lift(self, name: str, module: nn.Module, output: Any) -> None:
        """After a layer of the sliced network: what `_fill` did to the channels that stay."""
        if lifts := self._lifts.get(name):
            (written,) = tensors_in(output)[:1]
            written.add_(_along(channel_dim(module, written), lifts.pop(0), written))

    def _channels(
        self, name: str, module: nn.Module, tensors: Sequence[Tensor], *, reads: bool
    ) -> tuple[int, Tensor, Tensor] | None:
        """Dimension, channels that stay and those that go; None where all stay."""
        sides = self._sides.get((name, reads))
        if sides is None or not tensors:
            return None
        dim = channel_dim(module, tensors[0])
        stays, gone = (side.to(tensors[0].device) for side in sides)
        if tensors[0].shape[dim] != len(stays) + len(gone):
            return None
        return dim, stays, gone

    def _note(self, place: str, got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        if len(got) != len(expected):
            differences = [math.inf]
        else:
            differences = list(map(relative_difference, got, expected))
        self.difference = max(self.difference, *differences, 0.0)
        if not self.place and self.difference > TOLERANCE:
            self.place = place


def _norms(groups: Sequence[Group], kept: Mapping[str, Indices]) -> dict[str, Tensor]:
    """By module that takes a norm, which of its channels stay."""
    stays: dict[str, Tensor] = {}
    for group in groups:
        gone = np.isin(np.arange(group.channels), kept[group.name], invert=True)
        for member in group.norms:
            mine = stays.setdefault(member.module, torch.ones(member.size, dtype=torch.bool))
            mine[member.index[gone[member.root]]] = False
    return stays


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute value expected; inf where none is."""
    if got.shape != expected.shape:
        return math.inf
    if not expected.numel() or not expected.is_floating_point():
        return 0.0 if torch.equal(got, expected) else 1.0
    error, scale = _largest(got - expected), _largest(expected)
    if not math.isfinite(error) or not math.isfinite(scale):
        same = (got == expected) | (torch.isnan(got) & torch.isnan(expected))
        error = _largest(torch.where(same, 0, got - expected))
        scale = _largest(torch.nan_to_num(expected, 0.0, 0.0, 0.0))
    if math.isnan(error):
        return math.inf
    return error / scale if scale > 0 else error


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # models that draw even in eval mode draw the same twice
        return tensors_in(model(*args, **kwargs))


def _read_by(module: nn.Module, inputs: Any) -> list[Tensor]:
    """What a layer reads, without the state of one that reads itself."""
    tensors = tensors_in(inputs)
    return tensors[:1] if rule_of(module).reads_itself else tensors


def _along(dim: int, values: Tensor, like: Tensor) -> Tensor:
    """A vector as a tensor that broadcasts along one dimension of another."""
    return values.view([-1 if d == dim else 1 for d in range(like.dim())])


def _split(kept: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
    """Channels that stay, and those that go."""
    stays = np.zeros(size, dtype=bool)
    stays[np.asarray(kept)] = True
    return torch.from_numpy(np.flatnonzero(stays)), torch.from_numpy(np.flatnonzero(~stays))


def _huge(like: Tensor, dim: int, channels: int) -> Tensor:
    """Numbers whose signs alternate with channels and positions: some pass any rectifier."""
    values = _along(dim, HUGE * _alternating(channels), like)
    positions = [(n, d) for d, n in enumerate(like.shape) if d != dim]
    if positions:
        length, other = max(positions)
        values = values * _along(other, _alternating(length), like)
    shape = [channels if d == dim else n for d, n in enumerate(like.shape)]
    return values.to(like).expand(shape)


def _alternating(count: int) -> Tensor:
    """Numbers between 1 and 2, with alternating signs, of which no two cancel."""
    sizes = 1 + torch.rand(count, generator=torch.Generator().manual_seed(0))
    return sizes * (1 - 2 * (torch.arange(count) % 2))


def _largest(tensor: Tensor) -> float:
    """Largest absolute value; nan if one is."""
    low, high = tensor.aminmax()
    return float(torch.maximum(-low, high))


def _nonzero(tensor: Tensor, dim: int) -> Tensor:
    """Which of the channels hold a number other than zero."""
    others = [d for d in range(tensor.dim()) if d != dim]
    largest = tensor.abs().amax(others) if others else tensor.abs()
    if largest.isnan().any():
        return _nonzero(tensor.nan_to_num(0.0), dim)
    return largest > 0
