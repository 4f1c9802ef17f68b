"""Pruning of torch networks. Imports `epruner.cluster`, never the other way round."""

import sys
from importlib.util import find_spec
from types import ModuleType

from epruner import _install

_missing = [
    name for name in ("torch", "torch_pruning", "safetensors", "rich") if find_spec(name) is None
]
if _missing:
    raise ImportError(
        f"pruning needs {', '.join(_missing)}, not installed here: {_install.command('prune')}"
    )

from epruner.prune.checkpoint import load, save
from epruner.prune.plan import Plan
from epruner.prune.pruning import BudgetWarning, prune
from epruner.prune.result import PruningResult

__all__ = ["BudgetWarning", "Plan", "PruningResult", "load", "prune", "save"]


class _CallablePackage(ModuleType):
    """Lets ``epruner.prune(...)`` be the function although ``epruner.prune`` is this package."""

    __call__ = staticmethod(prune)


sys.modules[__name__].__class__ = _CallablePackage
