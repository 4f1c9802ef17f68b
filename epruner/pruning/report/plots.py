"""Pictures of a pruning run. matplotlib is imported when one is drawn (extra ``plot``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from epruner._pictures import (
    ABOVE,
    BLUE,
    GREY,
    ORANGE,
    VERMILLION,
    new_figure,
    outline_blocks,
)
from epruner._tables import amount, change
from epruner.pruning.graph.costs import Totals
from epruner.pruning.report.records import LayerReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_KEPT, _GONE = BLUE, ORANGE
_ROW = 0.22  # inches a layer
_SMALL = 7.5
_FEWEST, _ACROSS = 9, 16  # small pictures in a line
_PITCH = 1.2  # from line to line, in units of their distance within one


def draw_layers(layers: Sequence[LayerReport], before: Totals, after: Totals) -> Figure:
    """Filters, multiply-adds saved and preference of every layer, one row a layer.

    Parameters
    ----------
    layers : sequence of LayerReport
    before, after : Totals
        Of the whole network.

    Raises
    ------
    ImportError
        When matplotlib is absent.
    ValueError
        When there is no layer.
    """
    if not layers:
        raise ValueError("nothing to plot: no layer was pruned")
    has_betas = any(layer.preference is not None for layer in layers)
    rows = np.arange(len(layers))
    widths = [3, 3, 1.4] if has_betas else [3, 3]
    figure, axes = _figure(
        10.5 if has_betas else 9, 1.7 + _ROW * (len(layers) + 1), widths, share_rows=True
    )

    filters, saved = axes[:2]
    had = np.array([layer.before for layer in layers])
    kept = np.array([layer.after for layer in layers])
    filters.barh(rows, had, color=_GONE, height=0.8, label="removed")
    filters.barh(rows, kept, color=_KEPT, height=0.8, label="kept")
    for row, layer in zip(rows, layers, strict=True):
        mark = "  floor" if layer.floor else ""
        filters.text(layer.before, row, f" {layer.after}/{layer.before}{mark}", **_text())
    filters.set_yticks(rows, [layer.name for layer in layers], fontsize=_SMALL)
    filters.set_xlim(0, had.max() * 1.32)
    filters.set_xlabel("filters")
    filters.legend(**ABOVE, ncols=2)

    total = before.macs or 1
    cut = np.array([layer.macs_before - layer.macs_after for layer in layers]) / total
    rest = (before.macs - after.macs) / total - cut.sum()
    saved.barh(rows, 100 * cut, color=_GONE, height=0.8)
    for row, share in zip(rows, cut, strict=True):
        saved.text(100 * max(share, 0), row, f" {100 * share:.1f}", **_text())
    elsewhere = rest > 5e-4
    if elsewhere:
        text = f" and {100 * rest:.1f} in other layers, which get fewer input channels"
        saved.text(0, len(layers), text, **(_text() | {"style": "italic"}))
    saved.set_xlim(0, 100 * max(cut.max(), 1e-3) * 1.18)
    saved.locator_params(axis="x", nbins=5)
    saved.set_xlabel("multiply-adds saved (% of the whole network's)")

    if has_betas:
        betas = axes[2]
        points = [(layer.preference, row) for row, layer in zip(rows, layers, strict=True)]
        known = [(beta, row) for beta, row in points if beta is not None]
        betas.plot(*zip(*known, strict=True), "o", color=VERMILLION, markersize=4)
        low, high = min(known)[0], max(known)[0]
        pad = max(0.05, 0.25 * (high - low))
        betas.set_xlim(low - pad, high + 2 * pad)
        for layer, (beta, row) in zip(layers, points, strict=True):
            if beta is not None:
                betas.text(high + 1.3 * pad, row, str(layer.after), **(_text() | {"ha": "center"}))
        betas.set_xlabel("preference β\n(right: filters kept)")

    filters.set_ylim(len(layers) + elsewhere - 0.4, -0.6)
    figure.suptitle(
        f"multiply-adds {amount(before.macs)} → {amount(after.macs)} "
        f"({change(before.macs, after.macs)}),  "
        f"parameters {amount(before.params)} → {amount(after.params)} "
        f"({change(before.params, after.params)})",
        fontsize=10,
    )
    return figure


def draw_similarity(
    similarities: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    kept: Sequence[int] | npt.NDArray[Any],
    *,
    name: str,
) -> Figure:
    """Heat map of one layer's filter similarities, filters of a cluster side by side.

    Parameters
    ----------
    similarities : ndarray, shape (n, n)
        Negative squared distances.
    labels : ndarray of int, shape (n,)
        Cluster of every filter; -1 for none.
    kept : sequence of int
        The filters that stay, marked on the diagonal.
    name : str
        Of the layer, for the title.

    Raises
    ------
    ImportError
        When matplotlib is absent.
    """
    n = len(labels)
    stays = np.zeros(n, bool)
    stays[np.asarray(kept, int)] = True
    # large clusters first, what stays of a cluster at its head, then the others by distance to it
    sizes = {label: int((labels == label).sum()) for label in np.unique(labels)}
    heads = {labels[i]: i for i in np.flatnonzero(stays)[::-1]}
    order = sorted(
        range(n),
        key=lambda i: (
            -sizes[labels[i]],
            labels[i],
            not stays[i],
            -similarities[i, heads.get(labels[i], i)],
            i,
        ),
    )
    distances = np.sqrt(np.maximum(-similarities[np.ix_(order, order)], 0))
    # the zeros of the diagonal would take up most of the colours
    apart = distances[~np.eye(n, dtype=bool)]
    low, high = np.quantile(apart, [0.01, 0.99]) if n > 1 else (0.0, 1.0)

    figure, (axes,) = _figure(6.4, 5.6, [1])
    image = axes.imshow(distances, cmap="cividis_r", interpolation="nearest", vmin=low, vmax=high)
    ordered = labels[order]
    starts = [0, *(np.flatnonzero(np.diff(ordered)) + 1), n]
    outline_blocks(axes, starts, 1.2)
    on_diagonal = np.flatnonzero(stays[order])
    size = float(np.clip(220 / n, 1.2, 5))
    axes.plot(
        on_diagonal, on_diagonal, "o", color=VERMILLION, markersize=size, label="filter that stays"
    )
    if n <= 64:
        small = {"fontsize": float(np.clip(300 / n, 4, 8))}
        axes.set_xticks(range(n), [str(i) for i in order], rotation=90, **small)
        axes.set_yticks(range(n), [str(i) for i in order], **small)
    axes.set_xlabel("filter, ordered by cluster")
    axes.set_ylabel("filter, ordered by cluster")
    axes.legend(**ABOVE)
    figure.colorbar(
        image, ax=axes, label="distance between filters (Euclidean)", shrink=0.85, extend="both"
    )
    title = f"{name}: {n} filters, {len(starts) - 1} clusters, {stays.sum()} filters stay"
    figure.suptitle(title, fontsize=10)
    return figure


def draw_filters(
    inputs: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    kept: Sequence[int] | npt.NDArray[Any],
    *,
    name: str,
) -> Figure:
    """What each filter responds to most, those of a cluster side by side, large clusters first.

    Parameters
    ----------
    inputs : ndarray, shape (n, c, ...)
        V(F) of every filter: images (n, c, h, w), in colour if c is 3, else the mean over
        channels; of volumes the middle slice; series (n, c, t) as they are.
    labels : ndarray of int, shape (n,)
        Cluster of every filter.
    kept : sequence of int
        The filters that stay; the others are crossed out.
    name : str
        Of the layer, for the title.

    Raises
    ------
    ImportError
        When matplotlib is absent.
    """
    n = len(labels)
    stays = np.zeros(n, bool)
    stays[np.asarray(kept, int)] = True
    clusters = sorted(
        (np.flatnonzero(labels == label) for label in np.unique(labels)),
        key=lambda members: (-len(members), members[0]),
    )
    # each cluster starts a line; those of one filter share theirs
    parts = [(f"{len(members)} alike", members) for members in clusters if len(members) > 1]
    if alone := [members for members in clusters if len(members) == 1]:
        parts.append((f"{len(alone)} alone", np.concatenate(alone)))
    lines = []
    for words, members in parts:
        members = members[np.argsort(~stays[members], kind="stable")]
        cuts = range(_ACROSS, len(members), _ACROSS)
        lines += [(words * (not k), x) for k, x in enumerate(np.split(members, cuts))]
    across = max(_FEWEST, *(len(line) for _, line in lines))
    down = [_PITCH * row for row in range(len(lines))]
    figure = new_figure(0.8 + 0.5 * across, 0.4 + 0.5 * _PITCH * len(lines))
    axes = figure.subplots()
    for top, (words, line) in zip(down, lines, strict=True):
        axes.text(-0.3, top + 0.4, words, ha="right", **_text())
        for left, index in enumerate(line):
            _draw_input(axes, inputs[index], left, top)
            colour = GREY if stays[index] else VERMILLION
            axes.text(left + 0.4, top - 0.05, str(index), ha="center", fontsize=6, color=colour)
            if not stays[index]:
                rows = [top, top + 0.8, np.nan, top + 0.8, top]
                axes.plot([left, left + 0.8, np.nan, left, left + 0.8], rows, color=colour, lw=0.9)
    axes.set(xlim=(-1.5, across), ylim=(down[-1] + 0.9, -0.4), aspect="equal")
    axes.set_axis_off()
    gone = f", {n - stays.sum()} go (crossed out)" if not stays.all() else ""
    figure.suptitle(
        f"{name}: what its {n} filters respond to, {len(clusters)} clusters{gone}", fontsize=9
    )
    return figure


def _draw_input(axes: Axes, signal: npt.NDArray[Any], left: float, top: float) -> None:
    """One input (c, ...), grey where it is zero."""
    while signal.ndim > 3:
        signal = signal[:, signal.shape[1] // 2]
    reach = 3 * float(np.sqrt(np.square(signal).mean())) or 1.0
    if signal.ndim == 3 and len(signal) == 3:
        pixels = signal.transpose(1, 2, 0)
    else:
        pixels = np.repeat((signal if signal.ndim == 2 else signal.mean(0))[..., None], 3, axis=2)
    colours = np.clip(0.5 + pixels / (2 * reach), 0, 1)
    axes.imshow(colours, extent=(left, left + 0.8, top + 0.8, top))


def _figure(
    width: float, height: float, ratios: Sequence[float], *, share_rows: bool = False
) -> tuple[Figure, list[Any]]:
    """A figure and its axes side by side."""
    figure = new_figure(width, height)
    axes = figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False, sharey=share_rows)[0]
    for each in axes if share_rows else []:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(axis="y", length=0)
        each.grid(axis="x", color="#DDDDDD", linewidth=0.6)
        each.set_axisbelow(True)
    return figure, list(axes)


def _text() -> dict[str, Any]:
    return {"va": "center", "fontsize": _SMALL, "color": GREY, "clip_on": False}
