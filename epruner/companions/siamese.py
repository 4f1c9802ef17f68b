"""A loss for Siamese tracking that keeps the exemplars of a batch apart.

After an exemplar loss for Siamese tracking of which only the abstract was known: the idea is its
authors', the form of the added term is this package's. The logistic loss on scores is that of
Bertinetto et al., "Fully-Convolutional Siamese Networks for Object Tracking", 2016.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHT = 0.25


def exemplar_loss(
    z_exemplar: Tensor, z_search: Tensor, labels: Tensor, weight: float = WEIGHT
) -> Tensor:
    """Logistic loss on (exemplar, search) scores, and inner products of exemplars made small.

    With the scores s_ip = <z_i, x_ip> of exemplar i at the places p of its own search image,

        mean over i, p of softplus(-y_ip s_ip) + weight * mean over i != j of softplus(<z_i, z_j>).

    Training images mostly show the tracked object before some background. The first term then never
    learns that another object is not the one to follow; the second says so, with the other
    exemplars of the batch as the objects, at the price of n² inner products.

    Parameters
    ----------
    z_exemplar : Tensor of shape (n, d)
        Embeddings of the exemplars: different objects.
    z_search : Tensor of shape (n, d) or (n, p, d)
        Embeddings of one place, or of p places, of each exemplar's search image.
    labels : Tensor of shape (n,) or (n, p)
        1 where the place shows the exemplar, -1 where it does not; integers or floating.
    weight : float, default=0.25
        Of the second term; 0 leaves the logistic loss.

    Returns
    -------
    Tensor
        A scalar in the embeddings' dtype, to be differentiated.

    Raises
    ------
    ValueError
        If shapes do not fit, a label is not 1 or -1, an embedding is NaN or infinite, the weight is
        negative or not finite, or there is one exemplar only (no pair) and a weight.
    TypeError
        If embeddings are not floating tensors of one dtype, or the weight is no number.

    Examples
    --------
    >>> import torch
    >>> from epruner.companions.siamese import exemplar_loss
    >>> z_exemplar = torch.eye(4)  # four different objects
    >>> z_search = 5 * torch.eye(4).unsqueeze(1)  # one place each, which shows the object
    >>> loss = exemplar_loss(z_exemplar, z_search, torch.ones(4, 1))
    >>> round(loss.item(), 2)
    0.18
    """
    _check(z_exemplar, z_search, labels, weight)
    scores = (z_exemplar.view(len(z_exemplar), *[1] * (z_search.dim() - 2), -1) * z_search).sum(-1)
    loss = F.softplus(-labels.to(scores.dtype) * scores).mean()
    if weight == 0:
        return loss
    products = z_exemplar @ z_exemplar.T
    others = ~torch.eye(len(products), dtype=torch.bool, device=products.device)
    return loss + weight * F.softplus(products[others]).mean()


def _check(z_exemplar: Tensor, z_search: Tensor, labels: Tensor, weight: float) -> None:
    for name, z in (("z_exemplar", z_exemplar), ("z_search", z_search), ("labels", labels)):
        if not isinstance(z, Tensor):
            raise TypeError(f"{name} must be a tensor, got a {type(z).__name__}")
    if not z_exemplar.is_floating_point() or z_exemplar.dtype != z_search.dtype:
        raise TypeError(
            "z_exemplar and z_search must be of one floating dtype, got "
            f"{z_exemplar.dtype} and {z_search.dtype}"
        )
    if z_exemplar.dim() != 2 or 0 in z_exemplar.shape:
        raise ValueError(
            f"z_exemplar must be of shape (n, d), neither of them 0: got {tuple(z_exemplar.shape)}"
        )
    n, d = z_exemplar.shape
    shape = tuple(z_search.shape)
    if z_search.dim() not in (2, 3) or 0 in shape or (shape[0], shape[-1]) != (n, d):
        raise ValueError(f"z_search must be of shape ({n}, {d}) or ({n}, p, {d}): got {shape}")
    if labels.shape != shape[:-1]:
        raise ValueError(
            f"labels must be of shape {shape[:-1]}, one for each score: got {tuple(labels.shape)}"
        )
    if not isinstance(weight, Real) or isinstance(weight, bool):
        raise TypeError(f"weight={weight!r} must be a number")
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"weight={weight} must be finite and not negative")
    if n == 1 and weight > 0:
        raise ValueError(
            f"one exemplar makes no pairs for weight={weight}: pass at least two, or weight=0"
        )
    wrong = labels.abs() != 1 if labels.dtype != torch.bool else torch.ones_like(labels)
    if wrong.any():
        raise ValueError(f"labels hold {labels[wrong][0].item()}: they must be 1 or -1")
    for name, z in (("z_exemplar", z_exemplar), ("z_search", z_search)):
        if not z.isfinite().all():
            raise ValueError(
                f"{name} holds NaN or infinite values: training has diverged, lower its rate"
            )
