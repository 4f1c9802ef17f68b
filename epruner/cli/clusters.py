"""Clusterings as the command line makes, shows and writes them."""

from __future__ import annotations

import csv
import io
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from epruner._files import open_atomically
from epruner._tables import Table, percent
from epruner.cli.points import Points
from epruner.cluster import AffinityPropagation
from epruner.cluster.types import Indices

if TYPE_CHECKING:
    import torch.distributed as dist

_SHOWN = 10  # clusters, and columns
_SUFFIXES = (".csv", ".npy")


@dataclass(frozen=True)
class Clusters:
    """A fitted model and the points that it was fitted on; printing it gives a summary."""

    points: Points
    model: AffinityPropagation
    seconds: float

    @cached_property
    def sizes(self) -> Indices:
        """How many points each cluster has, (n_clusters,)."""
        labels = self.model.labels_
        return np.bincount(labels[labels >= 0], minlength=self.model.cluster_centers_indices_.size)

    @property
    def has_features(self) -> bool:
        """Whether points were given by features, not by similarities."""
        return self.model.affinity != "precomputed"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the labels are for files."""
        model, names = self.model, self.points.names
        exemplars = [
            {"index": i, "size": size} | ({} if names is None else {"name": names[i]})
            for i, size in zip(
                model.cluster_centers_indices_.tolist(), self.sizes.tolist(), strict=True
            )
        ]
        net, p = model.net_similarity_, model.preference_
        return {
            "file": self.points.source,
            "points": self.points.values.shape[0],
            "features": self.points.values.shape[1] if self.has_features else None,
            "clusters": len(exemplars),
            "converged": model.converged_,
            "iterations": model.n_iter_,
            "preference": float(p[0]) if (p == p[0]).all() else None,
            "damping": model.damping_,
            "net_similarity": net if math.isfinite(net) else None,
            "seconds": self.seconds,
            "exemplars": exemplars,
        }

    def __str__(self) -> str:
        model, K = self.model, self.sizes.size
        lines = [
            _described(self.points, self.has_features),
            f"{K:,} cluster{'s' * (K != 1)}, {'' if model.converged_ else 'not '}converged after "
            f"{model.n_iter_} iterations, {self.seconds:.2f} s",
            "",
            f"preference      {_preference(model)}",
            f"damping         {model.damping_:g}",
            f"net similarity  {model.net_similarity_:.6g}",
        ]
        if K:
            lines += ["", self._largest()]
        return "\n".join(lines)

    def _largest(self) -> str:
        sizes, names = self.sizes, self.points.names
        n = self.points.values.shape[0]
        shown = np.argsort(-sizes, kind="stable")[:_SHOWN]
        rows = []
        for c in shown.tolist():
            i = int(self.model.cluster_centers_indices_[c])
            name = str(i) if names is None else names[i]
            rows.append((str(c), f"{sizes[c]:,}", percent(sizes[c] / n), name))
        text = Table(("cluster", "points", "share", "exemplar"), rows, left=frozenset()).to_text()
        more = sizes.size - shown.size
        if more == 0:
            return text
        rest = int(sizes.sum() - sizes[shown].sum())
        return f"{text}\nand {more:,} smaller with {rest:,} points"


def check_format(path: str) -> None:
    """Raise a ValueError unless the suffix says how to write labels and exemplars."""
    if Path(path).suffix.lower() not in _SUFFIXES:
        raise ValueError(f"cannot write {path}: its suffix must be one of {', '.join(_SUFFIXES)}")


def fit(
    points: Points, *, similarities: bool, settings: Mapping[str, Any], verbose: bool
) -> Clusters:
    """Cluster points, or what similarities are given between; `settings` are the estimator's.

    Raises
    ------
    ValueError
        When a value is not finite, similarities are not square, or a setting is out of range.
    """
    if similarities:
        n, d = points.values.shape
        if n != d:
            raise ValueError(
                f"{points.source} holds {n} rows of {d} numbers; similarities must be square"
            )
        if "memory" in settings:
            raise ValueError("--memory is about similarities of features; these are given")
        settings = {**settings, "affinity": "precomputed"}
    model = AffinityPropagation(copy=False, verbose=verbose, **settings)
    start = time.perf_counter()
    with _unheeded_convergence():
        try:
            model.fit(points.values)
        except ValueError:
            if not similarities:
                points.require_finite()  # says where
            raise
    return _told(Clusters(points, model, time.perf_counter() - start))


def fit_over_ranks(
    points: Points,
    group: dist.ProcessGroup,
    *,
    similarities: bool,
    settings: Mapping[str, Any],
    verbose: bool,
) -> Clusters | None:
    """Do the same as one of several ranks, with a share of the rows; return all on rank 0 only.

    Raises
    ------
    ValueError, TypeError
        On all ranks, also for what needs all similarities in one process.
    """
    from epruner.distributed import AffinityPropagation as Shared
    from epruner.distributed.group import Group

    ranks = Group(group)
    with ranks.agree():
        if similarities and not sparse.issparse(points.values):
            raise ValueError(
                f"{points.source} holds a matrix, and over several processes --similarities takes "
                "a sparse one (.npz, as scipy.sparse.save_npz writes it)"
            )
        for name in ("memory", "ties", "backend"):
            if name in settings:
                raise ValueError(f"--{name} is for one process: leave it out, or torchrun")
        if settings.get("affinity") == "nearest_neighbors":
            raise ValueError(
                "--affinity nearest_neighbors is for one process; over several, give the links "
                "between neighbours as --similarities"
            )
    settings = {**settings, **({"affinity": "precomputed"} if similarities else {})}
    model = Shared(verbose=verbose, group=group, **settings)
    n = points.values.shape[0]
    first, last = (n * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    start = time.perf_counter()
    with _unheeded_convergence():
        model.fit(points.values[first:last])
    for name in ("labels_", "preference_"):
        setattr(model, name, np.concatenate(ranks.gather(getattr(model, name))))
    if ranks.rank > 0:
        return None
    return _told(Clusters(points, model, time.perf_counter() - start))


@contextmanager
def _unheeded_convergence() -> Iterator[None]:
    """Without the warning that names parameters, not options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _told(clusters: Clusters) -> Clusters:
    """The same, with a warning if they were not stable."""
    model = clusters.model
    if not model.converged_:
        again = "--damping auto" if model.damping != "auto" else "--damping 0.98"
        warnings.warn(
            f"the clusters were not stable after {model.n_iter_} iterations with damping "
            f"{model.damping_:g}; try {again}, --max-iter {5 * model.max_iter}, or another "
            "--preference",
            ConvergenceWarning,
            stacklevel=2,
        )
    return clusters


