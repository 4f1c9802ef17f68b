"""Draw the results files: every picture of the benchmark pages, and the two of the README.

    python benchmarks/pictures.py build/pictures                          # all of them
    python benchmarks/pictures.py docs/pictures clustering pruning        # the README's

A picture is a function from results to a figure; `PICTURES` names each with the files that it
reads. Nothing is measured here and no figure is typed. Needs no torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.ticker import NullLocator
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH = 8.0  # inches of every picture; text of 9 points is readable at half of its pixels
DPI = 200
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.facecolor": "white",
    "font.size": 9,
    "grid.alpha": 0.25,
    "legend.columnspacing": 1.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "savefig.facecolor": "white",  # a page may be dark
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}

# Okabe and Ito's palette: told apart under every common colour-vision deficiency
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
VERMILLION, PURPLE, SKY, GREY = "#D55E00", "#CC79A7", "#56B4E9", "#6B6B6B"

Results = dict[str, Any]
Rows = Sequence[dict[str, Any]]

RIVALS = {  # key of a row: name, colour, marker
    "epruner_s": ("epruner", BLUE, "o"),
    "scikit_learn_s": ("scikit-learn", VERMILLION, "s"),
    "naffprop_s": ("naffprop", ORANGE, "^"),
    "apcluster_s": ("R's apcluster", GREEN, "D"),
}
DATA = {
    "digits": "digits",
    "filters": "filter-like, 64-d",
    "gaussian": "Gaussian, 64-d",
    "gaussian, 16-d": "Gaussian, 16-d",
}
NETWORKS = {
    "theo": "ResNet-56",
    "akamaster": "another ResNet-56",
    "resnet20": "ResNet-20",
    "mobilenetv2": "MobileNetV2",
    "efficientnet-lite0": "EfficientNet-Lite0",
    "encoder": "sentence encoder",
}
USUAL = -1  # stands for as many inputs as the methods of a network were given
Way = tuple[str, str, str | int]  # method, repair, inputs: what a row of methods.json is called
SLICED: Way = ("l1", "none", 0)
MERGED: Way = ("l1", "merge", 0)
REPAIRED: Way = ("l1", "least_squares", USUAL)
EXEMPLAR: Way = ("exemplar", "auto", USUAL)
WITHOUT: Way = ("auto", "auto", "noise")
SYNTHETIC: Way = ("auto", "auto", "synthetic")
GIVEN: Way = ("auto", "auto", USUAL)
DISTILLED: Way = ("auto", "distill", USUAL)
WAYS: dict[Way, tuple[str, str, str]] = {  # name, colour, marker
    SLICED: ("L1, sliced", GREY, "v"),
    REPAIRED: ("L1, refit to inputs", ORANGE, "^"),
    WITHOUT: ("default, without data", SKY, "s"),
    EXEMPLAR: ("exemplars, from inputs", GREEN, "D"),
    GIVEN: ("default, from inputs", BLUE, "o"),
    DISTILLED: ("default, distilled", PURPLE, "P"),
}


def panels(n: int, height: float, **shared: Any) -> tuple[Figure, list[Any]]:
    """A figure with axes side by side."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, [*figure.subplots(1, n, squeeze=False, **shared)[0]]


def plain(axis: Any, values: Iterable[float], form: str = "{:,g}") -> None:
    """Ticks at these values, written out."""
    ticks = sorted(set(values))
    axis.set_ticks(ticks, [form.format(tick) for tick in ticks])
    axis.set_minor_locator(NullLocator())


def below(figure: Figure, axes: Iterable[Any], ncols: int) -> None:
    """One legend for all panels, each name once, under them."""
    found: dict[str, Any] = {}
    for ax in axes:
        handles, names = ax.get_legend_handles_labels()
        found |= dict(zip(names, handles, strict=True))
    figure.legend([*found.values()], [*found], loc="outside lower center", ncols=ncols)


