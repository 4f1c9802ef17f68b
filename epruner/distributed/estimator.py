"""What users call on every rank: scikit-learn's function and estimator, for rows of their own."""

from __future__ import annotations

import os
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch.distributed as dist
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.utils import check_array

import epruner.cluster
from epruner._files import check_folder
from epruner.cluster import _compiled, validate
from epruner.cluster.affinities import FLOATS
from epruner.cluster.preference import PreferenceRule
from epruner.cluster.similarity import normalised
from epruner.cluster.types import Clustering, Floats, Indices, Options
from epruner.distributed.checkpoint import Checkpoint, digest
from epruner.distributed.features import SharedFeatures
from epruner.distributed.graph import SharedGraph
from epruner.distributed.group import Group
from epruner.distributed.layout import Lists, Move
from epruner.distributed.messages import row_starts
from epruner.distributed.problem import SharedFeatureProblem, SharedGraphProblem, SharedProblem
from epruner.distributed.source import SharedSource

_AFFINITIES = ("euclidean", "cosine", "precomputed")


def affinity_propagation(
    X: Any,
    *,
    affinity: str = "euclidean",
    preference: ArrayLike | None = None,
    preference_quantile: float | None = None,
    beta: float | None = None,
    n_clusters: int | None = None,
    damping: float | str = 0.5,
    max_iter: int = 200,
    convergence_iter: int = 15,
    random_state: validate.RandomState = None,
    n_threads: int | None = None,
    verbose: bool = False,
    return_n_iter: bool = False,
    group: dist.ProcessGroup | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 50,
) -> tuple[Indices, Indices] | tuple[Indices, Indices, int]:
    """Cluster points of which each rank of a process group has rows of its own.

    Every rank calls it with the same parameters; see `AffinityPropagation` for what they mean.

    Parameters
    ----------
    X : array-like of shape (m, d), or SciPy sparse matrix of shape (m, n)
        The rows of this rank: features, or with ``affinity='precomputed'`` similarities. The rows
        of all ranks, in their order, are the n points.
    affinity, preference, preference_quantile, beta, n_clusters : as for `AffinityPropagation`
        What is clustered, and into how many.
    damping, max_iter, convergence_iter, random_state : as for `AffinityPropagation`
        How messages are passed.
    n_threads, verbose : as for `AffinityPropagation`
        What this rank does.
    return_n_iter : bool, default=False
        Whether to return the number of iterations, too.
    group, checkpoint, checkpoint_every : as for `AffinityPropagation`
        With whom, and where messages are kept.

    Returns
    -------
    cluster_centers_indices : ndarray of shape (n_clusters,)
        Indices of the exemplars among all n points, ascending; the same on all ranks.
    labels : ndarray of shape (m,)
        Cluster of each of this rank's points; -1 where there is none.
    n_iter : int
        Only with ``return_n_iter=True``.

    Raises
    ------
    ValueError, TypeError
        On all ranks, if a parameter or the rows of one are not as they must be.
    RankError
        If another rank fails or is lost.
    RuntimeError
        If there is no process group.

    Examples
    --------
    One process, that is all ranks; under ``torchrun`` it is ``with launched():`` instead.

    >>> import torch.distributed as dist
    >>> from epruner.distributed import affinity_propagation
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> X = [[0.0], [1.0], [2.0], [10.0]]
    >>> exemplars, labels = affinity_propagation(X, preference=-20.0)
    >>> exemplars.tolist(), labels.tolist()
    ([1, 3], [0, 0, 0, 1])
    >>> dist.destroy_process_group()
    """
    model = AffinityPropagation(
        affinity=affinity,
        preference=preference,
        preference_quantile=preference_quantile,
        beta=beta,
        n_clusters=n_clusters,
        damping=damping,
        max_iter=max_iter,
        convergence_iter=convergence_iter,
        random_state=random_state,
        n_threads=n_threads,
        verbose=verbose,
        group=group,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
    ).fit(X)
    if return_n_iter:
        return model.cluster_centers_indices_, model.labels_, model.n_iter_
    return model.cluster_centers_indices_, model.labels_


