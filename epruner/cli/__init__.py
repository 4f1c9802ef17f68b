"""The command line ``epruner``, a thin layer over the public functions; one command each.

``cluster``, ``prune``, ``compare``, ``inspect``, ``export``, ``finetune`` and ``demo``: see
`epruner.cli.commands`.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import epruner
from epruner.cli import commands, options

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

_INPUT_ERRORS = (
    ValueError,
    TypeError,
    ImportError,
    FileExistsError,
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments after the program's name; ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        0 done, 2 bad arguments or input, 1 any other failure, 130 interrupted. Failures print
        one line on standard error.
    """
    args, unknown = parser().parse_known_args(argv)
    if unknown:
        # here, because the top parser would not say of which command
        name = f"epruner {args.command}"
        message = f"unrecognized arguments: {' '.join(unknown)} (see {name} --help)"
        print(f"{name}: error: {message}", file=sys.stderr)
        return BAD_INPUT
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            commands.COMMANDS[args.command](args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # the reader (head, less) went away; keep the interpreter from flushing into the void
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if args.traceback:
            traceback.print_exc()
        print(f"epruner {args.command}: error: {_one_line(error)}", file=sys.stderr)
        return BAD_INPUT if _is_input_error(error) else FAILED
    return DONE


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # as from Python 3.14 on; before, -1e3 was no number but an unknown option
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage."""
        self.exit(BAD_INPUT, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; importing and building it does not import torch."""
    top = _Parser(
        prog="epruner",
        description="Cluster data, and make trained networks smaller.",
        epilog="exit codes: 0 done, 2 bad arguments or input, 1 any other failure, 130 interrupted",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"epruner {epruner.__version__}")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, groups in options.GROUPS.items():
        summary = (commands.COMMANDS[name].__doc__ or "").partition("\n")[0]
        sub = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        for group in groups:
            group(sub)
        sub.add_argument("--traceback", action="store_true", help="show where an error came from")
    return top


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """One line, without the place in the source."""
    print(f"epruner: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _is_input_error(error: Exception) -> bool:
    # the public functions raise these for what the user gave; a full disk is a bare OSError
    return isinstance(error, _INPUT_ERRORS)


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(text.split())
    return (
        text
        if _is_input_error(error) or isinstance(error, OSError)
        else (f"{type(error).__name__}: {text} (--traceback shows where)")
    )
