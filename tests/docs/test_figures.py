"""Every measured figure in the documentation is the one in the file of its results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from conftest import ROOT
from documents import pages, results

RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = [
    "README.md",
    "benchmarks/README.md",
    *(path.relative_to(ROOT).as_posix() for path in pages()),
]

# What reads like a measurement: a number and a unit of time, memory, speed or accuracy.
UNITS = (
    "x|times|points?|%|percent|per cent|[nµμ]s|ms|s|seconds?|min|minutes?|h|hours?|days?|[kKMGT]i?B"
)
MEASUREMENT = re.compile(rf"[\d.,]*\d[\s-]?(?:{UNITS})(?![\w²])")

# Numbers with such units, and decimal numbers of tables, that are no results: definitions,
# parameters, published figures, and bounds that a test holds.
DEFINED = {
    "README.md": ["the matrix alone would be 40 GB", "| learned from | −40 % | −60 % |"],
    "benchmarks/README.md": [
        "10,000 to 100,000 points from features",
        "a difference of 2 points is within the noise",
    ],
    "docs/clustering/large.md": [
        "Up to 100,000 points",
        "a few dozen of 50,000 points",
        "Beside the exact clustering with the same preferences, 50,000 points",
    ],
    "docs/clustering/mathematics.md": ["Above 4,096 points", "from 20,000 points on 48"],
    "docs/clustering/preferences.md": ["from 256 points"],
    "docs/clustering/running.md": ["about every 50 ms"],
    "docs/pruning/companions.md": [
        "| at −50 % multiply-adds, one shot |",
        "| network | trained on | whole | −30 % | −40 % |",
        "within the error of some 0.3 points",
    ],
    "docs/distributed/index.md": [
        "50,000 points of 64 features on one machine",
        "20,000 points between network namespaces",
        "200,000 points of a graph",
    ],
    "docs/clustering/drop-in.md": ["at most 10,000 points", "more than 10,000"],
    "docs/clustering/hierarchy-and-pictures.md": [
        "More than 800 points are averaged",
        "scales heights to 0.05 … 1",
        "segmentation fault (1.4.10)",
    ],
    "docs/gpu.md": ["under eight minutes", "may have 227 KB"],
    "docs/pruning/budgets.md": [
        "from below within 1 %",
        "off by more than 3 %",
        "three times at most",
        "Beyond 5 %",
    ],
    "docs/pruning/index.md": ["60 % of the time"],
    "docs/pruning/layers.md": ["the larger of 1 filter and 5 %"],
    "docs/pruning/repair.md": ["cut to 80 % of its", "up to 512 MB a network"],
}


def half_up(value: float) -> str:
    """One digit after the point, 0.05 rounded up."""
    return str(Decimal(str(value)).quantize(Decimal("0.1"), ROUND_HALF_UP))


def time_of(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


def comparison_rows() -> list[str]:
    """README's table: from 512 points on, in the order of the benchmark."""
    names = {
        ("digits", 1.0, 0.5): "digits",
        ("filters", 1.0, 0.5): "filter-like, 64-d",
        ("gaussian", 1.0, 0.5): "Gaussian, 64-d",
        ("digits", 10.0, 0.5): "digits, p = 10 x median",
        ("blobs", 1.0, 0.7): "blobs, 16-d, damping 0.7",
    }
    rows = [row for row in results("clustering")["rows"] if row["n"] >= 512]
    return [
        " | ".join(
            [
                f"| {names[row['data'], row['factor'], row['damping']]}",
                f"{row['n']:,} | {row['clusters']}",
                *(time_of(row[f"{who}_s"]) for who in ("epruner", "scikit_learn", "naffprop")),
                f"{row['vs_scikit_learn']:.0f}x | {row['vs_naffprop']:.0f}x |",
            ]
        )
        for row in rows
    ]


NETWORKS = {
    "theo": "ResNet-56",
    "akamaster": "ResNet-56 of another training",
    "resnet20": "ResNet-20",
    "mobilenetv2": "MobileNetV2",
    "efficientnet-lite0": "EfficientNet-Lite0",
    "encoder": "sentence encoder MiniLM-L6",
}


