"""Inputs that a network's BatchNorm layers take for their training data.

They start as noise of natural statistics and are changed by gradient, the network frozen, until the
mean and variance of what every BatchNorm reads are those that it remembers: per layer the loss is

    mean((m - m_bn)^2 / v_bn) + mean((sqrt(v / v_bn) - 1)^2)

(known from ZeroQ and DeepInversion, for quantisation and distillation). In every step the inputs
are shifted a little, and images mirrored every other time, so that what is found is not bound to
places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from epruner.pruning.data.calibration import fill, slots
from epruner.pruning.data.examples import channels_last, made_up
from epruner.pruning.graph.costs import measure
from epruner.pruning.network.copies import working_copy
from epruner.pruning.network.inputs import Arguments, as_arguments, check_model, in_float32
from epruner.pruning.network.ranks import ALONE, Ranks, ranks_of, weights_of
from epruner.pruning.network.statistics import trained_norms
from epruner.pruning.network.tree import tensors_in
from epruner.pruning.report.progress import Stages

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MOST, FEWEST = 128, 32  # inputs
STEPS, FEWEST_STEPS = 120, 60
# Of all forward passes, in multiply-adds and what it takes to normalise an element in units of
# these; beyond that fewer inputs, and then fewer steps.
WORK, PER_ELEMENT = 2.75e12, 100
RATE = 0.1
_ELEMENTS = 2**20  # of the inputs that are changed together
_LOOK, _GAIN = 15, 0.98  # steps between looks at the loss, and what must be left of it at most
_STAGE = "synthetic inputs"
Advance = Callable[[int, int], None]


def synthesise(
    model: nn.Module,
    inputs: Any,
    *,
    n: int | None = None,
    group: ProcessGroup | None = None,
    random_state: int = 0,
    progress: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    """Make inputs that stand in for those a network was trained on.

    For networks with BatchNorm layers that remember the statistics of their training, and inputs
    that are signals: images, volumes, series. Tokens cannot be changed by gradient.

    Parameters
    ----------
    model : torch.nn.Module
        Never modified; its device is used.
    inputs : as for `prune`
        Example inputs, for their shapes.
    n : int, optional
        How many. Default: 128, or fewer for networks that take more than a ResNet-56 on images of
        32 x 32, at least 32; these get fewer steps, too.
    group : torch.distributed.ProcessGroup, optional
        Whose ranks share the work: each makes its own part of the n inputs, at least 32 together,
        for `calibrate` with the same group.
    random_state : int
        Seed.
    progress : bool
        Show a progress bar, with the time that it will take, on standard error.

    Returns
    -------
    Tensor of shape (n, ...), or tuple of them where the model takes several
        On the model's device, for `calibrate` of `prune`.

    Raises
    ------
    TypeError, ValueError
        No model, no BatchNorm with statistics to match, or inputs that cannot be changed by
        gradient.
    FloatingPointError
        The network gives NaN or infinity on noise.

    Examples
    --------
    >>> import epruner, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> _ = model(torch.randn(32, 3, 8, 8))  # BatchNorm learns statistics
    >>> epruner.synthesise(model, (1, 3, 8, 8), n=4).shape
    torch.Size([4, 3, 8, 8])
    """
    ranks = ranks_of(group)
    with ranks.agree():
        check_model(model)
        if n is not None and (type(n) is not int or n < 2):
            raise ValueError(f"n must be an integer of at least 2, got {n!r}")
        example = as_arguments(model, inputs)
    ranks.require_same(
        {"model's weights": weights_of(model), "inputs": tensors_in(example)},
        n=n,
        random_state=random_state,
    )
    shown = progress and ranks.rank == 0
    with (
        ranks.together(),
        closing(Stages(shown, (_STAGE,))) as stages,
        stages.run(_STAGE),
        ranks.agree(),
    ):
        found = synthetic_inputs(
            model, example, n=n, seed=random_state, advance=stages.advance, ranks=ranks
        )
    return found[0] if len(found) == 1 else found


def synthetic_inputs(
    model: nn.Module,
    example: Arguments,
    *,
    n: int | None = None,
    seed: int,
    advance: Advance = lambda done, total: None,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, ...]:
    """What `synthesise` returns, one tensor for each of the example's."""
    frozen = working_copy(model).requires_grad_(False)
    norms = list(trained_norms(frozen).values())
    if not norms:
        raise ValueError(
            "synthetic inputs match what BatchNorm layers remember of their training, and this "
            "network has none that do"
        )
    exact: Any = tuple(in_float32(part) for part in example)
    names, likes = slots(frozen, exact)
    if not any(like.is_floating_point() for like in likes):
        raise ValueError(f"no input of {', '.join(names)} can be changed by gradient: no signals")
    n, steps = _numbers(frozen, exact, n)
    drawn = made_up(frozen, exact, n, seed=seed)
    elements = sum(x[0].numel() for x in drawn)
    size = max(2, min(n, _ELEMENTS // max(1, elements)))
    count = max(1, n // size)  # parts of at least `size` inputs: one alone has no variance
    count = max(count, min(ranks.size, n // FEWEST))
    parts = list(zip(*(x.tensor_split(count) for x in drawn), strict=True))
    parts = parts[count * ranks.rank // ranks.size : count * (ranks.rank + 1) // ranks.size]
    if not parts:
        return tuple(x[:0] for x in drawn)
    generator = torch.Generator().manual_seed(seed)
    last = channels_last(frozen, exact)
    done = []
    for number, part in enumerate(parts):

        def step_done(step: int, number: int = number) -> None:
            advance(number * steps + step, len(parts) * steps)

        done.append(_matched(frozen, norms, exact, part, last, steps, generator, step_done))
    return tuple(torch.cat(column) for column in zip(*done, strict=True))


def _numbers(model: nn.Module, example: Arguments, n: int | None) -> tuple[int, int]:
    """How many inputs and how many steps."""
    args, kwargs = example
    batch = max(1, len(slots(model, example)[1][0]))
    totals = measure(model, args, kwargs)
    elements = (totals.macs_with_norm - totals.macs) / 4
    work = max(1.0, (totals.macs + PER_ELEMENT * elements) / batch)
    if n is None:
        n = min(MOST, max(FEWEST, int(WORK / (work * STEPS))))
    return n, min(STEPS, max(FEWEST_STEPS, int(WORK / (work * n))))


@torch.enable_grad()
def _matched(
    model: nn.Module,
    norms: Sequence[_BatchNorm],
    example: Arguments,
    start: Sequence[Tensor],
    last_channels: Sequence[bool],
    steps: int,
    generator: torch.Generator,
    step_done: Callable[[int], None],
) -> list[Tensor]:
    """Some inputs after so many steps, or fewer if these gain nothing."""
    inputs = [x.clone().requires_grad_(x.is_floating_point()) for x in start]
    signals = [x for x in inputs if x.requires_grad]
    optimizer = torch.optim.Adam(signals, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses: list[float] = []
    for step in range(steps):
        with _mismatches(norms) as terms:
            moved = [
                _moved(x, step, generator, last) if x.requires_grad else x
                for x, last in zip(inputs, last_channels, strict=True)
            ]
            args, kwargs = fill(example, moved)
            model(*args, **kwargs)
        if not terms or not any(term.requires_grad for term in terms):
            raise ValueError(
                "no gradient reaches the inputs from what BatchNorm layers read: none of those "
                "with trained statistics is used, or something in between has no gradient"
            )
        loss = torch.stack(terms).sum()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(
                f"what BatchNorm layers read became {losses[-1]} on inputs made of noise"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if not any(x.grad is not None and bool(x.grad.any()) for x in signals):
            raise ValueError(
                "the gradient that reaches the inputs is zero: something in the network rounds or "
                "cuts what they are"
            )
        optimizer.step()
        schedule.step()
        step_done(step + 1)
        if len(losses) >= 2 * _LOOK and not len(losses) % _LOOK:
            last, before = sum(losses[-_LOOK:]), sum(losses[-2 * _LOOK : -_LOOK])
            if last > _GAIN * before:
                step_done(steps)
                break
    return [x.detach() for x in inputs]


@contextmanager
def _mismatches(norms: Sequence[_BatchNorm]) -> Iterator[list[Tensor]]:
    """How far what each BatchNorm reads is from what it remembers, in a forward pass."""
    terms: list[Tensor] = []

    def compare(norm: _BatchNorm, read: tuple[Tensor, ...]) -> None:
        x = read[0]
        over = [dim for dim in range(x.dim()) if dim != 1]
        mean, var = x.mean(over), x.var(over, correction=0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        true = norm.running_var + norm.eps
        shift = ((mean - norm.running_mean).square() / true).mean()
        # the root of a variance of zero has no gradient
        terms.append(shift + ((var / true + 1e-8).sqrt() - 1).square().mean())

    hooks = [norm.register_forward_pre_hook(compare) for norm in norms]
    try:
        yield terms
    finally:
        for hook in hooks:
            hook.remove()


def _moved(x: Tensor, step: int, generator: torch.Generator, channels_last: bool) -> Tensor:
    """Shifted by up to a sixteenth in space or time; images mirrored in every other step."""
    dims = list(range(1, x.dim() - 1)) if channels_last else list(range(2, x.dim()))
    if not dims:
        return x
    reach = [x.shape[dim] // 16 for dim in dims]
    shifts = [int(torch.randint(2 * r + 1, (1,), generator=generator)) - r for r in reach]
    x = torch.roll(x, shifts, dims)
    return x.flip(dims[-1]) if step % 2 and len(dims) > 1 else x