def seconds(axis: Any) -> None:
    """Powers of ten of a second as people say them."""
    names = {
        1e-4: "0.1 ms", 1e-3: "1 ms", 1e-2: "10 ms", 0.1: "0.1 s", 1: "1 s", 10: "10 s",
        100: "100 s", 1000: "1,000 s",
    }  # fmt: skip
    low, high = axis.get_view_interval()
    shown = {value: name for value, name in names.items() if low <= value <= high}
    axis.set_ticks([*shown], [*shown.values()])
    axis.set_minor_locator(NullLocator())


def lines(ax: Any, rows: Rows) -> None:
    """Seconds against n, of each rival where it was measured."""
    for key, (name, colour, marker) in RIVALS.items():
        found = [(row["n"], row[key]) for row in rows if row.get(key) is not None]
        if found:
            ax.plot(*zip(*found, strict=True), color=colour, marker=marker, label=name)


def speed(clustering: Results, everyday: Results) -> Figure:
    """Messages and decoding against n, by data set."""
    rows = [row for row in everyday["rows"] if row["case"] == "function"]
    rows += [
        row for row in clustering["rows"] if row["factor"] == 1 and row["data"] != "blobs"
    ]  # of blobs there is one size, and of other preferences one row
    by_data: dict[str, Rows] = {
        data: [row for row in rows if row["data"] == data]
        for data in ("gaussian, 16-d", "digits", "filters", "gaussian")
    }
    figure, axes = panels(len(by_data), 3.4, sharey=True)
    for ax, (data, of_data) in zip(axes, by_data.items(), strict=True):
        ax.set(xscale="log", yscale="log", title=DATA[data], xlabel="points")
        lines(ax, of_data)
        plain(ax.xaxis, [row["n"] for row in of_data], "{:,}")
        ax.tick_params(axis="x", labelsize=8)
        ax.margins(x=0.15)
    axes[0].set_ylabel("time")
    seconds(axes[0].yaxis)
    below(figure, axes, len(RIVALS))
    return figure


def case_of(row: dict[str, Any]) -> str:
    """A row of clustering.json or clustering_everyday.json in words."""
    if "file" in row:
        return f"{row['layers']} layers of a ResNet-56"
    about = ""
    if row.get("case", "function") != "function":
        about = f", {row['case']}"
    elif row.get("factor", 1) != 1:
        about = f", p = {row['factor']:g} medians"
    clusters = f"{row['clusters']} clusters"
    return f"{DATA.get(row['data'], row['data'])}, n = {row['n']:,}{about}: {clusters}"


def faster(clustering: Results, everyday: Results) -> Figure:
    """How many times scikit-learn's time, every row, beside what was aimed at."""
    rows = sorted(
        [*clustering["rows"], *clustering["layers"], *everyday["rows"]],
        key=lambda row: float(row["vs_scikit_learn"]),
    )
    figure, (ax,) = panels(1, 0.24 * len(rows) + 0.9)
    ratios = [row["vs_scikit_learn"] for row in rows]
    places = np.arange(len(rows))
    ax.barh(places, ratios, color=BLUE, height=0.62)
    for place, ratio in zip(places, ratios, strict=True):  # clear of the aims
        ax.text(1.08, place, f"{ratio:.0f}", color="white", va="center_baseline")
    aims = [(row["target"], place) for place, row in enumerate(rows) if row["target"]]
    x, y = zip(*aims, strict=True)
    ax.scatter(x, y, marker="|", s=110, linewidths=2.2, color=ORANGE, label="aim", zorder=3)
    ax.set_yticks(places, map(case_of, rows))
    ax.set(xscale="log", xlabel="times faster than scikit-learn", ylim=(-0.7, len(rows) - 0.3))
    plain(ax.xaxis, [1, 3, 10, 30, 100, 300, 1000], "{:,}")
    ax.set_xlim(1, 1000)
    ax.grid(visible=False, axis="y")
    ax.legend(loc="lower right")
    return figure