def method_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = results("methods")["rows"]
    return rows


def usual(network: str) -> int:
    """How many inputs the methods of a network were given."""
    (count,) = {
        row["inputs"]
        for row in method_rows()
        if (row["network"], row["repair"]) == (network, "least_squares")
    }
    return int(count)


def score(network: str, macs: float, name: str, repair: str, inputs: int | str) -> str:
    """What came out; empty if it was not tried."""
    key = (network, macs, name, repair, inputs)
    found = [
        f"{row['score']}"
        for row in method_rows()
        if tuple(row[k] for k in ("network", "macs", "method", "repair", "inputs")) == key
    ]
    assert len(found) <= 1
    return found[0] if found else ""


def whole(network: str) -> str:
    (base,) = {row["base"] for row in method_rows() if row["network"] == network}
    return f"{base:g}"


def cases() -> list[tuple[str, float]]:
    """Networks and budgets, in order."""
    found = dict.fromkeys((row["network"], row["macs"]) for row in method_rows())
    return sorted(found, key=lambda pair: (list(NETWORKS).index(pair[0]), -pair[1]))


def cut(macs: float) -> str:
    return f"−{100 * (1 - macs):.0f} %"


def ways_rows() -> list[str]:
    """docs/pruning/repair.md: the default, by what it learns from."""
    return [
        f"| {NETWORKS[network]} ({whole(network)}) | {cut(macs)} | "
        + " | ".join(
            (
                score(network, macs, "l1", "none", 0),
                score(network, macs, "auto", "auto", "noise"),
                score(network, macs, "auto", "auto", "synthetic"),
                score(network, macs, "auto", "distill", "synthetic"),
                score(network, macs, "auto", "auto", usual(network)),
                score(network, macs, "auto", "distill", usual(network)),
            )
        )
        + " |"
        for network, macs in cases()
    ]


def repair_rows() -> list[str]:
    """docs/pruning/repair.md: each repair of theo's network."""
    return [
        f"| {cut(macs)} | {name} | "
        + " | ".join(
            score("theo", macs, name, repair, count if name == "reconstruction" else few)
            for repair, few in (
                ("none", 0), ("merge", 0), ("batchnorm", count), ("least_squares", count)
            )
        )
        + " |"
        for count in [usual("theo")]
        for macs in (0.6, 0.4)
        for name in ("l1", "reconstruction")
    ]  # fmt: skip


def other_rows() -> list[str]:
    """docs/pruning/repair.md: methods beside each other."""
    return [
        f"| {NETWORKS[network]} | {cut(macs)} | "
        + " | ".join(
            (
                score(network, macs, "auto", "auto", count),
                score(network, macs, "exemplar", "auto", count),
                score(network, macs, "l1", "least_squares", count),
                score(network, macs, "auto", "auto", "noise"),
                score(network, macs, "exemplar", "auto", "noise"),
                score(network, macs, "l1", "merge", 0),
            )
        )
        + " |"
        for network, macs in cases()
        for count in [usual(network)]
    ]


def readme_rows() -> list[str]:
    """README: theo's network, by what the default learns from."""
    lines: dict[str, tuple[str, str, int | str]] = {
        "sliced, without repair (L1)": ("l1", "none", 0),
        "nothing: the default": ("auto", "auto", "noise"),
        "synthetic inputs": ("auto", "auto", "synthetic"),
        "synthetic inputs, distilled": ("auto", "distill", "synthetic"),
        "400 unlabelled images": ("auto", "auto", 400),
        "400 unlabelled images, distilled": ("auto", "distill", 400),
        "7,728 unlabelled images, distilled": ("auto", "distill", 7728),
    }
    return [
        f"| {title} | {score('theo', 0.6, *key)} % | {score('theo', 0.4, *key)} % |"
        for title, key in lines.items()
    ]


