"""What filters respond to: V(F), the input that a filter answers to most, found by gradient ascent.

For each filter F of a layer

    V(F) = argmax over X with mean(X^2) <= 1 of the mean of F's activation over X,

taken after the BatchNorm that follows the filter and rectified, with a tenth of what is negative,
so that there is a gradient where a filter is silent. All filters of a layer start from the same
faint noise and go the same number of steps. A step goes along the gradient, smoothed, and is as
long for every filter; before each the input is shifted by up to an eighth of its size, so that what
is found is not bound to places. No data are needed.

Two filters have the same function if they answer alike whatever any filter of their layer responds
to. With R[i, j] the mean activation of filter j on V(F_i), filters are compared by the columns of
R, centred and of length one: their squared distance is 2 - 2 times the correlation of their
answers, and a pattern is the same at any place. After Qin et al., "Functionality-oriented
convolutional filter pruning" (arXiv 1810.07322), who compare the images V(F) themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from epruner.pruning.data.calibration import fill, slots
from epruner.pruning.data.examples import channels_last
from epruner.pruning.graph.groups import Group, Member
from epruner.pruning.network.copies import deep_copy
from epruner.pruning.network.filters import Matrix
from epruner.pruning.network.inputs import Arguments
from epruner.pruning.network.layers import channel_dim

STEPS, RATE = 8, 0.5  # the rate in units of an input's root mean square
_START = 0.3  # root mean square of the noise
_NEGATIVE = 0.1  # share of a negative activation that counts
_SHIFT = 8  # an input is shifted by up to its size over this
_AT_ONCE = 2**18  # elements of the inputs that are changed together
_SPACE = 3  # an input with a place in it: (n, channels, places)


@dataclass(frozen=True)
class Visual:
    """What the filters of a group respond to.

    Parameters
    ----------
    inputs : Tensor of shape (n, ...)
        V(F) of each filter, shaped like an input of the network.
    responses : Tensor of shape (n, n), float64
        Entry (i, j) is the mean activation of filter j on V of filter i.
    """

    inputs: Tensor
    responses: Tensor

    def features(self) -> Matrix:
        """Rows to compare filters by, (n, n): centred, of length one; zero for a dead one."""
        rows = self.responses.T - self.responses.T.mean(1, keepdim=True)
        length = rows.norm(dim=1, keepdim=True)
        found: Matrix = (rows / torch.where(length > 0, length, 1)).cpu().numpy()
        return found


def outlets(modules: Mapping[str, nn.Module], group: Group) -> Sequence[Member]:
    """Where the channels of a group are looked at: after BatchNorm, if there is one."""
    norms = [m for m in group.followers if isinstance(modules.get(m.module), _BatchNorm)]
    return norms or group.producers


@torch.enable_grad()
def visualise(
    model: nn.Module, groups: Sequence[Group], example: Arguments, *, seed: int
) -> dict[str, Visual]:
    """Find what every filter of some groups responds to.

    Parameters
    ----------
    model : torch.nn.Module
        Full-size, in eval mode, of at least float32; not modified.
    groups : sequence of Group
    example : (args, kwargs)
        Its first floating tensor is what is made anew, with at least one dimension of space or
        time; of all others the first entry is what goes with it.
    seed : int
        Of the noise and the shifts.

    Returns
    -------
    dict of str to Visual
        By group name.

    Raises
    ------
    ValueError
        The network reads no signal, its first is no image, series or volume, no gradient reaches
        it, or responses are not finite.
    """
    frozen = deep_copy(model).requires_grad_(False)
    place, dims = _signal(frozen, example)
    like = slots(frozen, example)[1][place]
    generator = torch.Generator().manual_seed(seed)
    start = _smoothed(torch.randn(1, *like.shape[1:], generator=generator), dims).to(like)
    start *= _START / _size(start)
    reach = [like.shape[dim] // _SHIFT for dim in dims]
    shifts = [
        [int(torch.randint(2 * r + 1, (1,), generator=generator)) - r for r in reach]
        for _ in range(STEPS)
    ]
    at_once = max(1, _AT_ONCE // start.numel())
    found = {}
    for group in groups:
        inputs, responses = [], []
        with _responding(frozen, group, example, place) as respond:
            for channels in torch.arange(group.channels).split(at_once):  # type: ignore[no-untyped-call]
                x = start.expand(len(channels), *start.shape[1:])
                for shift in shifts:
                    x = _stepped(x, shift, dims, respond, channels, group.name)
                with torch.no_grad():
                    responses.append(respond(x).double())
                inputs.append(x)
        visual = Visual(torch.cat(inputs), torch.cat(responses))
        if not torch.isfinite(visual.responses).all():
            raise ValueError(
                f"features='visual': layer {group.name!r} gives NaN or infinity on what its "
                "filters respond to"
            )
        found[group.name] = visual
    return found


def _signal(model: nn.Module, example: Arguments) -> tuple[int, list[int]]:
    """Which tensor argument is a signal, and its dimensions of space or time."""
    names, likes = slots(model, example)
    place = next((i for i, x in enumerate(likes) if x.is_floating_point()), None)
    if place is None:
        kinds = ", ".join(
            f"{name!r} of {like.dtype}" for name, like in zip(names, likes, strict=True)
        )
        raise ValueError(
            "features='visual' changes an input by gradient, and this network reads no signal but "
            f"{kinds or 'no tensor'}; compare its filters by 'weights' or 'activations'"
        )
    like = likes[place]
    if like.dim() < _SPACE:
        raise ValueError(
            "features='visual' needs an image, a series or a volume, (n, channels, ...), and "
            f"{names[place]!r} has shape {tuple(like.shape)}; compare filters by 'weights' or "
            "'activations'"
        )
    if channels_last(model, example)[place]:
        return place, list(range(1, like.dim() - 1))
    return place, list(range(2, like.dim()))


def _stepped(
    x: Tensor,
    shift: Sequence[int],
    dims: Sequence[int],
    respond: Callable[[Tensor], Tensor],
    channels: Tensor,
    name: str,
) -> Tensor:
    """Inputs after a step of gradient ascent, one for each channel."""
    moved = x.roll(list(shift), list(dims)).requires_grad_(True)
    wanted = respond(moved)[torch.arange(len(x)), channels].sum()
    gradient = None
    if wanted.requires_grad:
        (gradient,) = torch.autograd.grad(wanted, moved, allow_unused=True)
    if gradient is None:
        raise ValueError(
            f"features='visual': no gradient reaches the input from layer {name!r}; leave it out "
            "with ignore="
        )
    gradient = _smoothed(gradient.roll([-s for s in shift], list(dims)), dims)
    x = x + RATE * gradient / _size(gradient).clamp_min(1e-12)  # that of a dead filter is zero
    return x / _size(x).clamp_min(1)


def _size(x: Tensor) -> Tensor:
    """Root mean square of each input, to divide by."""
    return x.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (x.dim() - 1))


def _smoothed(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Weighted with neighbours, 1/4 1/2 1/4 along each dimension; the ends are neighbours."""
    for dim in dims:
        x = x / 2 + (x.roll(1, dim) + x.roll(-1, dim)) / 4
    return x


