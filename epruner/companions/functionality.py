"""Functionality-oriented pruning: of filters that do the same, those that matter least go.

For each filter F of a layer, V(F) is the input that F answers to most, found by gradient ascent.
Filters that answer alike whatever any filter of their layer responds to have the same function
(`epruner.pruning.select.visual`) and are one cluster, found by affinity propagation. Within a
cluster filters are ranked by their contribution

    c(F) = mean over inputs and positions of abs(d y / d A_F),

A_F the activation of F after its BatchNorm and y the largest output of an input (of each tensor, if
several are returned). Of each cluster filters go in proportion to its size, the least first. A
filter that is alone in its cluster stays as long as there are others. No label is used.

After Qin et al., "Functionality-oriented convolutional filter pruning" (arXiv 1810.07322) and
"Interpretable convolutional filter pruning" (arXiv 1811.02639), who cluster the images V(F) by
k-means.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from epruner import _pictures
from epruner.cluster import affinity_propagation_many
from epruner.cluster.similarity import negative_squared_distances
from epruner.pruning.analysis import analysed
from epruner.pruning.data.calibration import calibration_inputs, with_example
from epruner.pruning.graph.groups import Group
from epruner.pruning.network.copies import tracing_copy
from epruner.pruning.network.inputs import Arguments, check_model, in_float32
from epruner.pruning.network.layers import channel_dim
from epruner.pruning.network.listen import outputs_of
from epruner.pruning.network.tree import tensors_in
from epruner.pruning.report.plots import draw_filters
from epruner.pruning.report.progress import Stages
from epruner.pruning.result import PruningResult
from epruner.pruning.select.importance import Candidates, Importance, Indices, Matrix
from epruner.pruning.select.visual import outlets, visualise

Scores = npt.NDArray[np.float64]


def functional_importance(model: nn.Module, calibrate: Any, *, inputs: Any = None) -> Importance:
    """Who stays, by function: an importance for `epruner.Method`.

    ``Method("uniform", functional_importance(model, images), "visual")`` clusters each layer at
    the median of its similarities; with the allocation "exemplar", or under `beta`, the clusters
    are those that set the numbers.

    Parameters
    ----------
    model : torch.nn.Module
        That will be pruned. Never modified.
    calibrate : Tensor, iterable of tensors, tuples or dicts
        A few hundred inputs, without labels, for c(F).
    inputs : as for `epruner.prune`, or Analysis, optional
        Example inputs, or what `epruner.analyse` made of the model. Default: the first of
        `calibrate`.

    Returns
    -------
    callable
        From the candidates of a layer and a number to the indices that stay, ascending.

    Raises
    ------
    TypeError, ValueError
        No inputs, inputs that are all equal or not finite, or no gradient from the outputs.

    Examples
    --------
    >>> import epruner, torch
    >>> from epruner.companions import functionality
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    >>> importance = functionality.functional_importance(model, torch.randn(32, 3, 8, 8))
    >>> method = epruner.Method("uniform", importance, "visual", repair="merge")
    >>> epruner.prune(model, (1, 3, 8, 8), macs=0.5, method=method).model[0].out_channels
    8
    """
    check_model(model)
    if inputs is None:
        calibrate, inputs = with_example(model, calibrate)
    net = analysed(model, inputs, Stages(show=False))
    scores = contributions(model, net.groups, calibrate, net.arguments)

    def functional(candidates: Candidates, count: int) -> Indices:
        n = len(candidates.features)
        if candidates.layer not in scores:
            raise ValueError(
                f"functional_importance was made for another network: its layers are "
                f"{', '.join(list(scores)[:3])}, ..., and not {candidates.layer!r}"
            )
        own = scores[candidates.layer][candidates.first : candidates.first + n]
        order = first_to_go(_labels(candidates), own)
        return np.sort(order[n - count :])

    return functional


def contributions(
    model: nn.Module, groups: Sequence[Group], calibrate: Any, example: Arguments
) -> dict[str, Scores]:
    """c(F) of every filter: mean over inputs and positions of ``|d y / d A_F|``.

    Parameters
    ----------
    model : torch.nn.Module
        Never modified.
    groups : sequence of epruner.pruning.graph.groups.Group
        As ``epruner.analyse(model, inputs).groups`` has them.
    calibrate : as for `functional_importance`
        Inputs without labels.
    example : (args, kwargs)
        Example inputs, as ``epruner.analyse(model, inputs).arguments`` has them.

    Returns
    -------
    dict of str to ndarray of shape (channels,), float64
        By group name. Where several layers add onto the channels, the sum over these.

    Raises
    ------
    TypeError, ValueError
        No inputs, inputs that are all equal or not finite, or no gradient from the outputs.

    Examples
    --------
    >>> import epruner, torch
    >>> from epruner.companions import functionality
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    >>> net = epruner.analyse(model, (1, 3, 8, 8))
    >>> inputs = torch.randn(32, 3, 8, 8)
    >>> scores = functionality.contributions(model, net.groups, inputs, net.arguments)
    >>> scores["0"].shape
    (16,)
    """
    shown = tracing_copy(model)[0]
    modules = dict(shown.named_modules())
    batches = calibration_inputs(shown, calibrate, in_float32(example)).everything
    columns = [torch.cat(column) for column in zip(*map(tensors_in, batches), strict=True)]
    count = len(columns[0])
    if all(bool((column == column[:1]).all()) for column in columns):
        raise ValueError(
            f"calibrate: all {count} inputs are equal; what a filter contributes is a mean over "
            "different ones"
        )
    places = {group.name: outlets(modules, group) for group in groups}
    found: dict[str, Tensor] = {}
    with outputs_of(modules, {m.module for each in places.values() for m in each}) as heard:
        for args, kwargs in batches:
            for earlier in heard.values():
                earlier.clear()
            with torch.enable_grad():
                answer = _answer(shown(*args, **kwargs))
            calls = [(name, call) for name, calls in heard.items() for call in calls]
            if not answer.requires_grad:
                raise ValueError("no gradient reaches the layers from what the model returns")
            gradients = torch.autograd.grad(answer, [y for _, y in calls], allow_unused=True)
            for (name, y), gradient in zip(calls, gradients, strict=True):
                rows = (torch.zeros_like(y) if gradient is None else gradient).abs().double()
                rows = rows.movedim(channel_dim(modules[name], y), 0).flatten(1)
                # a batch counts as its inputs do, whatever their number of positions
                share = rows.mean(1).cpu() * len(tensors_in((args, kwargs))[0]) / count
                found[name] = found[name] + share if name in found else share
    return {
        name: sum(found[m.module].numpy()[m.entries].mean(1) for m in members)
        for name, members in places.items()
    }


def _answer(returned: Any) -> Tensor:
    """The sum over inputs of the largest output, of each tensor that is returned."""
    parts = [y for y in tensors_in(returned) if y.is_floating_point()]
    return sum(((y.flatten(1).amax(1) if y.dim() > 1 else y).sum() for y in parts), torch.zeros(()))


def _labels(candidates: Candidates) -> Indices:
    """Cluster of each candidate: by the exemplars there are, or else those found here."""
    similarities = candidates.similarities
    if not len(candidates.exemplars):
        return _clustered(similarities, candidates.seed)
    labels: Indices = similarities[:, candidates.exemplars].argmax(1)
    labels[candidates.exemplars] = np.arange(len(candidates.exemplars))
    return labels


def _clustered(similarities: Matrix, seed: int) -> Indices:
    """Labels by affinity propagation at the median similarity."""
    with warnings.catch_warnings():
        # of dead filters, say; each is then alone
        warnings.filterwarnings("ignore", message="All samples have mutually equal")
        (found,) = affinity_propagation_many(
            [similarities], damping=0.7, max_iter=1000, random_state=seed
        )
    return found.labels


def first_to_go(labels: Indices, scores: Scores) -> Indices:
    """Filters in the order in which they go.

    Of a cluster of s filters the r-th least goes when its turn s / r comes, the largest first:
    until only one of each cluster is left as many have gone of each as its size has a share (the
    divisors of D'Hondt). Those that are left then go by their scores.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
        Cluster of each filter.
    scores : ndarray of shape (n,)
        What each contributes; the least go first.

    Returns
    -------
    ndarray of int, shape (n,)
        Indices of all filters, the first to go at the front.

    Raises
    ------
    ValueError, IndexError
        If the two are not of one length.

    Examples
    --------
    >>> import numpy as np
    >>> from epruner.companions import functionality
    >>> labels = np.array([0, 0, 0, 1])
    >>> functionality.first_to_go(labels, np.array([3.0, 1.0, 2.0, 0.5])).tolist()
    [1, 2, 3, 0]
    """
    turns = np.zeros(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # of equal ones the first stays
        rising = members[np.lexsort((-members, scores[members]))]
        turns[rising[:-1]] = len(rising) / np.arange(1, len(rising))
    return np.lexsort((-np.arange(len(labels)), scores, -turns)).astype(np.intp)


def plot_filters(
    model: nn.Module,
    inputs: Any,
    layer: str,
    path: str | PathLike[str],
    *,
    result: PruningResult | None = None,
    random_state: int = 0,
) -> None:
    """Draw what the filters of a layer respond to, V(F), side by side those of a cluster.

    Parameters
    ----------
    model : torch.nn.Module
        Full-size. Never modified.
    inputs : as for `epruner.prune`, or Analysis
        Only their shapes count.
    layer : str
        One of a group that can be pruned.
    path : path-like
        The suffix chooses the format: png, svg, pdf and what else matplotlib writes.
    result : PruningResult, optional
        Of pruning `model`: filters that went are crossed out.
    random_state : int
        Seed of the noise and of the clustering.

    Raises
    ------
    ImportError
        When matplotlib (extra ``plot``) is absent.
    TypeError, ValueError
        The layer cannot be pruned or is not there, the network reads no image, series or volume,
        or the suffix names no format.

    Examples
    --------
    >>> from epruner.companions import functionality
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> functionality.plot_filters(model, (1, 3, 8, 8), "0", "filters.png")
    """
    check_model(model)
    _pictures.check_format(path)
    net = analysed(model, inputs, Stages(show=False))
    group = _group_of(layer, net.groups)
    shown = tracing_copy(model)[0]
    ((_, visual),) = visualise(shown, [group], in_float32(net.arguments), seed=random_state)
    labels = _clustered(negative_squared_distances(visual.features()), random_state)
    kept = np.arange(group.channels)
    if result is not None:
        kept = result.kept.get(group.name, kept)
    figure = draw_filters(visual.inputs.cpu().numpy(), labels, kept, name=layer)
    _pictures.save(figure, path)


def _group_of(layer: str, groups: Sequence[Group]) -> Group:
    names = {m.module: group for group in groups for m in group.producers}
    if not isinstance(layer, str):
        raise TypeError(
            f"layer must be a name, such as {next(iter(names), '')!r}, got {layer!r:.60}"
        )
    if layer not in names:
        close = difflib.get_close_matches(str(layer), names, n=3, cutoff=0.3)
        raise ValueError(
            f"{layer!r} is no layer of which filters can go; layers are like "
            f"{', '.join(map(repr, close or list(names)[:3]))}"
        )
    return names[layer]