class AffinityPropagation(epruner.cluster.AffinityPropagation):
    """Affinity propagation of points that lie with the ranks of a process group.

    The answer is that of `epruner.AffinityPropagation` with all points in one process: labels,
    exemplars and number of iterations; its bits do not depend on the number of ranks, up to 32.
    No rank holds all features, or more than a few numbers for each point of the others.

    Parameters
    ----------
    affinity : {'euclidean', 'cosine', 'precomputed'}, default='euclidean'
        'precomputed' takes rows of a sparse matrix of similarities.
    preference : float or array-like of shape (m,), default=None
        One number, the same on all ranks, or one for each of this rank's points. None takes the
        median similarity of all.
    preference_quantile, beta, n_clusters, damping, max_iter, convergence_iter, random_state
        As for `epruner.AffinityPropagation`.
    n_threads : int or None, default=None
        Threads of this rank. torchrun sets ``OMP_NUM_THREADS=1``, which None honours.
    verbose : bool, default=False
        Whether rank 0 shows progress.
    group : torch.distributed.ProcessGroup or None, default=None
        None takes all ranks. Messages are arrays in the CPU's memory, which gloo passes.
    checkpoint : path-like, default=None
        A folder that all ranks reach, for the messages of a run; it is made if need be. A run that
        finds them there, on any number of ranks, goes on from them to the same bits.
    checkpoint_every : int, default=50
        Iterations between two checkpoints.

    Attributes
    ----------
    cluster_centers_indices_ : ndarray of shape (n_clusters,)
        Indices of the exemplars among the points of all ranks, ascending.
    cluster_centers_ : ndarray of shape (n_clusters, d)
        The exemplars. Not with precomputed similarities.
    labels_ : ndarray of shape (m,)
        Cluster of each point of this rank; -1 where there is none.
    n_iter_, converged_, net_similarity_, damping_
        The same on all ranks.
    preference_ : ndarray of shape (m,)
        The preferences used, of the points of this rank.

    Examples
    --------
    One process, that is all ranks; under ``torchrun`` it is ``with launched():`` instead.

    >>> import torch.distributed as dist
    >>> from epruner.distributed import AffinityPropagation
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> model = AffinityPropagation(preference=-20.0).fit([[0.0], [1.0], [2.0], [10.0]])
    >>> model.labels_.tolist(), model.cluster_centers_.tolist()
    ([0, 0, 0, 1], [[1.0], [10.0]])
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        *,
        affinity: str = "euclidean",
        preference: ArrayLike | None = None,
        preference_quantile: float | None = None,
        beta: float | None = None,
        n_clusters: int | None = None,
        damping: float | str = 0.5,
        max_iter: int = 200,
        convergence_iter: int = 15,
        random_state: validate.RandomState = None,
        n_threads: int | None = None,
        verbose: bool = False,
        group: dist.ProcessGroup | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 50,
    ) -> None:
        self.affinity = affinity
        self.preference = preference
        self.preference_quantile = preference_quantile
        self.beta = beta
        self.n_clusters = n_clusters
        self.damping = damping
        self.max_iter = max_iter
        self.convergence_iter = convergence_iter
        self.random_state = random_state
        self.n_threads = n_threads
        self.verbose = verbose
        self.group = group
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every

    def fit(self, X: Any, y: object = None, sample_weight: ArrayLike | None = None) -> Self:
        """Cluster the rows of all ranks; every rank calls it with its own.

        Parameters
        ----------
        X : array-like of shape (m, d), or SciPy sparse matrix of shape (m, n)
            The rows of this rank. None at all, shape (0, d), will do.
        y : Ignored
            For scikit-learn's pipelines.
        sample_weight : None
            Weights need a matrix of similarities, which no rank holds.

        Returns
        -------
        AffinityPropagation
            This estimator, with the attributes that end in ``_``.

        Raises
        ------
        ValueError, TypeError
            On all ranks, if a parameter or the rows of one are not as they must be, or parameters
            differ.
        RankError
            If another rank fails or is lost.
        MemoryError
            If what this rank would hold does not fit.
        RuntimeError
            If there is no process group.

        Warns
        -----
        ConvergenceWarning
            On rank 0: the exemplars were not stable after `max_iter` iterations.

        Examples
        --------
        >>> import torch.distributed as dist
        >>> from epruner.distributed import AffinityPropagation
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> X = [[0.0], [1.0], [10.0], [11.0]]
        >>> AffinityPropagation(n_clusters=2).fit(X).labels_.tolist()
        [0, 0, 1, 1]
        >>> dist.destroy_process_group()
        """
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)  # an earlier fit's
        group = Group(self.group)
        with group.agree():
            if sample_weight is not None:
                raise ValueError("sample_weight needs a matrix of similarities: use one process")
            _compiled.require("clustering over ranks")
            options, rule = self._options(group), self._rule()
            self._check_checkpoint()
            X, preference = self._validated(X)
        with group.together(), options.progress as progress:
            group.require_same(
                affinity=self.affinity,
                columns=X.shape[1],
                dtype=str(X.dtype),
                damping=self.damping,
                max_iter=self.max_iter,
                convergence_iter=self.convergence_iter,
                seed=options.seed,
                preference=_kind(self.preference),
                preference_quantile=self.preference_quantile,
                beta=self.beta,
                n_clusters=self.n_clusters,
                checkpoint_every=self.checkpoint_every if self.checkpoint is not None else None,
            )
            rows = np.concatenate([[0], np.cumsum(group.gather(np.array([X.shape[0]])))])
            with group.agree():
                rule.check(int(rows[-1]))
            clustering = self._solve(group, X, preference, rows, rule, options)
            progress.finish(clustering)
        if group.rank == 0:
            epruner.cluster.estimator.warn_of(clustering)
        return self

    def _options(self, group: Group) -> Options:
        automatic = self.damping == "auto"
        return validate.options(
            0.5 if automatic else self.damping,
            self.max_iter,
            self.convergence_iter,
            self.random_state,
            n_threads=self.n_threads,
            verbose=bool(self.verbose) and group.rank == 0,
            rising_damping=automatic,
        )

    def _check_checkpoint(self) -> None:
        every = self.checkpoint_every
        if not isinstance(every, Integral) or isinstance(every, bool):
            raise TypeError(f"checkpoint_every={every!r} must be an integer")
        if every < 1:
            raise ValueError(f"checkpoint_every={every} must be at least 1")
        if self.checkpoint is None:
            return
        if self.n_clusters is not None or self.damping == "auto":
            raise ValueError(
                "checkpoint holds the messages of one run, and n_clusters and damping='auto' take "
                "several: find the preference and the damping without, then run once with it"
            )
        check_folder(self.checkpoint)

    def _rule(self) -> PreferenceRule:
        return PreferenceRule(self.preference, self.preference_quantile, self.beta, self.n_clusters)

    def _validated(self, X: Any) -> tuple[Any, Floats | None]:
        """The rows as they are used, and their preferences where these are given."""
        if self.affinity not in _AFFINITIES:
            raise ValueError(f"affinity={self.affinity!r} is not one of {', '.join(_AFFINITIES)}")
        if self.affinity == "precomputed":
            if not sparse.issparse(X):
                raise TypeError(
                    "affinity='precomputed' over ranks takes rows of a SciPy sparse matrix (m, n), "
                    f"got {type(X).__name__}"
                )
            X = validate.sparse_rows(X)
        else:
            X = check_array(X, dtype=FLOATS, ensure_min_samples=0)
            if self.affinity == "cosine":
                X = normalised(X)
        preference = self.preference
        if preference is not None:
            preference = validate.preferences(preference, X.shape[0], X.dtype)
        return X, preference

    def _solve(
        self,
        group: Group,
        X: Any,
        preference: Floats | None,
        given: Indices,
        rule: PreferenceRule,
        options: Options,
    ) -> Clustering:
        """Deal the rows, of which rank q gave those from given[q] on, solve, and deal answers."""
        n, starts = int(given[-1]), row_starts(int(given[-1]), group.size)
        if n == 0:
            raise ValueError("X holds no points on any rank: at least one is needed")
        move = Move(group, np.arange(given[group.rank], given[group.rank + 1]), starts)
        back = Move(group, np.arange(starts[group.rank], starts[group.rank + 1]), given)
        if preference is not None:
            preference = move(preference)
        problem: SharedProblem
        if self.affinity == "precomputed":
            if X.shape[1] != n:
                raise ValueError(
                    f"the ranks hold {n} rows of similarities to {X.shape[1]} points: each must "
                    "have a column for every row of all ranks"
                )
            columns = X.indices.astype(np.int32, copy=False)  # on some ranks SciPy has others
            lists = move.lists(Lists(X.indptr.astype(np.int64), columns, X.data))
            S = sparse.csr_matrix(
                (lists.values, lists.columns, lists.offsets), shape=(lists.offsets.size - 1, n)
            )
            graph = SharedGraph(group, S)
            problem = SharedGraphProblem(
                graph, preference, self._checkpoint(graph, preference, options)
            )
        else:
            _require_distances(group, X)
            source = SharedFeatures(group, move(X), n, self.affinity == "cosine", options.n_threads)
            problem = SharedFeatureProblem(
                source, preference, self._checkpoint(source, preference, options)
            )
        clustering, self.damping_, own = problem.solve(rule, options)
        self.cluster_centers_indices_ = clustering.exemplars
        self.labels_ = back(clustering.labels)
        self.n_iter_ = clustering.n_iter
        self.converged_ = clustering.converged
        self.net_similarity_ = clustering.net_similarity
        self.preference_ = back(own)
        if self.affinity != "precomputed":
            self.cluster_centers_ = source.features_of(clustering.exemplars)
        return clustering

    def _checkpoint(
        self, source: SharedSource, preference: Floats | None, options: Options
    ) -> Checkpoint | None:
        if self.checkpoint is None:
            return None
        given = _kind(self.preference)
        if preference is not None and isinstance(given, str):
            given = digest(source.group, source.n, preference)
        run = {
            "points": source.n,
            "data": source.digest(),
            "affinity": self.affinity,
            "dtype": str(source.dtype),
            "preference": given,
            "preference_quantile": self.preference_quantile,
            "beta": self.beta,
            "damping": options.damping,
            "convergence_iter": options.convergence_iter,
            "random_state": options.seed,
        }
        folder = Path(self.checkpoint)
        return Checkpoint(folder, self.checkpoint_every, run, source.group, source.starts)


def _require_distances(group: Group, X: Floats) -> None:
    """Raise on all ranks if squares of distances between points of any overflow."""
    ends = np.concatenate(group.gather(np.stack([X.min(0), X.max(0)]) if len(X) else X))
    with np.errstate(over="ignore"):
        bound = np.square(np.ptp(ends, axis=0), dtype=np.float64).sum(keepdims=True)
        validate.require_distances(bound.astype(X.dtype))


def _kind(preference: ArrayLike | None) -> object:
    """What must be the same on all ranks of preferences that may be given for each point."""
    if preference is None or np.ndim(preference) == 0:
        return preference if preference is None else float(np.asarray(preference))
    return "for each point"
