"""The compiled extension, or why there is none."""

import sys
from hashlib import sha256
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

from epruner._install import CHECKOUT

_NAME = "epruner.cluster._native"
_HERE = Path(__file__).resolve().parent
_AGAIN = "install epruner again with this Python, and with a C++ compiler where it comes as source"


class _Missing(ImportError):
    pass


def _load() -> ModuleType:
    """Return the extension beside this file, or in a checkout the one that was installed from it.

    Python started in a checkout finds the source folder before the installed package, and the
    source folder holds no extension.

    Raises
    ------
    _Missing
        Saying why there is none, and what to do.
    ImportError
        If there is one, but the system's loader refuses it.
    """
    try:
        return import_module(_NAME)
    except ModuleNotFoundError as error:
        if error.name != _NAME:
            raise
    if CHECKOUT is None:
        others = ", ".join(sorted(path.name for path in _HERE.glob("_native.*[!i]")))
        found = f"holds one for another Python only ({others})" if others else "holds none"
        raise _Missing(
            f"the installation in {_HERE} {found}, for Python {sys.version.split()[0]}: {_AGAIN}"
        )
    spec = PathFinder.find_spec(_NAME, [str(Path(entry) / "epruner/cluster") for entry in sys.path])
    if spec is None or spec.loader is None or spec.origin is None:
        raise _Missing(
            f"Python found epruner's source folder {_HERE.parent} first, probably because it was "
            "started there, and that holds no compiled extension; nor is an epruner installed for "
            f"Python {sys.version.split()[0]} whose extension could be used: run "
            f'pip install "{CHECKOUT}"'
        )
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sources = CHECKOUT / "csrc"
    if getattr(module, "sources", None) != _digest(sources):
        raise _Missing(
            f"Python found epruner's source folder {_HERE.parent} first, probably because it was "
            f"started there, and the installed extension {spec.origin} was compiled from other "
            f'sources than those in {sources}: run pip install "{CHECKOUT}"'
        )
    sys.modules[_NAME] = module
    return module


def _digest(sources: Path) -> str:
    """What CMakeLists.txt calls these sources."""
    digests = [
        sha256(path.read_bytes()).hexdigest()
        for path in sorted(sources.iterdir())
        if path.suffix in (".cpp", ".hpp")
    ]
    return sha256("".join(digests).encode()).hexdigest()


def require(what: str) -> None:
    """Raise `ImportError` if there is no extension; `what` says who needs one."""
    if native is None:
        raise ImportError(f"{what} needs the compiled solver: {missing}")


native: ModuleType | None = None
missing = ""  # the reason, where `native` is None
try:
    native = _load()
except _Missing as error:
    missing = str(error)
except ImportError as error:
    missing = f"the compiled extension does not load ({error}): {_AGAIN}"
