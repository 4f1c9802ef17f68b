"""The gallery: its pages in the order of what people come for, each with its picture at the top."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

ORDER = (
    "clusters_and_exemplars",
    "exemplar_images",
    "hundred_thousand",
    "drop_in",
    "preference",
    "wanted_number",
    "hierarchy",
    "sentences",
    "graph",
    "two_processes",
    "without_images",
    "report",
    "methods",
    "transformer",
    "exemplar_filters",
    "milliseconds",
)


class Order:
    """A key to sort the scripts of a folder by; one that is not in `ORDER` is an error."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, file: str) -> int:
        """Where the page stands."""
        return ORDER.index(file.removeprefix("plot_").removesuffix(".py"))


PICTURE = re.compile(r"^\.\. image-sg::.*\n(?: .*\n|\n(?= ))*", re.MULTILINE)
CODE = ".. GENERATED FROM PYTHON SOURCE LINES"


def picture_first(app: Sphinx, name: str, source: list[str]) -> None:
    """Move the first picture of a page from behind the code that draws it to before it."""
    if not name.startswith("gallery/") or (found := PICTURE.search(source[0])) is None:
        return
    rest = source[0][: found.start()] + source[0][found.end() :]
    introduction, code, remainder = rest.partition(CODE)
    source[0] = f"{introduction}{found[0]}\n{code}{remainder}"


SCRIPT = re.compile(r"\((?:\.\./)+examples/gallery/(\w+/plot_\w+)\.py\)")


def link_pages(app: Sphinx, name: str, source: list[str]) -> None:
    """Let links to the gallery's scripts, which work in the repository, lead to their pages."""
    source[0] = SCRIPT.sub(r"(/gallery/\1.rst)", source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both hooks."""
    app.connect("source-read", picture_first)
    app.connect("source-read", link_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