def finetune_rows() -> list[str]:
    names = {
        "l1": "L1",
        "fpgm": "FPGM",
        "exemplar": "exemplars",
        "random": "random",
        "exemplar, random init": "exemplars' places, weights random",
        "unpruned": "all (unpruned)",
    }
    rows = {row["variant"]: row for row in results("finetune")["rows"]}
    return [
        f"| {name} | {half_up(rows[variant]['before'])} | {half_up(rows[variant]['after'])} |"
        for variant, name in names.items()
    ]


def rule_rows() -> list[str]:
    """docs/clustering/mathematics.md: pairs a row that hold an availability."""
    names = {"digits": "digits", "gaussian": "Gaussian, 64-d"}
    counts = ("most_positive", "ever_positive", "stored")
    return [
        f"| {names[row['data']]} | {row['n']:,} | {row['medians']} | {row['damping']} | "
        f"{row['clusters']} | {' | '.join(f'{row[count]:,.0f}' for count in counts)} |"
        for row in results("storage_rule")["rows"]
    ]


def drop_in_rows() -> list[str]:
    """docs/clustering/drop-in.md: fits of scikit-learn's estimator, as it is and accelerated."""
    rows = []
    for row in results("drop_in")["rows"]:
        exact, fast = row["scikit-learn"], row["fast"]
        cells = [row["data"], f"{row['n']:,}"]
        compared = "scikit_learn_s" in exact
        cells.append(f"{exact['scikit_learn_s']:.2f} s" if compared else "–")
        for side in (exact, fast):
            cells.append(f"{side['epruner_s']:.3f} s")
            cells.append(f"{side['vs_scikit_learn']:.0f}x" if compared else "")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def million_line() -> str:
    """docs/clustering/large.md: nearest neighbours of a million points."""
    row = results("neighbors_million")["scale"][0]
    assert row["converged"]
    return (
        f"converged after {row['n_iter']:,} iterations to {row['clusters']:,} clusters, in "
        f"{row['seconds']:.0f} s of a machine with other work to do, {row['cpu_s']:.0f} s of a "
        f"processor, and {row['peak_gb']:.1f} GB"
    )


def ranks_rows() -> list[str]:
    """docs/distributed/index.md: what a rank works, sends and holds."""
    (case,) = (rows for rows in results("distributed")["cases"] if rows[0]["d"])
    assert all(row["same_labels"] for row in case)
    return [
        f"| {row['ranks'] or 'alone'} x {row['threads']} | {row['seconds']:.1f} | "
        f"{row['cpu_s']:.1f} | {row['peak_mb']:.0f} | "
        + (
            f"{row['feature_sends']:.1f} times | {row['reduction_per_8n']:.1f} · 8n |"
            if row["ranks"] > 1
            else "– | – |"
        )
        for row in case
    ]


def checked_rows() -> list[str]:
    """docs/distributed/index.md: predictions beside runs over slow networks."""
    checks = results("distributed_plan")["checks"]
    assert all(
        row["sent_mb"] == pytest.approx(row["sent_predicted_mb"], rel=0.05) for row in checks
    )
    return [
        f"| {row['ranks']} | {row['network']} | {row['sweep_s']:.1f} | "
        f"{row['sweep_predicted_s']:.1f} | {1e3 * row['iteration_s']:.0f} | "
        f"{1e3 * row['iteration_predicted_s']:.0f} |"
        for row in checks
    ]


def planned_rows() -> list[str]:
    """docs/distributed/index.md: minutes in all and seconds an iteration, by network."""
    plan = results("distributed_plan")["plan"]
    lines = []
    for kind, ranks in dict.fromkeys((row["kind"], row["ranks"]) for row in plan):
        row, *_ = some = [row for row in plan if (row["kind"], row["ranks"]) == (kind, ranks)]
        times = " | ".join(f"{r['total_s'] / 60:.0f} ({r['iteration_s']:.2f})" for r in some)
        lines.append(
            f"| {kind} | {ranks} | {row['memory_gb']:.0f} GB | {row['sent_gb']:.2f} GB | {times} |"
        )
    return lines


