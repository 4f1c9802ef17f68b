"""A forward pass as a list of steps, to be run one at a time, many batches side by side.

Repairing layer after layer needs what every layer reads once all layers before it are repaired.
Running the network anew for each layer takes as many passes as it has layers. A tape needs one:
every batch waits at a layer until all have reached it, and holds only what later steps read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from epruner.prune.inputs import Arguments
from epruner.prune.tracing import TraceError, tensors_in

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


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.slots: dict[int, Slot] = {}
        self._alive: list[Tensor] = []  # so that no id is used twice
        self._inside: list[Any] = []  # what the running leaf modules read

    def slot(self, tensor: Tensor) -> Slot:
        if id(tensor) not in self.slots:
            self.slots[id(tensor)] = Slot(len(self._alive))
            self._alive.append(tensor)
        return self.slots[id(tensor)]

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
        self.values: list[dict[Slot, Tensor]] = [
            dict(zip(tape.inputs, tensors_in((tuple(args), dict(kwargs))), strict=True))
            for tape, (args, kwargs) in zip(tapes, batches, strict=True)
        ]
        self._next = [0] * len(batches)
        last: dict[Slot, int] = {}
        for index, step in enumerate(tapes[0].steps):
            last.update(dict.fromkeys([*step.reads, *step.writes], index))
        for slot, index in (keep or {}).items():
            last[slot] = max(last[slot], index)
        for slot in tapes[0].outputs:
            last.pop(slot, None)
        self._dead: dict[int, list[Slot]] = {}
        for slot, index in last.items():
            self._dead.setdefault(index, []).append(slot)

    def advance(self, batch: int, stop: int) -> None:
        """Run the steps of a batch before `stop` that were not run yet."""
        values = self.values[batch]
        for index in range(self._next[batch], stop):
            self.rerun(batch, index)
            for slot in self._dead.get(index, ()):
                values.pop(slot, None)
        self._next[batch] = max(self._next[batch], stop)

    def rerun(self, batch: int, index: int) -> None:
        """Run one step of a batch, whose inputs are still there."""
        step, values = self.tapes[batch].steps[index], self.values[batch]
        with torch.no_grad():
            args, kwargs = _replace((step.args, step.kwargs), None, values)
            _store(step.result, step.function(*args, **kwargs), values)

    def outputs(self, batch: int) -> list[Tensor]:
        """What the model returns for a batch, once all its steps are run."""
        return [self.values[batch][slot] for slot in self.tapes[batch].outputs]


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


def _store(pattern: Any, result: Any, values: dict[Slot, Tensor]) -> None:
    if isinstance(pattern, Slot):
        values[pattern] = result
    elif isinstance(pattern, (tuple, list)):
        for part, item in zip(pattern, result, strict=True):
            _store(part, item, values)
