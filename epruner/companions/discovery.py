"""Classes that nobody has named: exemplars mined from embeddings of what is unknown.

After Hwang et al., "Exemplar-Based Open-Set Panoptic Segmentation Network", CVPR 2021. There
k-means with a fixed number of clusters proposes classes; here affinity propagation does, which
needs no number. What accepts, refuses and grows a class is the same for any clusterer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from epruner.cluster import AffinityPropagation
from epruner.cluster.backends.cuda.device import from_tensor
from epruner.cluster.types import Doubles, Floats, Indices

OBJECTNESS, MOST_OBJECTNESS = 0.90, 0.99
KNOWN_SHARE = 0.1  # of a cluster; with more, it is a known class
_LEAST = 1 / 15  # of the distance: 0.01 of 0.15, and what it loses with every round
_ROWS = 4096  # multiplied at a time


def exemplar_clusters(X: Floats) -> Indices:
    """Clusters (n,) of unit vectors (n, d), by affinity propagation on their cosines.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Unit vectors, float32 or float64.

    Returns
    -------
    ndarray of shape (n,)
        Cluster of each; -1 for none.

    Raises
    ------
    ValueError
        If a row is all zeros, or entries are NaN or infinite.

    Examples
    --------
    >>> import numpy as np
    >>> from epruner.companions import discovery
    >>> X = np.array([[1.0, 0.0], [0.96, 0.28], [0.0, 1.0], [0.28, 0.96]])
    >>> discovery.exemplar_clusters(X).tolist()
    [0, 0, 1, 1]
    """
    labels: Indices = AffinityPropagation(affinity="cosine", damping="auto").fit(X).labels_
    return labels


@dataclass(frozen=True)
class DiscoveredClasses:
    """Classes found among embeddings, and what stands for them.

    Attributes
    ----------
    labels : ndarray of shape (n,)
        New class of each embedding, in the order in which classes were found; -1 for none.
    exemplars : ndarray of shape (m,)
        Indices, ascending, of the embeddings that stand for their class.
    embeddings : ndarray of shape (n, d)
        All that were ever asked about, scaled to length 1.
    known : ndarray of shape (k, d)
        Those of the known classes, scaled to length 1.
    distance : float
        Cosine distance within which an embedding joins a class in the first round.
    rounds : int
        How often classes were extended.

    Examples
    --------
    >>> import numpy as np
    >>> from epruner.companions import discovery
    >>> noise = np.random.default_rng(0).normal(size=(60, 3))
    >>> clouds = np.eye(3).repeat(20, axis=0) + 0.1 * noise
    >>> found = discovery.discover_classes(clouds, known=clouds[:20], tightest=1)
    >>> found.n_classes, np.bincount(found.labels + 1).tolist()  # the first: of no new class
    (2, [20, 20, 20])
    """

    labels: Indices
    exemplars: Indices
    embeddings: Floats = field(repr=False)
    known: Floats = field(repr=False)
    distance: float
    rounds: int = 0

    @property
    def n_classes(self) -> int:
        """How many classes were found."""
        return int(self.labels.max(initial=-1)) + 1

    def extend(self, more: ArrayLike) -> DiscoveredClasses:
        """Let further embeddings join the classes there are; none is founded.

        In round r (1, 2, ...) an embedding joins the class of its nearest exemplar where their
        cosine exceeds ``1 - max(distance / 15, distance * (1 - r / 15))``, which is 1 - max(0.01,
        0.15 - 0.01 r) by default, and no known embedding is nearer. What has joined is an exemplar
        from the next round on: that is what the stricter threshold is for.

        Parameters
        ----------
        more : array-like or tensor of shape (m, d)
            Embeddings of the same width; only directions count.

        Returns
        -------
        DiscoveredClasses
            Of all n + m embeddings; the last m labels are those of `more`.

        Raises
        ------
        ValueError
            If `more` is empty, of another width, or holds NaN, infinities or a row of zeros.
        TypeError
            If `more` holds no numbers.

        Examples
        --------
        >>> import numpy as np
        >>> from epruner.companions import discovery
        >>> noise = np.random.default_rng(0).normal(size=(60, 3))
        >>> clouds = np.eye(3).repeat(20, axis=0) + 0.1 * noise
        >>> found = discovery.discover_classes(clouds, known=clouds[:20], tightest=1)
        >>> more = found.extend([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        >>> (more.labels[-2:] >= 0).tolist()  # the second is of the class that was known
        [True, False]
        """
        X = _directions(more, "more", self.embeddings.shape[1]).astype(self.embeddings.dtype)
        rounds = self.rounds + 1
        within = self.distance * max(_LEAST, 1 - rounds * _LEAST)
        stand = self.embeddings[self.exemplars]
        joined = _join(X, stand, self.labels[self.exemplars], self.known, within)
        new = len(self.labels) + np.flatnonzero(joined >= 0)
        return DiscoveredClasses(
            np.concatenate([self.labels, joined]),
            np.concatenate([self.exemplars, new]),
            np.concatenate([self.embeddings, X]),
            self.known,
            self.distance,
            rounds,
        )


def discover_classes(
    embeddings: ArrayLike,
    *,
    known: ArrayLike | None = None,
    objectness: ArrayLike | None = None,
    source: ArrayLike | None = None,
    distance: float = 0.15,
    tightest: float = 0.4,
    clusterer: Callable[[Floats], ArrayLike] = exemplar_clusters,
) -> DiscoveredClasses:
    """Find classes that are not known among embeddings.

    Embeddings and known ones are clustered together, by direction. A cluster of which more than a
    tenth is known is a known class. The others are looked at from the tightest on (by the mean
    cosine of their members to their exemplar, the member most like all others). With f the share of
    clusters that have become a class so far, a cluster is accepted where

    - it is among the `tightest`,
    - the mean objectness of its members is at least ``min(0.99, 0.90 (1 + f))``,
    - two members from different images are at a cosine distance of at most
      ``max(distance / 15, distance (1 - f))``: max(0.01, 0.15 (1 - f)) by default.

    All members of such pairs become exemplars: of an earlier class, if the cluster's exemplar is
    within `distance` of one of its exemplars, else of a new class. At the end every embedding
    that is in no known class's cluster joins its nearest exemplar within `distance`, unless a known
    embedding is nearer.

    Parameters
    ----------
    embeddings : array-like or tensor of shape (n, d)
        Real numbers; float32 and float64 are used as they are. Only directions count.
    known : array-like or tensor of shape (k, d), optional
        Embeddings of classes that have names. Without them every class is new.
    objectness : array-like of shape (n,), optional
        How sure it is that each is an object at all, in [0, 1]. Default: 1.
    source : array-like of shape (n,), optional
        The image that each comes from: integers or strings. Default: each from its own.
    distance : float in (0, 1], default=0.15
        Cosine distance at which two embeddings may show the same. The paper's, for a detector's
        features; an encoder of sentences needs about 0.6.
    tightest : float in (0, 1], default=0.4
        Share of the clusters, of two members at least, that may become classes. With few clean
        clusters, 1: at 0.4 most of them are never looked at.
    clusterer : callable, default=exemplar_clusters
        From unit vectors (n + k, d) to clusters (n + k,), integers; -1 for none. K-means, e.g.:
        ``KMeans(128).fit_predict``.

    Returns
    -------
    DiscoveredClasses
        Without classes, and labels of -1 only, where no cluster was accepted.

    Raises
    ------
    ValueError
        If there are fewer than two embeddings or all have one direction; if entries are NaN or
        infinite, a row is all zeros, lengths differ, or a parameter is out of range.
    TypeError
        If embeddings or objectness hold no numbers, or `clusterer` is not callable.

    Examples
    --------
    >>> import numpy as np
    >>> from epruner.companions import discovery
    >>> noise = np.random.default_rng(0).normal(size=(60, 3))
    >>> clouds = np.eye(3).repeat(20, axis=0) + 0.1 * noise
    >>> discovery.discover_classes(clouds, known=clouds[:20], tightest=1).n_classes
    2
    """
    X = _directions(embeddings, "embeddings")
    n, d = X.shape
    if n < 2:
        raise ValueError("embeddings holds 1 row: a class takes two, from different images")
    if np.all(X @ X[0] > 1 - 1e-6):
        raise ValueError(f"all {n} embeddings have one direction: nothing tells classes apart")
    named = X[:0] if known is None else _directions(known, "known", d).astype(X.dtype)
    sure = _objectness(objectness, n)
    image = np.arange(n) if source is None else _images(source, n)
    if len(np.unique(image)) == 1:
        raise ValueError(f"all {n} embeddings have one source: a class takes two, from different")
    for name, value in (("distance", distance), ("tightest", tightest)):
        if not isinstance(value, Real) or not 0 < value <= 1:
            raise ValueError(f"{name}={value!r} must be in (0, 1]")
    if not callable(clusterer):
        raise TypeError(
            f"clusterer={clusterer!r} must be callable, from embeddings to labels, as the "
            "fit_predict of an estimator"
        )

    clusters = _clusters(clusterer, np.concatenate([X, named]))
    is_new, members = _new_clusters(clusters, n)
    total = len(np.unique(clusters[clusters >= 0]))
    order, centres = _from_the_tightest(X, members, tightest)
    labels, found = np.full(n, -1), 0
    for cluster, centre in zip(order, centres, strict=True):
        share = found / total
        if sure[cluster].mean() < min(MOST_OBJECTNESS, OBJECTNESS * (1 + share)):
            continue
        within = distance * max(_LEAST, 1 - share)
        pairs = (1 - X[cluster] @ X[cluster].T <= within) & (
            image[cluster][:, None] != image[cluster]
        )
        paired = cluster[pairs.any(1)]
        if not len(paired):
            continue
        stand = np.flatnonzero(labels >= 0)
        (earlier,) = _join(X[[centre]], X[stand], labels[stand], named[:0], distance)
        labels[paired] = found if earlier < 0 else earlier
        found += earlier < 0
    exemplars = np.flatnonzero(labels >= 0)
    rest = np.flatnonzero(is_new & (labels < 0))
    labels[rest] = _join(X[rest], X[exemplars], labels[exemplars], named, distance)
    return DiscoveredClasses(labels, exemplars, X, named, float(distance))


def _clusters(clusterer: Callable[[Floats], ArrayLike], X: Floats) -> Indices:
    clusters = np.asarray(from_tensor(clusterer(X), "clusterer(X)"))
    if clusters.shape != (len(X),) or clusters.dtype.kind not in "iu":
        raise ValueError(
            f"clusterer returned {clusters.dtype} of shape {clusters.shape}: one integer for each "
            f"of {len(X)} embeddings is needed"
        )
    return clusters.astype(np.intp)


def _new_clusters(clusters: Indices, n: int) -> tuple[NDArray[np.bool_], list[Indices]]:
    """Which of the first `n` points are in no known class's cluster, and the others' members."""
    ids, inverse = np.unique(clusters, return_inverse=True)
    size = np.bincount(inverse, minlength=len(ids))
    share = np.bincount(inverse[n:], minlength=len(ids)) / size
    is_new = (share <= KNOWN_SHARE)[inverse[:n]] | (clusters[:n] < 0)
    new = np.flatnonzero(is_new & (clusters[:n] >= 0))
    groups = np.unique(clusters[new])
    return is_new, [new[clusters[new] == group] for group in groups]


def _from_the_tightest(
    X: Floats, members: list[Indices], tightest: float
) -> tuple[list[Indices], list[int]]:
    """Clusters of two members at least, the tightest first, and their exemplars."""
    found = []
    for rows in members:
        if len(rows) < 2:
            continue
        likeness = X[rows] @ X[rows].mean(0, dtype=X.dtype)
        centre = int(rows[likeness.argmax()])
        found.append((float(likeness.max()), rows, centre))
    found.sort(key=lambda entry: -entry[0])
    found = found[: int(np.ceil(tightest * len(found)))]
    return [rows for _, rows, _ in found], [centre for _, _, centre in found]


def _join(X: Floats, stand: Floats, classes: Indices, known: Floats, within: float) -> Indices:
    """Class of the nearest exemplar that is closer than `within` and than any known; -1: none."""
    labels = np.full(len(X), -1)
    if not len(stand):
        return labels
    for start in range(0, len(X), _ROWS):
        rows = X[start : start + _ROWS]
        cosines = rows @ stand.T
        nearest = cosines.argmax(1)
        best = cosines.max(1)
        joins = (best > 1 - within) & (best >= (rows @ known.T).max(1, initial=-1.0))
        labels[start : start + _ROWS][joins] = classes[nearest[joins]]
    return labels


def _directions(x: Any, name: str, width: int | None = None) -> Floats:
    """Rows (n, d) scaled to length 1, in float32 or float64."""
    array = np.asarray(from_tensor(x, name))
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be of shape (n, d), neither of them 0: got {array.shape}")
    if width is not None and array.shape[1] != width:
        raise ValueError(f"{name} has {array.shape[1]} columns, the embeddings have {width}")
    wrong = ~np.isfinite(array).all(1)
    if wrong.any():
        raise ValueError(f"{name}[{wrong.argmax()}] holds NaN or infinite values")
    largest = np.abs(array).max(1, keepdims=True)  # so that squares neither over- nor underflow
    if not largest.all():
        raise ValueError(f"{name}[{largest.argmin()}] is all zeros and has no direction")
    array = array / largest
    scaled: Floats = array / np.linalg.norm(array, axis=1, keepdims=True)
    return scaled


def _objectness(objectness: ArrayLike | None, n: int) -> Doubles:
    if objectness is None:
        return np.ones(n)
    array = np.asarray(from_tensor(objectness, "objectness"))
    if array.dtype.kind not in "iuf":
        raise TypeError(f"objectness must hold real numbers, got dtype {array.dtype}")
    if array.shape != (n,):
        raise ValueError(f"objectness must have one entry for each of {n}: got {array.shape}")
    wrong = ~((array >= 0) & (array <= 1))
    if wrong.any():
        at = wrong.argmax()
        raise ValueError(f"objectness[{at}] is {array[at]}: it must be in [0, 1]")
    return array.astype(np.float64)


def _images(source: ArrayLike, n: int) -> Indices:
    array = np.asarray(from_tensor(source, "source"))
    if array.shape != (n,):
        raise ValueError(f"source must name the image of each of {n}: got shape {array.shape}")
    numbers: Indices = np.unique(array, return_inverse=True)[1]
    return numbers
