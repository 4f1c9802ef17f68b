"""``python -m epruner.accel script.py``: run a script or module with `epruner.accel` installed."""

import argparse
import logging
import runpy
import sys
from pathlib import Path
from types import TracebackType

from epruner import accel

_OURS = {__file__, runpy.__file__, "<frozen runpy>"}


def main(argv: list[str]) -> None:
    """Run what the arguments name as Python itself would."""
    options, program = _split(argv)
    parser = _parser()
    args = parser.parse_args(options)
    if args.script is not None and not Path(args.script).exists():
        parser.error(f"no such file: {args.script}")
    try:
        accel.install(args.ties)
    except ValueError as error:  # of the environment's
        parser.error(str(error))
    if args.verbose:
        _log()
    sys.excepthook = _show
    if args.module is not None:
        sys.argv = [args.module, *program]
        runpy.run_module(args.module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [args.script, *program]
        if not sys.flags.safe_path:
            sys.path[0] = str(Path(args.script).resolve().parent)
        runpy.run_path(args.script, run_name="__main__")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m epruner.accel",
        usage="%(prog)s [-v] [--ties RULE] (SCRIPT | -m MODULE) [ARGUMENT ...]",
        description="Run a script or module with scikit-learn's affinity propagation accelerated.",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say what ran where, and why")
    parser.add_argument(
        "--ties",
        choices=accel.TIES,
        help="what breaks exact ties (default: the environment variable EPRUNER_TIES, or auto: "
        "scikit-learn's noise for at most 10,000 points)",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("-m", dest="module", metavar="MODULE", help="run a module, as python -m does")
    what.add_argument("script", nargs="?", metavar="SCRIPT", help="file to run")
    return parser


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Part our options, up to the name of the script or module, from the program's."""
    end = 0
    while end < len(argv):
        option = argv[end]
        end += 2 if option in ("--ties", "-m") else 1
        if option.startswith("-m") or not option.startswith("-"):
            break
    return argv[:end], argv[end:]


def _log() -> None:
    logger = logging.getLogger("epruner.accel")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # the program's own logging is the program's


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error without the frames that lead to the script."""
    while trace is not None and trace.tb_frame.f_code.co_filename in _OURS:
        trace = trace.tb_next
    sys.__excepthook__(kind, error.with_traceback(trace), trace)


if __name__ == "__main__":
    main(sys.argv[1:])
