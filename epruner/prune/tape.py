"""A forward pass as a list of steps, to be run one at a time, many batches side by side.

Repairing layer after layer needs what every layer reads once all layers before it are repaired.
Running the network anew for each layer takes as many passes as it has layers. A tape needs one:
every batch waits at a layer until all have reached it, and holds only what later steps read. What
would be more than `WAITING` bytes of it waits in a temporary file.
"""

from __future__ import annotations

import bisect
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from epruner.prune.inputs import Arguments
from epruner.prune.spill import Aside, Spill, can_spill, folder
from epruner.prune.tracing import TraceError, tensors_in

WAITING = 512 * 2**20  # bytes that the batches of a run hold in memory while they wait
LEAVES = (_ConvNd, nn.Linear, _BatchNorm)  # run as a whole, with the parameters they then have
# what a step reads off the values of one batch would be taken for all others
_READS_VALUES = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"})


@dataclass(frozen=True)
class Slot:
    """Place of a tensor among the values of a run."""

    index: int


@dataclass(frozen=True)
class Step:
    """One operation or one call of a leaf module.

    Parameters
    ----------
    label : str
        Name of the operator, or of the module behind ``"module "``.
    module : str or None
        Dotted name, for calls of leaf modules.
    function : callable
    args, kwargs
        With a `Slot` for every tensor that the pass computes; parameters as they are.
    result
        Of the same structure as what the function returns, with slots for tensors.
    shapes : tuple of tuple of int
        Of the tensors in `result`.
    """

    label: str
    module: str | None
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    shapes: tuple[tuple[int, ...], ...]

    @property
    def reads(self) -> list[Slot]:
        """Slots among the arguments, in order."""
        return _slots((self.args, self.kwargs))

    @property
    def writes(self) -> list[Slot]:
        """Slots of the result."""
        return _slots(self.result)


@dataclass(frozen=True)
class Tape:
    """Steps of one forward pass.

    Parameters
    ----------
    steps : tuple of Step
    inputs : tuple of Slot
        Of the tensors in the arguments, in order.
    outputs : tuple of Slot
        Of the tensors in what the model returns.
    """

    steps: tuple[Step, ...]
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]

    def readers(self) -> dict[Slot, list[int]]:
        """Indices of the steps that read each slot."""
        found: dict[Slot, list[int]] = {}
        for index, step in enumerate(self.steps):
            for slot in dict.fromkeys(step.reads):
                found.setdefault(slot, []).append(index)
        return found


