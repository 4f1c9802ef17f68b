"""What users call: scikit-learn's function and estimator, and a function for several problems."""

import warnings
from collections.abc import Sequence
from typing import Any, Self, TypeGuard

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils.validation import check_is_fitted, validate_data

from epruner.cluster import affinities, validate
from epruner.cluster.affinities import FLOATS, matrix_problem, similarity_problem
from epruner.cluster.backends import cuda
from epruner.cluster.backends.cuda.device import from_tensor
from epruner.cluster.preference import PreferenceRule
from epruner.cluster.problem import MatrixProblem, Problem, solve_many
from epruner.cluster.similarity import filled, normalised, require_directions
from epruner.cluster.types import Clustering, Floats, Indices


def affinity_propagation(
    S: ArrayLike,
    *,
    preference: ArrayLike | None = None,
    convergence_iter: int = 15,
    max_iter: int = 200,
    damping: float = 0.5,
    copy: bool = True,
    verbose: bool = False,
    return_n_iter: bool = False,
    random_state: validate.RandomState = None,
    ties: str = "fast",
    backend: str = "auto",
    n_threads: int | None = None,
) -> tuple[Indices, Indices] | tuple[Indices, Indices, int]:
    """Cluster similarities by affinity propagation.

    Takes scikit-learn's arguments and gives its answers; see `AffinityPropagation` for the
    parameters and for more ways to say what is wanted.

    Parameters
    ----------
    S : array-like or SciPy sparse matrix of shape (n, n)
        Similarities, larger for closer pairs; float32 and float64 are used as they are. -inf, or
        an entry that a sparse matrix does not store, marks a pair that must not be linked. The
        diagonal counts for the median only.
    preference : array-like of shape (n,) or float, default=None
        How much each point wants to be an exemplar; None takes the median similarity.
    convergence_iter, max_iter, damping : as for `AffinityPropagation`
        But for ``damping='auto'``.
    copy : bool, default=True
        If False, the preferences are written to the diagonal of `S`, as scikit-learn does, where
        it is a writeable array of float32 or float64.
    verbose : bool, default=False
        Whether to show progress on standard error.
    return_n_iter : bool, default=False
        Whether to return the number of iterations, too.
    random_state, ties, backend, n_threads : as for `AffinityPropagation`
        What breaks ties and what computes.

    Returns
    -------
    cluster_centers_indices : ndarray of shape (n_clusters,)
        Indices of the exemplars, ascending; empty if none emerged.
    labels : ndarray of shape (n,)
        Cluster of each point; -1 where there is none.
    n_iter : int
        Only with ``return_n_iter=True``.

    Raises
    ------
    ValueError
        If `S` is not square or holds NaN or +inf, or a parameter is out of range.
    TypeError
        If `S`, `preference` or a parameter is of the wrong type.
    MemoryError
        If the messages do not fit; the message holds the figure.

    Warns
    -----
    ConvergenceWarning
        The exemplars were not stable after `max_iter` iterations.

    Examples
    --------
    >>> import numpy as np
    >>> import epruner
    >>> x = np.array([0.0, 1.0, 2.0, 10.0, 11.0])
    >>> S = -((x[:, None] - x) ** 2)
    >>> exemplars, labels = epruner.affinity_propagation(S, preference=-20.0)
    >>> exemplars.tolist(), labels.tolist()
    ([1, 3], [0, 0, 0, 1, 1])
    """
    S = from_tensor(S, "S")
    preference = from_tensor(preference, "preference")
    options = validate.options(
        damping,
        max_iter,
        convergence_iter,
        random_state,
        n_threads=n_threads,
        verbose=verbose,
        ties=ties,
    )
    problem = None
    with options.progress as progress:
        if not _on_device([S], backend, ties):
            problem = similarity_problem(S, backend, ties, random_state)
        if problem is None:
            (clustering,) = cuda.cluster_many([S], [preference], options)
        else:
            clustering, _, preferences = problem.solve(PreferenceRule(preference), options)
            if not copy and _is_writeable(S):
                np.fill_diagonal(S, preferences)
        progress.finish(clustering)
    warn_of(clustering)
    if return_n_iter:
        return clustering.exemplars, clustering.labels, clustering.n_iter
    return clustering.exemplars, clustering.labels


