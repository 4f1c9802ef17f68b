"""One clean problem in, one clustering out: degenerate cases, messages, decoding."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from epruner.cluster import backends
from epruner.cluster._compiled import native
from epruner.cluster.decode import decode, decode_noisy, net_similarity
from epruner.cluster.progress import Progress
from epruner.cluster.types import Clustering, Doubles, Floats, Indices, Messages, Options

if TYPE_CHECKING:
    from epruner.cluster import _native
    from epruner.cluster.candidates import CandidateSource

Links = Callable[[Indices, Indices], Floats]  # similarities of pairs, as rows and columns
Run = Callable[[Floats, Options], Clustering]  # with these preferences
Solve = Callable[[Options], Clustering]

_RISING = (0.7, 0.8, 0.9, 0.95)


class RunningSet(Protocol):
    """An active set, of this process or shared by several."""

    @property
    def iteration(self) -> int: ...
    @property
    def is_exemplar(self) -> NDArray[np.bool_]: ...
    @property
    def n_candidates(self) -> int: ...
    def restart(self, preference: Doubles, damping: float) -> None: ...
    def continue_with(self, preference: Doubles, damping: float) -> None: ...


A = TypeVar("A", bound=RunningSet)
A_contra = TypeVar("A_contra", bound=RunningSet, contravariant=True)


class Source(Protocol[A_contra]):
    """Where an active set's candidates come from."""

    n: int
    dtype: np.dtype[Any]

    def iterate(self, active_set: A_contra, iterations: int) -> str: ...
    def refill(self, active_set: A_contra, progress: Progress) -> None: ...


def cluster_similarities(
    S: Floats, preference: Floats, options: Options, backend: str = "auto"
) -> Clustering:
    """Cluster similarities `S` (n, n) with `preference` (n,); both are clean and are not written.

    Returns the arbitrary answer scikit-learn gives, without iterating, where all similarities and
    preferences are equal.
    """
    if all_equal(S, preference):
        return degenerate(preference, float(S.flat[S.shape[0] - 1]))
    options.progress.messages()
    messages = backends.get(backend)(S, preference, options)
    options.progress.part("decoding")

    def decoded(exemplars: Indices) -> tuple[Indices, Indices]:
        if native is None:
            return decode(S, preference, exemplars, options.seed)
        found: tuple[Indices, Indices] = native.decode(
            S,
            preference.astype(np.float64),
            exemplars,
            options.seed,
            options.n_threads,
            messages.active_set,
        )
        return found

    return _finished(messages, preference, _links(S), decoded)


def cluster_noisy(
    S: Floats, noisy: Floats, preference: Floats, options: Options, backend: str
) -> Clustering:
    """Cluster similarities `S` (n, n) by a copy with noise, which has noisy preferences, too."""
    options.progress.messages()
    messages = backends.get(backend)(noisy, noisy.diagonal().copy(), options)
    options.progress.part("decoding")
    return _finished(messages, preference, _links(S), lambda found: decode_noisy(noisy, found))


def cluster_side_by_side(
    problems: Sequence[Floats], preferences: Sequence[Floats], options: Options
) -> list[Clustering]:
    """Cluster several similarity matrices by the compiled solver, one thread each."""
    from epruner.cluster.backends.native import cluster_many

    answers: dict[int, Clustering] = {}
    left: dict[np.dtype[Any], list[int]] = {}
    for q, (S, preference) in enumerate(zip(problems, preferences, strict=True)):
        if all_equal(S, preference):
            answers[q] = degenerate(preference, float(S.flat[S.shape[0] - 1]))
        else:
            left.setdefault(S.dtype, []).append(q)
    for chosen in left.values():
        found = cluster_many(
            [problems[q] for q in chosen], [preferences[q] for q in chosen], options
        )
        for q, answer in zip(chosen, found, strict=True):
            answers[q] = _clustering(_links(problems[q]), preferences[q], *answer)
    return [answers[q] for q in range(len(problems))]


def cluster_candidates(
    source: "CandidateSource", active_set: "_native.ActiveSet", preference: Floats, options: Options
) -> Clustering:
    """Cluster the points of `source` by its started active set, which keeps what it learns."""
    messages = pass_messages(source, active_set, preference, options)
    return _decoded(source, active_set, preference, messages, options)


def cluster_while_damping_rises(
    source: "CandidateSource",
    active_set: "_native.ActiveSet",
    preference: Floats,
    options: Options,
    dampings: Sequence[float],
) -> tuple[Clustering, float]:
    """Go on with the next damping from where a run is, until it converges; return that damping."""
    n_iter = 0
    for damping in dampings:
        messages = pass_messages(
            source, active_set, preference, replace(options, damping=damping), onwards=n_iter > 0
        )
        n_iter += messages.n_iter
        if messages.converged:
            break
    messages = replace(messages, n_iter=n_iter)
    return _decoded(source, active_set, preference, messages, options), damping


def _decoded(
    source: "CandidateSource",
    active_set: "_native.ActiveSet",
    preference: Floats,
    messages: Messages,
    options: Options,
) -> Clustering:
    """Return the clustering that the messages of the active set give."""
    options.progress.part("decoding")
    return _finished(
        messages,
        preference,
        source.links,
        lambda found: source.decode(active_set, preference, found, options),
    )


def pass_messages(
    source: Source[A],
    active_set: A,
    preference: Floats,
    options: Options,
    *,
    onwards: bool = False,
) -> Messages:
    """Pass messages with these preferences, from the start or `onwards` from those there are."""
    progress = options.progress
    progress.messages()
    begin = active_set.continue_with if onwards else active_set.restart
    begin(preference.astype(np.float64), options.damping)
    while True:
        status = source.iterate(active_set, progress.batch(source.n, options.max_iter))
        if status == "needs candidates":
            source.refill(active_set, progress)
        elif status != "running":
            return Messages(active_set.is_exemplar, active_set.iteration, status == "converged")
        progress.iteration(active_set.iteration, active_set.is_exemplar, active_set.n_candidates)


