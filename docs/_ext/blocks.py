"""Every code block of the pages, and every example of a docstring, runs in the site's build.

They are tests (``tests/docs``), run before anything is written. ``-D run_blocks=0`` leaves that
out, for those who write prose.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parents[2]
COMMENT = re.compile(r"^<!--.*?-->\n+", re.DOTALL | re.MULTILINE)  # for those who run blocks


def run(app: Sphinx) -> None:
    """Run what is shown, once a build."""
    if app.builder.name != "html" or not app.config.run_blocks:
        return
    options = ["-q", "-n", "2", "-m", "slow or not slow"]
    tests = [sys.executable, "-m", "pytest", *options, "tests/docs"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # in each of two processes
    if subprocess.run(tests, cwd=ROOT, env=one_thread, check=False).returncode:
        raise ExtensionError("a code block or a docstring's example failed: see the tests above")


def leave_out_comments(app: Sphinx, name: str, source: list[str]) -> None:
    """Take out what is not for readers."""
    source[0] = COMMENT.sub("", source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both."""
    app.add_config_value("run_blocks", True, "")
    app.connect("builder-inited", run, priority=100)  # before the gallery
    app.connect("source-read", leave_out_comments)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
