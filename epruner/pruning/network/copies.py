"""Private copies of a network, in which what is shared stays shared."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from epruner.pruning.network.attention import unfolded

HALVES = (torch.float16, torch.bfloat16)


def deep_copy(model: nn.Module) -> nn.Module:
    """A deep copy of a network, without `torch.compile` around parts of it.

    Raises
    ------
    ValueError
        The network holds tensors that torch cannot copy.
    """
    model = uncompiled(model)
    try:
        copied = copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(
            f"the model cannot be copied ({error}); if it uses torch.nn.utils.weight_norm or "
            "spectral_norm, remove them first (remove_weight_norm) or use "
            "torch.nn.utils.parametrizations"
        ) from error
    tie(model, copied)
    return copied


def compiled_parts(model: nn.Module) -> list[str]:
    """Names of what comes from `torch.compile`; the network's own is empty."""
    return [name for name, module in model.named_modules() if hasattr(module, "_orig_mod")]


def uncompiled(model: nn.Module) -> nn.Module:
    """A network of the same tensors without `torch.compile` around parts of it.

    The network itself where there is none. Else names are those that the modules had before.
    """
    compiled = compiled_parts(model)
    if not compiled:
        return model
    memo: dict[int, Any] = {id(t): t for t in chain(model.parameters(), model.buffers())}
    for name in reversed(compiled):  # what is inside another first
        wrapper: Any = model.get_submodule(name)
        memo[id(wrapper)] = copy.deepcopy(wrapper._orig_mod, memo)
    plain: nn.Module = copy.deepcopy(model, memo)
    return plain


def tracing_copy(model: nn.Module) -> tuple[nn.Module, frozenset[str]]:
    """A private copy to trace: eval mode, at least float32, unfrozen, no parametrizations.

    Its attention is unfolded (see `network.attention`). Frozen parameters would silently vanish
    from the graph, parametrizations break it, and half precision is too coarse to verify with.

    Returns
    -------
    copy : torch.nn.Module
    parametrized : frozenset of str
        Names of the modules whose weights are computed; these cannot be sliced.
    """
    traced = unfolded(working_copy(model))
    parametrized = set()
    for name, module in list(traced.named_modules()):
        if parametrize.is_parametrized(module):
            parametrized.add(name)
            # removing edits the module's class, which a deep copy shares with the user's module
            kind = type(module)
            module.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
            for tensor in list(module.parametrizations):
                parametrize.remove_parametrizations(module, tensor)
    for parameter in traced.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return traced, frozenset(parametrized)


def working_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode and at least float32."""
    copied = deep_copy(model).eval()
    if has_halves(copied):
        copied.float()
        tie(model, copied)
    return copied


def with_weights_of(model: nn.Module, other: nn.Module) -> nn.Module:
    """A copy of a model with the weights and buffers of another, in its own data types."""
    result = deep_copy(model)
    with torch.no_grad():
        for mine, theirs in (
            (result.parameters(), other.parameters()),
            (result.buffers(), other.buffers()),
        ):
            for target, source in zip(mine, theirs, strict=True):
                target.copy_(source)
    return result


def has_halves(model: nn.Module) -> bool:
    """Whether a network has tensors of half precision."""
    return any(t.dtype in HALVES for t in (*model.parameters(), *model.buffers()))


def tie(model: nn.Module, copied: nn.Module) -> None:
    """Let tensors of a copy share memory where those of the model do.

    torch's own copies keep one parameter in two places one, but not two parameters of one memory
    (``a.weight.data = b.weight.data``).
    """
    theirs = dict(_tensors(copied))
    first: dict[int, str] = {}
    for name, tensor in _tensors(model):
        if not (address := address_of(tensor)) or name not in theirs:
            continue
        source, target = theirs[first.setdefault(address, name)], theirs[name]
        if source is not target and source.numel() == target.numel():
            target.data = source.data.as_strided(tensor.shape, tensor.stride())


def retie(model: nn.Module, small: nn.Module) -> None:
    """Let tensors of a resized copy be one where those of the model are, and were cut alike."""
    theirs = dict(_tensors(small))
    first: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in _tensors(model):
        if not (address := address_of(tensor)) or name not in theirs:
            continue  # the copy's attention may be unfolded
        other, one = first.setdefault(address, (name, tensor))
        source, target = theirs[other], theirs[name]
        alike = tensor.shape == one.shape and tensor.stride() == one.stride()
        if source is target or not alike or not torch.equal(source, target):
            continue
        if tensor is one:
            owner, _, leaf = name.rpartition(".")
            setattr(small.get_submodule(owner), leaf, source)
        else:
            target.data = source.data


def owners(model: nn.Module) -> dict[int, list[str]]:
    """Names of the modules that hold each tensor, by the address of its memory.

    A module that goes by two names counts once.
    """
    found: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for address in {address_of(tensor) for tensor in own_tensors(module)} - {0}:
            found.setdefault(address, []).append(name)
    return found


def own_tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a module without those of its children."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(
        model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    )


def address_of(tensor: Tensor) -> int:
    # 0 for empty tensors and those on the meta device, which share nothing
    return tensor.data_ptr() if tensor.numel() else 0
