"""Pruning of torch networks. Imports `epruner.cluster`, never the other way round."""

from importlib.util import find_spec

from epruner import _install

_missing = [name for name in ("torch", "safetensors", "rich") if find_spec(name) is None]
if _missing:
    raise ImportError(
        f"pruning needs {', '.join(_missing)}, not installed here: {_install.command('prune')}"
    )

from epruner.pruning.analysis import Analysis, analyse
from epruner.pruning.errors import BudgetWarning, RepairWarning, TraceError
from epruner.pruning.io.checkpoint import load, save
from epruner.pruning.options import Budget, Constraints, Method
from epruner.pruning.pipeline import prune
from epruner.pruning.plan.plan import Plan
from epruner.pruning.result import PruningResult
from epruner.pruning.select import recipes

__all__ = [
    "Analysis",
    "Budget",
    "BudgetWarning",
    "Constraints",
    "Method",
    "Plan",
    "PruningResult",
    "RepairWarning",
    "TraceError",
    "analyse",
    "load",
    "prune",
    "recipes",
    "save",
]
