"""From features to similarities, and from similarities to preferences."""

from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.metrics import euclidean_distances
from sklearn.utils.extmath import row_norms

from epruner.cluster import validate
from epruner.cluster._compiled import native
from epruner.cluster.products import gram
from epruner.cluster.resources import effective_n_threads
from epruner.cluster.types import Floats


def negative_squared_distances(X: Floats, n_threads: int | None = None) -> Floats:
    """Return S = -||x_i - x_k||² for the rows of `X` (n, d), in X's dtype, with a zero diagonal.

    The features are centred first, and pairs that are close compared with their norms are
    evaluated again by direct difference, so that near-duplicates keep their distance.

    Raises
    ------
    ValueError
        If squared distances overflow the dtype, or `X` holds NaN.
    """
    X = np.ascontiguousarray(X)
    if native is not None:
        centred, norms = native.centre(X)
        validate.require_distances(norms)
        threads = effective_n_threads(n_threads)
        S = gram(centred, threads)
        native.distances_from_dots(S, X, norms, threads)
        return S
    centred = X - X.mean(axis=0, dtype=np.float64).astype(X.dtype)
    norms = np.einsum("ij,ij->i", centred, centred)
    validate.require_distances(norms)
    S = gram(centred, effective_n_threads(n_threads))
    S *= 2
    S -= norms[:, None] + norms[None, :]
    scale = np.sqrt(np.finfo(X.dtype).eps) * (norms[:, None] + norms[None, :])
    rows, cols = np.nonzero(scale > -S)
    S[rows, cols] = -np.square(X[rows].astype(np.float64) - X[cols]).sum(axis=1)
    np.fill_diagonal(S, 0)
    return S


def scikit_learns_similarities(X: Any) -> Floats:
    """scikit-learn's negative squared distances of dense or sparse `X` (n, d), to the last bit."""
    with np.errstate(over="ignore"):
        validate.require_distances(row_norms(X, squared=True))
    S: Floats = -euclidean_distances(X, squared=True)
    return S


def factors(X: Floats, mean: Floats | None) -> tuple[Floats, Floats | None]:
    """Return what is multiplied for the similarities of features `X` (m, d), and its squared norms.

    That is `X` less the `mean` (d,) of all features; None where inner products of `X` itself are
    the similarities.
    """
    if mean is None:
        return X, None
    factor = X - mean
    return factor, np.einsum("ij,ij->i", factor, factor)


def cosine(X: Floats, n_threads: int | None = None) -> Floats:
    """Return the cosine similarity of the rows of `X` (n, d) in X's dtype, ones on the diagonal."""
    S = gram(normalised(X), effective_n_threads(n_threads))
    np.fill_diagonal(S, 1)
    return S


def normalised(X: Floats) -> Floats:
    """Scale the rows of `X` (n, d) to length 1; rows of zeros are an error."""
    norms = np.einsum("ij,ij->i", X, X, dtype=np.float64)
    validate.require_distances(norms)
    norms = np.sqrt(norms)
    require_directions(norms)
    scaled: Floats = (X / norms[:, None]).astype(X.dtype)
    return scaled


def require_directions(lengths: Floats) -> None:
    """Raise if any of these lengths (n,) of points is zero."""
    if not lengths.all():
        raise ValueError(
            f"X[{int(np.argmin(lengths))}] is all zeros and has no direction: cosine similarity "
            "is not defined for it"
        )


def filled(S: Any) -> Floats:
    """Return the SciPy sparse matrix `S` (n, n) as an array, -inf where it stores nothing."""
    full = np.full(S.shape, -np.inf, dtype=S.dtype)
    stored = S.tocoo()
    full[stored.row, stored.col] = stored.data
    return full


def weighted(S: Any, weights: Floats) -> Any:
    """Return a copy of `S` (n, n), an array or CSR, whose row i is multiplied by ``weights[i]``.

    Raises
    ------
    ValueError
        If a product overflows: -inf would forbid the link.
    """
    try:
        with np.errstate(over="raise"):
            if not issparse(S):
                return S * weights[:, None]
            values = S.data * np.repeat(weights, np.diff(S.indptr))
    except FloatingPointError:
        raise ValueError(
            f"similarities times sample_weight overflow {S.dtype}: scale the weights and the "
            "preferences, as in sample_weight / sample_weight.max()"
        ) from None
    return type(S)((values, S.indices, S.indptr), shape=S.shape)


def column_medians(S: Floats, n_threads: int | None = None) -> Floats:
    """Return the median of every column of `S` (n, n), entries of -inf left out."""
    if native is not None:
        medians: Floats = native.column_medians(S, effective_n_threads(n_threads))
        return medians
    return np.nanmedian(np.where(-np.inf < S, S, np.nan), axis=0).astype(S.dtype)


def median_preference(S: Floats, beta: float) -> Floats:
    """Return `beta` times the median of every column of `S` (n, n), zero diagonal included.

    The preference rule of Lin et al., "Network Pruning using Adaptive Exemplar Filters",
    arXiv 2101.07985: similarities are negative, so a larger `beta` means fewer exemplars.
    """
    return (beta * column_medians(np.ascontiguousarray(S))).astype(S.dtype)


def median(S: Floats, n_threads: int | None = None) -> float:
    """Return the median of the entries of `S` (n, n), those of -inf left out; rounds as NumPy's."""
    low, high, between = _around_quantile(S, 0.5, diagonal=True, n_threads=n_threads)
    return float(np.mean(np.array([low, high] if between else [low], dtype=S.dtype)))


def quantile(S: Floats, q: float, *, diagonal: bool, n_threads: int | None = None) -> float:
    """Return the `q` quantile of the entries of `S` (n, n), those of -inf left out.

    `diagonal` says whether the diagonal counts. Interpolates as `numpy.quantile` does.
    """
    low, high, between = _around_quantile(S, q, diagonal=diagonal, n_threads=n_threads)
    return float(low + (high - low) * between)


def _around_quantile(
    S: Floats, q: float, *, diagonal: bool, n_threads: int | None
) -> tuple[float, float, float]:
    """Return the entries on both sides of a quantile, and where between them it lies, in [0, 1)."""
    found: tuple[float, float, float] | None
    if native is not None:
        found = native.quantile(S, q, diagonal, effective_n_threads(n_threads))
    else:
        chosen = S if diagonal else S[~np.eye(S.shape[0], dtype=bool)]
        chosen = chosen[chosen > -np.inf]
        position = q * (chosen.size - 1)
        rank = int(position)
        found = None
        if chosen.size > 0:
            sides = np.partition(chosen, [rank, min(rank + 1, chosen.size - 1)])
            found = float(sides[rank]), float(sides[rank + (rank < position)]), position - rank
    if found is None:
        raise ValueError("S has no finite similarity to take a quantile of; pass a preference")
    return found
