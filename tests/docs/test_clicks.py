"""What a stranger asks first is answered within three clicks from the start page."""

from __future__ import annotations

import posixpath
import re

import pytest
from conftest import ROOT

DOCS = ROOT / "docs"

# Question, the pages on the way, and words of the answer on the last of them.
CLICKS = [
    ("How do I get K clusters?", ["clustering/index", "clustering/preferences"], "n_clusters=10"),
    ("How do I get K clusters?", ["questions", "clustering/preferences"], "n_clusters=10"),
    (
        "Is it the same as scikit-learn's?",
        ["clustering/index", "clustering/exactness"],
        "Yes, where a run converges",
    ),
    (
        "Is it the same as scikit-learn's?",
        ["questions", "clustering/exactness"],
        "Yes, where a run converges",
    ),
    ("Will my GPU be used?", ["clustering/index", "gpu"], "goes where the data are"),
    ("Will my GPU be used?", ["questions", "gpu"], "goes where the data are"),
    ("My network has no BatchNorm. What then?", ["questions"], "If it has layers that normalise"),
    (
        "My network has no BatchNorm. What then?",
        ["pruning/index", "pruning/repair"],
        "Layers that normalise each input by themselves",
    ),
    (
        "How do I load the pruned network elsewhere?",
        ["pruning/index", "pruning/saving"],
        "a fresh full-size network of the same class",
    ),
    ("How do I load the pruned network elsewhere?", ["questions"], "epruner.load(fresh_model"),
    (
        "Why was this layer left alone?",
        ["pruning/index", "pruning/what-can-be-pruned"],
        "named with its reason",
    ),
    ("Why was this layer left alone?", ["questions"], "names the reason of each"),
]


def links(page: str) -> set[str]:
    """Pages that one is a click away from: links, cards and the entries of menus."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    shown = re.sub(r":::\{toctree\}.*?^:::", "", text, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(([\w./-]+)\.md(?:#[\w-]+)?\)", shown)
    found += re.findall(r"^:link: ([\w./-]+)$", shown, flags=re.MULTILINE)
    folder = posixpath.dirname(page)
    return {posixpath.normpath(posixpath.join(folder, name)) for name in found}


@pytest.mark.parametrize(("question", "way", "answer"), CLICKS)
def test_an_answer_is_three_clicks_away_at_most(question: str, way: list[str], answer: str) -> None:
    assert len(way) <= 3
    for page, following in zip(["index", *way], way, strict=False):
        assert following in links(page), f"{page} has no link to {following}"
    text = " ".join((DOCS / f"{way[-1]}.md").read_text(encoding="utf-8").split())
    assert answer in text
    questions = (DOCS / "questions.md").read_text(encoding="utf-8")
    assert f"**{question}**" in questions
