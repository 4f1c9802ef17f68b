"""A recorded forward pass run one operation at a time, many batches side by side.

Repairing layer after layer needs what every layer reads once all layers before it are repaired.
Running the network anew for each layer takes as many passes as it has layers. A replay needs one:
every batch waits at a layer until all have reached it, and holds only what later operations read.
What would be more than `WAITING` bytes of it waits in a temporary file.
"""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from epruner.pruning.network.inputs import Arguments
from epruner.pruning.network.tree import leaves, mapped, tensors_in
from epruner.pruning.trace.spill import Aside, Spill, can_spill, folder
from epruner.pruning.trace.trace import Trace, Value

WAITING = 512 * 2**20  # bytes that the batches of a replay hold in memory while they wait


class Replay:
    """Batches on their way through a trace, each at its own op.

    Parameters
    ----------
    traces : sequence of Trace
        One per batch; ops of the same index do the same for each.
    batches : sequence of (args, kwargs)
        Those that the traces were recorded from, or others of the same shapes.
    keep : mapping of Value to int
        Slots needed up to and including a op although nothing reads them there.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        batches: Sequence[Arguments],
        keep: Mapping[Value, int] | None = None,
    ) -> None:
        self.traces = traces
        self._values: list[dict[Value, Tensor | Aside]] = [
            dict(zip(trace.inputs, tensors_in((tuple(args), dict(kwargs))), strict=True))
            for trace, (args, kwargs) in zip(traces, batches, strict=True)
        ]
        self._next = [0] * len(batches)
        self._later: list[list[int]] = [[] for _ in batches]
        last: dict[Value, int] = {}
        for index, op in enumerate(traces[0].ops):
            last.update(dict.fromkeys([*op.reads, *op.writes], index))
        for value, index in (keep or {}).items():
            last[value] = max(last[value], index)
        self._uses = traces[0].readers()
        for value, index in last.items():
            self._uses.setdefault(value, []).append(index)
        for value in traces[0].outputs:
            last.pop(value, None)
        self._dead: dict[int, list[Value]] = {}
        for value, index in last.items():
            self._dead.setdefault(index, []).append(value)
        # inputs and weights are there anyway
        different = {id(trace): trace for trace in traces}.values()
        constants = tensors_in(
            [(op.args, dict(op.kwargs)) for trace in different for op in trace.ops]
        )
        self._others = {
            t.untyped_storage().data_ptr()
            for t in [*constants, *(t for v in self._values for t in tensors_in(list(v.values())))]
            if can_spill(t)
        }
        self._spill, self._room = Spill(), True
        self._current: int | None = None

    def advance(self, batch: int, stop: int, later: Sequence[int] = ()) -> None:
        """Replay the ops of a batch before `stop` that were not run yet.

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
            for value in self.traces[batch].ops[index].writes:
                self._values[batch].pop(value, None)
        self._later[batch] = list(later)
        self._next[batch] = max(self._next[batch], stop)

    def _run(self, batch: int, indices: Iterable[int]) -> None:
        for index in indices:
            self.rerun(batch, index)
            for value in self._dead.get(index, ()):
                self._values[batch].pop(value, None)

    def rerun(self, batch: int, index: int) -> None:
        """Replay one op of a batch, whose inputs are still there."""
        op = self.traces[batch].ops[index]
        with torch.no_grad():
            read = {value: self.value(batch, value) for value in op.reads}
            args, kwargs = mapped(
                (op.args, op.kwargs),
                lambda leaf: read.get(leaf, leaf) if isinstance(leaf, Value) else leaf,
            )
            made = zip(leaves(op.result), leaves(op.function(*args, **kwargs)), strict=True)
            self._values[batch].update({v: x for v, x in made if isinstance(v, Value)})

    def value(self, batch: int, value: Value) -> Tensor:
        """A tensor of a batch, at the op where the batch is; not to be written into."""
        if self._current != batch:
            self._rest()
            self._current = batch
        values = self._values[batch]
        found = values[value]
        if isinstance(found, Aside):
            together = {
                s: v for s, v in values.items() if isinstance(v, Aside) and v.region is found.region
            }
            values.update(self._spill.get(together))
            return self.value(batch, value)
        return found

    def outputs(self, batch: int) -> list[Tensor]:
        """What the model returns for a batch, once all its ops are run."""
        return [self.value(batch, value) for value in self.traces[batch].outputs]

    def _rest(self) -> None:
        """Put aside what the batch in turn holds beyond its share, what is read last first."""
        if self._current is None or not self._room:
            return
        batch, self._current = self._current, None
        values = self._values[batch]
        storages: dict[int, dict[Value, Tensor]] = {}
        for value, tensor in values.items():
            if isinstance(tensor, Tensor) and can_spill(tensor):
                storages.setdefault(tensor.untyped_storage().data_ptr(), {})[value] = tensor
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

    def _next_use(self, batch: int, values: Iterable[Value]) -> int:
        now, far = self._next[batch], len(self.traces[batch].ops)
        after = []
        for value in values:
            uses = self._uses.get(value, [])
            place = bisect.bisect_left(uses, now)
            after.append(uses[place] if place < len(uses) else far)
        return min(after)
