"""The same answers from several processes, by torch.distributed.

Every rank of an initialised process group calls the same function with the same parameters and its
own part of the data. Nothing of this is imported before it is asked for, torch least of all.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from epruner._install import command

if TYPE_CHECKING:
    from epruner.distributed.estimator import AffinityPropagation, affinity_propagation
    from epruner.distributed.group import RankError
    from epruner.distributed.launch import launched

_HOME = {
    "AffinityPropagation": "epruner.distributed.estimator",
    "RankError": "epruner.distributed.group",
    "affinity_propagation": "epruner.distributed.estimator",
    "launched": "epruner.distributed.launch",
}

__all__ = ["AffinityPropagation", "RankError", "affinity_propagation", "launched"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "launched" and find_spec("torch") is None:  # which stands alone without
        raise ImportError(f"epruner.distributed.{name} needs torch: {command('prune')}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
