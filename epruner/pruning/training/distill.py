"""Distillation without labels: the small network learns to answer as the original does.

What is learned is the original's features along the network and its outputs, on inputs that are
varied anew in every step (the original is asked about the same variation, so that no label is
needed and none can become wrong). BatchNorm layers keep their statistics. Inputs held back decide
which of the networks on the way is returned, and whether any is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.pruning.data.calibration import Calibration, fill
from epruner.pruning.data.dealing import deal, handed_over, split
from epruner.pruning.network.batches import Batches
from epruner.pruning.network.copies import with_weights_of, working_copy
from epruner.pruning.network.inputs import Arguments
from epruner.pruning.network.outputs import output_error, outputs
from epruner.pruning.network.tree import tensors_in
from epruner.pruning.training.descent import Descent

BATCH = 64
STEPS, STEPS_PER_ROOT = 150, 5  # by default: 200 for 100 inputs, 550 for 6,000
RATE = 5e-4
TEMPERATURE = 4.0
SCORES = 0.1  # weight of the outputs, beside each of the features
_POINTS = 9  # features along the network
_LOOKS = 10  # at the inputs held back
_ASTRAY = 4.0  # times the least error: no later step will make up for that
Augment = Callable[[list[Tensor], torch.Generator], list[Tensor]]


def varied(inputs: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Images mirrored, shifted by up to an eighth and mixed in pairs; other inputs as they are.

    Parameters
    ----------
    inputs : list of Tensor
        Of one batch. Floating ones of shape (n, c, height, width) are images.
    generator : torch.Generator
        On the CPU.
    """
    if not all(x.is_floating_point() and x.dim() == 4 for x in inputs):
        return inputs
    n = len(inputs[0])
    mirrored = torch.rand(n, generator=generator) < 0.5
    mixed = torch.rand(n, generator=generator) < 0.5
    share = 0.5 + 0.5 * torch.rand(n, generator=generator)
    partner = torch.randperm(n, generator=generator)
    result = []
    for x in inputs:
        x = torch.where(mirrored.view(-1, 1, 1, 1).to(x.device), x.flip(3), x)
        most = [size // 8 for size in x.shape[2:]]
        padded = F.pad(x, (most[1], most[1], most[0], most[0]))
        down, right = (
            int(torch.randint(2 * reach + 1, (1,), generator=generator)) for reach in most
        )
        x = padded[:, :, down : down + x.shape[2], right : right + x.shape[3]]
        part = torch.where(mixed, share, 1.0).view(-1, 1, 1, 1).to(x.device, x.dtype)
        result.append(part * x + (1 - part) * x[partner.to(x.device)])
    return result


@torch.enable_grad()
def learn_answers(
    teacher: nn.Module,
    student: nn.Module,
    calibration: Calibration,
    *,
    steps: int | None = None,
    augment: Augment = varied,
    lr: float = RATE,
    seed: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[nn.Module, int, float, float]:
    """Train a small network on what the original answers.

    Parameters
    ----------
    teacher, student : torch.nn.Module
        Neither is modified.
    calibration : Calibration
        Its ranks learn together, each from as many inputs, and get the same network.
    steps : int, optional
        Of `BATCH` inputs. Default: 150, and 5 times the root of the number of inputs.
    augment : callable
        From the tensors of a batch and a generator to those that are learned from.
    lr : float
        Of AdamW.
    seed : int
    advance : callable
        Called with the number of steps done and the number of all.

    Returns
    -------
    model : torch.nn.Module
        A copy of the student, the best that was seen.
    steps : int
        That it took to get there; 0 is the student as it was.
    before, after : float
        Squared error of the outputs over their variance, of the student and of what is returned,
        on the inputs held back.
    """
    ranks, unseen = calibration.fit.ranks, calibration.unseen
    full, small = working_copy(teacher), working_copy(student)
    for parameter in small.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    with ranks.agree():
        example = calibration.fit[0]
        points = feature_points(full, small, example)
        expected = outputs(full, unseen)
    columns, n = _dealt_out(calibration.fit)
    total = STEPS + math.ceil(STEPS_PER_ROOT * math.sqrt(n)) if steps is None else steps
    generator = torch.Generator().manual_seed(seed + ranks.rank)
    descent = Descent(
        small, total, optimizer="adamw", lr=lr, weight_decay=0.0, schedule="one-cycle", ranks=ranks
    )

    def error_of_small() -> float:
        return output_error(outputs(small, unseen), expected, unseen)

    looks = {math.ceil(total * (look + 1) / _LOOKS) for look in range(_LOOKS)}
    with _listening(full, points) as wanted, _listening(small, points) as given:
        forward = ranks.replica(small)
        before = lowest = error_of_small()
        best, best_steps = copy.deepcopy(small.state_dict()), 0
        batches = _rows(len(columns[0]), -(-BATCH // ranks.size), generator)
        for step, rows in zip(range(1, total + 1), batches, strict=False):
            tensors = augment([column[rows.to(column.device)] for column in columns], generator)
            batch = fill(example, tensors)
            try:
                descent.step(partial(_loss, full, forward, batch, wanted, given), len(rows))
            except FloatingPointError:  # astray
                break
            advance(step, total)
            if step in looks:
                error = error_of_small()
                if error < lowest:
                    best, best_steps, lowest = copy.deepcopy(small.state_dict()), step, error
                if not error < _ASTRAY * lowest:
                    break
    small.load_state_dict(best)
    return with_weights_of(student, small), best_steps, before, lowest


def _dealt_out(batches: Batches) -> tuple[list[Tensor], int]:
    """Of each tensor argument as many inputs for every rank, and how many all have."""
    ranks = batches.ranks
    columns = [torch.cat(part) for part in zip(*map(tensors_in, batches), strict=True)]
    own = 0 if batches.stands_in else len(columns[0])
    counts = torch.cat(ranks.gather(torch.tensor([own]))).tolist()
    shares = deal(split(torch.arange(sum(counts)), 1), ranks.size)
    return [handed_over(column[:own], counts, shares, ranks) for column in columns], sum(counts)


def feature_points(full: nn.Module, small: nn.Module, batch: Arguments) -> list[str]:
    """Modules along the network whose outputs are of the same shape in both.

    Blocks, if there are some, as what leaves a block is what others read; else single layers.
    """
    shapes = []
    for model in (full, small):
        found: dict[str, list[tuple[int, ...]]] = {}
        hooks = [
            module.register_forward_hook(
                lambda _, args, output, name=name, found=found: found.setdefault(name, []).append(
                    tuple(output.shape)
                    if isinstance(output, Tensor) and output.is_floating_point()
                    else ()
                )
            )
            for name, module in model.named_modules()
            if name
        ]
        try:
            with torch.no_grad():
                model(*batch[0], **batch[1])
        finally:
            for hook in hooks:
                hook.remove()
        shapes.append(found)
    modules = dict(full.named_modules())
    usable = [
        name
        for name, calls in shapes[0].items()  # in the order in which they are done
        if len(calls) == 1 and calls[0] and shapes[1].get(name) == calls
    ]
    blocks = [
        name
        for name in usable
        if any(True for _ in modules[name].children())
        and not isinstance(modules[name], nn.Sequential)
    ]
    chosen = blocks if len(blocks) > 1 else usable
    if not chosen:
        return []
    count = min(_POINTS, len(chosen))
    return [chosen[(i + 1) * len(chosen) // count - 1] for i in range(count)]


@contextmanager
def _listening(model: nn.Module, names: Sequence[str]) -> Iterator[Mapping[str, Tensor]]:
    """What some modules put out in the latest forward pass, by name."""
    heard: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def listen(name: str) -> Callable[..., None]:
        def hear(_: nn.Module, __: Any, output: Tensor) -> None:
            heard[name] = output.clone()  # what follows may work in place

        return hear

    hooks = [modules[name].register_forward_hook(listen(name)) for name in names]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _rows(n: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of a batch after the other, all inputs as often; each epoch in another order."""
    waiting = torch.empty(0, dtype=torch.long)
    size = min(size, n)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(n, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]


def _loss(
    full: nn.Module,
    small: Callable[..., Any],
    batch: Arguments,
    wanted: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
) -> Tensor:
    with torch.no_grad():
        answers = tensors_in(full(*batch[0], **batch[1]))
    tries = tensors_in(small(*batch[0], **batch[1]))
    parts = [_relative(given[name], target) for name, target in wanted.items()]
    for mine, target in zip(tries, answers, strict=True):
        if not target.is_floating_point():
            continue
        mine, target = mine.float(), target.float()
        parts.append(SCORES * (mine - target).square().mean())
        if target.dim() == 2 and target.shape[1] > 1:
            parts.append(SCORES * divergence(mine, target, TEMPERATURE))
    return torch.stack(parts).sum()


def divergence(scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Of softened scores from softened others (Kullback-Leibler), times the temperature squared."""
    got, target = (F.log_softmax(x / temperature, 1) for x in (scores, wanted))
    return F.kl_div(got, target, reduction="batchmean", log_target=True) * temperature**2


def _relative(given: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the variance."""
    given, wanted = given.float(), wanted.float()
    return (given - wanted).square().mean() / wanted.var().clamp_min(1e-12)
