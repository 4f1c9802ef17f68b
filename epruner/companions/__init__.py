"""Systems that stand beside EPruner, small, on the same foundations.

Each module is one of them and imports none of the others; it is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epruner.companions import discovery, functionality, manidp, orthoreg, siamese

__all__ = ["discovery", "functionality", "manidp", "orthoreg", "siamese"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