def _on_device(problems: Sequence[Any], backend: str, ties: str) -> bool:
    on_device = cuda.use_device(problems, backend)
    if on_device and ties != "fast":
        raise ValueError(f"ties={ties!r} works on the CPU only: move S there, or ties='fast'")
    return on_device


def _is_writeable(S: object) -> TypeGuard[Floats]:
    """Whether preferences can be written to `S` as they are."""
    return isinstance(S, np.ndarray) and S.flags.writeable and S.dtype in FLOATS


def warn_of(clustering: Clustering) -> None:
    if clustering.exemplars.size == 0:
        warnings.warn(
            "Affinity propagation did not converge and this model will not have any cluster "
            "centers. Raise damping or max_iter, or the preference.",
            ConvergenceWarning,
            stacklevel=3,
        )
    elif not clustering.converged:
        warnings.warn(
            "Affinity propagation did not converge, this model may return degenerate cluster "
            "centers and labels. Raise damping or max_iter.",
            ConvergenceWarning,
            stacklevel=3,
        )


def affinity_propagation_many(
    problems: Sequence[ArrayLike],
    *,
    preference: Sequence[ArrayLike | None] | float | None = None,
    damping: float = 0.5,
    max_iter: int = 200,
    convergence_iter: int = 15,
    random_state: validate.RandomState = None,
    ties: str = "fast",
    backend: str = "auto",
    n_threads: int | None = None,
) -> list[Clustering]:
    """Cluster several similarity matrices at once, one thread each, the largest first.

    Parameters
    ----------
    problems : sequence of array-like of shape (n_i, n_i)
        Similarities of each problem, as for `affinity_propagation`. Never written.
    preference : float, None, or a sequence with one entry per problem
        Each entry is a scalar, an array of shape (n_i,), or None for the median similarity.
    damping, max_iter, convergence_iter : as for `affinity_propagation`
        The same for every problem.
    random_state, ties, backend, n_threads : as for `affinity_propagation`
        The same for every problem. Where problems are fewer than threads, or take their noise in
        turn (``ties='scikit-learn'``), threads work inside them.

    Returns
    -------
    list of Clustering
        In the order of `problems`. A problem that did not converge says so in ``converged``;
        no warning is raised.

    Raises
    ------
    ValueError
        If a matrix is not square or holds NaN or +inf, a preference has the wrong length, or an
        option is out of range.
    TypeError
        If `problems` is one matrix, or an option is of the wrong type.

    Examples
    --------
    >>> import numpy as np
    >>> import epruner
    >>> x = np.array([0.0, 1.0, 2.0, 10.0, 11.0])
    >>> S = -((x[:, None] - x) ** 2)
    >>> problems = [S, S[:3, :3]]
    >>> several = epruner.affinity_propagation_many(problems, preference=[-20.0, None])
    >>> [clustering.exemplars.tolist() for clustering in several]
    [[1, 3], [1]]
    """
    if getattr(problems, "ndim", 3) == 2:
        raise TypeError(f"problems is one matrix, a {type(problems)}; pass a list of matrices: [S]")
    problems = [from_tensor(S, f"problems[{q}]") for q, S in enumerate(problems)]
    preference = from_tensor(preference, "preference")
    options = validate.options(
        damping, max_iter, convergence_iter, random_state, n_threads=n_threads, ties=ties
    )
    each: Sequence[Any]
    if isinstance(preference, Sequence | np.ndarray):
        each = list(preference)
    else:
        each = [preference] * len(problems)
    if len(each) != len(problems):
        raise ValueError(f"preference has {len(each)} entries for {len(problems)} problems")
    if _on_device(problems, backend, ties):
        return cuda.cluster_many(problems, each, options)
    cleaned = [matrix_problem(S, backend, ties, random_state) for S in problems]
    return solve_many(cleaned, each, options)


