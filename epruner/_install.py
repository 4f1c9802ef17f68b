"""Where the package comes from, and the command that installs what is missing."""

from pathlib import Path

_FOLDER = Path(__file__).resolve().parents[1]
# The folder of the sources, where the package is imported from a checkout rather than installed.
CHECKOUT = _FOLDER if (_FOLDER / "csrc").is_dir() else None


def command(extra: str) -> str:
    """Install an extra: from the checkout, or for the installation that is there."""
    return f'pip install "{CHECKOUT or "epruner"}[{extra}]"'