def write_labels(clusters: Clusters, target: Path) -> None:
    """Write the cluster of every point: a table, or labels (n,) as int64."""
    labels, exemplars = clusters.model.labels_, clusters.model.cluster_centers_indices_
    if target.suffix.lower() == ".npy":
        _write_array(target, labels)
        return
    own = np.append(exemplars, -1)[labels]  # the last for those without
    columns = [range(labels.size), labels.tolist(), own.tolist()]
    header = ["index", "label", "exemplar"]
    if clusters.points.names is not None:
        columns.insert(1, clusters.points.names)
        header.insert(1, "name")
    _write_table(target, header, zip(*columns, strict=True))


def write_exemplars(clusters: Clusters, target: Path) -> None:
    """Write the exemplars: a table with cluster sizes and features, or indices (K,) as int64."""
    points, exemplars = clusters.points, clusters.model.cluster_centers_indices_
    if target.suffix.lower() == ".npy":
        _write_array(target, exemplars)
        return
    columns = [range(exemplars.size), exemplars.tolist(), clusters.sizes.tolist()]
    header = ["label", "index", "size"]
    if points.names is not None:
        columns.insert(2, [points.names[i] for i in exemplars])
        header.insert(2, "name")
    if clusters.has_features and not sparse.issparse(points.values):
        features = points.values[exemplars].astype(str)  # as few digits as tell the numbers apart
        columns += features.T.tolist()
        d = features.shape[1]
        header += [f"x{j}" for j in range(d)] if points.table is None else points.table.columns
    _write_table(target, header, zip(*columns, strict=True))


def _write_array(target: Path, array: Indices) -> None:
    with open_atomically(target) as file:
        np.save(file, array.astype(np.int64, copy=False), allow_pickle=False)


def _write_table(target: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with open_atomically(target) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        text.detach()


def _described(points: Points, has_features: bool) -> str:
    n, d = points.values.shape
    if not has_features:
        return f"{points.source}: similarities of {n:,} points"
    text = f"{points.source}: {n:,} point{'s' * (n != 1)}, {d:,} feature{'s' * (d != 1)}"
    if points.table is None:
        return text
    columns = points.table.columns
    what = ", ".join(columns[:_SHOWN]) + (", ..." if d > _SHOWN else "")
    return f"{text} ({what})" if points.table.header else f"{text} (no header)"


def _preference(model: AffinityPropagation) -> str:
    p = model.preference_
    if model.n_clusters is not None:
        why = f"searched for {model.n_clusters} clusters"
    elif model.preference is not None:
        why = "given"
    elif model.preference_quantile is not None:
        why = f"quantile {model.preference_quantile:g} of the similarities"
    elif (p != p[0]).any():
        return f"{p.min():.6g} to {p.max():.6g} (by each point's neighbours)"
    else:
        why = "the median similarity"
    return f"{p[0]:.6g} ({why})"
