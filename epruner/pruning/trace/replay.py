"""A recorded forward pass run one operation at a time, many batches side by side.

Repairing layer after layer needs what every layer reads once all layers before it are repaired.
Running the network anew for each layer takes as many passes as it has layers. A replay needs one:
every batch waits at a layer until all have reached it, and holds only what later operations read.
A batch whose share of `WAITING` bytes is too small for that waits in a temporary file.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epruner.pruning.errors import TraceError
from epruner.pruning.network.inputs import Arguments
from epruner.pruning.network.tree import leaves, mapped, tensors_in
from epruner.pruning.trace.record import same_reading
from epruner.pruning.trace.trace import Op, Trace, Value

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
        Values needed up to and including an op although nothing reads them there.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        batches: Sequence[Arguments],
        keep: Mapping[Value, int] | None = None,
    ) -> None:
        self.traces = traces
        self._values: list[dict[Value, Tensor]] = [
            dict(zip(trace.inputs, tensors_in((tuple(args), dict(kwargs))), strict=True))
            for trace, (args, kwargs) in zip(traces, batches, strict=True)
        ]
        self._todo = [set(range(len(trace.ops))) for trace in traces]
        last: dict[Value, int] = {}
        for index, op in enumerate(traces[0].ops):
            last.update(dict.fromkeys([*op.reads, *op.writes], index))
        for value, index in (keep or {}).items():
            last[value] = max(last[value], index)
        for value in traces[0].outputs:
            last.pop(value, None)
        self._dead: dict[int, list[Value]] = {}
        for value, index in last.items():
            self._dead.setdefault(index, []).append(value)
        # inputs and weights are there anyway
        different = {id(trace): trace for trace in traces}.values()
        constants = [(op.args, dict(op.kwargs)) for trace in different for op in trace.ops]
        self._elsewhere = {
            t.untyped_storage().data_ptr()
            for t in tensors_in([constants, self._values])
            if is_plain_memory(t)
        }
        self._folder: Path | None = None
        self._aside: dict[int, Path] = {}
        self._room = True
        self._current: int | None = None

    def advance(self, batch: int, stop: int, later: Sequence[int] = ()) -> None:
        """Replay the ops of a batch before `stop` that were not run yet.

        Parameters
        ----------
        batch, stop : int
        later : sequence of int
            Ops whose results nothing before `stop` reads, but each other: they are run, or run
            again, when the batch is advanced next, with the weights that their modules then have.
        """
        todo = self._todo[batch]
        todo.update(later)
        for index in sorted(i for i in todo if i < stop and i not in later):
            self.rerun(batch, index)
            for value in self._dead.get(index, ()):
                self._values[batch].pop(value, None)
            todo.remove(index)

    def rerun(self, batch: int, index: int) -> None:
        """Replay one op of a batch, whose inputs are still there."""
        op = self.traces[batch].ops[index]
        with torch.no_grad():
            read = {value: self.value(batch, value) for value in op.reads}
            args, kwargs = mapped(
                (op.args, op.kwargs),
                lambda leaf: read.get(leaf, leaf) if isinstance(leaf, Value) else leaf,
            )
            result = op.function(*args, **kwargs)
            if op.reader:
                self._check(op, result)
            made = zip(leaves(op.result), leaves(result), strict=True)
            self._values[batch].update({v: x for v, x in made if isinstance(v, Value)})

    def _check(self, op: Op, result: Any) -> None:
        """Refuse to go on where something else is read than when the trace was recorded."""
        shapes = tuple(tuple(t.shape) for t in tensors_in(result))
        if shapes != op.shapes or not same_reading(op.result, result):
            raise TraceError(
                f"{op.reader} reads values that the weights decide ({op.label}), so that it cannot "
                "be followed layer by layer"
            )

    def value(self, batch: int, value: Value) -> Tensor:
        """A tensor of a batch, at the op where the batch is; not to be written into."""
        if self._current != batch:
            if self._current is not None:
                self._put_aside(self._current)
            self._current = batch
            if batch in self._aside:
                back = torch.load(self._aside.pop(batch), weights_only=True)
                self._values[batch].update({Value(v): x for v, x in back.items()})
        return self._values[batch][value]

    def outputs(self, batch: int) -> list[Tensor]:
        """What the model returns for a batch, once all its ops are run."""
        return [self.value(batch, value) for value in self.traces[batch].outputs]

    def _put_aside(self, batch: int) -> None:
        """Let a batch wait in a file, if it holds more than its share."""
        mine = {
            value: tensor
            for value, tensor in self._values[batch].items()
            if is_plain_memory(tensor)
            and tensor.untyped_storage().data_ptr() not in self._elsewhere
        }
        storages = [tensor.untyped_storage() for tensor in mine.values()]
        held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
        if not self._room or held * len(self._values) <= WAITING:
            return
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="epruner-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            path = self._folder / f"{batch}.pt"
            # together, so that tensors of one storage come back as such
            torch.save({int(value): tensor for value, tensor in mine.items()}, path)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            self._room = False
            warnings.warn(
                f"no room for a temporary file in {tempfile.gettempdir()} ({error}); what waits "
                "is held in memory. Set TMPDIR to a folder with more room, or calibrate on fewer "
                "inputs",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self._aside[batch] = path
        for value in mine:
            del self._values[batch][value]


def is_plain_memory(tensor: Tensor) -> bool:
    """Whether a tensor is its values in main memory and nothing more."""
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not tensor.is_quantized
    )