class _Heard(Exception):
    """All that was asked for has been computed."""


@contextmanager
def _responding(
    model: nn.Module, group: Group, example: Arguments, place: int
) -> Iterator[Callable[[Tensor], Tensor]]:
    """A function from inputs to the mean activation of each channel, (inputs, channels).

    The network is run as far as is needed. Where several layers add onto the channels, their means
    are summed.
    """
    modules = dict(model.named_modules())
    members = outlets(modules, group)
    likes = slots(model, example)[1]
    heard: dict[str, Tensor] = {}

    def listen(member: Member) -> Callable[..., None]:
        entries = torch.from_numpy(member.entries)

        def hear(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
            y = output[0] if isinstance(output, tuple) else output  # of a recurrent layer
            rows = y.movedim(channel_dim(module, y), 1)
            means = F.leaky_relu(rows.reshape(*rows.shape[:2], -1), _NEGATIVE).mean(2)
            heard.setdefault(member.module, means[:, entries.to(means.device)].mean(2))
            if len(heard) == len(members):
                raise _Heard

        return hear

    def respond(x: Tensor) -> Tensor:
        heard.clear()
        tensors = [like[:1].expand(len(x), *like.shape[1:]) for like in likes]
        tensors[place] = x
        args, kwargs = fill(example, tensors)
        with suppress(_Heard):
            model(*args, **kwargs)
        found = torch.stack(list(heard.values())).sum(0)
        if len(found) != len(x):
            raise ValueError(
                f"features='visual': layer {group.name!r} gives {len(found)} rows for {len(x)} "
                "inputs; leave it out with ignore="
            )
        return found

    hooks = [modules[m.module].register_forward_hook(listen(m)) for m in members]
    try:
        yield respond
    finally:
        for hook in hooks:
            hook.remove()