def drop_in(drop_in: Results) -> Figure:
    """Whole fits of programs that call scikit-learn, as they are and accelerated."""
    rows = [row for row in drop_in["rows"] if row["data"] == "gaussian"]
    figure, (ax,) = panels(1, 3.6)
    for name, colour, marker, ties, key in (
        ("scikit-learn", VERMILLION, "s", "fast", "scikit_learn_s"),
        ("accelerated, the same noise", SKY, "^", "scikit-learn", "epruner_s"),
        ("accelerated, fast ties", BLUE, "o", "fast", "epruner_s"),
    ):
        found = [(row["n"], row[ties][key]) for row in rows if key in row[ties]]
        ax.plot(*zip(*found, strict=True), color=colour, marker=marker, label=name)
    ax.set(xscale="log", yscale="log", xlabel="points (Gaussian)", ylabel="time of fit")
    plain(ax.xaxis, [row["n"] for row in rows], "{:,}")
    seconds(ax.yaxis)
    ax.legend()
    return figure


def large(scale: Results, neighbors: Results, million: Results) -> Figure:
    """Time and memory against n, from features."""
    rows, few = scale["rows"], [*neighbors["agreement"], *million["scale"]]
    n = np.array([row["n"] for row in rows], float)
    figure, (clock, memory) = panels(2, 3.6)
    exact = "exact, all pairs, 64-d"
    clock.plot(n, [row["product_s"] for row in rows], "--", color=GREY, label="matrix product")
    clock.plot(n, [row["seconds"] for row in rows], "o-", color=BLUE, label=exact)
    memory.plot(n, 4 * n**2 / 1e9, "--", color=GREY, label="the matrix alone, float32")
    memory.plot(n, [row["peak_gb"] for row in rows], "o-", color=BLUE, label=exact)
    for ax, key in ((clock, "seconds"), (memory, "peak_gb")):
        x, y = [row["n"] for row in few], [row[key] for row in few]
        ax.plot(x, y, "D", color=GREEN, label="nearest neighbours, 32-d", markersize=4)
        ax.set(xscale="log", yscale="log", xlabel="points")
        plain(ax.xaxis, [1e4, 1e5, 1e6], "{:,.0f}")
        ax.legend(loc="upper left")
    clock.set_title("time")
    memory.set_title("memory of the process at its peak")
    low, high = clock.get_ylim()
    clock.set_ylim(low, 20 * high)
    seconds(clock.yaxis)
    low, high = memory.get_ylim()
    memory.set_ylim(low, 12 * high)
    plain(memory.yaxis, [0.1, 1, 10, 100], "{:g} GB")
    return figure


def ranks(distributed: Results) -> Figure:
    """What a rank works, holds and sends, by how many there are."""
    figure, axes = panels(4, 3.0)
    for case, colour, marker in zip(distributed["cases"], (BLUE, ORANGE), "os", strict=True):
        shared = [row for row in case if row["ranks"]]
        kind = "64 features" if shared[0]["d"] else "a graph"
        for ax, key in zip(axes, ("seconds", "cpu_s", "peak_mb", "iteration_mb"), strict=True):
            ax.plot(
                [row["ranks"] for row in shared], [row[key] for row in shared],
                color=colour, marker=marker, label=f"{shared[0]['n']:,} points, {kind}",
            )  # fmt: skip
    titles = (
        "time, s",
        "processor time\nof a rank, s",
        "memory\nof a rank, MB",
        "sent by a rank\nan iteration, MB",
    )
    for ax, title in zip(axes, titles, strict=True):
        ax.set(title=title, xlabel="ranks", ylim=(0, 1.05 * ax.get_ylim()[1]))
        plain(ax.xaxis, [1, 2, 4])
    below(figure, axes, 2)
    return figure


