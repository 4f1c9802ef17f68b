"""What is to be clustered over ranks, and how preferences are found."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import ArrayLike

from epruner.cluster.preference import PreferenceRule
from epruner.cluster.problem import Prepared, Solvable
from epruner.cluster.solve import (
    StepwiseTrials,
    Trials,
    degenerate,
    pass_messages,
)
from epruner.cluster.types import Clustering, Floats, Indices, Messages, Options
from epruner.distributed.checkpoint import Checkpoint
from epruner.distributed.features import SharedFeatures
from epruner.distributed.graph import SharedGraph
from epruner.distributed.group import Group
from epruner.distributed.messages import SharedActiveSet, of_all
from epruner.distributed.order_statistics import quantile
from epruner.distributed.source import SharedSource


class SharedProblem(Solvable):
    """Points of which each rank has rows of its own; preferences and labels are of these.

    Parameters
    ----------
    source : SharedSource
    preference : ndarray of shape (m,) or None
        Given for the own rows, instead of by a rule.
    """

    def __init__(
        self, source: SharedSource, preference: Floats | None, checkpoint: Checkpoint | None
    ) -> None:
        self.n, self.dtype = source.n, source.dtype
        self._source, self._given, self._checkpoint = source, preference, checkpoint
        self._group: Group = source.group

    def prepare(self, rule: PreferenceRule, options: Options) -> Prepared:
        saved = None if self._checkpoint is None else self._checkpoint.read()
        preference: ArrayLike
        if saved is None:
            self._active_set, preference = self._start(rule, options)
        else:
            options.progress.stage("checkpoint")
            messages, preference = saved
            self._active_set = self._source.resumed(options, messages)
        self._active_set.checkpoint = self._checkpoint
        own = self._common(0) + np.asarray(preference, dtype=self.dtype)
        return Prepared(own, self._run)

    @abstractmethod
    def _start(self, rule: PreferenceRule, options: Options) -> tuple[SharedActiveSet, ArrayLike]:
        """Return an active set with candidates, and preferences of the own rows."""

    def n_distinct(self) -> int:
        return self.n  # which would take all points in one place

    def _common(self, preference: float) -> Floats:
        return self._source.common(preference)

    def _mean(self, preference: Floats) -> float:
        return float(of_all(self._group, preference).mean(dtype=np.float64))

    def _run(self, preference: Floats, options: Options) -> Clustering:
        group, source, rows = self._group, self._source, self._source.rows
        if self.alike():
            common = of_all(group, preference)
            if (common == common[0]).all():
                whole = degenerate(common, self.top(options))
                return Clustering(
                    whole.exemplars,
                    whole.labels[rows],
                    whole.n_iter,
                    whole.converged,
                    whole.net_similarity,
                )
        messages = pass_messages(source, self._active_set, preference, options)
        return decoded(source, self._active_set, preference, messages, options)

    def _trials(self, prepared: Prepared, options: Options) -> Trials:
        return SharedTrials(self._source, self._active_set, options)


class SharedFeatureProblem(SharedProblem):
    """Features (n, d), similar by negative squared distance or, with rows of length 1, cosine."""

    _source: SharedFeatures

    def __init__(
        self, source: SharedFeatures, preference: Floats | None, checkpoint: Checkpoint | None
    ) -> None:
        super().__init__(source, preference, checkpoint)
        first = of_all(self._group, source.X[:1])[0]
        self._identical = int(self._group.sum(np.array([(first != source.X).any()]))[0]) == 0

    def _start(self, rule: PreferenceRule, options: Options) -> tuple[SharedActiveSet, ArrayLike]:
        source, n, q = self._source, self.n, rule.preference_quantile
        preference: ArrayLike
        if rule.beta is not None:
            active_set, medians = source.start_with_medians(options)
            preference = rule.beta * medians
        elif self._given is not None or n <= 2:
            active_set, _ = source.start(options, None)
            preference = self._of_few(q, options) if self._given is None else self._given
        else:
            # The median counts the diagonal, whose n entries are the largest; a quantile does not.
            position = (n * n - 1) / 2 if q is None else q * (n * (n - 1) - 1)
            active_set, preference = source.start(options, position)
            if q is not None:  # of products, whose rounding may exceed it
                preference = min(preference, self.top(options))
        return active_set, preference

    def _of_few(self, q: float | None, options: Options) -> float:
        """The median or quantile of the similarities of one point or two, counted by hand."""
        if self.n == 1:
            return 0.0
        link, own = self.top(options), 1.0 if self._source.cosine else 0.0
        return link if q is not None else (link + own) / 2

    def top(self, options: Options) -> float:
        own = 1.0 if self._source.cosine else 0.0
        if self.n != 2:
            return own
        one, other = of_all(self._group, self._source.X).astype(np.float64)
        return own - float(np.square(one - other).sum()) / (2 if self._source.cosine else 1)

    def alike(self) -> bool:
        return self._identical or self.n == 2


class SharedGraphProblem(SharedProblem):
    """Stored pairs of a sparse matrix (n, n)."""

    _source: SharedGraph

    def _start(self, rule: PreferenceRule, options: Options) -> tuple[SharedActiveSet, ArrayLike]:
        preference: ArrayLike
        if rule.beta is not None:
            raise ValueError("beta needs all similarities; a sparse S takes preference or quantile")
        if self._given is not None:
            preference = self._given
        else:
            q, links = rule.preference_quantile, self._links()
            if int(self._group.sum(np.array([links.size]))[0]) == 0:
                preference = 0.0
            elif q is not None:
                preference = quantile(self._group, links, q)
            else:
                stored = self._source.S.data  # its diagonal counts
                stored = np.sort(stored[stored > -np.inf])
                preference = quantile(self._group, stored, 0.5)
        return self._source.start(options), preference

    def _links(self) -> Floats:
        """The stored similarities of different points that may be linked, sorted."""
        stored = self._source.S.tocoo()
        other = stored.row + self._source.rows.start != stored.col
        links: Floats = np.sort(stored.data[other & (stored.data > -np.inf)])
        return links

    def top(self, options: Options) -> float:
        largest = of_all(self._group, self._links()[-1:])
        return float(largest.max()) if largest.size else 0.0

    def alike(self) -> bool:
        return False  # stored pairs may be few


class SharedTrials(StepwiseTrials[SharedActiveSet]):
    """Runs step by step on a shared active set."""

    _source: SharedSource

    def __init__(self, source: SharedSource, active_set: SharedActiveSet, options: Options) -> None:
        super().__init__(source, active_set, options)

    def common(self, preference: float) -> Floats:
        return self._source.common(preference)

    def _decoded(self, messages: Messages) -> Clustering:
        return decoded(self._source, self._active_set, self._preference, messages, self._options)


def decoded(
    source: SharedSource,
    active_set: SharedActiveSet,
    preference: Floats,
    messages: Messages,
    options: Options,
) -> Clustering:
    """Return the clustering that messages give: all exemplars, and labels of the own rows."""
    options.progress.part("decoding")
    exemplars: Indices = np.flatnonzero(messages.is_exemplar)
    labels = np.full(preference.size, -1, dtype=np.intp)
    net = float("-inf")
    if exemplars.size > 0:
        exemplars, labels = source.decode(active_set, preference, exemplars, options)
        net = source.net_similarity(preference, exemplars, labels)
    return Clustering(exemplars, labels, messages.n_iter, messages.converged, net)
