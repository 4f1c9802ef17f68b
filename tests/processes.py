"""Code that is run in an interpreter of its own, and commands that are run in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Run = Callable[..., tuple[int, str, str]]  # a command: exit code, standard output, standard error

# Waits for the process `child` and exits with its status, or says that it hangs.
AWAIT_CHILD = """
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.02)
os.kill(child, 9)
os.waitpid(child, 0)
sys.exit("the forked child hangs")
"""


def environment(**changes: str) -> dict[str, str]:
    """This process's, in which the modules of the tests are found from any folder."""
    tests = Path(__file__).parent
    folders = [str(tests), str(tests / "cluster"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))} | changes


def in_a_process(code: str, *arguments: str, **changes: str) -> str:
    """Run the code, which must succeed, in a changed environment, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