def merging_lines() -> list[str]:
    """docs/clustering/hierarchy-and-pictures.md: times of merging, beside R's."""
    few, many = results("clustering_hierarchy")["rows"]
    largest = results("clustering_hierarchy")["scale"][-1]
    assert few["same_merges"]
    assert many["same_merges"]
    return [
        f"The {few['clusters']} clusters of the {few['n']:,} digits are merged in "
        f"{few['epruner_s']:.2f} s, by R in {few['apcluster_s']:.1f} s; with a preference that "
        f"gives {many['clusters']:,} clusters in {many['epruner_s']:.1f} s and "
        f"{many['apcluster_s']:.0f} s, to the same merges",
        f"{largest['clusters']:,} clusters of {largest['n']:,} points of 64 features take "
        f"{largest['merge_s']:.0f} s and {largest['grown_gb']:.1f} GB",
    ]


def importance_rows() -> list[str]:
    """docs/pruning/pipelines.md: importances in Torch-Pruning's pruner, without training."""
    found = results("torch_pruning_importances")
    ratios = (cut(1 - float(ratio)) for ratio in found["rows"][0]["top1"])
    return [
        f"| network (whole) | ranked | importance | {' | '.join(ratios)} |",
        *(
            f"| {NETWORKS[row['network']]} ({half_up(found['whole'][row['network']])}) | "
            f"{row['scope']} | {row['importance']} | "
            f"{' | '.join(map(half_up, row['top1'].values()))} |"
            for row in found["rows"]
        ),
    ]


def path_rows() -> list[str]:
    """docs/clustering/preferences.md: a path of preferences beside single fits."""
    return [
        f"| {row['data']} | {row['n']:,} | {row['preferences']} | {row['damping']} | "
        f"{row['clusters'][0]:,} to {row['clusters'][1]:,} | {row['path_cpu_s']:.1f} s | "
        f"{row['singles_cpu_s']:.1f} s | {row['ratio']:.1f}x |"
        for row in results("preferences")["rows"]
    ]


def neighbor_rows() -> list[str]:
    """docs/clustering/large.md: nearest neighbours beside all pairs."""
    rules = {
        "default": "default",
        "neighbours": "median of the stored",
        "all": "median of all",
    }
    return [
        f"| {row['data']} | {rules[row['preference']]} | {row['n_neighbors']} | "
        f"{row['clusters']:,} | {row['exact_clusters']:,} | {100 * row['alone']:.1f} % | "
        f"{'yes' if row['converged'] else 'no'} | {row['net_ratio']:.4f} | {row['rand']:.3f} |"
        for row in results("neighbors")["agreement"]
    ]


def example_rows(name: str) -> list[str]:
    """docs/: an example on a trained network, cut by norms alone, and pruned with a repair."""
    titles = {
        "original": "original",
        "cut": "cut by L1, not repaired",
        "pruned": "pruned and repaired",
    }
    rows = []
    for row in results("examples")[name]["rows"]:
        costs = ("network", "macs", "cpu_seconds")
        figures = [100 * row["macs"], *(v for k, v in row.items() if k not in costs)]
        cells = " | ".join(f"{half_up(round(value, 4))} %" for value in figures)
        rows.append(f"| {titles[row['network']]} | {cells} |")
    return rows


def block_rows() -> list[str]:
    """Filters alone beside blocks and filters, at equal time."""
    rows = sorted(
        results("blocks")["rows"],
        key=lambda row: (list(NETWORKS).index(row["network"]), -row["latency"]),
    )
    return [
        f"| {NETWORKS[row['network']]} | {row['latency']:g} | "
        + " | ".join(
            f"{row[f'{kind}_share']:.2f} | {row[f'{kind}_error']:.3f} | "
            + (f"{row[f'{kind}_accuracy']:.1f} %" if f"{kind}_accuracy" in row else "–")
            for kind in ("filters", "both")
        )
        + f" | {row['passed']} of {row['blocks']} |"
        for row in rows
    ]


