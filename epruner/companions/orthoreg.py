"""OrthoReg: filters that are trained to be orthonormal lose their place one at a time.

The importance of several filters together is taken to be the sum of what each is worth, which
holds for filters that do different things. The term keeps them so while a network is trained.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from epruner.pruning.network.layers import is_conv1d, layers_of, weight_dims


class OrthoReg:
    """A term for the loss of a network that is going to be pruned.

    With the filters of layer l as rows of W_l, their biases appended where there are some [1]_::

        strength * sum_l omega_l * sum |W_l W_l' - I|

    and W_l' W_l instead where a layer has more filters than a filter has weights: then only columns
    can be orthonormal. omega_l is proportional to the root of the side of that matrix; over all
    layers it sums to 1. The paper chooses the matrix by kinds of layers, which comes to the same
    but for a first convolution of few filters (of 16 in ResNet-56); it has convolutions alone.

    Convolutions (transposed ones too) and linear layers count, but for the last of the network, in
    the order in which they are registered: its rows are answers, of which none can go. The filters
    of a grouped convolution are compared within their group, as those of others read other
    channels; those of a depthwise one, alone in their groups, all together.

    Parameters
    ----------
    model : torch.nn.Module
        Whose layers are meant.
    strength : float
        1e-2 in [1]_, 1e-3 for depthwise-separable networks.

    Raises
    ------
    TypeError
        `model` is no module or `strength` no number.
    ValueError
        `strength` is not positive, or `model` has no layer but its last.

    References
    ----------
    .. [1] Lubana et al., "OrthoReg: Robust Network Pruning Using Orthonormality Regularization",
       arXiv 2009.05014.

    Examples
    --------
    >>> import epruner, torch
    >>> from epruner.companions.orthoreg import OrthoReg
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> batches = [(torch.randn(32, 8), torch.arange(32) % 2)]
    >>> history = epruner.finetune(model, batches, epochs=2, regularizer=OrthoReg(model))
    >>> OrthoReg(model)
    OrthoReg(strength=0.01, layers=1)
    """

    def __init__(self, model: nn.Module, strength: float = 1e-2) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(strength, bool) or not isinstance(strength, (int, float)):
            raise TypeError(f"strength must be a number, got {strength!r}")
        if not 0 < strength < math.inf:
            raise ValueError(f"strength must be positive and finite, got {strength!r}")
        names = [
            name
            for name, module in layers_of(model).items()
            if isinstance(module, (_ConvNd, nn.Linear)) or is_conv1d(module)
        ]
        if len(names) < 2:
            raise ValueError(
                f"{type(model).__name__} has no convolution or linear layer before its last layer, "
                "whose rows are answers: there is nothing to make orthonormal"
            )
        self.strength = float(strength)
        self.layers = tuple(names[:-1])

    def __call__(
        self, model: nn.Module, scores: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """The term for the weights as they are now.

        Parameters
        ----------
        model : torch.nn.Module
            That which it was made for, or what is left of it after pruning.
        scores, labels : Tensor, optional
            Not looked at; `epruner.finetune` gives them to every regularizer.

        Returns
        -------
        Tensor of shape ()
            float64 for float64 weights, float32 for all others, under autocast, too.

        Raises
        ------
        ValueError
            A layer is not there.

        Examples
        --------
        >>> import torch
        >>> from epruner.companions.orthoreg import OrthoReg
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 2))
        >>> _ = nn.init.eye_(model[0].weight)  # orthonormal filters cost nothing
        >>> OrthoReg(model)(model).item()
        0.0
        """
        terms, sides = [], []
        for name in self.layers:
            try:
                rows = _filters(model.get_submodule(name))
            except AttributeError as error:
                raise ValueError(
                    f"{type(model).__name__} has no layer {name!r}: give the network that OrthoReg "
                    "was made for, without a wrapper"
                ) from error
            with torch.autocast(rows.device.type, enabled=False):
                terms.append(_distance(rows))
            sides.append(len(rows) * min(rows.shape[1:]))
        weights = terms[0].new_tensor(sides).sqrt()
        return self.strength * (weights / weights.sum() * torch.stack(terms)).sum()

    def __repr__(self) -> str:
        return f"OrthoReg(strength={self.strength:g}, layers={len(self.layers)})"


def _distance(rows: Tensor) -> Tensor:
    """Sum of |G - I| over matrices (groups, n, d), G the smaller of their Gram matrices."""
    # More than d vectors of d numbers cannot be orthonormal: W W' would never be I, W' W can. So it
    # is in the first convolution, shortcuts that widen and depthwise-separable networks, which the
    # paper names; the shape is the reason.
    gram = rows @ rows.mT if rows.shape[1] <= rows.shape[2] else rows.mT @ rows
    return (gram - torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)).abs().sum()


def _filters(layer: Any) -> Tensor:
    """Filters of a layer with their biases, of each group: (groups, n, d), float32 or float64."""
    weight: Tensor = layer.weight
    groups = getattr(layer, "groups", 1)
    if weight_dims(layer)[0]:  # (inputs, outputs of a group, ...)
        weight = weight.reshape(groups, -1, *weight.shape[1:]).movedim(2, 1).flatten(0, 1)
    rows = weight.flatten(1)
    if layer.bias is not None:
        rows = torch.cat([rows, layer.bias[:, None]], 1)
    if groups == len(rows):  # each filter is alone in its group: there is nothing to compare with
        groups = 1
    rows = rows.reshape(groups, -1, rows.shape[1])
    return rows if rows.dtype == torch.float64 else rows.float()
