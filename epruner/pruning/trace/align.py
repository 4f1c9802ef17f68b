"""Traces of a network and of a smaller one, made to correspond op by op.

Both do the same, but how numbers are moved may depend on sizes: what is one head's is a view, what
is several heads' has to be copied first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from epruner.pruning.network.tree import mapped
from epruner.pruning.trace.trace import Op, Trace, Value

_MOVES = frozenset(
    f"aten::{name}"
    for name in (
        "view", "_unsafe_view", "_reshape_alias", "clone", "expand", "permute", "transpose",
        "unsqueeze", "squeeze", "alias", "slice",
    )
)  # fmt: skip
_REST = Op("nothing", None, tuple, (), {}, (), ())


def aligned(
    first: Sequence[Trace], second: Sequence[Trace]
) -> tuple[list[Trace], list[Trace]] | None:
    """Traces of the same batches through two networks, with ops of the same index alike.

    Where one moves numbers in other steps than the other, ops that do nothing fill up. Values of
    the second are renumbered as those of the first.

    Returns
    -------
    (list of Trace, list of Trace) or None
        None where the networks differ in anything else.
    """
    if first[0].course == second[0].course:
        return list(first), list(second)
    labels = [[op.label for op in traces[0].ops] for traces in (first, second)]
    places: list[tuple[int | None, int | None]] = []
    numbers = dict(zip(second[0].inputs, first[0].inputs, strict=True))
    for kind, a, b, c, d in SequenceMatcher(a=labels[0], b=labels[1], autojunk=False).get_opcodes():
        if kind != "equal" and not _MOVES.issuperset([*labels[0][a:b], *labels[1][c:d]]):
            return None
        length = max(b - a, d - c)
        # what a row of moves ends in is the same
        ones = [*[None] * (length - (b - a)), *range(a, b)]
        others = [*[None] * (length - (d - c)), *range(c, d)]
        for one, other in zip(ones, others, strict=True):
            places.append((one, other))
            if one is not None and other is not None:
                writes = first[0].ops[one].writes, second[0].ops[other].writes
                numbers.update(zip(writes[1], writes[0], strict=False))
    free = max(max(op.writes, default=0) for trace in (first[0], second[0]) for op in trace.ops)
    for op in second[0].ops:
        for value in op.writes:
            numbers.setdefault(value, Value(free := free + 1))
    return (
        [replace(trace, ops=_spread(trace, [one for one, _ in places])) for trace in first],
        [
            replace(
                trace,
                ops=tuple(
                    _renumbered(op, numbers) for op in _spread(trace, [x for _, x in places])
                ),
                inputs=tuple(numbers[value] for value in trace.inputs),
                outputs=tuple(numbers[value] for value in trace.outputs),
            )
            for trace in second
        ],
    )


def _spread(trace: Trace, places: Sequence[int | None]) -> tuple[Op, ...]:
    return tuple(_REST if place is None else trace.ops[place] for place in places)


def _renumbered(op: Op, numbers: Mapping[Value, Value]) -> Op:
    args, kwargs, result = mapped(
        (op.args, dict(op.kwargs), op.result),
        lambda leaf: numbers.get(leaf, leaf) if isinstance(leaf, Value) else leaf,
    )
    return replace(op, args=args, kwargs=kwargs, result=result)
