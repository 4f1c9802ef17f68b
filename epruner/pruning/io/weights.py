"""Plain PyTorch checkpoints into a network: keys renamed, misfits named, no pickled code run."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from epruner._files import check_source

# entries under which training scripts commonly nest the weights, what is used for inference first
_NESTS = (
    "params_ema", "ema_state_dict", "model_ema", "ema", "state_dict", "model_state_dict",
    "model_state", "model", "net", "network", "params", "weights", "generator", "g_ema",
)  # fmt: skip
_NAMED = 3


def load_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    entry: str | None = None,
    prefix_strip: str = "",
    key_map: Mapping[str, str] | None = None,
) -> None:
    """Load a published checkpoint into ``model``, in place.

    Parameters
    ----------
    model : torch.nn.Module
        Takes the weights; of the same names and shapes once keys are renamed.
    path : path-like
        A state dict written by ``torch.save``, bare or nested under a usual name (``state_dict``,
        ``model``, ``params_ema``, ...; averaged weights before others); or a safetensors file. Read
        with ``weights_only=True``: a pickle that would run code is refused and not run.
    entry : str, optional
        The entry that holds the weights, where it has another name or several would do: ``"ema"``,
        or ``"models/generator"`` for one inside another.
    prefix_strip : str
        Removed from the start of every key that has it, e.g. ``"module."``.
    key_map : mapping of str to str, optional
        Renames leading parts of keys after the prefix is gone: ``{"conv": "conv1"}`` turns
        ``conv.weight`` into ``conv1.weight``; ``*`` stands for one part, as in
        ``{"*.*.downsample": "*.*.shortcut"}``.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is unreadable, holds more than tensors, or does not fit the network.

    Examples
    --------
    >>> import epruner, torch
    >>> trained = torch.nn.Linear(8, 4).state_dict(prefix="module.")
    >>> torch.save({"state_dict": trained}, "weights.pth")
    >>> model = torch.nn.Linear(8, 4)
    >>> epruner.load_weights(model, "weights.pth", prefix_strip="module.")
    >>> torch.equal(model.weight, trained["module.weight"])
    True
    """
    state = rename(read_state(path, entry), prefix_strip, key_map or {})
    load_into(model, state, what=os.fspath(path))


def read_state(path: str | os.PathLike[str], entry: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, without its pickled code and wherever it nests them.

    Parameters
    ----------
    path : path-like
    entry : str, optional
        See `load_weights`.

    Raises
    ------
    FileNotFoundError
    ValueError
        When the file is unreadable or holds no state dict.
    """
    path = check_source(path)
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is not a readable checkpoint: it is empty")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                if "plan" in (file.metadata() or {}):
                    raise ValueError(
                        f"{path} is a pruned network written by epruner.save, not the weights of a "
                        "full-size one; epruner.load(fresh_model, path) reads it"
                    )
            content: object = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a readable safetensors file ({error})") from error
    else:
        content = _unpickled(path)
    for name in entry.split("/") if entry else ():
        if not isinstance(content, Mapping) or name not in content:
            inside = _first(map(str, content)) if isinstance(content, Mapping) else "no entries"
            raise ValueError(f"{path} has no entry {entry!r}; at {name!r} there are {inside}")
        content = content[name]
    while isinstance(content, Mapping):
        nests = [key for key in _NESTS if _holds_tensors(content.get(key))]
        if not nests:
            break
        content = content[nests[0]]
    if not isinstance(content, Mapping):
        message = f"{path} holds a {type(content).__name__}, not a state dict"
        raise ValueError(message)
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        message = (
            f"{path} holds no tensors; its entries are {_first(map(str, content))}; name the one "
            "with the weights (entry=, --entry)"
        )
        raise ValueError(message)
    return state