THREE, FRESH = (0, 1, 2), range(30, 42)  # seeds


def of_seeds(name: str, seeds: Iterable[int], *path: str) -> list[float]:
    """One figure of a companion, seed by seed."""
    rows = {row["case"]: row for row in results("companions")[name]["rows"]}
    return [float(reduce(getitem, path, rows[seed])) for seed in seeds]


def mean_of(name: str, seeds: Iterable[int], *path: str) -> float:
    return fmean(of_seeds(name, seeds, *path))


def orthoreg_rows() -> list[str]:
    sides = {"without": "without", "regularized": "with the term"}
    fresh = [
        [mean_of("orthoreg", FRESH, side, what) for side in sides]
        for what in ("correlation", "pruned")
    ]
    return [
        *(
            f"| {title} | {mean_of('orthoreg', THREE, side, 'correlation'):.2f} | "
            f"{half_up(100 * mean_of('orthoreg', THREE, side, 'accuracy'))} % | "
            f"{half_up(100 * mean_of('orthoreg', THREE, side, 'pruned'))} % | "
            f"{mean_of('orthoreg', THREE, side, 'cosine'):.3f} |"
            for side, title in sides.items()
        ),
        "on twelve others the rank correlation is {:.2f} and {:.2f}, and what is left of the "
        "accuracy {} % and {} %".format(*fresh[0], *(half_up(100 * x) for x in fresh[1])),
    ]


def functional_rows() -> list[str]:
    titles = {
        "random": "random",
        "least l1": "least l1",
        "exemplars of weights": "all but exemplars of weights",
        "exemplars of V(F)": "all but exemplars of V(F)",
        "functional": "functional",
        "functional, no clusters": "functional, every filter its own cluster",
        "functional, meaningless clusters": "functional, clusters of noise",
    }
    name, lines = "functionality", []
    whole = of_seeds(name, THREE, "loss")
    for rule, title in titles.items():
        losses = of_seeds(name, THREE, "losses", rule)
        rises = [after - before for after, before in zip(losses, whole, strict=True)]
        kept = mean_of(name, THREE, "accuracies", rule)
        lines.append(
            f"| {title} | +{fmean(rises):.3f} | {', '.join(f'{x:.3f}' for x in rises)} | "
            f"{half_up(100 * kept)} % |"
        )
    (row,) = results("companions")["functionality_resnet"]["rows"]
    lines.append(
        f"a fifth of the filters of a ResNet-56 gone, l1 leaves a loss of {row['l1']['loss']:.2f}, "
        f"functional {row['functional']['loss']:.2f}"
    )
    lines.append(
        f"all inner filters of that ResNet-56 takes {row['functional']['cpu_seconds']:.0f} s of a "
        "core"
    )
    return lines


def manidp_rows() -> list[str]:
    def percent(what: str, factor: float = 1) -> str:
        return f"{half_up(factor * mean_of('manidp', THREE, what))} %"

    def count(what: str) -> str:
        return f"{mean_of('manidp', THREE, what):.0f}"

    return [
        f"| whole | {percent('whole')} | 100 % |",
        f"| gated | {percent('gated')} | {percent('gated_macs', 100)} |",
        f"| statically pruned | {percent('static')} | {percent('static_macs', 100)} |",
        f"{count('easy_channels')} channels are on for the easiest quarter of the images, "
        f"{count('hard_channels')} for the hardest; {count('right_channels')} where the answer is "
        f"right, {count('wrong_channels')} where it is wrong",
    ]


def manidp_times() -> list[str]:
    return [
        f"| {row['case'].replace(' x ', ' × ')} | {row['whole_ms']:.1f} ms | "
        f"{row['skipping_ms']:.1f} ms | {100 * row['macs']:.0f} % |"
        for row in results("companions")["manidp_times"]["rows"]
    ]