def usual(rows: Rows, network: str) -> int:
    """How many inputs the methods of a network were given."""
    (count,) = {
        int(row["inputs"])
        for row in rows
        if (row["network"], row["repair"]) == (network, "least_squares")
    }
    return count


def of_way(rows: Rows, network: str, way: Way) -> list[dict[str, Any]]:
    """The rows of a network that were made in a way, from most multiply-adds to fewest."""
    method, repair, inputs = way
    key = (network, method, repair, usual(rows, network) if inputs == USUAL else inputs)
    found = [
        row for row in rows
        if (row["network"], row["method"], row["repair"], row["inputs"]) == key
    ]  # fmt: skip
    return sorted(found, key=lambda row: -float(row["macs"]))


def base_of(rows: Rows, network: str) -> float:
    """The score of the whole network."""
    (base,) = {float(row["base"]) for row in rows if row["network"] == network}
    return base


def by_macs(ax: Any, rows: Rows, network: str, ways: Iterable[Way] = WAYS) -> None:
    """Scores against multiply-adds, a line for each way."""
    base = base_of(rows, network)
    ax.axhline(base, color="black", linestyle="--", linewidth=1.2, label="whole network")
    shares = set()
    for way in ways:
        name, colour, marker = WAYS[way]
        found = [(100 * row["macs"], row["score"]) for row in of_way(rows, network, way)]
        if found:
            ax.plot(*zip(*found, strict=True), color=colour, marker=marker, label=name)
            shares |= {share for share, _ in found}
    plain(ax.xaxis, shares)
    ax.set(xlabel="multiply-adds that stay, %", title=NETWORKS[network])
    ax.margins(x=0.12)


def by_error(ax: Any) -> None:
    """Accuracies by the logarithm of their error: from 50 to 75 is as far as from 90 to 95."""
    ax.set_yscale(
        "function",
        functions=(lambda a: -np.log10(np.maximum(100 - a, 1e-3)), lambda b: 100 - 10.0**-b),
    )
    plain(ax.yaxis, [0, 50, 70, 80, 85, 90, 95])
    ax.set_ylim(0, 95.5)


def ways(methods: Results) -> Figure:
    """Accuracy against multiply-adds by way, networks of CIFAR-10."""
    figure, axes = panels(3, 3.9, sharey=True)
    for ax, network in zip(axes, ("theo", "akamaster", "resnet20"), strict=True):
        by_macs(ax, methods["rows"], network)
    by_error(axes[0])
    axes[0].set_ylabel("accuracy, %, by the logarithm of errors")
    below(figure, axes, 4)
    return figure


def networks(methods: Results) -> Figure:
    """What is kept of a network's answers, by way, where there is more than ResNets."""
    figure, axes = panels(3, 3.9, sharey=True)
    for ax, network in zip(axes, ("mobilenetv2", "efficientnet-lite0", "encoder"), strict=True):
        by_macs(ax, methods["rows"], network)
    axes[0].set(ylabel="answers that stay the same, %", ylim=(-3, 104))
    below(figure, axes, 3)
    return figure


