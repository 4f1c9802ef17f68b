"""Inputs made up for a network that comes without any: noise for signals, draws for tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from epruner.pruning.data.calibration import slots
from epruner.pruning.data.noise import natural_noise
from epruner.pruning.network.inputs import Arguments
from epruner.pruning.trace.record import record
from epruner.pruning.trace.trace import Op


def made_up(model: nn.Module, example: Arguments, n: int, *, seed: int) -> tuple[Tensor, ...]:
    """Inputs of the shapes of an example, one tensor for each of its tensors.

    Signals, (n, c, ...) and floating, are natural noise; vectors (n, c) are normal; a tensor that
    an embedding reads is drawn from its vocabulary. What else is no floating tensor (a mask, a
    length) is that of the example.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode.
    example : (args, kwargs)
    n : int
    seed : int

    Raises
    ------
    ValueError
        None of the inputs is one that can be drawn, or they are nested.
    """
    _, likes = slots(model, example)
    readers = _readers(model, example)
    generator = torch.Generator().manual_seed(seed)
    drawn = [_drawn(like, ops, n, generator) for like, ops in zip(likes, readers, strict=True)]
    if all(tensor is None for tensor in drawn):
        raise ValueError("inputs that are neither floating nor read by an embedding")
    return tuple(
        like[:1].expand(n, *like.shape[1:]).clone() if tensor is None else tensor.to(like.device)
        for tensor, like in zip(drawn, likes, strict=True)
    )


def channels_last(model: nn.Module, example: Arguments) -> list[bool]:
    """Of each input whether its last dimension holds the channels, as a linear layer reads it."""
    return [_last(ops) for ops in _readers(model, example)]


def _last(readers: Sequence[Op]) -> bool:
    return any(isinstance(op.function, nn.Linear) for op in readers)


def _readers(model: nn.Module, example: Arguments) -> list[list[Op]]:
    """Of each input the ops that read it."""
    trace = record(model, *example)
    readers = trace.readers()
    return [[trace.ops[index] for index in readers.get(value, [])] for value in trace.inputs]


def _drawn(
    like: Tensor, readers: Sequence[Op], n: int, generator: torch.Generator
) -> Tensor | None:
    shape = like.shape[1:]
    if like.is_floating_point():
        dtype = torch.promote_types(like.dtype, torch.float32)
        if like.dim() < 3:
            return torch.randn(n, *shape, generator=generator).to(dtype)
        if _last(readers):
            noise = natural_noise(n, shape[-1], shape[:-1], generator)
            return noise.movedim(1, -1).to(dtype)
        return natural_noise(n, shape[0], shape[1:], generator).to(dtype)
    for op in readers:
        if op.label == "aten::embedding":
            vocabulary = len(op.args[0])
            return torch.randint(vocabulary, (n, *shape), generator=generator).to(like.dtype)
    return None
