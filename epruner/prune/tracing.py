"""A private copy of the user's model, fit to be traced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from epruner.prune.copies import deep_copy, tie


class TraceError(RuntimeError):
    """The model could not be run or analysed; the message names the module at fault."""


def tracing_copy(model: nn.Module) -> tuple[nn.Module, frozenset[str]]:
    """A private copy to trace: eval mode, at least float32, unfrozen, no parametrizations.

    Frozen parameters would silently vanish from the graph, parametrizations break it, and half
    precision is too coarse to verify with.

    Returns
    -------
    copy : torch.nn.Module
    parametrized : frozenset of str
        Names of the modules whose weights are computed; these cannot be sliced.
    """
    traced = deep_copy(model)
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
    traced.eval()
    halves = (torch.float16, torch.bfloat16)
    if any(t.dtype in halves for t in (*traced.parameters(), *traced.buffers())):
        traced.float()
        tie(model, traced)
    return traced, frozenset(parametrized)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in tensors_in(v)]
    return []