def repair_time(methods: Results) -> Figure:
    """Processor time of each way and the accuracy that it buys, ResNet-56."""
    rows = methods["rows"]
    least = min(row["macs"] for row in rows if row["network"] == "theo")
    given = usual(rows, "theo")
    most = max(
        row["inputs"] for row in rows if row["network"] == "theo" and isinstance(row["inputs"], int)
    )
    named = {
        SLICED: "L1, sliced",
        MERGED: "L1, merged",
        ("l1", "batchnorm", USUAL): f"L1, BatchNorm anew, {given} images",
        REPAIRED: f"L1, refit to {given} images",
        WITHOUT: "default, without data",
        GIVEN: f"default, {given} images",
        ("auto", "auto", "synthetic"): "default, synthetic inputs",
        DISTILLED: f"distilled, {given} images",
        ("auto", "distill", "synthetic"): "distilled, synthetic inputs",
        ("auto", "distill", most): f"distilled, {most:,} images",
    }
    found = [
        (name, row)
        for way, name in named.items()
        for row in of_way(rows, "theo", way)
        if row["macs"] == least
    ][::-1]
    figure, (clock, accuracy) = panels(2, 3.6, sharey=True)
    places = np.arange(len(found))
    times, scores = ([row[key] for _, row in found] for key in ("cpu_seconds", "score"))
    bars = clock.barh(places, times, color=ORANGE, height=0.62)
    clock.bar_label(bars, [f"{value:,.1f}" for value in times], padding=3)
    accuracy.barh(places, scores, color=BLUE, height=0.62)
    for place, score in zip(places, scores, strict=True):
        accuracy.text(2, place, f"{score:.1f}", color="white", va="center_baseline")
    clock.set_yticks(places, [name for name, _ in found])
    clock.set_xscale("symlog", linthresh=0.1)
    clock.set(title="processor time", xlim=(0, 3000))
    plain(clock.xaxis, [0, 0.1, 1, 10, 100, 1000], "{:,g}")
    for ax in (clock, accuracy):
        ax.grid(visible=False, axis="y")
    clock.set_xlabel("s")
    accuracy.set(title=f"accuracy at {100 * least:.0f} % of the multiply-adds", xlabel="%")
    accuracy.set_xlim(0, 100)
    base = base_of(rows, "theo")
    accuracy.axvline(base, color="black", linestyle="--", linewidth=1.2)
    plain(accuracy.xaxis, [0, 20, 40, 60, 80, 100])
    return figure


def blocks(blocks: Results) -> Figure:
    """Accuracy at the time that is left, filters only and with whole blocks."""
    figure, axes = panels(3, 3.2, sharey=True, sharex=True)
    for ax, network in zip(axes, ("theo", "akamaster", "resnet20"), strict=True):
        rows = sorted(
            (row for row in blocks["rows"] if row["network"] == network),
            key=lambda row: float(row["latency"]),
        )
        for kind, name, colour, marker in (
            ("both", "with whole blocks", BLUE, "o"),
            ("filters", "filters only", ORANGE, "^"),
        ):
            x = [100 * row[f"{kind}_share"] for row in rows]
            y = [row[f"{kind}_accuracy"] for row in rows]
            ax.plot(x, y, color=colour, marker=marker, label=name)
        ax.set(title=NETWORKS[network], xlabel="time that stays, %")
    axes[0].set_ylabel("accuracy, %")
    below(figure, axes, 2)
    return figure


def finetune(finetune: Results) -> Figure:
    """Accuracy before and after the same training, by whose filters stayed."""
    names = {
        "unpruned": "all (not pruned)",
        "l1": "L1",
        "fpgm": "FPGM",
        "exemplar": "exemplars of weights",
        "random": "random",
        "exemplar, random init": "exemplars' places, random weights",
    }
    rows = {row["variant"]: row for row in finetune["rows"]}
    figure, (ax,) = panels(1, 3.0)
    places = np.arange(len(names))[::-1]
    before = [rows[variant]["before"] for variant in names]
    after = [rows[variant]["after"] for variant in names]
    ax.hlines(places, before, after, color=GREY, linewidth=2, alpha=0.5, zorder=1)
    ax.scatter(before, places, color=ORANGE, marker="^", s=45, label="before training", zorder=2)
    ax.scatter(after, places, color=BLUE, s=45, label="after training", zorder=2)
    for place, value in zip(places, after, strict=True):
        ax.annotate(f"{value:.1f}", (value, place), (7, 0), textcoords="offset points", va="center")
    ax.set_yticks(places, names.values())
    ax.set(xlabel="accuracy, %", xlim=(0, 100), ylim=(-0.6, len(names) - 0.4))
    ax.grid(visible=False, axis="y")
    ax.legend(loc="upper left")
    return figure


