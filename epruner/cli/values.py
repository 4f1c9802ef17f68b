"""The types that parse the values of options."""

from __future__ import annotations

import argparse
import ast
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class InputShape:
    """One example input: ``[NAME=]1,3,32,32[:int64]``."""

    sizes: tuple[int, ...]
    dtype: str = "float32"
    keyword: str | None = None


def input_shape(text: str) -> InputShape:
    """Parse ``1,3,32,32``, ``1,16:int64`` or ``mask=1,16:bool``."""
    keyword, equals, rest = text.rpartition("=")
    sizes, _, dtype = rest.partition(":")
    try:
        numbers = tuple(int(part) for part in sizes.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1 or (equals and not keyword.isidentifier()):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no shape; write positive sizes, batch first, e.g. 1,3,32,32 "
            "(1,16:int64 for integers, mask=1,16:bool for an argument by name)"
        )
    return InputShape(numbers, dtype or "float32", keyword or None)


def pair(text: str) -> tuple[str, str]:
    """Parse ``old=new``."""
    old, equals, new = text.partition("=")
    if not equals or not old:
        raise argparse.ArgumentTypeError(f"{text!r} has no '=' between two parts")
    return old, new


def literal_pair(text: str) -> tuple[str, Any]:
    """Parse ``name=value`` where the value is a Python literal or else a string."""
    name, value = pair(text)
    if not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{name!r} is not an argument's name")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def number(text: str) -> float:
    """Parse a finite number; ``60%`` is 0.6."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def count_or_share(text: str) -> int | float:
    """Parse ``8`` (a count) or ``0.05`` or ``5%`` (a share)."""
    try:
        return int(text)
    except ValueError:
        return number(text)


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def share(text: str) -> float:
    """Parse a share above 0 and at most 1."""
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not in (0, 1]; 0.5 or 50% keeps half")
    return value


def damping(text: str) -> float | str:
    """Parse a number in [0.5, 1) or ``auto``."""
    if text == "auto":
        return text
    value = number(text)
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not in [0.5, 1), nor auto")
    return value


def quantile(text: str) -> float:
    """Parse a number in [0, 1]."""
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not in [0, 1]")
    return value


def count_or_share_by_pattern(text: str) -> tuple[str, int | float]:
    """Parse ``layer1.*=8``."""
    pattern, value = pair(text)
    return pattern, count_or_share(value)


def number_or_pattern(text: str) -> tuple[str, float]:
    """Parse ``0.76`` (for all layers, pattern ``*``) or ``layer3.*=0.9``."""
    pattern, _, value = text.rpartition("=")
    return pattern or "*", number(value)
