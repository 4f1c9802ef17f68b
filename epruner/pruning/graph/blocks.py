"""Residual blocks: modules that return what they read once nothing is added to it.

Whether a module is one is found by trial: with the outputs of all its layers zeroed it is run on
what it reads, and has to return just that. A norm or a convolution on the shortcut, a norm after
the addition or a rectifier of what may be negative shows. Then all blocks are taken out of the
network, which has to answer as the one does in which they are silenced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from epruner.pruning.graph.groups import Group, Skipped
from epruner.pruning.graph.trial import TOLERANCE, relative_difference
from epruner.pruning.network.copies import own_tensors
from epruner.pruning.network.layers import layers_of
from epruner.pruning.network.tree import mapped, tensors_in
from epruner.pruning.plan.plan import Plan


def find_blocks(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[str], list[Skipped]]:
    """Residual blocks, and modules that look like some and are none.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode; as it was afterwards.
    args, kwargs
        Arguments of its forward.

    Returns
    -------
    blocks : list of str
        Names in the order of the network. None lies in another: of those that do, the inner ones.
    refused : list of Skipped
        Modules of several layers that return a tensor like the one they read and neither hold a
        block nor lie in one, each with its reason.
    """
    layers = layers_of(model)
    faults: dict[str, str] = {}
    candidates = {
        name: module
        for name, module in model.named_modules()
        if name and name not in layers and any(inside(layer, name) for layer in layers)
    }
    probing = False

    def probe(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal probing
        if probing:
            return
        probing = True
        fault = _fault(module, args, kwargs)
        probing = False
        if fault is not None and not faults.get(name):
            faults[name] = fault

    with ExitStack() as hooks, torch.no_grad():
        for name, module in candidates.items():
            hook = partial(probe, name)
            hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        model(*args, **kwargs)
    found = [name for name, fault in faults.items() if not fault]
    found = [name for name in candidates if name in found]
    found = [name for name in found if not any(inside(other, name) for other in found)]
    blocks, wrong = _sound(model, args, kwargs, found)
    refused = [
        Skipped(name, faults[name])
        for name in candidates
        if faults.get(name)
        and sum(inside(layer, name) for layer in layers) > 1
        and not any(inside(block, name) or inside(name, block) for block in found)
    ]
    return blocks, [*wrong, *refused]


def inside(name: str, block: str) -> bool:
    """Whether a module lies in another."""
    return name.startswith(f"{block}.")


def within(group: Group, block: str) -> bool:
    """Whether a group of channels lies in a block, with all that makes and reads them."""
    members = (*group.producers, *group.followers, *group.consumers)
    return all(inside(member.module, block) for member in members)


def _fault(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Why a module is no residual block, "" if it is one; None if it does not look like one."""
    x = args[0] if args else None
    if not isinstance(x, Tensor) or not x.is_floating_point() or not x.any():
        return None
    given = mapped((args, dict(kwargs)), lambda t: t.clone() if isinstance(t, Tensor) else t)
    try:
        with _silenced([module]):
            returned = module(*given[0], **given[1])
    except Exception:  # whatever a forward pass raises at zeros
        return None
    if not isinstance(returned, Tensor) or returned.shape != x.shape:
        return None
    if relative_difference(returned, x) <= TOLERANCE:
        return ""
    return (
        "no residual block: with its layers silenced it returns something else than what it reads "
        "(a norm after the addition, or layers on the shortcut, do that)"
    )


def _sound(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], blocks: Sequence[str]
) -> tuple[list[str], list[Skipped]]:
    """Blocks without which the network does what it does when they are silenced."""
    fault = _difference(model, args, kwargs, blocks) if blocks else ""
    if not fault:
        return list(blocks), []
    if len(blocks) == 1:
        return [], [Skipped(blocks[0], fault)]
    middle = len(blocks) // 2
    parts = (_sound(model, args, kwargs, part) for part in (blocks[:middle], blocks[middle:]))
    (first, wrong), (second, more) = parts
    return [*first, *second], [*wrong, *more]


def _difference(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], blocks: Sequence[str]
) -> str:
    with torch.no_grad():
        with _silenced([model.get_submodule(name) for name in blocks]):
            expected = tensors_in(model(*args, **kwargs))
        try:
            got = tensors_in(Plan({}, passed=tuple(blocks)).apply(model)(*args, **kwargs))
        except Exception as error:
            return f"the network does not run without it ({str(error).partition(chr(10))[0]})"
    same = len(got) == len(expected) and all(
        relative_difference(a, b) <= TOLERANCE for a, b in zip(got, expected, strict=True)
    )
    return "" if same else "passing it by does more than silencing what it adds"


@contextmanager
def _silenced(modules: Collection[nn.Module]) -> Iterator[None]:
    """Zero what the layers inside of some modules give."""

    def zero(module: nn.Module, _: object, output: Any) -> Any:
        return mapped(
            output,
            lambda t: torch.zeros_like(t) if isinstance(t, Tensor) and t.is_floating_point() else t,
        )

    with ExitStack() as hooks:
        for outer in modules:
            for module in outer.modules():
                if module is not outer and own_tensors(module):
                    hooks.enter_context(module.register_forward_hook(zero))
        yield
