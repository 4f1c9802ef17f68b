"""What the readers of a channel lose when another stands in for it: the exemplars' similarity.

If channel i goes, channel j can stand in for it: what i gave a layer at each of the k taps of its
kernel is predicted linearly from what j gives there. A layer that reads both loses

    E[i, j] = tr W_i' (G_ii - G_ij G_jj^-1 G_ji) W_i

with W_i (k, o) its weights on channel i and G the covariance of what it reads (k columns a
channel), in units of the variance of what it writes onto. Of several layers the losses add up.
With one tap this is the loss under the best multiple of j.

Affinity propagation on S = -E, where every filter that stays is paid for by a price times what it
costs, finds the channels that stand in best for the others: the net similarity that it maximises
is minus the error, minus the price of the network. E is not symmetric, as one channel may do for
another that cannot do for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from epruner.pruning.network.filters import Matrix
from epruner.pruning.select.readers import Reader
from epruner.pruning.trace.normal import RIDGE


def substitution_losses(readers: Sequence[Reader]) -> Matrix:
    """E, summed over the layers that read the channels: (n, n), zero on the diagonal, float64."""
    n = readers[0].channels
    losses = torch.zeros(n, n, dtype=torch.float64)
    for reader in readers:
        k = len(reader.gram) // n
        weights = reader.weights.view(n, k, -1)
        squares = weights @ weights.transpose(1, 2)  # W_i W_i': (n, k, k)
        gram = reader.gram.view(n, k, n, k)
        own = gram[torch.arange(n), :, torch.arange(n), :]  # G_jj: (n, k, k)
        alone = (squares * own).sum((1, 2))
        spread = own.diagonal(dim1=1, dim2=2).mean(1).clamp_min(0)
        # a channel that does not vary (but for rounding) stands in for nothing
        ridge = RIDGE * spread + 1e-12 * spread.max() + 1e-30
        eye = torch.eye(k, dtype=torch.float64)
        factors = torch.linalg.cholesky(own + ridge[:, None, None] * eye)
        for j in range(n):
            cross = gram[:, :, j, :]  # G_ij: (n, k, k)
            scaled = torch.linalg.solve_triangular(factors[j].T, cross, upper=True, left=False)
            losses[:, j] += (alone - (squares @ scaled * scaled).sum((1, 2))).clamp_min(0)
    found: Matrix = losses.numpy()
    np.fill_diagonal(found, 0)
    return found
