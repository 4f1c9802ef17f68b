"""Rows of a sparse matrix of similarities that lie with several ranks."""

from __future__ import annotations

from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np

from epruner.cluster.decode import sorted_by_index
from epruner.cluster.progress import SILENT, Progress
from epruner.cluster.types import Floats, Indices, Options
from epruner.distributed.checkpoint import digest
from epruner.distributed.group import Group
from epruner.distributed.messages import SharedActiveSet, of_all
from epruner.distributed.source import SharedSource


class SharedGraph(SharedSource):
    """Stored pairs of a sparse matrix (n, n); pairs that are not stored are never linked.

    Parameters
    ----------
    group : Group
    S : scipy.sparse.csr_matrix of shape (m, n)
        The own rows.
    """

    def __init__(self, group: Group, S: Any) -> None:
        super().__init__(group, S.shape[1], S.dtype)
        self.S = S

    def start(self, options: Options) -> SharedActiveSet:
        """Return an active set with all stored pairs."""
        active_set = self.begin(options)
        active_set.own.fill_from_csr(
            self.S.indptr.astype(np.int64),
            self.S.indices.astype(np.int32),
            self.S.data.astype(np.float64),
        )
        return active_set

    def digest(self) -> str:
        rows = [
            sha256(self.S.indices[a:b].tobytes() + self.S.data[a:b].tobytes()).digest()
            for a, b in pairwise(self.S.indptr)
        ]
        return digest(self.group, self.n, np.array(rows, dtype="V32"))

    def _iterate_once(self, active_set: SharedActiveSet) -> str:
        status = active_set.own.run_rows()
        return active_set.finish() if status == "running" else status

    def refill(self, active_set: SharedActiveSet, progress: Progress = SILENT) -> None:
        raise AssertionError("a sparse matrix lists everything from the start")

    def decode(
        self, active_set: SharedActiveSet, preference: Floats, exemplars: Indices, options: Options
    ) -> tuple[Indices, Indices]:
        labels = self._assign(active_set, exemplars)
        moved = self._best_members(labels, preference, exemplars.size)
        return sorted_by_index(moved, self._assign(active_set, moved))

    def _assign(self, active_set: SharedActiveSet, exemplars: Indices) -> Indices:
        position = np.full(self.n, -1, dtype=np.int64)
        position[exemplars] = np.arange(exemplars.size)
        return active_set.own.assign(position)

    def _best_members(self, labels: Indices, preference: Floats, K: int) -> Indices:
        """Each cluster's member that its own preference and all others, linked to it, support most.

        Where there is none, the first member.
        """
        S, group, rows = self.S, self.group, self.rows
        all_labels = of_all(group, labels)
        i = np.repeat(np.arange(rows.start, rows.stop), np.diff(S.indptr))
        within = (all_labels[i] == all_labels[S.indices]) & (i != S.indices) & (S.data > -np.inf)
        to, s = S.indices[within], S.data[within].astype(np.float64)
        # Row by row over all ranks, as one process sums them.
        support, linked = np.zeros(self.n), np.zeros(self.n, dtype=np.int64)

        def add() -> None:
            np.add.at(support, to, s)
            np.add.at(linked, to, 1)

        group.in_turn([support, linked], add)
        support += of_all(group, preference)
        others = np.bincount(all_labels[all_labels >= 0], minlength=K)[all_labels] - 1
        support[linked < others] = -np.inf
        (members,) = (all_labels >= 0).nonzero()
        best_first = members[np.lexsort((-support[members], all_labels[members]))]
        moved: Indices = best_first[np.unique(all_labels[best_first], return_index=True)[1]]
        return moved

    def links(self, exemplars: Indices, labels: Indices) -> Floats:
        rows = np.flatnonzero(labels >= 0)
        found = np.full(labels.size, np.nan)
        if rows.size:  # of which SciPy would make a sparse matrix
            found[rows] = np.asarray(self.S[rows, exemplars[labels[rows]]], dtype=float).ravel()
        return found
