"""Filters ranked by the gradient of a loss: importance and allocation "fisher".

Of a channel, with w the weights by which it is read and g the mean gradient of the loss by each,
over labelled inputs, in eval mode (after Lubana et al., OrthoReg, arXiv 2009.05014):

    I = (sum of w * g)^2 = (mean over inputs of the sum over positions of x * dL/dx)^2

with x the channel as the layers that read it find it. The sum is what the loss loses with the
channel, to first order. The paper has the weights of the filter itself, which is the same where
only a ReLU lies between; behind BatchNorm its shift would be left out, which ranked two ResNets
worse. Of several channels I is the square of the sum, and where filters are orthogonal nearly the
sum of the squares. All channels of a network stand in one ranking, whatever they cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.pruning.data.calibration import Calibration
from epruner.pruning.graph.groups import Group
from epruner.pruning.network.layers import channel_dim
from epruner.pruning.network.listen import inputs_of
from epruner.pruning.select.importance import Candidates, Importance, Indices, largest

Scores = npt.NDArray[np.float64]
# From what the network puts out and the labels of a batch to the mean loss over its inputs.
Loss = Callable[[Any, Tensor], Tensor]


def cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    """The loss of a classifier, from scores (n, classes, ...) and class numbers (n, ...).

    Raises
    ------
    TypeError, ValueError
        The network gives no such scores, or there is no class of that number among them.
    """
    if not isinstance(outputs, Tensor):
        raise TypeError(
            "the network returns no tensor of scores (n, classes): give loss=, from what it "
            f"returns and the labels to a scalar; got {type(outputs).__name__}"
        )
    if labels.is_floating_point():
        raise TypeError(f"labels must be class numbers, got {labels.dtype}; or give loss=")
    if outputs.dim() < 2 or outputs.shape[2:] != labels.shape[1:]:
        raise ValueError(
            f"scores of shape {tuple(outputs.shape)} and labels of shape {tuple(labels.shape)}; "
            "there must be one class number for each score, or give loss="
        )
    if int(labels.min()) < 0 or int(labels.max()) >= outputs.shape[1]:
        raise ValueError(
            f"labels from {int(labels.min())} to {int(labels.max())} for a network of "
            f"{outputs.shape[1]} classes; a loss= of your own may leave some out"
        )
    return F.cross_entropy(outputs, labels.long())


def fisher_scores(
    model: nn.Module, groups: Sequence[Group], calibration: Calibration, loss: Loss
) -> dict[str, Scores]:
    """I of every channel of every group.

    Parameters
    ----------
    model : torch.nn.Module
        Full-size, in eval mode, its parameters not frozen; not modified.
    groups : sequence of Group
    calibration : Calibration
        With labels.
    loss : callable

    Returns
    -------
    dict of str to ndarray of shape (channels,)
        By group name; infinite for channels that no layer reads.

    Raises
    ------
    ValueError
        The loss is no scalar, no gradient reaches the layers, or some gradient is not finite.
    """
    modules = dict(model.named_modules())
    readers = {group.name: [m for m in group.consumers if m.module in modules] for group in groups}
    names = {member.module for members in readers.values() for member in members}
    batches = calibration.fit
    sums = {group.name: torch.zeros(group.channels, dtype=torch.float64) for group in groups}
    with batches.ranks.agree(), inputs_of(modules, names) as heard:
        for (args, kwargs), labels in zip(batches, calibration.labels, strict=True):
            for calls in heard.values():
                calls.clear()
            with torch.enable_grad():
                value = loss(model(*args, **kwargs), labels)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ValueError(f"loss must return a scalar, the mean over a batch, got {value!r}")
            if not value.requires_grad:
                raise ValueError("no gradient reaches the layers from the loss")
            found = _slopes(value, len(labels), modules, heard)
            for name, members in readers.items():
                for member in members:
                    if member.module in found:
                        sums[name] += found[member.module][member.entries].sum(1)
    count = batches.count(sum(map(len, calibration.labels)))
    totals = batches.total(*sums.values())
    scores: dict[str, Scores] = {}
    for (name, members), total in zip(readers.items(), totals, strict=True):
        scores[name] = (total / count).square().numpy() if members else np.full(len(total), np.inf)
        if np.isnan(scores[name]).any():
            raise ValueError(f"the gradient of the loss by what reads {name!r} is not finite")
    return scores


def _slopes(
    value: Tensor,
    count: int,
    modules: Mapping[str, nn.Module],
    heard: Mapping[str, Sequence[Tensor]],
) -> dict[str, Tensor]:
    """By module the sum of count * x * dL/dx over all but the channels that it reads, float64."""
    calls = [(name, x) for name, reads in heard.items() for x in reads if x.requires_grad]
    gradients = torch.autograd.grad(value, [x for _, x in calls], allow_unused=True)
    found: dict[str, Tensor] = {}
    for (name, x), gradient in zip(calls, gradients, strict=True):
        if gradient is not None:
            dim = channel_dim(modules[name], x)
            terms = (x.detach().double() * gradient).movedim(dim, 0).flatten(1)
            product = count * terms.sum(1).cpu()
            found[name] = found[name] + product if name in found else product
    return found


def by_fisher(scores: Mapping[str, Scores]) -> Importance:
    """The importance "fisher": the channels of the largest I stay."""

    def fisher(candidates: Candidates, count: int) -> Indices:
        own = scores[candidates.layer][candidates.first :]
        return largest(own[: len(candidates.features)], count)

    return fisher


def ranking_errors(groups: Sequence[Group], scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """What is lost when k channels of a group are left, in places of one ranking of all channels.

    Parameters
    ----------
    groups : sequence of Group
    scores : mapping of str to ndarray of shape (channels,)

    Returns
    -------
    dict of str to ndarray of shape (channels + 1,)
        By group name: the sum of the places of those that go, from 1 / n for the least of all n
        channels of the network to 1. Of each block of a group as many stay.
    """
    everything = np.concatenate([scores[group.name] for group in groups])
    places = np.empty(len(everything))
    places[np.argsort(everything, kind="stable")] = np.arange(1, len(everything) + 1)
    places /= len(everything)
    errors, first = {}, 0
    for group in groups:
        own = np.sort(places[first : first + group.channels].reshape(group.blocks, -1))
        lost = np.concatenate([[0.0], np.cumsum(own.sum(0))])[::-1]  # by channels left of a block
        every = np.arange(group.channels + 1)
        errors[group.name] = np.interp(every, every[:: group.blocks], lost)
        first += group.channels
    return errors