def orthoreg_resnet_rows() -> list[str]:
    """Two epochs on, with the term and without; then one shot by gradient."""
    sides = {"without": "without", "regularized": "with the term"}
    return [
        f"| {NETWORKS[row['case']]} | {title} | "
        + " | ".join(f"{half_up(100 * row[side][what])}" for what in ("whole", "0.7", "0.6"))
        + " |"
        for row in results("companions")["orthoreg_resnet"]["rows"]
        for side, title in sides.items()
    ]


def discovery_rows() -> list[str]:
    titles = {
        "affinity_propagation": "affinity propagation",
        "later": "the same, extended to later images",
        "k_means_paper": "k-means, K = 128 as in the paper",
        "k_means_tuned": "k-means, K = 64, best on other seeds",
    }
    whats = ("purity", "coverage", "matched", "agreement", "classes")
    lines = []
    for name, data in {"discovery": "digits", "discovery_text": "docstrings"}.items():
        for kind, title in titles.items():
            if kind == "later" and name == "discovery_text":
                continue
            *shares, classes = (mean_of(name, FRESH, kind, what) for what in whats)
            cells = " | ".join(f"{share:.3f}" for share in shares)
            lines.append(f"| {data} | {title} | {cells} | {classes:.1f} |")
    agreements = [
        f"{mean_of('discovery', THREE, kind, 'agreement'):.3f}"
        for kind in ("affinity_propagation", "k_means_paper", "k_means_tuned")
    ]
    texts = [
        f"{mean_of('discovery_text', THREE, kind, 'agreement'):.3f}"
        for kind in ("affinity_propagation", "k_means_tuned")
    ]
    purity, coverage = (
        f"{mean_of('discovery', THREE, 'affinity_propagation', what):.3f}"
        for what in ("purity", "coverage")
    )
    lines.append(
        f"on 0, 1 and 2, with purity {purity} and coverage {coverage}, agreement is "
        f"{agreements[0]} beside {agreements[1]} with K = 128 and {agreements[2]} with K = 64"
    )
    lines.append(f"on seeds 0, 1 and 2 K = 64 is ({texts[1]} beside {texts[0]})")
    return lines


def siamese_rows() -> list[str]:
    titles = {"logistic": "logistic alone", "exemplar": "exemplar loss"}
    whats = ("single", "right", "wrong", "wrong_same", "wrong_other")
    return [
        f"| {title} | "
        + " | ".join(f"{mean_of('siamese', THREE, kind, what):.3f}" for what in whats)
        + " |"
        for kind, title in titles.items()
    ]


def fisher_rows() -> list[str]:
    """docs/pruning/companions.md: one shot, beside other methods."""
    return [
        f"| {NETWORKS[network]} ({whole(network)}) | {cut(macs)} | "
        + " | ".join(
            score(network, macs, name, repair, count if needs else 0)
            for name, repair, needs in (
                ("l1", "none", False),
                ("fisher", "none", True),
                ("l1", "least_squares", True),
                ("fisher", "least_squares", True),
                ("auto", "auto", True),
            )
        )
        + " |"
        for network in ("theo", "akamaster")
        for count in [usual(network)]
        for macs in (0.7, 0.6, 0.4)
    ]


