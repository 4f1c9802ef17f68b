"""Sizes written in a forward pass that have to follow the channels.

Attention is often written with the width of what it reads, ``x.reshape(n, t, c)``, although what
is reshaped has only as many channels as its heads. With fewer heads that size has to be inferred:
the method is compiled anew with -1 in its place, for the one module whose heads go. Nothing else of
it changes.
"""

from __future__ import annotations

import ast
import copy
import linecache
import math
import re
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

_CALLS = frozenset(["view", "reshape"])
_REFUSED = re.compile(r"shape '\[([-\d, ]+)\]' is invalid for input of size (\d+)")


@dataclass(frozen=True, order=True)
class View:
    """A size that a method of a module writes and that is to be inferred.

    Parameters
    ----------
    method : str
        Its name, ``"forward"`` say.
    call : int
        Number of the call of ``view`` or ``reshape`` in the method, in the order of its text.
    size : int
        Number of the size in that call.

    Examples
    --------
    The second size of the first ``view`` in a forward:

    >>> from epruner.pruning.plan.views import View
    >>> View("forward", call=0, size=1)
    View(method='forward', call=0, size=1)
    """

    method: str
    call: int
    size: int


def blamed(error: BaseException) -> Iterator[tuple[nn.Module, View]]:
    """Sizes to infer, each so that a view succeeds that raised an error; and whose forward it is.

    Nothing where another error was raised, no size helps, or the text of the method cannot be had.
    """
    refused = _REFUSED.search(str(error))
    if refused is None:
        return
    sizes = [int(size) for size in refused[1].split(",")]
    spans = []
    for code, instruction, module in frames(error):
        spans.append((code.co_filename, list(code.co_positions())[instruction // 2]))
        function = getattr(type(module), code.co_name, None)
        if module is None or getattr(function, "__code__", None) is not code:
            continue
        for number, (call, written) in enumerate(_calls(_definition(function))):
            span = (call.lineno, call.end_lineno, call.col_offset, call.end_col_offset)
            if (code.co_filename, span) in spans and len(written) == len(sizes):
                for size in reversed(range(len(sizes))):
                    inferred, rest = divmod(
                        int(refused[2]), math.prod(sizes[:size] + sizes[size + 1 :]) or 1
                    )
                    if not rest and inferred > 0:
                        yield module, View(code.co_name, number, size)
                return


def infer(module: nn.Module, views: Iterable[View]) -> None:
    """Let methods of a module infer sizes, in place.

    Raises
    ------
    ValueError
        It has not these methods, or their text cannot be had.
    """
    kind, views = type(module), tuple(views)
    changed: dict[str, Any] = {}
    for method in sorted({view.method for view in views}):
        function = getattr(kind, method, None)
        definition = copy.deepcopy(_definition(function))
        calls = list(_calls(definition))
        for view in views:
            if view.method != method:
                continue
            if view.call >= len(calls) or view.size >= len(calls[view.call][1]):
                raise ValueError(
                    f"the plan infers a size in {method!r} of {kind.__name__}, whose text is not "
                    "what it was made for or cannot be had"
                )
            calls[view.call][1][view.size] = ast.UnaryOp(ast.USub(), ast.Constant(1))
        changed[method] = _compiled(function, definition)
    module.__class__ = _derived(kind, views, changed)


def _derived(
    kind: type[nn.Module], views: tuple[View, ...], changed: dict[str, Any]
) -> type[nn.Module]:
    """A subclass with changed methods, whose instances are pickled by those of its parent."""

    def reduced(self: nn.Module, protocol: Any) -> Any:
        made: Any = kind.__reduce_ex__(self, protocol)
        function, (_, *rest), *state = made
        return _rebuilt, (function, kind, views, *rest), *state

    members = {"__module__": kind.__module__, "__reduce_ex__": reduced, **changed}
    return type(kind.__name__, (kind,), members)


def _rebuilt(
    function: Any, kind: type[nn.Module], views: tuple[View, ...], *rest: Any
) -> nn.Module:
    module: nn.Module = function(kind, *rest)
    infer(module, views)
    return module


def frames(error: BaseException) -> Iterator[tuple[types.CodeType, int, nn.Module | None]]:
    """What an error passed, the innermost first: code, instruction, and the module of a method."""
    found = []
    trace = error.__traceback__
    while trace is not None:
        code, local = trace.tb_frame.f_code, trace.tb_frame.f_locals
        owner = local.get(code.co_varnames[0]) if code.co_argcount else None
        found.append((code, trace.tb_lasti, owner if isinstance(owner, nn.Module) else None))
        trace = trace.tb_next
    yield from reversed(found)


def _definition(function: Any) -> ast.FunctionDef | None:
    """The syntax tree of a function that is written in a file and is not decorated."""
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    definitions = _definitions("".join(linecache.getlines(code.co_filename)))
    node = definitions.get(code.co_firstlineno)
    return None if node is None or node.decorator_list else node


@lru_cache(maxsize=16)
def _definitions(text: str) -> dict[int, ast.FunctionDef]:
    """All functions of a file by the line that they begin in; none if it is not Python."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except SyntaxError:
        return {}
    return {node.lineno: node for node in reversed(nodes) if isinstance(node, ast.FunctionDef)}


def _calls(definition: ast.AST | None) -> Iterator[tuple[ast.Call, list[ast.expr]]]:
    """The calls of ``view`` and ``reshape`` in the order of the text, with the sizes they write."""
    calls = [
        node
        for node in (ast.walk(definition) if definition is not None else ())
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _CALLS
    ]
    for call in sorted(calls, key=lambda c: (c.end_lineno or 0, c.end_col_offset or 0)):
        last = call.args[-1] if call.args else None
        yield call, last.elts if isinstance(last, (ast.Tuple, ast.List)) else call.args


def _compiled(function: Any, definition: ast.FunctionDef | None) -> Any:
    """A function from its changed syntax tree, with the surroundings of the original."""
    assert definition is not None
    code = function.__code__
    (surroundings,) = ast.parse("def outer():\n    class _:\n        pass").body
    assert isinstance(surroundings, ast.FunctionDef)
    (owner,) = surroundings.body
    assert isinstance(owner, ast.ClassDef)
    _, _, scope = function.__qualname__.rpartition(".")[0].rpartition(".")
    owner.name = scope if scope.isidentifier() else "_"  # private names are told by it
    owner.body = [definition]
    local = [ast.parse(f"{name} = None").body[0] for name in code.co_freevars]
    if owner.name not in code.co_freevars:
        local.append(ast.Global([owner.name]))
    surroundings.body = [*local, owner]
    tree = ast.fix_missing_locations(ast.Module([surroundings], []))
    made = compile(tree, code.co_filename, "exec")
    for name in ("outer", owner.name, definition.name):
        made = next(
            part
            for part in made.co_consts
            if isinstance(part, types.CodeType) and part.co_name == name
        )
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    result = types.FunctionType(
        made,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells[name] for name in made.co_freevars),
    )
    result.__kwdefaults__ = function.__kwdefaults__
    return result
