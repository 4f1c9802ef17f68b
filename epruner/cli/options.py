"""Every option of the command line, declared once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from epruner.cli.values import (
    count_or_share,
    count_or_share_by_pattern,
    damping,
    input_shape,
    literal_pair,
    number,
    number_or_pattern,
    pair,
    positive,
    quantile,
    share,
)

# Options that become parameters of `epruner.AffinityPropagation`. As below, one left out on the
# command line is not passed, so that each default is written down once, there.
SIMILARITY: Mapping[str, Mapping[str, Any]] = {
    "affinity": {
        "choices": ("euclidean", "cosine", "nearest_neighbors"),
        "help": "similarity of two points: negative squared distance (default), the same to "
        "nearest neighbours only (approximate, for millions of points), or cosine",
    },
}

GRANULARITY: Mapping[str, Mapping[str, Any]] = {
    "n_clusters": {
        "type": positive,
        "metavar": "K",
        "help": "search a preference that gives so many",
    },
    "preference": {
        "type": number,
        "metavar": "P",
        "help": "how much each point wants to be an exemplar: larger gives more clusters "
        "(default: the median similarity, or with nearest neighbours one for each point)",
    },
    "quantile": {
        "type": quantile,
        "metavar": "Q",
        "help": "the preference is this quantile of the similarities, from 0 (few clusters) to 1",
    },
}

ITERATION: Mapping[str, Mapping[str, Any]] = {
    "damping": {
        "type": damping,
        "default": "auto",
        "metavar": "L",
        "help": "share of the old messages that is kept, from 0.5 to below 1, or auto (default): "
        "0.5, and more until the run converges",
    },
    "max_iter": {"type": positive, "metavar": "N", "help": "most iterations (default: 200)"},
    "convergence_iter": {
        "type": positive,
        "metavar": "N",
        "help": "iterations without a change after which to stop (default: 15)",
    },
    "n_neighbors": {
        "type": positive,
        "metavar": "N",
        "help": "neighbours of each point for --affinity nearest_neighbors (default: 30)",
    },
    "memory": {
        "choices": ("auto", "tiles", "matrix"),
        "help": "make similarities in tiles and drop them, or keep them all (default: auto, by "
        "the number of points)",
    },
    "ties": {
        "choices": ("fast", "scikit-learn"),
        "help": "what breaks ties: a hash (fast, the default), or scikit-learn's noise, for its "
        "labels there",
    },
}

# Options that become keyword arguments of `epruner.prune`, or fields of `Constraints` and `Method`,
# under the same name.
PRUNING: Mapping[str, Mapping[str, Any]] = {
    "layers": {
        "nargs": "+",
        "action": "extend",
        "metavar": "PATTERN",
        "help": "prune only layers of these names, e.g. 'layer?.*.conv1' (default: all that can)",
    },
    "ignore": {
        "nargs": "+",
        "action": "extend",
        "metavar": "PATTERN",
        "help": "leave layers of these names alone",
    },
    "scope": {
        "choices": ("inner", "all", "blocks"),
        "help": "inner: channels with one producer (default); all: also channels that several "
        "layers add onto, such as residual streams, and with --calibrate those that a LayerNorm "
        "reads (an approximation); blocks: also whole residual blocks",
    },
}

CONSTRAINTS: Mapping[str, Mapping[str, Any]] = {
    "min_filters": {
        "type": count_or_share,
        "metavar": "N",
        "help": "filters that stay in every layer at least: a count or a share such as 5%% "
        "(default: the larger of 1 and 5%%; 1 for the published rule)",
    },
    "round_to": {
        "type": positive,
        "metavar": "N",
        "help": "keep multiples of N filters, e.g. 8 for tensor cores (default: 1)",
    },
    "n_filters": {
        "type": count_or_share_by_pattern,
        "action": "append",
        "metavar": "PATTERN=N",
        "help": "filters (count or share) that the layers of these names keep, whatever the budget",
    },
}

METHOD: Mapping[str, Any] = {
    "metavar": "NAME",
    "help": "auto (the best known, default), reconstruction, exemplar, paper, l1, l2, fpgm, "
    "random or fisher (from labelled --calibrate images)",
}

REPAIR: Mapping[str, Any] = {
    "choices": ("none", "merge", "batchnorm", "least_squares", "distill"),
    "help": "of the pruned network (default: least_squares, or merge where even noise tells "
    "nothing; distill trains on after that, from --calibrate)",
}

# Fields of `Method`: parts of the method that are not as its name says.
PARTS: Mapping[str, Mapping[str, Any]] = {
    "allocation": {
        "choices": ("exemplar", "uniform", "reconstruction", "fisher"),
        "help": "instead of the method's: how many filters a layer keeps under a budget",
    },
    "importance": {
        "choices": ("exemplar", "l1", "l2", "fpgm", "random", "reconstruction", "fisher"),
        "help": "instead of the method's: which filters stay, once their number is set",
    },
    "features": {
        "choices": ("weights", "losses", "folded", "activations", "visual"),
        "help": "what filters are compared by: weights, what their readers lose when one stands in "
        "for another, weights with BatchNorm folded in, responses to inputs, or to what each of "
        "them responds to most",
    },
}

# Options that say how much to prune.
COST: Mapping[str, Mapping[str, Any]] = {
    "beta": {
        "type": number_or_pattern,
        "action": "append",
        "metavar": "[PATTERN=]BETA",
        "help": "preference in units of the median similarity: larger prunes more; with a "
        "pattern for the layers it names, e.g. --beta 0.7 --beta 'layer3.*=0.9'",
    },
    "macs": {
        "type": share,
        "metavar": "SHARE",
        "help": "budget: share of the multiply-adds to keep, e.g. 0.5 or 50%%",
    },
    "params": {
        "type": share,
        "metavar": "SHARE",
        "help": "budget: share of the parameters to keep, e.g. 0.3",
    },
    "latency": {
        "type": share,
        "metavar": "SHARE",
        "help": "budget: share of the time to get down to, measured here at the batch of "
        "--input-shape on --threads",
    },
    "recipe": {
        "metavar": "NAME",
        "help": "layers and betas of a published row, e.g. resnet56",
    },
}


def points(sub: argparse.ArgumentParser) -> None:
    """What to cluster."""
    sub.add_argument(
        "file",
        metavar="FILE",
        help="points, a row each: array (.npy, .npz; scipy.sparse's, too) or table (.csv, .tsv)",
    )
    group = sub.add_argument_group("input")
    group.add_argument("--key", metavar="NAME", help="array of an .npz file that holds several")
    group.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="cluster by this column of a table only: a name, a number from 1, or a range of "
        "numbers such as 2-5; once for every column or range",
    )
    group.add_argument(
        "--id",
        metavar="NAME",
        help="column of a table that names the rows (default: the first, if the header has no "
        "name for it)",
    )
    group.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first row of a table names the columns (default: if it looks like it)",
    )
    either = group.add_mutually_exclusive_group()
    _add(either, SIMILARITY)
    either.add_argument(
        "--similarities",
        action="store_true",
        help="the file holds similarities of points, n x n, larger for closer ones; -inf, or "
        "nothing in a sparse matrix, where two must not be linked",
    )


def clustering(sub: argparse.ArgumentParser) -> None:
    """How many clusters, and how to find them."""
    how_many = sub.add_argument_group("how many clusters, one of")
    _add(how_many.add_mutually_exclusive_group(), GRANULARITY)
    _add(sub.add_argument_group("iterations"), ITERATION)


def clusters(sub: argparse.ArgumentParser) -> None:
    """Files of a clustering."""
    group = sub.add_argument_group("output")
    group.add_argument(
        "--out",
        metavar="FILE",
        help="labels to write: .csv with index, label and exemplar of each point, or .npy",
    )
    group.add_argument(
        "--exemplars",
        metavar="FILE",
        help="exemplars to write: .csv with index, cluster size and features, or .npy (indices)",
    )
    group.add_argument(
        "--plot", metavar="FILE", help="picture of points and exemplars to write (png, svg, pdf)"
    )


def processes(sub: argparse.ArgumentParser) -> None:
    """What goes with several processes."""
    group = sub.add_argument_group("over several processes, which torchrun starts")
    group.add_argument(
        "--checkpoint",
        metavar="FOLDER",
        help="keep the messages here, which all processes reach; a run that finds them goes on",
    )
    group.add_argument(
        "--checkpoint-every",
        type=positive,
        metavar="N",
        help="iterations between two checkpoints (default: 50)",
    )


def network(sub: argparse.ArgumentParser) -> None:
    """Where the network, its weights and its inputs come from."""
    group = sub.add_argument_group("network")
    group.add_argument(
        "--model",
        required=True,
        metavar="PACKAGE.MODULE:FACTORY",
        help="a callable that builds the full-size network; the current folder is importable",
    )
    group.add_argument(
        "--model-arg",
        type=literal_pair,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="keyword argument of the factory, e.g. num_classes=10",
    )


def weights(sub: argparse.ArgumentParser) -> None:
    """The checkpoint and how its keys are renamed."""
    group = sub.add_argument_group("weights")
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint (PyTorch state dict or safetensors; never unpickles code); "
        "default: the weights the factory gives",
    )
    group.add_argument(
        "--entry",
        metavar="NAME",
        help="entry of the checkpoint that holds the weights, e.g. ema or models/generator "
        "(default: the first of the usual names)",
    )
    group.add_argument(
        "--prefix-strip",
        default="",
        metavar="PREFIX",
        help="take this off the start of the checkpoint's keys, e.g. module.",
    )
    group.add_argument(
        "--key-map",
        type=pair,
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="rename the leading parts of keys, e.g. conv=conv1; * stands for one part",
    )


def example_inputs(sub: argparse.ArgumentParser) -> None:
    """Shapes the network is run on."""
    sub.add_argument(
        "--input-shape",
        type=input_shape,
        action="append",
        required=True,
        metavar="SHAPE",
        help="e.g. 1,3,32,32; 1,16:int64 for integers; mask=1,16:bool by name; "
        "once for every input of the network",
    )


def pruning(sub: argparse.ArgumentParser) -> None:
    """What to prune and how, apart from how much."""
    _add(sub.add_argument_group("pruning"), {**PRUNING, **CONSTRAINTS, **PARTS})


def calibration(sub: argparse.ArgumentParser) -> None:
    """What filters are chosen and repaired by."""
    group = sub.add_argument_group("calibration")
    group.add_argument(
        "--calibrate",
        metavar="SOURCE",
        help="images: a folder, FILE.npz or FILE.npz:KEY (uint8, n x h x w x c), whose labels only "
        "--method fisher looks at; or noise (default where it tells something) or synthetic, made "
        "to match the network's BatchNorm statistics",
    )
    group.add_argument(
        "--calibrate-images", type=positive, default=400, metavar="N", help="of them (default 400)"
    )


def normalisation(sub: argparse.ArgumentParser) -> None:
    """What the network expects of pixels."""
    for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
        sub.add_argument(
            f"--{name}",
            type=number,
            nargs="+",
            default=values,
            metavar="X",
            help=f"of pixels in 0..1, per channel (default: {' '.join(map(str, values))})",
        )


def labelled(sub: argparse.ArgumentParser) -> None:
    """Images to measure accuracy on."""
    sub.add_argument(
        "--labelled",
        metavar="SOURCE",
        help="measure accuracy on a folder with a folder per class, or an npz file with labels",
    )


def training(sub: argparse.ArgumentParser) -> None:
    """How to fine-tune."""
    sub.add_argument("--train", required=True, metavar="SOURCE", help="labelled training images")
    sub.add_argument("--epochs", type=positive, default=10, metavar="N", help="default: 10")
    sub.add_argument(
        "--batch",
        type=positive,
        default=128,
        metavar="N",
        help="default: 128; of all processes together",
    )
    sub.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd", help="default: sgd")
    sub.add_argument("--schedule", choices=("cosine", "step"), default="cosine")
    sub.add_argument("--lr", type=number, metavar="X", help="default: 0.02 (sgd), 0.001 (adamw)")
    sub.add_argument("--label-smoothing", type=number, default=0.0, metavar="X")
    sub.add_argument(
        "--distill",
        type=number,
        metavar="X",
        help="learn the scores of the whole network (see --weights), too: their share, 0 to 1",
    )
    sub.add_argument("--checkpoint", metavar="FILE", help="written each epoch; resumes if there")
    sub.add_argument("--device", default="cpu", metavar="NAME", help="e.g. cuda (default: cpu)")


def cost(sub: argparse.ArgumentParser) -> None:
    """How much to prune: one answer, and by which method."""
    group = sub.add_argument_group(
        "how much, one of (or --n-filters alone)"
    ).add_mutually_exclusive_group()
    for name, settings in COST.items():
        group.add_argument("--" + name, **settings)
    sub.add_argument("--method", **METHOD)
    sub.add_argument("--repair", **REPAIR)


def costs(sub: argparse.ArgumentParser) -> None:
    """How much to prune: several answers, each alone."""
    group = sub.add_argument_group("how much, each with every method")
    for name, settings in COST.items():
        settings = {key: value for key, value in settings.items() if key != "action"}
        if name == "beta":
            settings |= {"type": number, "metavar": "BETA", "help": "a preference for all layers"}
        group.add_argument("--" + name, nargs="+", action="extend", default=[], **settings)
    group.add_argument("--method", nargs="+", action="extend", **METHOD)
    group.add_argument("--repair", nargs="+", action="extend", **REPAIR)


def jobs(sub: argparse.ArgumentParser) -> None:
    """Whether to prune side by side."""
    sub.add_argument(
        "--jobs",
        type=positive,
        default=1,
        metavar="N",
        help="prune in so many processes at once, each on --threads (default: its share of the "
        "cores); default: 1",
    )


def run(sub: argparse.ArgumentParser) -> None:
    """Seed and threads."""
    sub.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)"
    )
    sub.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="CPU threads (default: all cores; one for the demo)",
    )


def out(sub: argparse.ArgumentParser) -> None:
    """File of the pruned network."""
    sub.add_argument("--out", required=True, metavar="FILE", help="pruned network to write")


def force(sub: argparse.ArgumentParser) -> None:
    """Whether files that are there may be lost."""
    sub.add_argument("--force", action="store_true", help="overwrite files that are there")


def saved(sub: argparse.ArgumentParser) -> None:
    """A file written before."""
    sub.add_argument("file", metavar="FILE", help="pruned network written by epruner")


def machine(sub: argparse.ArgumentParser) -> None:
    """Output for machines."""
    sub.add_argument("--json", action="store_true", help="print JSON instead of tables")


def optional_out(sub: argparse.ArgumentParser) -> None:
    """File of the pruned network, if wanted."""
    sub.add_argument("--out", metavar="FILE", help="also write the fine-tuned pruned network")


def exported(sub: argparse.ArgumentParser) -> None:
    """Files to export to."""
    sub.add_argument("--onnx", metavar="FILE", help="ONNX file to write")
    sub.add_argument("--pt2", metavar="FILE", help="torch.export program to write")


def layer_pictures(sub: argparse.ArgumentParser) -> None:
    """Pictures that need the clusterings."""
    sub.add_argument(
        "--plot-layer",
        type=pair,
        action="append",
        default=[],
        metavar="LAYER=FILE",
        help="heat map of one layer's filter similarities, ordered by cluster",
    )


def pictures(sub: argparse.ArgumentParser) -> None:
    """Pictures to write."""
    sub.add_argument(
        "--plot", metavar="FILE", help="picture of what happened to every layer (png, svg, pdf)"
    )


def page(sub: argparse.ArgumentParser) -> None:
    """The report as a page."""
    sub.add_argument("--html", metavar="FILE", help="report to write, to open in a browser")


def _add(group: argparse._ActionsContainer, table: Mapping[str, Mapping[str, Any]]) -> None:
    for name, settings in table.items():
        group.add_argument("--" + name.replace("_", "-"), dest=name, **settings)


GROUPS: Mapping[str, Sequence[Callable[[argparse.ArgumentParser], None]]] = {
    "cluster": (points, clustering, clusters, processes, run, force, machine),
    "prune": (
        network,
        weights,
        example_inputs,
        cost,
        pruning,
        calibration,
        normalisation,
        run,
        out,
        pictures,
        layer_pictures,
        page,
        force,
        machine,
    ),
    "compare": (
        network,
        weights,
        example_inputs,
        costs,
        pruning,
        calibration,
        labelled,
        normalisation,
        jobs,
        run,
        machine,
    ),
    "finetune": (
        saved,
        network,
        weights,
        example_inputs,
        training,
        labelled,
        normalisation,
        run,
        out,
        force,
        machine,
    ),
    "inspect": (saved, pictures, page, force, machine),
    "export": (saved, network, example_inputs, exported, run, force, machine),
    "demo": (run, optional_out, page, force, machine),
}
