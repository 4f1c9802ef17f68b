"""The compiled extension, or None where the installation has none."""

from types import ModuleType

native: ModuleType | None
try:
    from epruner.cluster import _native as native
except ImportError:
    native = None
