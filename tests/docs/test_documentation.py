"""What the documentation shows is run: Python in one namespace a document, and command lines.

A block is left out only where a comment before it says why (``<!-- skip: next "reason" -->``).
"""

from __future__ import annotations

import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from unittest import SkipTest

import pytest
from conftest import ROOT
from documents import pages
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

from epruner.cli import main

DOCUMENTS = [*ROOT.glob("*.md"), *pages(), *(ROOT / "benchmarks").glob("*.md")]
RUN, SHOWN = ("python", "sh"), ("",)  # languages of blocks; those of SHOWN are output, not input
SKIPPED = 17  # blocks of all documents together that cannot be run: see their reasons there


def run_shell(example: Example) -> None:
    """Run the lines of a block, each of them a command of ours, in this process."""
    for line in str(example.parsed).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert words[0] == "epruner", f"only epruner's own commands are run, not {line!r}"
        target = Path(words.pop()) if ">" in words else None
        out = io.StringIO()
        with redirect_stdout(out):
            assert main([word for word in words[1:] if word != ">"]) == 0, line
        if target is not None:
            target.write_text(out.getvalue())


SYBIL = Sybil([PythonCodeBlockParser(), CodeBlockParser("sh", run_shell), SkipParser()])


def run(document: Path) -> tuple[int, int]:
    """Numbers of blocks that ran, and that say why they do not."""
    ran = skipped = 0
    for example in SYBIL.parse(document).examples():
        try:
            example.evaluate()
            ran += 1
        except SkipTest:
            skipped += 1
    return ran, skipped


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the documentation writes goes to a folder that is thrown away."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow  # the build of the site runs them all
@pytest.mark.filterwarnings("ignore:the budget is .* of the time")  # others may use the machine
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_runs(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    fences = re.findall(r"^```(.*)$", text, flags=re.MULTILINE)
    languages = [language.strip() for language in fences[::2] if not language.startswith("{")]
    assert not set(languages) - {*RUN, *SHOWN}, "a language that nothing here runs"
    ran, skipped = run(document)
    assert not re.findall(r"skip: next(?! \".+\")", text), "a block is left out, and no reason said"
    directives = len(re.findall(r"^<!-- (?:skip|invisible)", text, flags=re.MULTILINE))
    assert ran + skipped == sum(language in RUN for language in languages) + directives


def test_few_blocks_are_left_out() -> None:
    found = [re.findall("^<!-- skip: next", p.read_text("utf-8"), re.MULTILINE) for p in DOCUMENTS]
    assert sum(map(len, found)) == SKIPPED


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("```python\n1 / 0\n```\n", ZeroDivisionError),
        ("```python\nassert 1 == 2\n```\n", AssertionError),
        ("```sh\nepruner inspect absent.safetensors\n```\n", AssertionError),
        ("```sh\nrm -r somewhere\n```\n", AssertionError),
    ],
)
def test_a_block_that_fails_is_found(tmp_path: Path, block: str, error: type[Exception]) -> None:
    (tmp_path / "x.md").write_text(block)
    with pytest.raises(error):
        run(tmp_path / "x.md")


def test_a_block_before_another_is_remembered(tmp_path: Path) -> None:
    text = '```python\nx = 3\n```\n<!-- skip: next "for the test" -->\n```python\n1 / 0\n```\n'
    (tmp_path / "x.md").write_text(text + "```python\nassert x == 3\n```\n")
    ran, skipped = run(tmp_path / "x.md")
    assert skipped == 1
    assert ran >= 2