def record(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tape:
    """Run a forward pass and write down its steps.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode.
    args, kwargs
        Of its forward. Sizes of the batch are fixed in the tape.

    Raises
    ------
    TraceError
        The pass fails, or its course depends on the values of its inputs.
    """
    recorder = _Recorder()
    # a copy, because a forward pass may write into its inputs
    args, kwargs = _replace((tuple(args), dict(kwargs)), torch.clone)
    inputs = tuple(recorder.slot(tensor) for tensor in tensors_in((args, kwargs)))
    hooks = [
        hook
        for name, module in model.named_modules()
        if isinstance(module, LEAVES)
        for hook in recorder.hooks(name, module)
    ]
    try:
        with torch.no_grad(), recorder:
            output = model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    outputs = tuple(recorder.slots[id(t)] for t in tensors_in(output) if id(t) in recorder.slots)
    return Tape(tuple(recorder.steps), inputs, outputs)


class _Recording:
    """What a recorder does, apart from the mode that makes torch call it.

    A mode that itself defines ``__torch_dispatch__`` makes torch import its compiler, which takes
    seconds and 150 MB.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        # by identity, as long as the tensor lives: holding on to all that a pass computes would
        # take many times the memory of the pass
        self.slots: dict[int, Slot] = {}
        self._watched: dict[int, weakref.ref[Tensor]] = {}
        self._count = 0
        self._inside: list[Any] = []  # what the running leaf modules read

    def slot(self, tensor: Tensor) -> Slot:
        key = id(tensor)
        if key not in self.slots:
            self.slots[key] = Slot(self._count)
            self._count += 1

            def gone(_: Any) -> None:
                del self.slots[key], self._watched[key]

            self._watched[key] = weakref.ref(tensor, gone)
        return self.slots[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._inside:
            return func(*args, **kwargs)
        name = func._schema.name
        if name in _READS_VALUES:
            raise TraceError(
                f"the forward pass depends on values of its inputs ({name}), so that it cannot be "
                "followed layer by layer"
            )
        read = self._references((args, kwargs))
        result = func(*args, **kwargs)
        self._add(name, None, func, read, result)
        return result

    def hooks(self, name: str, module: nn.Module) -> list[Any]:
        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._inside.append(self._references((args, kwargs)))

        def leave(_: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            read = self._inside.pop()
            if not self._inside:
                self._add(f"module {name}", name, module, read, result)

        return [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True),
        ]

    def _add(self, label: str, module: str | None, function: Any, read: Any, result: Any) -> None:
        written = _replace(result, self.slot)
        shapes = tuple(tuple(t.shape) for t in tensors_in(result))
        args, kwargs = read
        self.steps.append(Step(label, module, function, args, kwargs, written, shapes))

    def _references(self, value: Any) -> Any:
        return _replace(value, lambda t: self.slots.get(id(t), t))


class _Recorder(_Recording, TorchDispatchMode):  # type: ignore[no-untyped-call]
    pass


class Run:
    """Batches on their way through a tape, each at its own step.

    Parameters
    ----------
    tapes : sequence of Tape
        One per batch; steps of the same index do the same for each.
    batches : sequence of (args, kwargs)
        Those that the tapes were recorded from, or others of the same shapes.
    keep : mapping of Slot to int
        Slots needed up to and including a step although nothing reads them there.
    """

    def __init__(
        self,
        tapes: Sequence[Tape],
        batches: Sequence[Arguments],
        keep: Mapping[Slot, int] | None = None,
    ) -> None:
        self.tapes = tapes
        self._values: list[dict[Slot, Tensor | Aside]] = [
            dict(zip(tape.inputs, tensors_in((tuple(args), dict(kwargs))), strict=True))
            for tape, (args, kwargs) in zip(tapes, batches, strict=True)
        ]
        self._next = [0] * len(batches)
        self._later: list[list[int]] = [[] for _ in batches]
        last: dict[Slot, int] = {}
        for index, step in enumerate(tapes[0].steps):
            last.update(dict.fromkeys([*step.reads, *step.writes], index))
        for slot, index in (keep or {}).items():
            last[slot] = max(last[slot], index)
        self._uses = tapes[0].readers()
        for slot, index in last.items():
            self._uses.setdefault(slot, []).append(index)
        for slot in tapes[0].outputs:
            last.pop(slot, None)
        self._dead: dict[int, list[Slot]] = {}
        for slot, index in last.items():
            self._dead.setdefault(index, []).append(slot)
        # inputs and weights are there anyway
        different = {id(tape): tape for tape in tapes}.values()
        constants = tensors_in(
            [(step.args, dict(step.kwargs)) for tape in different for step in tape.steps]
        )
        self._others = {
            t.untyped_storage().data_ptr()
            for t in [*constants, *(t for v in self._values for t in tensors_in(list(v.values())))]
            if can_spill(t)
        }
        self._spill, self._room = Spill(), True
        self._current: int | None = None

    def advance(self, batch: int, stop: int, later: Sequence[int] = ()) -> None:
        """Run the steps of a batch before `stop` that were not run yet.

        Parameters
        ----------
        batch, stop : int
        later : sequence of int
            Steps whose results nothing before `stop` reads, but each other: they are run when the
            batch is advanced next, with the weights that their modules have then.
        """
        self._run(batch, self._later[batch])
        self._run(batch, [i for i in range(self._next[batch], stop) if i not in later])
        for index in later:
            for slot in self.tapes[batch].steps[index].writes:
                self._values[batch].pop(slot, None)
        self._later[batch] = list(later)
        self._next[batch] = max(self._next[batch], stop)

    def _run(self, batch: int, indices: Iterable[int]) -> None:
        for index in indices:
            self.rerun(batch, index)
            for slot in self._dead.get(index, ()):
                self._values[batch].pop(slot, None)

    def rerun(self, batch: int, index: int) -> None:
        """Run one step of a batch, whose inputs are still there."""
        step = self.tapes[batch].steps[index]
        with torch.no_grad():
            read = {slot: self.value(batch, slot) for slot in step.reads}
            args, kwargs = _replace((step.args, step.kwargs), None, read)
            _store(step.result, step.function(*args, **kwargs), self._values[batch])

    def value(self, batch: int, slot: Slot) -> Tensor:
        """A tensor of a batch, at the step where the batch is; not to be written into."""
        if self._current != batch:
            self._rest()
            self._current = batch
        values = self._values[batch]
        found = values[slot]
        if isinstance(found, Aside):
            together = {
                s: v for s, v in values.items() if isinstance(v, Aside) and v.region is found.region
            }
            values.update(self._spill.get(together))
            return self.value(batch, slot)
        return found

    def outputs(self, batch: int) -> list[Tensor]:
        """What the model returns for a batch, once all its steps are run."""
        return [self.value(batch, slot) for slot in self.tapes[batch].outputs]

    def _rest(self) -> None:
        """Put aside what the batch in turn holds beyond its share, what is read last first."""
        if self._current is None or not self._room:
            return
        batch, self._current = self._current, None
        values = self._values[batch]
        storages: dict[int, dict[Slot, Tensor]] = {}
        for slot, value in values.items():
            if isinstance(value, Tensor) and can_spill(value):
                storages.setdefault(value.untyped_storage().data_ptr(), {})[slot] = value
        mine = [group for place, group in storages.items() if place not in self._others]
        held = [next(iter(group.values())).untyped_storage().nbytes() for group in mine]
        left = sum(held)
        order = sorted(range(len(mine)), key=lambda i: -self._next_use(batch, mine[i]))
        for i in order:
            if left * len(self._values) <= WAITING:
                break
            try:
                values.update(self._spill.put(mine[i]))
            except OSError as error:
                self._room = False
                warnings.warn(
                    f"no room for a temporary file in {folder()} ({error}); what waits is held in "
                    "memory. Set TMPDIR to a folder with more room, or calibrate on fewer inputs",
                    RuntimeWarning,
                    stacklevel=2,
                )
                break
            left -= held[i]
        self._spill.forget()

    def _next_use(self, batch: int, slots: Iterable[Slot]) -> int:
        now, far = self._next[batch], len(self.tapes[batch].steps)
        after = []
        for slot in slots:
            uses = self._uses.get(slot, [])
            place = bisect.bisect_left(uses, now)
            after.append(uses[place] if place < len(uses) else far)
        return min(after)


def _replace(
    value: Any,
    of_tensor: Callable[[Tensor], Any] | None,
    of_slot: Mapping[Slot, Tensor] | None = None,
) -> Any:
    if isinstance(value, Tensor):
        return value if of_tensor is None else of_tensor(value)
    if isinstance(value, Slot):
        return value if of_slot is None else of_slot[value]
    if isinstance(value, Mapping):
        return {key: _replace(item, of_tensor, of_slot) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_replace(item, of_tensor, of_slot) for item in value)
    return value


def _slots(value: Any) -> list[Slot]:
    if isinstance(value, Slot):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [slot for item in value for slot in _slots(item)]
    return []


def _store(pattern: Any, result: Any, values: dict[Slot, Tensor | Aside]) -> None:
    if isinstance(pattern, Slot):
        values[pattern] = result
    elif isinstance(pattern, (tuple, list)):
        for part, item in zip(pattern, result, strict=True):
            _store(part, item, values)
