"""Deep copies of a network that keep what is shared in it shared."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain

from torch import Tensor, nn


def deep_copy(model: nn.Module) -> nn.Module:
    """A deep copy of a network.

    Raises
    ------
    ValueError
        The network holds tensors that torch cannot copy.
    """
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
