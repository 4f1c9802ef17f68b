"""Files: pruned networks written and read back, plain checkpoints read, nothing ever unpickled.

A pruned network is stored as a safetensors file: the tensors, and in the header the plan and the
report as JSON. Reading it needs a fresh network of the same class and runs no code from the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from epruner._files import check_source, check_target, write_atomically
from epruner.pruning.io.weights import load_into
from epruner.pruning.plan.apply import resized
from epruner.pruning.plan.plan import Plan
from epruner.pruning.report.report import Report

_FORMAT = "epruner 1"


class Pruned(Protocol):
    """What ``epruner.prune`` returns, as far as saving is concerned."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def report(self) -> Report: ...


@dataclass(frozen=True)
class SavedFile:
    """The header of a file written by :func:`save`, read without its tensors.

    Parameters
    ----------
    plan : Plan
    report : Report or None
        None when only a model and a plan were saved.
    shapes : mapping of str to tuple of int
        Shape of every tensor.
    dtypes : mapping of str to str
        Type of every tensor in safetensors' names, e.g. ``"F32"``.
    size : int
        Bytes on disk.
    aliases : mapping of str to str
        Tied tensors: name in the network -> name under which the file holds it.
    channels_last : tuple of str
        Tensors that lay in channels-last order.
    """

    plan: Plan
    report: Report | None
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    size: int
    aliases: Mapping[str, str]
    channels_last: tuple[str, ...]


def save(pruned: Pruned | tuple[nn.Module, Plan], path: str | os.PathLike[str]) -> None:
    """Write a pruned network to one safetensors file.

    The file is written beside its target and renamed when complete, so a failure leaves neither
    half a file nor a damaged older one.

    Parameters
    ----------
    pruned : PruningResult or tuple of (model, plan)
        The tuple is for a network that changed since, e.g. by fine-tuning.
    path : path-like
        Target; its folder must exist.

    Raises
    ------
    FileNotFoundError
        When the folder does not exist.
    OSError
        When the file cannot be written, e.g. on a full disk.
    TypeError
        When the network's state holds something other than tensors.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> result = epruner.prune(model, (1, 8), macs=0.5)
    >>> epruner.save(result, "small.safetensors")
    >>> epruner.save((result.model, result.plan), "trained.safetensors")
    """
    if isinstance(pruned, tuple):
        (model, plan), report = pruned, None
    else:
        model, plan, report = pruned.model, pruned.plan, pruned.report
    target = check_target(path)

    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    channels_last: list[str] = []
    names: dict[tuple[object, ...], str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            message = f"cannot save {name!r}: it is a {type(tensor).__name__}, not a tensor"
            raise TypeError(message)
        memory = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and names.setdefault(memory, name) != name:
            aliases[name] = names[memory]
            continue
        if not tensor.is_contiguous() and _is_channels_last(tensor):
            channels_last.append(name)
        # clone: views of one storage (a fused weight, say) are refused by safetensors
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)

    header = {"format": _FORMAT, "plan": plan.to_json()}
    if report is not None:
        # settings may hold NumPy's numbers if the caller did
        header["report"] = json.dumps(report.to_dict(), default=lambda number: number.item())
    if aliases:
        header["aliases"] = json.dumps(aliases)
    if channels_last:
        header["channels_last"] = json.dumps(channels_last)
    write_atomically(target, to_bytes(tensors, header))


def load(fresh_model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Read a pruned network back, bit for bit.

    Parameters
    ----------
    fresh_model : torch.nn.Module
        A full-size network of the class that was pruned, e.g. newly built; its weights do not
        matter and it is not changed.
    path : path-like
        A file written by :func:`save`. Nothing in it is unpickled or run.

    Returns
    -------
    torch.nn.Module
        A resized copy of ``fresh_model``, in its training mode and on its device, with the stored
        tensors in their stored types.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When the file was not written by :func:`save` or does not fit the network.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> def build():
    ...     return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> epruner.save(epruner.prune(build(), (1, 8), macs=0.5), "small.safetensors")
    >>> epruner.load(build(), "small.safetensors")[0]
    Linear(in_features=8, out_features=16, bias=True)
    """
    saved = read(path)
    plan = saved.plan
    model = resized(fresh_model, plan.modules, plan.attributes, plan.views, plan.passed)
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state |= {name: state[stored] for name, stored in saved.aliases.items()}
    _adopt_types(model, state, saved.channels_last)
    load_into(model, state, what=os.fspath(path))
    return model


def read(path: str | os.PathLike[str]) -> SavedFile:
    """Read the header of a file written by :func:`save`, not its tensors.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is not such a file.
    """
    path = check_source(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {name: part.get_dtype() for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        message = f"{path} is not a readable safetensors file, as written by epruner.save ({error})"
        raise ValueError(message) from error
    if header.get("format") != _FORMAT:
        found = header.get("format")
        detail = "holds no pruning plan" if found is None else f"has format {found!r}"
        message = f"{path} {detail}; expected a file written by epruner.save ({_FORMAT!r})"
        raise ValueError(message)
    try:
        report = Report.from_dict(json.loads(header["report"])) if "report" in header else None
        aliases = dict(json.loads(header.get("aliases", "{}")))
        if missing := sorted(set(aliases.values()) - set(shapes)):
            raise ValueError(f"tied tensors are absent: {missing[:3]}")
        return SavedFile(
            plan=Plan.from_json(header["plan"]),
            report=report,
            shapes=shapes,
            dtypes=dtypes,
            size=path.stat().st_size,
            aliases=aliases,
            channels_last=tuple(json.loads(header.get("channels_last", "[]"))),
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        message = f"the header of {path} is damaged: {type(error).__name__}: {error}"
        raise ValueError(message) from error


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _adopt_types(
    model: nn.Module, state: Mapping[str, Tensor], channels_last: tuple[str, ...]
) -> None:
    """Give the model's tensors the stored types and layouts, so that copying rounds nothing."""
    own: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    own.update(model.named_parameters(remove_duplicate=False))
    for name, stored in state.items():
        if (tensor := own.get(name)) is None:
            continue
        tensor.data = tensor.data.to(stored.dtype)
        if name in channels_last and tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
