"""Pictures of clusterings. matplotlib is imported when one is drawn (extra ``plot``).

Every function draws on the axes that it is given, or on a new figure that pyplot does not know:
``plot_clusters(model, X).figure.savefig("clusters.png")``. Colours are told apart under every
common colour-vision deficiency.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from epruner import _pictures
from epruner._pictures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from epruner.cluster.hierarchy import ExemplarHierarchy, merge_exemplars
from epruner.cluster.sums import Groups, Sums, sums_of
from epruner.cluster.types import Clustering, Floats, Indices

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_clusters", "plot_exemplars", "plot_heatmap", "plot_preference_path"]

_COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE)
_RASTERISED = 5_000  # points; more are pixels in svg and pdf, too
_PIXELS = 800  # rows of a heat map; more points are averaged
_WIDE = 30  # times the smallest value is the largest where a scale is logarithmic
_OUTLINED = 250  # clusters; the borders of more would hide what is between them
_NAMED = 64  # points of a heat map that have their number at its edge
_SIMILARITY = {"euclidean": "negative squared distance", "cosine": "cosine similarity"}


class PreferencePath(Protocol):
    """Clusterings at several preferences, as `epruner.preference_path` returns them."""

    @property
    def preferences(self) -> Floats: ...
    @property
    def n_clusters(self) -> Indices: ...
    @property
    def net_similarity(self) -> Floats: ...
    @property
    def converged(self) -> NDArray[np.bool_]: ...


def plot_clusters(model: Any, X: ArrayLike, *, ax: Axes | None = None) -> Axes:
    """Draw points tied to their exemplars.

    Parameters
    ----------
    model : AffinityPropagation or Clustering
        A fitted model, scikit-learn's will do, or what ``ExemplarHierarchy.cut`` returns.
    X : array-like of shape (n, d)
        Coordinates of the points, d at least 2. More than two are projected on their first two
        principal components, whose share of the variance the axes tell.
    ax : matplotlib Axes, optional
        Where to draw; a new figure's by default.

    Returns
    -------
    matplotlib Axes
        Where it was drawn; its ``figure`` saves it.

    Raises
    ------
    ImportError
        When matplotlib is absent.
    NotFittedError
        If the model is not fitted.
    ValueError
        If `X` has another number of points, or fewer than two columns.

    Examples
    --------
    >>> from epruner import AffinityPropagation, plots
    >>> X = [[0, 0], [1, 0], [0, 1], [9, 9], [9, 8], [8, 9]]
    >>> ax = plots.plot_clusters(AffinityPropagation().fit(X), X)
    >>> ax.figure.savefig("clusters.png")
    """
    exemplars, labels = _clustering(model)
    places, names = _plane(X, labels.size)
    ax = _axes(ax, 6.4, 5.6)
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba_array

    n, K = labels.size, exemplars.size
    area = float(np.clip(6000 / n, 1.5, 24))  # of a point, in square points
    bold = float(np.clip(4000 / max(K, 1), 9, 70))
    rasterised = n > _RASTERISED
    alone = places[labels < 0]
    if len(alone):
        label = f"without exemplar: {len(alone):,}"
        ax.scatter(
            alone[:, 0], alone[:, 1], s=area, color=GREY, marker="x", linewidths=0.6, label=label
        )
    if K:
        colours = to_rgba_array(_COLOURS)[_apart(places[exemplars])]
        members = np.setdiff1d(np.flatnonzero(labels >= 0), exemplars)
        own = labels[members]
        ties = LineCollection(
            list(np.stack([places[members], places[exemplars[own]]], axis=1)),
            colors=colours[own],
            linewidths=float(np.clip(25 / np.sqrt(n), 0.25, 0.9)),
            alpha=float(np.clip(35 / np.sqrt(n), 0.2, 0.6)),
            zorder=1,
            rasterized=rasterised,
        )
        ax.add_collection(ties)
        x, y = places[members].T
        ax.scatter(x, y, s=area, c=colours[own], linewidths=0, zorder=2, rasterized=rasterised)
        x, y = places[exemplars].T
        style: dict[str, Any] = {"edgecolors": "black", "linewidths": 0.7, "zorder": 3}
        ax.scatter(x, y, s=bold, c=colours, label="exemplar", **style)
        ax.legend(**_pictures.ABOVE, ncols=2)
    ax.autoscale_view()
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    ax.set_title(_counted(model, n, K), loc="left", fontsize=9, pad=20)  # above the legend
    return ax


def plot_heatmap(
    model: Any,
    X: ArrayLike | None = None,
    hierarchy: ExemplarHierarchy | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw similarities, points of a cluster side by side, with the dendrogram of the clusters.

    Clusters come in the order of the hierarchy's leaves, in each its exemplar and then the others
    by their similarity to it, last the points without a cluster. Up to 250 clusters are outlined.
    More than 800 points are averaged to pixels; no matrix of similarities is made from features.

    Parameters
    ----------
    model : AffinityPropagation
        Fitted; scikit-learn's will do.
    X : array-like of shape (n, d) or (n, n), optional
        What the model was fitted on. Needed where it kept no ``affinity_matrix_``.
    hierarchy : ExemplarHierarchy, optional
        Of this model. None calls ``merge_exemplars(model, X)``.
    ax : matplotlib Axes, optional
        The dendrogram stands to its left.

    Returns
    -------
    matplotlib Axes
        Of the heat map. The dendrogram is the first of its ``child_axes``.

    Raises
    ------
    ImportError
        When matplotlib is absent.
    NotFittedError
        If the model is not fitted.
    TypeError
        If the similarities are sparse.
    ValueError
        If the model has no clusters, `X` is missing or not what it was fitted on, or the hierarchy
        is another model's.

    Examples
    --------
    >>> from epruner import AffinityPropagation, plots
    >>> X = [[0, 0], [1, 0], [0, 1], [9, 9], [9, 8], [8, 9], [20, 0]]
    >>> ax = plots.plot_heatmap(AffinityPropagation().fit(X), X)
    >>> ax.get_xlabel()
    'point, ordered by cluster'
    >>> ax.figure.savefig("heatmap.png")
    """
    sums = sums_of(model, X)
    exemplars, labels = _clustering(model)
    hierarchy = merge_exemplars(model, X) if hierarchy is None else hierarchy
    if not np.array_equal(hierarchy.leaves.labels, labels):
        raise ValueError("the hierarchy is another model's: its clusters are not this one's")
    ax = _axes(ax, 7.6, 5.8)
    n = labels.size
    order, starts = _ordered(sums, exemplars, labels, hierarchy.leaf_order)
    pixels = Groups(order, np.linspace(0, n, min(n, _PIXELS), endpoint=False).astype(np.intp))
    means = sums.between(pixels) / np.outer(pixels.sizes, pixels.sizes)
    seen = means[~np.eye(len(means), dtype=bool) & (means > -np.inf)]
    low, high = np.quantile(seen, [0.01, 0.99]) if seen.size else (sums.top - 1, sums.top)
    image = ax.imshow(
        np.ma.masked_equal(means, -np.inf),
        cmap="cividis",
        vmin=low,
        vmax=high,
        interpolation="nearest" if n <= _PIXELS else "antialiased",
        extent=(-0.5, n - 0.5, n - 0.5, -0.5),
    )
    K = exemplars.size
    if K <= _OUTLINED:
        _pictures.outline_blocks(ax, starts, float(np.clip(40 / K, 0.3, 1.2)))
    _draw_dendrogram(ax, hierarchy, (starts[:-1] + starts[1:] - 1) / 2)
    ax.set_yticks([])
    if n <= _NAMED:
        ax.set_xticks(range(n), [str(i) for i in order], rotation=90, fontsize=300 / max(n, 40))
    else:
        ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("point, ordered by cluster")
    label = _SIMILARITY.get(model.affinity, "similarity")
    colour_bar = ax.figure.colorbar(image, ax=ax, label=label, shrink=0.85, extend="both")
    colour_bar.ax.tick_params(labelsize=8)
    title = _counted(model, n, K)
    if n > _PIXELS:
        title += f"; a pixel is the mean of about {n / _PIXELS:.3g} x {n / _PIXELS:.3g} points"
    ax.set_title(title, fontsize=9)
    return ax


