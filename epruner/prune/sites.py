"""Which layers of a tape can be refit, and what each is fit to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from epruner.prune.recording import is_plain
from epruner.prune.tape import Slot, Tape


@dataclass(frozen=True)
class Site:
    """A layer, and the place where what it does is measured.

    Parameters
    ----------
    name : str
    step : int
        Its call.
    at : int
        The addition onto a shortcut that its output goes to, or the call itself.
    norm : str or None
        BatchNorm that alone reads its output.
    norm_step : int
        Its call, or -1.
    other : Slot or None
        What the output is added to.
    """

    name: str
    step: int
    at: int
    norm: str | None
    norm_step: int
    other: Slot | None


def find_sites(tape: Tape) -> tuple[list[Site], list[str]]:
    """Layers that can be refit, in the order of their places, and why others cannot.

    Parameters
    ----------
    tape : Tape

    Returns
    -------
    sites : list of Site
    notes : list of str
        One line a reason.
    """
    readers = tape.readers()
    calls: dict[str, int] = {}
    for step in tape.steps:
        if step.module is not None:
            calls[step.module] = calls.get(step.module, 0) + 1
    sites: list[Site] = []
    left: dict[str, list[str]] = {}
    for index, step in enumerate(tape.steps):
        module = step.function
        if step.module is None or not isinstance(module, (_ConvNd, nn.Linear)):
            continue
        if reason := _objection(module, step.args, calls[step.module]):
            left.setdefault(reason, []).append(step.module)
            continue
        sites.append(_site(tape, readers, index, calls))
    sites.sort(key=lambda site: (site.at, site.step))
    notes = [
        f"not refit ({reason}): {', '.join(names[:3])}"
        + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for reason, names in left.items()
    ]
    return sites, notes


def _objection(module: Any, args: tuple[Any, ...], calls: int) -> str:
    if getattr(module, "transposed", False):
        return "transposed convolution"
    if calls > 1:
        return "used more than once in a forward pass"
    if not is_plain(module):
        return "its forward is its own"
    if parametrize.is_parametrized(module):
        return "its weights are computed"
    if len(args) != 1 or not isinstance(args[0], Slot):
        return "its input is not computed from the network's inputs"
    return ""


def _site(
    tape: Tape, readers: Mapping[Slot, list[int]], index: int, calls: Mapping[str, int]
) -> Site:
    step = tape.steps[index]
    assert step.module is not None
    slot, norm, norm_step = step.writes[0], None, -1
    while len(after := readers.get(slot, [])) == 1 and slot not in tape.outputs:
        reader = tape.steps[after[0]]
        is_norm = (
            isinstance(reader.function, _BatchNorm)
            and reader.function.track_running_stats
            and is_plain(reader.function)
        )
        if is_norm and norm is None and calls[reader.module or ""] == 1:
            norm, norm_step, slot = reader.module, after[0], reader.writes[0]
            continue
        other = _addend(tape, after[0], slot)
        if other is not None and not _overwritten(tape, step.reads[0], index, after[0]):
            return Site(step.module, index, after[0], norm, norm_step, other)
        break
    return Site(step.module, index, index, norm, norm_step, None)


def _addend(tape: Tape, index: int, slot: Slot) -> Slot | None:
    """The other summand, if this step adds two tensors of the same shape and no more."""
    step = tape.steps[index]
    if step.label not in ("aten::add", "aten::add_") or len(step.args) != 2 or step.kwargs:
        return None
    a, b = step.args
    if not isinstance(a, Slot) or not isinstance(b, Slot) or a == b:
        return None
    other = b if a == slot else a
    shapes = {
        s: shape for t in tape.steps[:index] for s, shape in zip(t.writes, t.shapes, strict=True)
    }
    return other if shapes.get(other) == shapes.get(slot) else None


def _overwritten(tape: Tape, slot: Slot, first: int, last: int) -> bool:
    """Whether a step between two writes into a tensor in place."""
    return any(
        step.module is None and slot in step.reads and step.label.endswith("_")
        for step in tape.steps[first + 1 : last]
    )
