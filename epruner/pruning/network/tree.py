"""Nested arguments and results: one walker for tuples, lists, mappings and dataclasses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def leaves(value: Any) -> Iterator[Any]:
    """What stands in a nested structure, in order; a value that holds no others is its own leaf."""
    if isinstance(value, Mapping):
        parts = list(value.values())
    elif isinstance(value, (tuple, list)):
        parts = list(value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in fields(value)]
    else:
        yield value
        return
    for part in parts:
        yield from leaves(part)


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """The same structure with every leaf exchanged; mappings become plain dicts."""
    if isinstance(value, Mapping):
        return {key: mapped(part, function) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(mapped(part, function) for part in value)
    if isinstance(value, (tuple, list)):
        kind = list if isinstance(value, list) else tuple
        return kind(mapped(part, function) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        result = copy.copy(value)
        for field in fields(value):
            part = mapped(getattr(value, field.name), function)
            object.__setattr__(result, field.name, part)
        return result
    return function(value)


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a nested structure."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]