def importances(importances: Results) -> Figure:
    """Exemplars of weights beside Torch-Pruning's importances in its own pruner."""
    styles = {
        "magnitude": (ORANGE, "^"),
        "FPGM": (GREEN, "D"),
        "exemplars": (BLUE, "o"),
        "random": (GREY, "v"),
    }
    scopes = {"each layer": "in each layer", "all": "over all layers"}
    figure, axes = panels(4, 3.2, sharey=True)
    cells = [(network, scope) for network in importances["whole"] for scope in scopes]
    for ax, (network, scope) in zip(axes, cells, strict=True):
        base = importances["whole"][network]
        ax.axhline(base, color="black", linestyle="--", linewidth=1.2, label="whole network")
        for importance, (colour, marker) in styles.items():
            (row,) = (
                row for row in importances["rows"]
                if (row["network"], row["scope"], row["importance"])
                == (network, scope, importance)
            )  # fmt: skip
            x = [100 * float(cut) for cut in row["top1"]]
            ax.plot(x, [*row["top1"].values()], color=colour, marker=marker, label=importance)
        plain(ax.xaxis, x, "{:.0f}")
        ax.set(title=f"{NETWORKS[network]},\n{scopes[scope]}", xlabel="filters cut, %")
    axes[0].set(ylabel="accuracy, %", ylim=(0, 100))
    below(figure, axes, 5)
    return figure


def digits_and_exemplars(ax: Any) -> None:
    """Every digit tied to the one that stands for it, in the plane of two principal components."""
    from epruner import AffinityPropagation

    images = load_digits().data
    places = PCA(2, svd_solver="full").fit_transform(images)
    model = AffinityPropagation(n_clusters=20, damping=0.8).fit(places)
    exemplars, labels = model.cluster_centers_indices_, model.labels_
    colours = np.array([BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, GREY])
    own = colours[np.arange(exemplars.size) % colours.size]
    ties = np.stack([places, places[exemplars[labels]]], axis=1)
    ax.add_collection(LineCollection(list(ties), colors=own[labels], linewidths=0.5, alpha=0.5))
    ax.scatter(*places.T, s=3, c=own[labels], linewidths=0)
    for exemplar, colour in zip(exemplars, own, strict=True):
        image = OffsetImage(
            images[exemplar].reshape(8, 8), zoom=1.7, cmap="Greys", interpolation="nearest"
        )
        frame = {"edgecolor": colour, "linewidth": 1.4}
        ax.add_artist(AnnotationBbox(image, places[exemplar], pad=0.1, bboxprops=frame))
    ax.set_axis_off()
    ax.margins(0.01)
    ax.set_title(
        f"{labels.size:,} digits in a plane, tied to {exemplars.size} of them", loc="center"
    )


def clustering(drop_in: Results) -> Figure:
    """README: points tied to their exemplars, and time against n beside scikit-learn."""
    figure, (points, clock) = panels(2, 3.0)
    digits_and_exemplars(points)
    rows = [row for row in drop_in["rows"] if row["data"] == "gaussian"]
    last = [row for row in rows if "scikit_learn_s" in row["fast"]][-1]
    for name, colour, marker, ties, key, offset in (
        ("scikit-learn", VERMILLION, "s", "fast", "scikit_learn_s", (8, 0)),
        ("with its noise", SKY, "^", "scikit-learn", "epruner_s", (8, -5)),
        ("fast ties", BLUE, "o", "fast", "epruner_s", (8, -9)),
    ):
        found = [(row["n"], row[ties][key]) for row in rows if key in row[ties]]
        clock.plot(*zip(*found, strict=True), color=colour, marker=marker, label=name)
        ours = key == "epruner_s"
        times = f", {last[ties]['vs_scikit_learn']:.0f} times" if ours else ""
        clock.annotate(
            name + times, (last["n"], last[ties][key]), offset, textcoords="offset points",
            va="center", color=colour,
        )  # fmt: skip
    clock.set(xscale="log", yscale="log", xlabel="points (64 features)", xlim=(400, 90_000))
    plain(clock.xaxis, [1e3, 1e4], "{:,.0f}")
    seconds(clock.yaxis)
    clock.set_title("scikit-learn's estimator, as it is and accelerated", loc="center")
    return figure


