"""From features to similarities, and from similarities to preferences."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def negative_squared_distances(X: Floats) -> Floats:
    """Return S = -||x_i - x_k||² for the rows of `X` (n, d), in X's dtype, with a zero diagonal.

    The features are centred first, and pairs that are close compared with their norms are
    evaluated again by direct difference, so that near-duplicates keep their distance.
    """
    X = X - X.mean(axis=0, dtype=np.float64).astype(X.dtype)
    norms = np.einsum("ij,ij->i", X, X)
    S = X @ X.T
    S *= 2
    S -= norms[:, None]
    S -= norms[None, :]
    np.minimum(S, 0, out=S)
    close = -S < (norms[:, None] + norms[None, :]) * np.sqrt(np.finfo(X.dtype).eps)
    rows, cols = np.nonzero(np.triu(close, 1))
    exact = -np.square(X[rows].astype(np.float64) - X[cols]).sum(axis=1)
    S[rows, cols] = S[cols, rows] = exact
    np.fill_diagonal(S, 0)
    return S


def median_preference(S: Floats, beta: float) -> Floats:
    """Return `beta` times the median of every column of `S` (n, n), zero diagonal included.

    The preference rule of Lin et al., "Network Pruning using Adaptive Exemplar Filters",
    arXiv 2101.07985: similarities are negative, so a larger `beta` means fewer exemplars.
    """
    return (beta * np.median(S, axis=0)).astype(S.dtype)
