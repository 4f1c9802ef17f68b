"""From the options to a network with its weights, and to example inputs."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from epruner.cli.values import InputShape
from epruner.pruning.io.weights import load_weights


def build_model(args: argparse.Namespace) -> nn.Module:
    """The full-size network of ``--model`` with the weights of ``--weights``, if given."""
    model = fresh_model(args)
    if args.weights is not None:
        load_weights(
            model,
            args.weights,
            entry=args.entry,
            prefix_strip=args.prefix_strip,
            key_map=dict(args.key_map),
        )
    elif args.entry or args.prefix_strip or args.key_map:
        raise ValueError(
            "--entry, --prefix-strip and --key-map are about --weights, which is missing"
        )
    return model


def fresh_model(args: argparse.Namespace) -> nn.Module:
    """The full-size network of ``--model`` as its factory gives it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        return build(args.model, dict(args.model_arg))


def make_inputs(args: argparse.Namespace) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """Example inputs of the shapes given: seeded noise, zeros for integers and booleans."""
    generator = torch.Generator().manual_seed(args.seed)

    def make(shape: InputShape) -> Tensor:
        dtype = getattr(torch, shape.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(
                f"--input-shape: unknown type {shape.dtype!r}; write e.g. float32, int64 or bool"
            )
        if dtype.is_floating_point:
            return torch.randn(shape.sizes, generator=generator).to(dtype)
        return torch.zeros(shape.sizes, dtype=dtype)

    shapes: list[InputShape] = args.input_shape
    named = {shape.keyword: make(shape) for shape in shapes if shape.keyword is not None}
    if named and len(named) < len(shapes):
        raise ValueError("--input-shape: give a distinct name to every input or to none")
    return named or tuple(make(shape) for shape in shapes)


def build(spec: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Import a factory and call it; the current folder is importable, as with ``python -m``.

    Parameters
    ----------
    spec : str
        ``package.module:factory``; the factory is a class, a function or a built network.
    arguments : mapping of str to object
        Keyword arguments of the factory.

    Raises
    ------
    ValueError
        When the spec, the module or the factory is wrong, or what it returns is no network.
    """
    module_name, colon, attribute = spec.partition(":")
    if not colon or not module_name or not attribute:
        module, dot, name = module_name.rpartition(".")
        hint = (
            f"; write {module}:{name}, or {module_name}:NAME" if dot else ", such as my_net:MyNet"
        )
        raise ValueError(f"--model {spec!r} is not of the form PACKAGE.MODULE:FACTORY{hint}")
    if module_name.endswith(".py"):
        dotted = ".".join(Path(module_name).with_suffix("").parts)
        raise ValueError(f"--model takes a module, not a file; write {dotted}:{attribute}")
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            message = (
                f"--model: there is no module {error.name!r} in {folder} or among the installed "
                "packages"
            )
            raise ValueError(message) from error
        raise ValueError(f"--model: importing {module_name} failed: {error}") from error
    except Exception as error:
        message = f"--model: importing {module_name} failed: {type(error).__name__}: {error}"
        raise ValueError(message) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"--model: {module_name} has no {attribute!r}{hint}")
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        if arguments:
            raise ValueError(f"--model-arg: {spec} is a built network and takes no arguments")
        return found
    if not callable(found):
        raise ValueError(f"--model: {spec} is a {type(found).__name__}, not a callable")
    try:
        model = found(**arguments)
    except Exception as error:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        message = f"--model: {attribute}({given}) raised {type(error).__name__}: {error}"
        if isinstance(error, TypeError):
            message += "; give its arguments with --model-arg NAME=VALUE"
        raise ValueError(message) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"--model: {spec} returned an object of type {type(model).__name__}, no torch network"
        )
    return model