def claims() -> dict[str, list[str]]:
    """Lines and phrases with measured figures, as the results say them, by document."""
    rows = [row for row in results("clustering")["rows"] if row["n"] >= 512]
    faster = [row["vs_scikit_learn"] for row in rows]
    layers = results("clustering")["layers"]
    wide = {row["n"]: row["vs_scikit_learn"] for row in rows if row["data"] == "filters"}
    scale = {row["n"]: row for row in results("clustering_scale")["rows"]}
    everyday = results("clustering_everyday")
    (wish,) = everyday["searches"]
    theo, akamaster = results("paper_rule")["rows"]
    cuts = [1 - row["macs_after"] / row["macs_before"] for row in (theo, akamaster)]
    recipe = results("finetune")["recipe"]
    equal = {row["scikit_learn_n_iter"] == row["n_iter"] and row["same_exemplars"] for row in rows}
    same = "the same" if equal == {True} else "not the same"
    other = [score("akamaster", 0.4, "auto", "auto", given) for given in ("noise", 400)]

    return {
        "README.md": [
            *comparison_rows(),
            f"measured {min(faster):.0f} to {max(faster):.0f} times faster on given similarities "
            "of 512 points and more",
            f"10,000 points in {scale[10_000]['seconds']:.1f} s, "
            f"20,000 in {scale[20_000]['seconds']:.1f} s, "
            f"50,000 in {scale[50_000]['seconds']:.1f} s, "
            f"and 100,000 in {scale[100_000]['seconds']:.0f} s "
            f"and {scale[100_000]['peak_gb']:.2f} GB",
            f"the matrix product that makes it takes {scale[100_000]['product_s']:.0f} s",
            f"The {layers[0]['layers']} layers of a ResNet-56, similarities included, "
            f"take {1e3 * layers[0]['epruner_s']:.1f} ms, "
            f"{layers[0]['vs_scikit_learn']:.0f} times less than with scikit-learn, "
            f"and those of another one {1e3 * layers[1]['epruner_s']:.1f} ms, "
            f"{layers[1]['vs_scikit_learn']:.0f} times less",
            "Small problems gain less: {}x at 64 points, {}x at 150 and {}x at 300; a whole fit "
            "takes {} times less than scikit-learn's at 150 points and {} times less at 300".format(
                *(f"{row['vs_scikit_learn']:.0f}" for row in everyday["rows"] if row["n"] <= 300)
            ),
            f"Ten clusters of the 1,797 digits are found in {wish['epruner_s']:.2f} s, "
            f"by R's apclusterK in {wish['apcluster_s']:.0f} s",
            f"messages and decoding, {same} exemplars and iteration counts as scikit-learn "
            f"{results('clustering')['machine']['scikit_learn']} in every row",
            f"ResNet-56, {whole('theo')} % on 1,000",
            *readme_rows(),
            f"Another ResNet-56, {whole('akamaster')} %, gives {other[0]} % at −60 % without an "
            f"image and {other[1]} % from 400",
            f"cuts one ResNet-56 by {100 * cuts[0]:.0f} % and another by {100 * cuts[1]:.0f} %",
        ],
        "benchmarks/README.md": [
            *finetune_rows(),
            f"theo's network at {100 * recipe['macs']:.0f} % of its multiply-adds, "
            f"{recipe['train_images']:,} JPEG training images, {recipe['epochs']} epochs, "
            f"{recipe['test_images']:,} JPEG test images, one thread, one seed",
        ],
        "docs/clustering/large.md": [*neighbor_rows(), million_line()],
        "docs/clustering/mathematics.md": rule_rows(),
        "docs/clustering/preferences.md": path_rows(),
        "docs/pruning/companions.md": [
            *orthoreg_rows(),
            *orthoreg_resnet_rows(),
            *fisher_rows(),
            *functional_rows(),
            *manidp_rows(),
            *manidp_times(),
            *discovery_rows(),
            *siamese_rows(),
        ],
        "docs/distributed/index.md": [*ranks_rows(), *checked_rows(), *planned_rows()],
        "docs/clustering/drop-in.md": drop_in_rows(),
        "docs/pruning/pitch-tracker.md": example_rows("pitch_tracker"),
        "docs/pruning/sentence-encoder.md": example_rows("sentence_encoder"),
        "docs/pruning/text-reader.md": example_rows("text_reader"),
        "docs/clustering/hierarchy-and-pictures.md": merging_lines(),
        "docs/pruning/pipelines.md": [
            f"The {layers[0]['layers']} layers of a ResNet-56, similarities included, take "
            f"{1e3 * layers[0]['epruner_s']:.1f} ms, {layers[0]['vs_scikit_learn']:.0f} times less "
            f"than with scikit-learn, and those of another one {1e3 * layers[1]['epruner_s']:.1f} "
            f"ms, {layers[1]['vs_scikit_learn']:.0f} times less",
            f"Wide layers gain more: {wide[512]:.0f} times at 512 filters, "
            f"{wide[2048]:.0f} times at 2,048",
            *importance_rows(),
        ],
        "docs/pruning/what-can-be-pruned.md": block_rows(),
        "docs/pruning/repair.md": [
            *ways_rows(),
            *repair_rows(),
            *other_rows(),
            f"theo's ResNet-56 ({whole('theo')})",
        ],
    }


