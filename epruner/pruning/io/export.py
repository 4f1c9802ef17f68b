"""Networks written for other run-times: ONNX files and torch.export programs."""

from __future__ import annotations

import copy
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from epruner import _install
from epruner._files import check_target, write_atomically
from epruner.pruning.network.inputs import as_arguments

_T = TypeVar("_T")
# protocol buffers cannot be larger
_ONNX_LIMIT = 2**31 - 1


def export_onnx(
    model: nn.Module, inputs: Any, path: str | os.PathLike[str], *, any_batch: bool = True
) -> bool:
    """Write a network, in evaluation mode, as an ONNX file.

    Parameters
    ----------
    model : torch.nn.Module
        Not changed.
    inputs : Tensor, tuple of arguments, dict of keyword arguments, or shape
        As for `epruner.prune`.
    path : path-like
        Target; written beside it first and renamed when complete.
    any_batch : bool
        Leave the first dimension of the inputs open. A network that cannot (its code fixes the
        batch size) is exported with the size of the example inputs.

    Returns
    -------
    bool
        Whether the file takes batches of any size.

    Raises
    ------
    ImportError
        When the exporter's packages (extra ``onnx``) are absent.
    OSError
        When the file cannot be written.
    TypeError
        `inputs` are no arguments of the network.
    ValueError
        When the network cannot be exported, or is too large for one ONNX file.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> epruner.export_onnx(model, (1, 8), "small.onnx")
    True
    """
    target = check_target(path)
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        message = f"ONNX export needs onnx and onnxscript: {_install.command('onnx')}"
        raise ImportError(message) from error

    def convert(program: ExportedProgram) -> bytes:
        converted = torch.onnx.export(program, dynamo=True, verbose=False)
        if converted is None:
            raise TypeError("torch.onnx.export returned nothing")
        proto = converted.model_proto
        if (size := proto.ByteSize()) > _ONNX_LIMIT:
            message = f"the network takes {size} bytes, an ONNX file at most {_ONNX_LIMIT}"
            raise ValueError(message)
        data: bytes = proto.SerializeToString()
        return data

    data, open_batch = _exported(model, inputs, any_batch, convert)
    write_atomically(target, data)
    return open_batch


def export_program(
    model: nn.Module, inputs: Any, path: str | os.PathLike[str], *, any_batch: bool = True
) -> bool:
    """Write a network, in evaluation mode, as a ``torch.export`` program (``.pt2``).

    Read it with ``torch.export.load(path).module()``, which needs no code of the network.

    Parameters
    ----------
    model, inputs, path, any_batch : as for `export_onnx`
        The network, example inputs, the target, and whether batches may have any size.

    Returns
    -------
    bool
        Whether the program takes batches of any size.

    Raises
    ------
    OSError
        When the file cannot be written.
    TypeError
        `inputs` are no arguments of the network.
    ValueError
        When the network cannot be exported.

    Examples
    --------
    >>> import epruner, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> epruner.export_program(model, (1, 8), "small.pt2")
    True
    >>> torch.export.load("small.pt2").module()(torch.zeros(5, 8)).shape
    torch.Size([5, 4])
    """
    target = check_target(path)

    def convert(program: ExportedProgram) -> bytes:
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        return buffer.getvalue()

    data, open_batch = _exported(model, inputs, any_batch, convert)
    write_atomically(target, data)
    return open_batch


def _exported(
    model: nn.Module, inputs: Any, any_batch: bool, convert: Callable[[ExportedProgram], _T]
) -> tuple[_T, bool]:
    """Trace and convert, with an open batch size if the network lets us."""
    args, kwargs = as_arguments(model, inputs)
    model = copy.deepcopy(model).eval()
    with _quiet():
        if any_batch:
            try:
                return convert(_open_batch_program(model, args, kwargs)), True
            except Exception:
                pass
        try:
            with torch.no_grad():
                program = torch.export.export(model, args, dict(kwargs))
            return convert(program), False
        except ImportError:
            raise
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            message = f"{type(model).__name__} cannot be exported: {type(error).__name__}: {first}"
            raise ValueError(message) from error


def _open_batch_program(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> ExportedProgram:
    def doubled(value: Any) -> Any:
        # a batch of one would be taken for a constant
        return torch.cat([value, value]) if isinstance(value, Tensor) and value.dim() else value

    def dims(value: Any) -> Any:
        return {0: Dim.DYNAMIC} if isinstance(value, Tensor) and value.dim() else None

    shapes: Any = tuple(dims(value) for value in args)
    if kwargs:
        shapes = {name: dims(value) for name, value in kwargs.items()}
    with torch.no_grad():
        return torch.export.export(
            model,
            tuple(doubled(value) for value in args),
            {name: doubled(value) for name, value in kwargs.items()},
            dynamic_shapes=shapes,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's remarks on packages that it could also use and on its own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx", "torch._subclasses")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
