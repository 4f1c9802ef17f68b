"""Filters ranked by the gradient of a loss: importance and allocation "fisher".

Of a channel, with w the weights of what makes it and g the mean gradient of the loss by each, over
labelled inputs, in eval mode (after Lubana et al., OrthoReg, arXiv 2009.05014):

    I = (sum of w * g)^2

Where BatchNorm follows, w are its scale and shift, otherwise the filter and its bias: then the sum
is what the loss loses, to first order, with the channel (with the weights of the convolution alone
the shift would stay, which ranked two ResNets worse). Of several channels it is the square of the
sum, and where filters are orthogonal nearly the sum of the squares. All channels of a network stand
in one ranking, whatever they cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from epruner.pruning.data.calibration import Calibration
from epruner.pruning.graph.groups import Group
from epruner.pruning.network.copies import deep_copy
from epruner.pruning.network.filters import joint_rows
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
            f"{outputs.shape[1]} classes"
        )
    return F.cross_entropy(outputs, labels.long())


def fisher_scores(
    model: nn.Module, groups: Sequence[Group], calibration: Calibration, loss: Loss
) -> dict[str, Scores]:
    """I of every channel of every group.

    Parameters
    ----------
    model : torch.nn.Module
        Full-size, in eval mode; not modified.
    groups : sequence of Group
    calibration : Calibration
        With labels.
    loss : callable

    Returns
    -------
    dict of str to ndarray of shape (channels,)
        By group name.

    Raises
    ------
    ValueError
        The loss is no scalar, or some gradient is not finite.
    """
    products = deep_copy(model)  # will hold w * g in the place of w
    products.requires_grad_(True)
    batches, sizes = calibration.fit, [len(labels) for labels in calibration.labels]
    parameters = list(products.parameters())
    with batches.ranks.agree(), torch.enable_grad():
        for (args, kwargs), labels, size in zip(batches, calibration.labels, sizes, strict=True):
            value = loss(products(*args, **kwargs), labels)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise ValueError(f"loss must return a scalar, the mean over a batch, got {value!r}")
            torch.autograd.backward(value.sum() * size)
    sums = batches.total(*(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters))
    with torch.no_grad():
        count = batches.count(sum(sizes))
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.mul_(total / count)
        return {group.name: _scores(products, group) for group in groups}


def _scores(products: nn.Module, group: Group) -> Scores:
    modules = dict(products.named_modules())
    made_by = [(member, modules[member.module]) for member in group.producers]
    parts = [joint_rows([(module, member.entries)]).sum(1) for member, module in made_by]
    norms = [
        (member, norm)
        for member in group.followers
        if isinstance(norm := modules.get(member.module), _BatchNorm) and norm.affine
    ]
    if norms:
        made_by = norms
        parts = [norm.weight.detach()[member.entries].sum(1) for member, norm in norms]
    parts += [
        module.bias[member.entries].sum(1)
        for member, module in made_by
        if isinstance(module.bias, Tensor)
    ]
    scores: Scores = torch.stack([part.double() for part in parts]).sum(0).square().cpu().numpy()
    if not np.isfinite(scores).all():
        raise ValueError(f"the gradient of the loss by the weights of {group.name!r} is not finite")
    return scores


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