class AffinityPropagation(ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """Affinity propagation clustering, a drop-in for scikit-learn's.

    Parameters
    ----------
    damping : float or 'auto', default=0.5
        How much of the old message is kept, in [0.5, 1). Raise it where runs oscillate; 'auto'
        does so until a run converges, up to 0.95. With nearest neighbours it starts at 0.9, and
        goes on from the messages there are, up to 0.999.
    max_iter : int, default=200
        Most iterations (with ``damping='auto'``, of each attempt).
    convergence_iter : int, default=15
        Iterations without a change of exemplars that count as convergence.
    copy : bool, default=True
        Whether to keep a precomputed `X` as it is. If False, its diagonal takes the preferences
        where it is a writeable array of float32 or float64, which spares ``affinity_matrix_`` a
        copy.
    preference : array-like of shape (n,) or float, default=None
        How much each point wants to be an exemplar; the larger, the more clusters. None takes the
        median similarity; with nearest neighbours for each point the similarity to the farthest,
        and a quarter of what the others would lose, were they as far away.
    affinity : {'euclidean', 'cosine', 'nearest_neighbors', 'precomputed'} or callable, \
default='euclidean'
        'euclidean' is the negative squared distance. 'nearest_neighbors' is the same, but links
        each point to its `n_neighbors` nearest only: an approximation for where all pairs are too
        many, best with ``damping='auto'``.
        'precomputed' takes similarities (n, n), dense or sparse. A callable gets the features and
        returns similarities (n, n).
    verbose : bool, default=False
        Whether to show progress on standard error, and at the end clusters, iterations and
        seconds: a bar on terminals and in notebooks (extra ``progress``), lines elsewhere.
    random_state : int, RandomState or None, default=None
        Key of the tie-breaking jitter. None is 0: the same input gives the same answer. With
        ``ties='scikit-learn'`` the generator of the noise; None is then NumPy's global one.
    ties : {'fast', 'scikit-learn'}, default='fast'
        What breaks exact ties. 'fast' is a jitter: a hash of each pair's place, evaluated where it
        can decide. 'scikit-learn' adds scikit-learn's noise to a copy of all similarities and
        decodes with it, for the same labels where ties decide them; it needs a dense matrix on the
        CPU and costs more than most of the rest.
    preference_quantile : float in [0, 1], default=None
        Instead of `preference`: this quantile of the similarities between different points.
    beta : float, default=None
        Instead of `preference`: `beta` times the median similarity of each point, its similarity
        to itself included (Lin et al., arXiv 2101.07985).
    n_clusters : int, default=None
        Search a common preference that gives this many clusters, starting from the preferences
        that the parameters above set. It begins with a damping of 0.7 at least; others, none below
        `damping`, are tried where runs oscillate or a number is skipped. Warns where no
        preference was found.
    n_neighbors : int, default=30
        With ``affinity='nearest_neighbors'``, how many each point is linked to, or all where there
        are no more. From 100,000 dense points on, PyNNDescent (extra ``neighbors``) finds about
        them, if installed; scikit-learn finds them exactly.
    memory : {'auto', 'tiles', 'matrix'}, default='auto'
        Whether similarities of features are made and dropped in tiles or kept as a matrix (n, n).
        'auto' keeps small ones; only then is there an ``affinity_matrix_``.
    backend : {'auto', 'native', 'dense', 'numba', 'cupy', 'reference'}, default='auto'
        The solver. All give the same answer where a run converges; 'dense' and 'reference' are
        for comparison.
    n_threads : int or None, default=None
        Threads of the solver, at most four a core (16 on fewer than four cores). None honours
        ``OMP_NUM_THREADS``, threadpoolctl, and the CPU quota of the process's control group.

    Attributes
    ----------
    cluster_centers_indices_ : ndarray of shape (n_clusters,)
        Indices of the exemplars, ascending.
    cluster_centers_ : ndarray of shape (n_clusters, n_features)
        The exemplars. Not with precomputed similarities.
    labels_ : ndarray of shape (n,)
        Cluster of each point; -1 where no exemplar emerged or none may be linked.
    affinity_matrix_ : ndarray or sparse matrix of shape (n, n)
        Similarities with the preferences on their diagonal, where a matrix was kept; rows
        multiplied by `sample_weight`, and with the noise of ``ties='scikit-learn'``.
    n_iter_ : int
        Iterations run.
    converged_ : bool
        Whether the exemplars were stable for `convergence_iter` iterations.
    net_similarity_ : float
        Sum of the points' similarities to their exemplars, times their weights, and of the
        exemplars' preferences.
    preference_ : ndarray of shape (n,)
        The preferences used.
    damping_ : float
        The damping used.
    sample_weight_ : ndarray of shape (n,)
        The weights, where they were given.

    References
    ----------
    Frey & Dueck, "Clustering by passing messages between data points", Science 315 (2007).

    Examples
    --------
    >>> from epruner import AffinityPropagation
    >>> X = [[0, 0], [1, 0], [0, 1], [9, 9], [9, 8], [8, 9], [20, 0]]
    >>> model = AffinityPropagation().fit(X)
    >>> model.labels_.tolist()
    [0, 0, 0, 1, 1, 1, 2]
    >>> model.cluster_centers_.tolist()
    [[0.0, 0.0], [9.0, 9.0], [20.0, 0.0]]
    >>> AffinityPropagation(n_clusters=2).fit(X).labels_.tolist()
    [0, 0, 0, 1, 1, 1, 1]
    """

    def __init__(
        self,
        *,
        damping: float | str = 0.5,
        max_iter: int = 200,
        convergence_iter: int = 15,
        copy: bool = True,
        preference: ArrayLike | None = None,
        affinity: affinities.Affinity = "euclidean",
        verbose: bool = False,
        random_state: validate.RandomState = None,
        ties: str = "fast",
        preference_quantile: float | None = None,
        beta: float | None = None,
        n_clusters: int | None = None,
        n_neighbors: int = 30,
        memory: str = "auto",
        backend: str = "auto",
        n_threads: int | None = None,
    ) -> None:
        self.damping = damping
        self.max_iter = max_iter
        self.convergence_iter = convergence_iter
        self.copy = copy
        self.preference = preference
        self.affinity = affinity
        self.verbose = verbose
        self.random_state = random_state
        self.ties = ties
        self.preference_quantile = preference_quantile
        self.beta = beta
        self.n_clusters = n_clusters
        self.n_neighbors = n_neighbors
        self.memory = memory
        self.backend = backend
        self.n_threads = n_threads

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.affinity == "precomputed"
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: object = None, sample_weight: ArrayLike | None = None) -> Self:
        """Cluster features (n, d), or similarities (n, n) with ``affinity='precomputed'``.

        Parameters
        ----------
        X : array-like or SciPy sparse matrix of shape (n, d) or (n, n)
            Features or similarities; float32 and float64 are used as they are, other numbers become
            float64.
        y : Ignored
            For scikit-learn's pipelines.
        sample_weight : array-like of shape (n,), default=None
            A point of weight w counts like w copies of it that share an exemplar: its similarities
            to others are multiplied by w. Positive. Rules for preferences refer to similarities
            without weights. Features take a matrix for them, whatever their number.

        Returns
        -------
        AffinityPropagation
            This estimator, with the attributes that end in ``_``.

        Raises
        ------
        ValueError
            If `X` or a parameter is out of range; if squares of the features overflow their dtype.
        TypeError
            If a parameter is of the wrong type.
        MemoryError
            If the similarities do not fit; the message holds the figure.

        Warns
        -----
        ConvergenceWarning
            The exemplars were not stable after `max_iter` iterations, or `n_clusters` was not met.

        Examples
        --------
        >>> from epruner import AffinityPropagation
        >>> S = [[0.0, -1.0, -81.0], [-1.0, 0.0, -64.0], [-81.0, -64.0, 0.0]]
        >>> model = AffinityPropagation(affinity="precomputed", preference=-20.0)
        >>> model.fit(S).labels_.tolist()
        [0, 0, 1]
        >>> model = AffinityPropagation(preference=-2.0)
        >>> model = model.fit([[0.0], [1.0]], sample_weight=[1, 9])
        >>> model.cluster_centers_indices_.tolist()  # the point that counts nine times
        [1]
        """
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)  # an earlier fit's
        X = from_tensor(X, "X")
        preference = from_tensor(self.preference, "preference")
        automatic = self.damping == "auto"
        options = validate.options(
            0.5 if automatic else self.damping,
            self.max_iter,
            self.convergence_iter,
            self.random_state,
            n_threads=self.n_threads,
            verbose=self.verbose,
            rising_damping=automatic,
            ties=self.ties,
        )
        rule = PreferenceRule(preference, self.preference_quantile, self.beta, self.n_clusters)
        given = X
        affinities.check(self.affinity, self.memory)
        finite = self.affinity != "precomputed"
        X = validate_data(self, X, accept_sparse="csr", ensure_all_finite=finite, dtype=FLOATS)
        with options.progress as progress:
            progress.stage("similarities")
            sample_weight = from_tensor(sample_weight, "sample_weight")
            problem = self._problem(X, sample_weight)
            clustering, self.damping_, self.preference_ = problem.solve(rule, options)
            progress.finish(clustering)
        warn_of(clustering)
        self.cluster_centers_indices_ = clustering.exemplars
        self.labels_ = clustering.labels
        self.n_iter_ = clustering.n_iter
        self.converged_ = clustering.converged
        self.net_similarity_ = clustering.net_similarity
        own = self._may_write(problem, given)
        matrix = problem.affinity_matrix(self.preference_, in_place=own)
        if matrix is not None:
            self.affinity_matrix_ = matrix
        if sample_weight is not None:
            self.sample_weight_ = np.asarray(sample_weight)
        if self.affinity != "precomputed":
            self.cluster_centers_ = X[clustering.exemplars]
        elif not self.copy and _is_writeable(given):
            np.fill_diagonal(given, self.preference_)
        return self

    def _may_write(self, problem: Problem, given: Any) -> bool:
        """Whether the problem's matrix is nobody else's, or may be written all the same."""
        if callable(self.affinity) or not isinstance(problem, MatrixProblem):
            return False
        S = problem.similarity_matrix
        if S is given or not S.flags.owndata:
            return not self.copy and _is_writeable(S)
        return True

    def _problem(self, X: Any, sample_weight: ArrayLike | None) -> Problem:
        """Return the problem that the validated input poses."""
        return affinities.pose(
            X,
            self.affinity,
            sample_weight=sample_weight,
            n_neighbors=self.n_neighbors,
            memory=self.memory,
            backend=self.backend,
            ties=self.ties,
            random_state=self.random_state,
            n_threads=self.n_threads,
        )

    def predict(self, X: Any) -> Indices:
        """Return the label of the most similar exemplar for each row of `X`.

        Parameters
        ----------
        X : array-like of shape (m, d), or (m, n_clusters) with ``affinity='precomputed'``
            New points; after a precomputed fit, their similarities to the exemplars in the order
            of ``cluster_centers_indices_``.

        Returns
        -------
        labels : ndarray of shape (m,)
            -1 for a point that may not be linked to any exemplar: -inf to all of them.

        Raises
        ------
        NotFittedError
            If the model is not fitted.
        ValueError
            If `X` has the wrong shape or holds NaN, for cosine similarity a row of zeros, or if
            `affinity` is a callable.

        Warns
        -----
        ConvergenceWarning
            The model has no exemplars: all labels are -1.

        Examples
        --------
        >>> from epruner import AffinityPropagation
        >>> model = AffinityPropagation(preference=-20.0).fit([[0.0], [1.0], [10.0], [11.0]])
        >>> model.predict([[2.0], [9.0]]).tolist()
        [0, 1]
        """
        check_is_fitted(self)
        X = from_tensor(X, "X")
        clusters = self.cluster_centers_indices_.size
        if self.affinity == "precomputed":
            near = filled(X.tocsr()) if issparse(X) else np.asarray(X)
            if near.ndim != 2 or near.shape[1] != clusters:
                raise ValueError(
                    "after a fit on precomputed similarities, predict takes the similarities of "
                    f"new points to the {clusters} exemplars, shape (m, {clusters}); "
                    f"got {near.shape}"
                )
            validate.require_similarities(near)
        else:
            near = validate_data(self, X, reset=False, accept_sparse="csr", dtype=FLOATS)
        if clusters == 0:
            warnings.warn(
                "This model does not have any cluster centers because affinity propagation did "
                "not converge. Labeling every sample as '-1'.",
                ConvergenceWarning,
                stacklevel=2,
            )
            return np.full(near.shape[0], -1)
        if callable(self.affinity):
            raise ValueError(
                "predict needs affinity='euclidean', 'cosine' or 'precomputed': similarities to "
                "the exemplars alone are not defined by a callable of all features"
            )
        labels: Indices
        if self.affinity == "precomputed":
            labels = near.argmax(axis=1)
            labels[near.max(axis=1) == -np.inf] = -1
        elif self.affinity == "cosine":
            lengths = abs(near).max(axis=1)
            require_directions(lengths.toarray().ravel() if issparse(near) else lengths)
            labels = (near @ normalised(self.cluster_centers_).T).argmax(axis=1)
        else:
            labels = pairwise_distances_argmin(near, self.cluster_centers_)
        return labels
