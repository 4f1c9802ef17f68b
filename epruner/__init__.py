"""Exact, fast affinity propagation, and filter pruning of torch networks on top of it.

The names below are imported on first use, so that ``import epruner`` loads neither torch nor any
optional package.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from epruner._install import CHECKOUT

if TYPE_CHECKING:
    from epruner.cluster import (
        AffinityPropagation,
        Clustering,
        ExemplarHierarchy,
        PreferencePath,
        affinity_propagation,
        affinity_propagation_many,
        merge_exemplars,
        preference_path,
        preference_range,
    )
    from epruner.pruning import (
        Budget,
        BudgetWarning,
        Constraints,
        Method,
        Plan,
        PruningResult,
        RepairWarning,
        TraceError,
        analyse,
        load,
        prune,
        recipes,
        save,
    )
    from epruner.pruning.data.synthesis import synthesise
    from epruner.pruning.io.export import export_onnx, export_program
    from epruner.pruning.io.weights import load_weights
    from epruner.pruning.pipeline import distill, repair
    from epruner.pruning.training.finetune import finetune

    __version__: str

_HOME = {
    "AffinityPropagation": "epruner.cluster",
    "Budget": "epruner.pruning",
    "BudgetWarning": "epruner.pruning",
    "Clustering": "epruner.cluster",
    "Constraints": "epruner.pruning",
    "ExemplarHierarchy": "epruner.cluster",
    "Method": "epruner.pruning",
    "Plan": "epruner.pruning",
    "PreferencePath": "epruner.cluster",
    "PruningResult": "epruner.pruning",
    "RepairWarning": "epruner.pruning",
    "TraceError": "epruner.pruning",
    "affinity_propagation": "epruner.cluster",
    "affinity_propagation_many": "epruner.cluster",
    "analyse": "epruner.pruning",
    "distill": "epruner.pruning.pipeline",
    "export_onnx": "epruner.pruning.io.export",
    "export_program": "epruner.pruning.io.export",
    "finetune": "epruner.pruning.training.finetune",
    "load": "epruner.pruning",
    "load_weights": "epruner.pruning.io.weights",
    "merge_exemplars": "epruner.cluster",
    "preference_path": "epruner.cluster",
    "preference_range": "epruner.cluster",
    "prune": "epruner.pruning",
    "recipes": "epruner.pruning",
    "repair": "epruner.pruning.pipeline",
    "save": "epruner.pruning",
    "synthesise": "epruner.pruning.data.synthesis",
}

_MODULES = ("accel", "companions", "plots")

__all__ = [
    "AffinityPropagation",
    "Budget",
    "BudgetWarning",
    "Clustering",
    "Constraints",
    "ExemplarHierarchy",
    "Method",
    "Plan",
    "PreferencePath",
    "PruningResult",
    "RepairWarning",
    "TraceError",
    "affinity_propagation",
    "affinity_propagation_many",
    "analyse",
    "distill",
    "export_onnx",
    "export_program",
    "finetune",
    "load",
    "load_weights",
    "merge_exemplars",
    "preference_path",
    "preference_range",
    "prune",
    "recipes",
    "repair",
    "save",
    "synthesise",
]

# Without its extra, pruning is asked for by name only, where the error says which extra to install.
if find_spec("torch") is None:
    for _name, _home in _HOME.items():
        if _home != "epruner.cluster":
            __all__.remove(_name)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name in _MODULES:
        return import_module(f"epruner.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'epruner' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def _version() -> str:
    try:
        return version("epruner")
    except PackageNotFoundError:
        if CHECKOUT is None:
            raise
        import tomllib

        settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
        return str(settings["project"]["version"])


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__"])
