"""A forward pass as a list of steps, to be run one at a time, many batches side by side.

Repairing layer after layer needs what every layer reads once all layers before it are repaired.
Running the network anew for each layer takes as many passes as it has layers. A tape needs one:
every batch waits at a layer until all have reached it, and holds only what later steps read. What
would be more than `WAITING` bytes of it waits in a temporary file.
"""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from epruner.prune.inputs import Arguments
from epruner.prune.spill import Aside, Spill, can_spill, folder
from epruner.prune.tracing import tensors_in

WAITING = 512 * 2**20  # bytes that the batches of a run hold in memory while they wait


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
            args, kwargs = replaced((step.args, step.kwargs), None, read)
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


def replaced(
    value: Any,
    of_tensor: Callable[[Tensor], Any] | None,
    of_slot: Mapping[Slot, Tensor] | None = None,
) -> Any:
    """A nested structure with its tensors and slots exchanged."""
    if isinstance(value, Tensor):
        return value if of_tensor is None else of_tensor(value)
    if isinstance(value, Slot):
        return value if of_slot is None else of_slot[value]
    if isinstance(value, Mapping):
        return {key: replaced(item, of_tensor, of_slot) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(replaced(item, of_tensor, of_slot) for item in value)
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