def _unpickled(path: Path) -> object:
    """A file of torch's, without running code that it holds."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(f"{path}: {_refusal(error)}") from error
    except Exception as error:  # damaged archives raise nearly anything
        first = str(error).partition("\n")[0]
        message = f"{path} is not a readable PyTorch checkpoint ({type(error).__name__}: {first})"
        raise ValueError(message) from error


def _holds_tensors(entry: object) -> bool:
    """Whether an entry is a state dict, or one is somewhere in it."""
    if not isinstance(entry, Mapping):
        return False
    return any(isinstance(value, Tensor) or _holds_tensors(value) for value in entry.values())


def rename(
    state: Mapping[str, Tensor], prefix_strip: str, key_map: Mapping[str, str]
) -> dict[str, Tensor]:
    """Strip a prefix from the keys, then rename their leading parts.

    Raises
    ------
    ValueError
        When the prefix or an entry of the map matches no key, or two keys become one.
    """
    keys = {key: key.removeprefix(prefix_strip) for key in state}
    if prefix_strip and all(key == new for key, new in keys.items()):
        message = f"no key starts with {prefix_strip!r}; the keys are {_first(keys)}"
        raise ValueError(message)
    for old, new in key_map.items():
        rule = re.compile(re.escape(old).replace(r"\*", r"([^.]+)") + r"(?=\.|$)")
        if old.count("*") != new.count("*"):
            raise ValueError(f"key map {old!r} -> {new!r}: both sides need as many '*'")
        template = "".join(
            part if i == 0 else f"\\g<{i}>{part}"
            for i, part in enumerate(new.replace("\\", r"\\").split("*"))
        )
        renamed = {
            key: match.expand(template) + current[match.end() :]
            for key, current in keys.items()
            if (match := rule.match(current))
        }
        if not renamed:
            message = f"key map {old!r} matches no key; the keys are {_first(keys.values())}"
            raise ValueError(message)
        keys |= renamed
    out: dict[str, Tensor] = {}
    for key, new in keys.items():
        if new in out:
            raise ValueError(f"two keys become {new!r} after renaming; one of them is {key!r}")
        out[new] = state[key]
    return out


def load_into(model: nn.Module, state: Mapping[str, Tensor], *, what: str) -> None:
    """Copy a state dict into a network whose keys and shapes must match.

    Counters of batches (``num_batches_tracked``) may be absent: old checkpoints lack them and
    evaluation does not read them.

    Raises
    ------
    ValueError
        Naming the first three keys that do not match.
    """
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    problems = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the model"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    if missing or unexpected or problems:
        lines = [
            f"{what} does not fit the {type(model).__name__}: "
            f"{len(missing)} keys missing, {len(unexpected)} unexpected, "
            f"{len(problems)} of another shape"
        ]
        if missing:
            lines.append(f"missing: {_first(missing)}")
        if unexpected:
            lines.append(f"unexpected: {_first(unexpected)}")
        if problems:
            lines.append("; ".join(problems[:_NAMED]))
        hint = _hint({k: own[k] for k in missing}, {k: state[k] for k in unexpected})
        if hint:
            lines.append(hint)
        raise ValueError("; ".join(lines))
    model.load_state_dict(dict(state), strict=False)


def _hint(missing: Mapping[str, Tensor], unexpected: Mapping[str, Tensor]) -> str:
    """Suggest the prefix to strip or the modules to rename so that the file's keys fit."""
    if not missing or not unexpected:
        return ""
    first = next(iter(missing))
    for key in unexpected:
        if key.endswith("." + first):
            prefix = key.removesuffix(first)
            return f"strip the prefix {prefix!r} (--prefix-strip {prefix})"
    wanted, found = _by_module(missing), _by_module(unexpected)
    renamed = []
    for new, shapes in wanted.items():
        old = next((name for name, others in found.items() if others == shapes), None)
        if old is None:
            break
        del found[old]
        renamed.append(f"--key-map {old}={new}")
    if len(renamed) == len(wanted) <= _NAMED:
        return f"rename keys with a key map, perhaps {' '.join(renamed)}"
    return "rename keys with a key map (--key-map old=new)"


def _by_module(state: Mapping[str, Tensor]) -> dict[str, dict[str, torch.Size]]:
    """Shapes by module and by the last part of the key; counters aside, which may be absent."""
    modules: dict[str, dict[str, torch.Size]] = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        if leaf != "num_batches_tracked":
            modules.setdefault(module, {})[leaf] = tensor.shape
    return modules


def _refusal(error: UnpicklingError) -> str:
    """One line from PyTorch's page on what a checkpoint holds besides tensors."""
    culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
    if culprit is None:
        return "not a readable PyTorch checkpoint, or one with pickled objects besides tensors"
    return (
        f"refused, because it would run pickled code ({culprit[1]}); if you trust its source, "
        "load it there and save its state_dict() alone"
    )


def _first(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + more
