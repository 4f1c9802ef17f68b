"""What is added to the loss so that gates learn, and the thresholds they learn against."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.companions.manidp.gates import GatedNetwork, check_gated


class Regularizer:
    """Term of the loss for `epruner.finetune`, which also sets the thresholds before each epoch.

    ``λ₁ Σ_l mean_i(w_i mean_c π) + λ₂ Σ_l ||G(x) - G(π)||² / n²`` over gates l, inputs i of a batch
    of n, and channels c. ``w_i = max(0, 1 - ce_i / T)``, with ce_i the cross-entropy of an input
    and T half the mean of the last epoch's (0 in the first): easy inputs are to need few channels.
    G holds the cosines between the inputs of a batch, of the means x that a gate reads and of its
    saliencies π: like inputs are to use like channels.

    Before each epoch the threshold τ of a gate becomes the k-th largest of its channels' mean
    saliencies in the last epoch, ``k = ceil(ρ channels)``; ρ falls from 1 to `share` by half a
    cosine.

    Parameters
    ----------
    gated : GatedNetwork
        The one that is trained.
    epochs : int
        In the last of which ρ is `share`; at least 2. Trained may be for longer, with ρ as it is
        then.
    share : float in (0, 1]
        ρ at the end: about the share of channels that stay on.
    sparsity, similarity : float
        λ₁ and λ₂.

    Raises
    ------
    TypeError, ValueError
        No gated network, or an option out of range.

    Examples
    --------
    >>> import epruner, torch
    >>> from epruner.companions import manidp
    >>> from torch import nn
    >>> conv = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
    >>> model = nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    >>> gated = manidp.gate(model, (1, 3, 8, 8))
    >>> batches = [(torch.randn(32, 3, 8, 8), torch.arange(32) % 2)]
    >>> term = manidp.Regularizer(gated, epochs=3, share=0.5)
    >>> len(epruner.finetune(gated, batches, epochs=3, regularizer=term))
    3
    """

    def __init__(
        self,
        gated: GatedNetwork,
        *,
        epochs: int,
        share: float = 0.6,
        sparsity: float = 5e-3,
        similarity: float = 1.0,
    ) -> None:
        check_gated(gated)
        if type(epochs) is not int or epochs < 2:
            raise ValueError(
                f"epochs must be an integer of at least 2, as thresholds come from the epoch "
                f"before; got {epochs!r}"
            )
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share!r}")
        for name, weight in (("sparsity", sparsity), ("similarity", similarity)):
            if not weight >= 0:
                raise ValueError(f"{name} must not be negative, got {weight!r}")
        self._gated, self._epochs, self._share = gated, epochs, share
        self._sparsity, self._similarity = sparsity, similarity
        self._gates = list(gated.gates().values())
        self._labels: set[int] = set()

    @torch.no_grad()
    def set_epoch(self, done: int) -> None:
        """Set the thresholds from the last epoch.

        Parameters
        ----------
        done : int
            Epochs that are over; `epruner.finetune` calls it before each.

        Raises
        ------
        ValueError
            It had inputs of one class only.

        Examples
        --------
        >>> from epruner.companions import manidp
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3))
        >>> gated = manidp.gate(model, (1, 3, 8, 8))
        >>> manidp.Regularizer(gated, epochs=3).set_epoch(0)
        >>> float(gated.gates()["0"].tau)  # before the first epoch nothing is switched off
        0.0
        """
        if len(self._labels) == 1:
            raise ValueError(
                f"every label of the last epoch is {self._labels.pop()}; which inputs are easy "
                "shows on two or more classes"
            )
        self._labels.clear()
        gated, count = self._gated, self._gated.count
        if done and count:
            fallen = (1 - math.cos(math.pi * min(1, done / (self._epochs - 1)))) / 2
            rho = 1 - (1 - self._share) * fallen
            gated.easy_below.copy_(gated.loss_sum / count / 2)
            for gate in self._gates:
                means = (gate.saliency_sum / count).sort(descending=True).values
                gate.tau.copy_(means[math.ceil(rho * len(means)) - 1])
        for tensor in (gated.loss_sum, count, *(gate.saliency_sum for gate in self._gates)):
            tensor.zero_()

    def __call__(self, model: nn.Module, scores: Tensor, labels: Tensor) -> Tensor:
        """The term for one batch.

        Parameters
        ----------
        model : torch.nn.Module
            The gated network, which made the scores just before.
        scores : Tensor of shape (n, classes)
            What it answered.
        labels : Tensor of shape (n,), int64
            The classes.

        Returns
        -------
        Tensor of shape ()
            To be added to the loss.

        Raises
        ------
        TypeError, ValueError
            No labels, another number of them than of scores, scores of one class, or another
            network.

        Examples
        --------
        >>> import torch
        >>> from epruner.companions import manidp
        >>> from torch import nn
        >>> conv = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
        >>> model = nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
        >>> gated = manidp.gate(model, (1, 3, 8, 8)).train()
        >>> scores = gated(torch.randn(32, 3, 8, 8))
        >>> manidp.Regularizer(gated, epochs=3)(gated, scores, torch.arange(32) % 2).shape
        torch.Size([])
        """
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels must be a tensor (n,), got {type(labels).__name__}")
        if labels.shape != scores.shape[:1]:
            raise ValueError(
                f"{len(scores)} scores and labels of shape {tuple(labels.shape)}; there must be "
                "one class number for each input"
            )
        if scores.dim() != 2 or scores.shape[1] < 2:
            raise ValueError(
                f"scores of shape {tuple(scores.shape)}: which inputs are easy shows on two or "
                "more classes, (n, classes)"
            )
        if model is not self._gated or any(gate.seen is None for gate in self._gates):
            raise ValueError("this regularizer is for the network it was made with, in training")
        losses = F.cross_entropy(scores.float(), labels, reduction="none")
        easy_below = self._gated.easy_below
        weights = F.relu(easy_below - losses) / easy_below.clamp_min(1e-12)
        terms = []
        for gate in self._gates:
            assert gate.seen is not None
            means, saliency = (x.float() for x in gate.seen)
            gate.seen = None
            sparse = (weights * saliency.mean(1)).mean()
            unlike = (_cosines(means) - _cosines(saliency)).square().mean()
            terms.append(self._sparsity * sparse + self._similarity * unlike)
            gate.saliency_sum += saliency.detach().sum(0)
        self._gated.loss_sum += losses.detach().sum()
        self._gated.count += len(labels)
        self._labels.update(labels.tolist())
        return torch.stack(terms).sum()


def _cosines(x: Tensor) -> Tensor:
    """Between the rows of a matrix; (n, n)."""
    x = F.normalize(x)
    return x @ x.T
