"""What the documentation is made of: its own pages, and the files of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import ROOT


def pages() -> list[Path]:
    """The site's own pages, without those that its build makes."""
    made = ("gallery", "reference/generated")
    docs = ROOT / "docs"
    names = {path: path.relative_to(docs).as_posix() for path in docs.rglob("*.md")}
    return sorted(path for path, name in names.items() if not name.startswith(made))


def results(name: str) -> dict[str, Any]:
    """A file of results, read anew."""
    found: dict[str, Any] = json.loads(
        (ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8")
    )
    return found
