"""What the Markdown form of a page would otherwise lose, in nodes that its builder knows."""

from __future__ import annotations

import posixpath
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_design.shared import PassthroughTextElement


class Plain(SphinxPostTransform):
    """Types of parameters, footnotes, links of cards and on a page, the images of the site."""

    default_priority = 900  # once references are resolved
    builders = ("llms-markdown",)

    def run(self, **_: Any) -> None:
        for node in list(self.document.findall(nodes.classifier)):
            item = node.parent
            term = item[item.index(node) - 1]
            term += nodes.Text(f" : {node.astext()}")
            item.remove(node)
        for node in list(self.document.findall(nodes.abbreviation)):  # the * of a signature
            node.replace_self(nodes.Text(node.astext()))
        for node in list(self.document.findall(PassthroughTextElement)):
            node.replace_self(nodes.paragraph("", "", *node.children))
        for node in list(self.document.findall(nodes.citation)):
            text = " ".join(child.astext() for child in node.children[1:])
            node.replace_self(nodes.paragraph("", text))
        for node in self.document.findall(nodes.reference):
            if "refid" in node:  # a place on the same page
                node["internal"] = True
        here = posixpath.dirname(self.env.docname)
        for node in self.document.findall(nodes.image):
            if "://" not in node["uri"]:
                kept = f"_images/{posixpath.basename(node['uri'])}"
                node["uri"] = posixpath.relpath(kept, here or ".")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_post_transform(Plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
