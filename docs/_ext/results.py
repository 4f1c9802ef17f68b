"""Directives for the benchmark pages: pictures drawn from the results files, and their origin.

    ```{results-picture} speed
    What the picture shows, for those who do not see it.
    ```

    ```{results-machine} clustering_scale
    ```

The first draws a picture of benchmarks/pictures.py while the site is built, among the build's
doctrees and not among the sources, and writes under it what the second writes by itself: the
command that made the results, and the machine.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from benchmarks import pictures

NAMES = {"python": "Python", "numpy": "NumPy", "scikit_learn": "scikit-learn"}  # others as they are


def machine_of(results: dict[str, Any]) -> str:
    """What a results file says of the machine, in a line; empty where nothing depends on it."""
    found = results.get("machine", {})
    found = dict(found) if isinstance(found, dict) else {"cpu": found}
    if "torch" in results:
        found["torch"] = results["torch"]
    load, clock = found.pop("load_before", None), found.pop("clock", "wall")
    words = [str(found.pop("cpu"))] if found else []
    words += [f"{found.pop(key)} {key}" for key in ("cores", "threads") if key in found]
    words += [f"{NAMES.get(name, name)} {version}" for name, version in found.items()]
    if clock == "cpu":
        words.append("times are the processor's")
    if load is not None:
        words.append(f"load before the run {load:.1f}")
    return ", ".join(words)


class Origin(SphinxDirective):
    """The commands that made the named results files, and the machines they ran on."""

    required_arguments = 1
    optional_arguments = 10

    def run(self) -> list[nodes.Node]:
        return [self.origin(self.arguments)]

    def origin(self, names: list[str]) -> nodes.Node:
        lines = nodes.line_block(classes=["results-origin"])
        for name in names:
            file = pictures.RESULTS / f"{name}.json"
            if not file.exists():
                raise self.error(f"there are no results {name!r}: {file} is missing")
            self.env.note_dependency(str(file))
            results = json.loads(file.read_text("utf-8"))
            line = nodes.line()
            line += nodes.literal(text=results["command"])
            machine = machine_of(results)
            if machine:
                line += nodes.Text(f": {machine}")
            lines += line
        return lines


class Picture(Origin):
    """A picture of results, with its alternative text, and the origin of what it shows."""

    optional_arguments = 0
    has_content = True

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        self.assert_has_content()
        if name not in pictures.PICTURES:
            raise self.error(f"no picture is called {name!r}; there are {[*pictures.PICTURES]}")
        self.env.note_dependency(pictures.__file__)
        drawn = pictures.save(name, Path(self.env.doctreedir) / "results")
        here = Path(self.env.doc2path(self.env.docname)).parent
        uri = Path(os.path.relpath(drawn, here)).as_posix()
        image = nodes.image(uri=uri, alt=" ".join(self.content), classes=["results-picture"])
        return [image, self.origin([*pictures.PICTURES[name].files])]


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("results-picture", Picture)
    app.add_directive("results-machine", Origin)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