def without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", "", text)


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def check(document: str, page: str) -> None:
    """Each claim of the results stands in the document, and no other figure does."""
    page = without_code(page)
    text = in_one_line(page)
    said = [in_one_line(line) for line in claims().get(document, [])]
    defined = DEFINED.get(document, [])
    for claim in said:
        assert claim in text, f"{document} should say: {claim}"
    for phrase in defined:
        assert phrase in text, f"{document} no longer says {phrase!r}: take it off DEFINED"

    def left_of(text: str) -> str:
        return reduce(lambda text, phrase: text.replace(phrase, ""), [*said, *defined], text)

    text = left_of(text)
    left = MEASUREMENT.search(text)
    around = text[max(0, left.start() - 80) : left.end() + 40] if left else ""
    assert not left, f"{document}: which file of results has the figure in {around!r}?"
    rows = [in_one_line(row) for row in re.findall(r"^ *\|.*", page, re.MULTILINE)] if said else []
    stale = [row for row in rows if re.search(r"\d\.\d", left_of(row))]
    assert not stale, f"{document}: which file of results has the row {stale[0]!r}?"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_figures_are_those_of_the_results(document: str) -> None:
    check(document, (ROOT / document).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("figure", "other"),
    [("689 times", "690 times"), ("| 47x |", "| 48x |"), ("images | 91.7 %", "images | 92.7 %")],
)
def test_a_wrong_figure_is_found(figure: str, other: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert figure in text
    with pytest.raises(AssertionError, match=r"README\.md should say"):
        check("README.md", text.replace(figure, other))


@pytest.mark.parametrize(
    "figure",
    ["3 ms", "50 µs", "3 seconds", "1 minute", "2 hours", "300 KB", "2 GiB", "40 percent", "7x"],
)
def test_a_figure_without_results_is_found(figure: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    with pytest.raises(AssertionError, match="which file of results has the figure"):
        check("README.md", f"{text}\nIt starts in {figure}.\n")


@pytest.mark.parametrize(
    ("document", "figure", "other"),
    [
        ("docs/pruning/repair.md", "91.7", "91.6"),
        ("docs/clustering/large.md", "0.993", "0.992"),
        ("benchmarks/README.md", "10.0", "10.1"),
    ],
)
def test_a_stale_row_beside_the_right_one_is_found(document: str, figure: str, other: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("|") and figure in line)
    with pytest.raises(AssertionError, match="which file of results has the"):
        check(document, text.replace(row, f"{row}\n{row.replace(figure, other)}"))


def test_the_readme_shows_the_report_of_the_published_rule() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"```\n{results('paper_rule')['rows'][0]['totals']}\n```" in text
    assert f"--beta {results('paper_rule')['beta']} " in text


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.md")), ids=lambda file: file.stem)
def test_tables_of_results_are_what_the_benchmark_writes(file: Path) -> None:
    measuring = pytest.importorskip("benchmarks.measuring", reason="needs the checkout")
    found = results(file.stem)
    (script,) = re.findall(r"^python benchmarks/(\w+)\.py", found["command"])
    writer = pytest.importorskip(f"benchmarks.{script}", reason="needs what it is compared with")
    if hasattr(writer, "groups"):
        of = {key: tabulate for key, (_, tabulate) in writer.groups(None).items()}
        text = measuring.tables(found, of)
    else:
        text = writer.page(found)
    assert file.read_text("utf-8") == text + "\n", f"{file.name} is not what {script}.py writes"
