"""The documentation site: ``pip install ".[docs]" && sphinx-build -W docs build/site``."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

import torch

torch.set_num_threads(1)  # the gallery's networks are small: threads wait more than they help

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]  # what the gallery imports lies in the root

project = "epruner"
author = copyright = "The epruner developers"
version = release = installed("epruner")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx_llm.txt",
    "blocks",
    "gallery",
    "plain",
    "results",
]
exclude_patterns = ["_*"]
templates_path = ["_templates"]
default_role = "autolink"  # `prune` in a docstring is a link where there is such a name
highlight_language = "none"

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc's tables have the types, in words
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": [str(DOCS.parent / "examples" / "gallery")],
    "gallery_dirs": ["gallery"],
    "filename_pattern": r"plot_",
    "within_subsection_order": "gallery.Order",
    "abort_on_example_error": True,
    "capture_repr": (),
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 1,
    "remove_config_comments": True,
    "thumbnail_size": (640, 400),
    "doc_module": ("epruner",),
    "reference_url": {"epruner": None},
    "backreferences_dir": None,
}

llms_txt_description = (
    "Exact affinity propagation at the price of a nearest-neighbour search, and filter pruning of "
    "torch networks on top of it."
)
llms_txt_build_parallel = False  # the second build finds what the first has made
llms_txt_suffix_mode = "replace"  # page.md beside page.html
llms_txt_suppress_unknown_node_warnings = ["imgsgnode"]  # the gallery's pictures, in several sizes

TABLES = [f"benchmarks/{name}" for name in ("clustering", "large", "pruning", "latency-and-repair")]

html_theme = "pydata_sphinx_theme"
html_title = "epruner"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "epruner"},
    "header_links_before_dropdown": 7,
    "navbar_align": "left",
    "navigation_with_keys": False,
    "show_prev_next": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    # tables of results want the room that a list of headings takes
    "secondary_sidebar_items": {"**": ["page-toc"]} | dict.fromkeys(TABLES, ()),
}
html_sidebars = {"more": [], "questions": [], "limits": [], "comparison": []}