def pruning(methods: Results) -> Figure:
    """README: accuracy against multiply-adds by way, and other networks."""
    rows = methods["rows"]
    figure, (ax, others) = panels(2, 3.0)
    figure.set_layout_engine("constrained", wspace=0.06)
    chosen = (SLICED, WITHOUT, GIVEN, DISTILLED)
    by_macs(ax, rows, "theo", chosen)
    ax.set(ylabel="accuracy, %", ylim=(0, 100))
    names = [name for name in NETWORKS if name != "theo"][::-1]
    for place, network in enumerate(names):
        base = base_of(rows, network)
        ends = {way: of_way(rows, network, way)[-1] for way in (SLICED, WITHOUT, GIVEN)}
        kept = {way: 100 * row["score"] / base for way, row in ends.items()}
        others.hlines(place, min(kept.values()), max(kept.values()), color=GREY, alpha=0.4)
        for way, value in kept.items():
            _, colour, marker = WAYS[way]
            others.scatter(value, place, color=colour, marker=marker, s=32, zorder=2)
    least = {network: of_way(rows, network, GIVEN)[-1]["macs"] for network in names}
    labels = [f"{NETWORKS[network]}, {100 * share:.0f} %" for network, share in least.items()]
    others.set_yticks(range(len(names)), labels)
    others.set_ylim(-0.5, len(names) - 0.5)
    others.set(
        xlabel="% of the whole network's score",
        xlim=(-3, 103),
        title="other networks, % of multiply-adds",
    )
    others.grid(visible=False, axis="y")
    below(figure, [ax], 5)
    return figure


class Picture(NamedTuple):
    """A function that draws, and the results that it takes."""

    draw: Callable[..., Figure]
    files: tuple[str, ...]

    def results(self) -> list[Results]:
        return [json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in self.files]


PICTURES = {
    "speed": Picture(speed, ("clustering", "clustering_everyday")),
    "faster": Picture(faster, ("clustering", "clustering_everyday")),
    "drop-in": Picture(drop_in, ("drop_in",)),
    "large": Picture(large, ("clustering_scale", "neighbors", "neighbors_million")),
    "ranks": Picture(ranks, ("distributed",)),
    "ways": Picture(ways, ("methods",)),
    "networks": Picture(networks, ("methods",)),
    "repair-time": Picture(repair_time, ("methods",)),
    "blocks": Picture(blocks, ("blocks",)),
    "finetune": Picture(finetune, ("finetune",)),
    "importances": Picture(importances, ("torch_pruning_importances",)),
    "clustering": Picture(clustering, ("drop_in",)),
    "pruning": Picture(pruning, ("methods",)),
}


def figure_of(name: str, *results: Results) -> Figure:
    """A picture of the results files, or of results that are given in their place."""
    picture = PICTURES[name]
    with style.context(["default", STYLE]):
        return picture.draw(*(results or picture.results()))


def digest(*results: Results) -> str:
    """What the file of a picture says of the results that it was drawn from."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


def save(name: str, folder: Path) -> Path:
    """Draw a picture into a folder; the file carries the digest of its results."""
    results = PICTURES[name].results()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.png"
    with style.context(["default", STYLE]):
        figure = figure_of(name, *results)
        figure.savefig(target, dpi=DPI, metadata={"Results": digest(*results)})
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(PICTURES))
    options = parser.parse_args()
    unknown = set(options.names) - set(PICTURES)
    if unknown:
        parser.error(f"no picture is called {', '.join(sorted(unknown))}; there are {[*PICTURES]}")
    for name in options.names or PICTURES:
        print(save(name, options.folder))


if __name__ == "__main__":
    main()
