"""What the examples on trained networks share: their options, and how they print accuracy."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from torch import nn


def options(what: str, macs: float) -> argparse.Namespace:
    """``--macs`` and ``--picture``."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--macs", type=float, default=macs, help="share of multiply-adds to leave")
    parser.add_argument("--picture", help="file to draw in")
    return parser.parse_args()


def compare(
    accuracy: Callable[[nn.Module, Any], dict[str, float]], held_out: Any, **networks: nn.Module
) -> None:
    """Print the percentages of each network."""
    for name, network in networks.items():
        measured = accuracy(network, held_out).items()
        print(f"{name:9}", ", ".join(f"{what}: {value:.1f} %" for what, value in measured))