def plot_preference_path(path: PreferencePath, *, ax: Axes | None = None) -> Axes:
    """Draw the number of clusters and the net similarity over the preference.

    Parameters
    ----------
    path : PreferencePath
        Has ``preferences``, ``n_clusters``, ``net_similarity`` and ``converged``, each of shape
        (m,). Runs that did not converge are hollow.
    ax : matplotlib Axes, optional
        For the number of clusters; the net similarity has its axis on the right.

    Returns
    -------
    matplotlib Axes
        Of the number of clusters.

    Raises
    ------
    ImportError
        When matplotlib is absent.
    ValueError
        If the path is empty or its arrays are not of one length.

    Examples
    --------
    >>> from epruner import plots, preference_path
    >>> from sklearn.datasets import make_blobs
    >>> X, _ = make_blobs(60, cluster_std=0.5, random_state=0)
    >>> ax = plots.plot_preference_path(preference_path(X, [-2000, -100, -20, -0.5]))
    >>> ax.get_xlabel()
    'preference'
    """
    preferences, n_clusters, net = (
        np.asarray(each) for each in (path.preferences, path.n_clusters, path.net_similarity)
    )
    converged = np.asarray(path.converged, dtype=bool)
    shapes = [each.shape for each in (preferences, n_clusters, net, converged)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1 or shapes[0] == (0,):
        raise ValueError(
            "preferences, n_clusters, net_similarity and converged must be of one length, at least "
            f"1; their shapes are {shapes}"
        )
    ax = _axes(ax, 6.4, 4.2)
    in_order = np.argsort(preferences, kind="stable")
    right = ax.twinx()
    net = np.where(np.isfinite(net), net, np.nan)  # -inf where there is no cluster
    for axes, values, colour, marker, label in (
        (ax, n_clusters, BLUE, "o", "number of clusters"),
        (right, net, VERMILLION, "D", "net similarity"),
    ):
        axes.plot(preferences[in_order], values[in_order], color=colour, linewidth=1)
        for some, fill in ((converged, colour), (~converged, "white")):
            axes.plot(
                preferences[some],
                values[some],
                marker,
                color=colour,
                markerfacecolor=fill,
                markersize=6 if axes is ax else 4,
                clip_on=False,
            )
        axes.set_ylabel(label, color=colour)
        axes.tick_params(axis="y", colors=colour)
    if not converged.all():
        ax.plot([], [], "o", color=GREY, markerfacecolor="white", label="not converged")
        ax.legend(**_pictures.ABOVE)
    _widen(ax.set_xscale, ax.set_xlim, preferences)
    _widen(ax.set_yscale, ax.set_ylim, n_clusters)
    _widen(right.set_yscale, right.set_ylim, net)
    ax.set_xlabel("preference")
    return ax


def plot_exemplars(
    model: Any,
    shape: Sequence[int],
    X: ArrayLike | None = None,
    *,
    most: int = 60,
    ax: Axes | None = None,
) -> Axes:
    """Draw exemplars that are images, those of the largest clusters first.

    Parameters
    ----------
    model : AffinityPropagation or Clustering
        A fitted model, scikit-learn's will do, or what ``ExemplarHierarchy.cut`` returns.
    shape : (h, w) or (h, w, 3)
        Of each image; d = h w or 3 h w.
    X : array-like of shape (n, d), optional
        The images. Needed where the model has no ``cluster_centers_``: after a fit on precomputed
        similarities, and for a `Clustering`.
    most : int, default=60
        Exemplars to draw.
    ax : matplotlib Axes, optional
        Where to draw; a new figure's by default.

    Returns
    -------
    matplotlib Axes
        All images stand on it.

    Raises
    ------
    ImportError
        When matplotlib is absent.
    NotFittedError
        If the model is not fitted.
    ValueError
        If there are no clusters, `X` is missing or has another number of points, `shape` is not
        that of the features, or `most` is less than 1.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from epruner import AffinityPropagation, plots
    >>> images = load_digits().data[:100]  # (100, 64)
    >>> model = AffinityPropagation(n_clusters=5, damping=0.9).fit(images)
    >>> plots.plot_exemplars(model, (8, 8)).get_title()
    '5 exemplars, with cluster sizes'
    """
    exemplars, labels = _clustering(model)
    if exemplars.size == 0:
        raise ValueError("the model has no clusters: there is no exemplar to draw")
    if most < 1:
        raise ValueError(f"most={most} must be at least 1")
    images = _images(model, exemplars, labels.size, shape, X)
    sizes = np.bincount(labels[labels >= 0], minlength=exemplars.size)
    shown = np.argsort(-sizes, kind="stable")[:most]
    h, w = shape[:2]
    columns = int(np.ceil(np.sqrt(shown.size * 1.4 * h / w)))
    columns = min(max(columns, 1), shown.size)
    rows = -(-shown.size // columns)
    tall, wide = 1.32 * h, 1.12 * w  # of a cell: above each image is its number of points
    inches = 0.72 / max(h, w)
    ax = _axes(ax, max(columns * wide * inches, 3.2), rows * tall * inches + 0.4)
    low, high = float(images.min()), float(images.max())
    for place, c in enumerate(shown):
        top, left = (place // columns) * tall, (place % columns) * wide
        image = (images[c] - low) / max(high - low, np.finfo(float).tiny)
        ax.imshow(image, cmap="gray", vmin=0, vmax=1, extent=(left, left + w, top + h, top))
        ax.text(
            left + w / 2, top - 0.03 * h, f"{sizes[c]:,}", ha="center", va="bottom", fontsize=7.5
        )
    ax.set_xlim(-0.06 * w, columns * wide - 0.06 * w)
    ax.set_ylim(rows * tall - 0.3 * h, -0.3 * h)
    ax.set_axis_off()
    which = f"{exemplars.size} exemplar{'s' * (exemplars.size > 1)}"
    if shown.size < exemplars.size:
        which = f"exemplars of the {shown.size} largest of {exemplars.size:,} clusters"
    ax.set_title(f"{which}, with cluster sizes", fontsize=9)
    return ax


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    return _pictures.new_figure(width, height).subplots() if ax is None else ax


def _clustering(model: Any) -> tuple[Indices, Indices]:
    """Exemplars and labels."""
    if isinstance(model, Clustering):
        return model.exemplars, model.labels
    check_is_fitted(model, "labels_")
    return np.asarray(model.cluster_centers_indices_, dtype=np.intp), model.labels_


def _counted(model: Any, n: int, K: int) -> str:
    converged = getattr(model, "converged", getattr(model, "converged_", True))
    text = f"{n:,} points, {K:,} cluster{'s' * (K != 1)}"
    return text if converged else f"{text}, not converged"


def _plane(X: ArrayLike, n: int) -> tuple[Floats, tuple[str, str]]:
    """Two coordinates of each point, and the names of both."""
    features = check_array(X, dtype=np.float64)
    if features.shape[0] != n:
        raise ValueError(f"X has {features.shape[0]} points, the model was fitted on {n}")
    if features.shape[1] < 2:
        raise ValueError("X has one column; a picture of points in the plane needs two or more")
    if features.shape[1] == 2:
        return features, ("first feature", "second feature")
    projection = PCA(2, random_state=0)
    places = projection.fit_transform(features)
    first, second = 100 * projection.explained_variance_ratio_
    return places, (
        f"principal component 1 ({first:.1f} % of the variance)",
        f"principal component 2 ({second:.1f} %)",
    )


def _apart(places: Floats) -> Indices:
    """A colour for each exemplar: the one whose nearest bearer, of those before, is farthest."""
    colours = np.zeros(len(places), dtype=np.intp)
    for i in range(1, len(places)):
        distances = np.square(places[:i] - places[i]).sum(axis=1)
        nearest = np.full(len(_COLOURS), np.inf)
        np.minimum.at(nearest, colours[:i], distances)
        colours[i] = nearest.argmax()
    return colours


def _ordered(
    sums: Sums, exemplars: Indices, labels: Indices, leaves: Indices
) -> tuple[Indices, Indices]:
    """Points from cluster to cluster, and where each cluster begins and the last one ends."""
    rank = np.full(exemplars.size + 1, exemplars.size)  # of the label -1: after all others
    rank[leaves] = np.arange(exemplars.size)
    points = np.arange(labels.size)
    own = np.where(labels >= 0, exemplars[labels], points)
    order = np.lexsort([-sums.links(points, own), own != points, rank[labels]])
    return order, np.searchsorted(rank[labels[order]], np.arange(exemplars.size + 1))


def _draw_dendrogram(ax: Axes, hierarchy: ExemplarHierarchy, rows: Floats) -> None:
    """Draw the merges to the left of a heat map; `rows` are the middles of the leaves in order."""
    from matplotlib.collections import LineCollection

    tree = ax.inset_axes((-0.25, 0, 0.24, 1), sharey=ax)
    tree.spines[["top", "left", "right"]].set_visible(False)
    tree.tick_params(axis="y", length=0, labelleft=False)
    tree.tick_params(axis="x", labelsize=7.5, labelrotation=90)
    tree.locator_params(axis="x", nbins=3, prune="both")
    if not len(hierarchy.merges):
        tree.set_axis_off()
        return
    merged = hierarchy.top - hierarchy.distances
    spread = merged[0] - merged[-1] or hierarchy.top - merged[0] or 1.0
    leaf = merged[0] + 0.05 * spread
    middles = np.empty(rows.size + len(merged))
    middles[hierarchy.leaf_order] = rows
    ends = np.concatenate([np.full(rows.size, leaf), merged])
    for s, pair in enumerate(hierarchy.merges, rows.size):
        middles[s] = middles[pair].mean()
    low, high = hierarchy.merges.T
    forks = [(ends[low], middles[low]), (merged, middles[low])]
    forks += [(merged, middles[high]), (ends[high], middles[high])]
    paths = np.stack([np.stack(corner, axis=-1) for corner in forks], axis=1)  # (merges, 4, 2)
    width = float(np.clip(30 / rows.size, 0.3, 1))
    tree.add_collection(LineCollection(list(paths), colors=GREY, linewidths=width))
    tree.set_xlim(merged[-1] - 0.05 * spread, leaf)
    tree.set_xlabel("similarity\nof merge", fontsize=8)


def _widen(
    set_scale: Callable[..., None], set_limits: Callable[..., Any], values: NDArray[Any]
) -> None:
    """Make an axis logarithmic, around 0 linear, where values of one sign differ in magnitude."""
    values = values[np.isfinite(values)]
    magnitudes = abs(values[values != 0])
    mixed = values.size > 0 and values.min() < 0 < values.max()
    if mixed or magnitudes.size == 0 or magnitudes.max() < _WIDE * magnitudes.min():
        return
    set_scale("symlog", linthresh=magnitudes.min())
    ends = np.array([values.min(), values.max()])
    set_limits(ends * np.where(ends < 0, [1.4, 0.7], [0.7, 1.4]))


def _images(
    model: Any, exemplars: Indices, n: int, shape: Sequence[int], X: ArrayLike | None
) -> Floats:
    if len(shape) not in (2, 3) or min(shape) < 1 or tuple(shape[2:]) not in ((), (3,)):
        raise ValueError(f"shape={tuple(shape)} must be (h, w) or (h, w, 3)")
    if X is not None:
        features = check_array(X, dtype=np.float64)
        if features.shape[0] != n:
            raise ValueError(f"X has {features.shape[0]} points, the model was fitted on {n}")
        centers = features[exemplars]
    elif hasattr(model, "cluster_centers_"):
        centers = check_array(model.cluster_centers_, dtype=np.float64)
    else:
        raise ValueError("the model has no features of its exemplars: pass the images as X")
    if centers.shape[1] != np.prod(shape):
        raise ValueError(
            f"shape={tuple(shape)} makes images of {np.prod(shape)} numbers; the points have "
            f"{centers.shape[1]} features"
        )
    images: Floats = centers.reshape(-1, *shape)
    return images