def with_rising_damping(solve: Solve, options: Options) -> tuple[Clustering, float]:
    """Solve with the least damping that converges; return the clustering and that damping."""
    dampings = sorted({options.damping, *(d for d in _RISING if d > options.damping)})
    for number, damping in enumerate(dampings, 1):
        options.progress.attempt(damping, number, len(dampings))
        clustering = solve(replace(options, damping=damping))
        if clustering.converged:
            break
    return clustering, damping


class Trials:
    """Runs over the same points with one preference for all of them, each from start to end."""

    stepwise = False  # whether numbers of clusters can be had between iterations

    def __init__(self, n: int, dtype: np.dtype[Any], run: Run, options: Options) -> None:
        self.n = n
        self._dtype = dtype
        self._run = run
        self._options = options
        self._last: Clustering | None = None

    def common(self, preference: float) -> Floats:
        """Return this preference for each of the points."""
        return np.full(self.n, preference, dtype=self._dtype)

    def counts(self, preference: Floats, damping: float, *, onwards: bool = False) -> Iterator[int]:
        """Run to the end and yield the number of clusters, after each iteration if `stepwise`.

        With `onwards` (only if `stepwise`) the messages of the last run are where this one begins.
        """
        self._last = self._run(preference, replace(self._options, damping=damping))
        yield self._last.exemplars.size

    @property
    def converged(self) -> bool:
        """Whether the last run converged, once it is at its end."""
        assert self._last is not None
        return self._last.converged

    def clustering(self) -> Clustering:
        """Return what the last run gave, once it is at its end."""
        assert self._last is not None
        return self._last


class StepwiseTrials(Trials, Generic[A]):
    """Runs step by step on one active set, which keeps its candidates."""

    stepwise = True

    def __init__(self, source: Source[A], active_set: A, options: Options) -> None:
        self.n = source.n
        self._dtype = source.dtype
        self._options = options
        self._source = source
        self._active_set = active_set
        self._preference: Floats = np.empty(0)
        self._status = ""

    def counts(self, preference: Floats, damping: float, *, onwards: bool = False) -> Iterator[int]:
        active_set = self._active_set
        self._preference = preference
        begin = active_set.continue_with if onwards else active_set.restart
        begin(preference.astype(np.float64), damping)
        progress = self._options.progress
        progress.messages()
        self._status = "running"
        while self._status == "running":
            while (status := self._source.iterate(active_set, 1)) == "needs candidates":
                self._source.refill(active_set, progress)
            self._status = status
            is_exemplar = active_set.is_exemplar
            progress.iteration(active_set.iteration, is_exemplar)
            yield int(np.count_nonzero(is_exemplar))

    @property
    def converged(self) -> bool:
        return self._status == "converged"

    def clustering(self) -> Clustering:
        active_set = self._active_set
        return self._decoded(Messages(active_set.is_exemplar, active_set.iteration, self.converged))

    @abstractmethod
    def _decoded(self, messages: Messages) -> Clustering:
        """Return the clustering that messages with the last preferences give."""


class CandidateTrials(StepwiseTrials["_native.ActiveSet"]):
    """The same where all rows are in this process."""

    _source: "CandidateSource"

    def __init__(
        self, source: "CandidateSource", active_set: "_native.ActiveSet", options: Options
    ) -> None:
        super().__init__(source, active_set, options)

    def _decoded(self, messages: Messages) -> Clustering:
        return _decoded(self._source, self._active_set, self._preference, messages, self._options)


def _finished(
    messages: Messages,
    preference: Floats,
    links: Links,
    decode: Callable[[Indices], tuple[Indices, Indices]],
) -> Clustering:
    """Return the clustering that messages give; `decode` refines exemplars and labels points."""
    (exemplars,) = messages.is_exemplar.nonzero()
    labels = np.full(preference.size, -1, dtype=np.intp)
    if exemplars.size > 0:
        exemplars, labels = decode(exemplars)
    return _clustering(links, preference, exemplars, labels, messages.n_iter, messages.converged)


def _clustering(
    links: Links,
    preference: Floats,
    exemplars: Indices,
    labels: Indices,
    n_iter: int,
    converged: bool,
) -> Clustering:
    some = exemplars.size > 0
    net = net_similarity(links, preference, exemplars, labels) if some else float("-inf")
    return Clustering(exemplars, labels, n_iter, converged, net)


def _links(S: Floats) -> Links:
    return lambda rows, columns: S[rows, columns]


def all_equal(S: Floats, preference: Floats) -> bool:
    """Whether all preferences are equal, and all similarities of different points."""
    n = S.shape[0]
    if n == 1:
        return True
    first = S[0, 1]
    if S[0, -1] != first or first == np.inf:  # decides for nearly every input at once
        return False
    if not (preference == preference[0]).all():
        return False
    own = np.arange(n)
    return all((row[own != i] == first).all() for i, row in enumerate(S))


def degenerate(preference: Floats, link: float) -> Clustering:
    """Cluster points that are all equally similar, `link`, as scikit-learn does, with a warning."""
    n = preference.size
    warnings.warn(
        "All samples have mutually equal similarities. Returning arbitrary cluster center(s).",
        stacklevel=4,
    )
    everyone = np.arange(n)
    if preference[0] > link:
        return Clustering(everyone, everyone.copy(), 0, True, float(preference.sum()))
    net = float(preference[0]) + (n - 1) * (link if n > 1 else 0.0)
    return Clustering(everyone[:1], np.zeros(n, dtype=np.intp), 0, True, net)
