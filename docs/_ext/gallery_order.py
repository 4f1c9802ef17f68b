"""The order of the gallery's pages: what most people come for first."""

from __future__ import annotations

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
    "without_images",
    "report",
    "methods",
    "transformer",
    "exemplar_filters",
    "milliseconds",
    "distributed",
)


class Order:
    """A key to sort the scripts of a folder by; one that is not in `ORDER` is an error."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, file: str) -> int:
        """Where the page stands."""
        return ORDER.index(file.removeprefix("plot_").removesuffix(".py"))
