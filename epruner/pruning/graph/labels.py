"""Which numbers of which tensors belong to which channels, and which channels hang together.

Every output channel of a layer has a label. A tensor that a forward pass computes has *facets*:
arrays of labels of as many dimensions as itself, of size 1 in those along which they do not
change. The elements under a label go when its channel goes; so along every dimension of a facet
whole slices go, and where two tensors meet one by one, their labels are those of one class. That
is all there is to hanging together: a union-find over labels.

A class also grows where slices have to stay rectangular (`Classes.join`), and may have to stay as
it is (`Classes.fix`); either has a reason, of which the first counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Reason = str | None
Labels = npt.NDArray[np.int64]
NEVER = np.iinfo(np.int64).max


class Classes:
    """Classes of labels."""

    def __init__(self) -> None:
        self._parent = np.zeros(0, np.int64)
        self._fixed = np.zeros(0, np.int64)  # by root, the first event that fixed its class
        self._joined = np.zeros(0, np.int64)
        self._reasons: list[str] = []  # by event

    def __len__(self) -> int:
        return len(self._parent)

    def new(self, shape: Sequence[int], fixed: Reason = None) -> Tensor:
        """Labels that are in no class but their own."""
        first = len(self._parent)
        labels = torch.arange(first, first + math.prod(shape))
        self._parent = np.concatenate([self._parent, labels.numpy()])
        none = np.full(len(labels), NEVER)
        self._fixed, self._joined = (np.append(x, none) for x in (self._fixed, self._joined))
        if fixed is not None:
            self.fix(labels, fixed)
        return labels.view(tuple(shape))

    def find(self, labels: Tensor) -> Labels:
        """The class of each label: its smallest member."""
        return self._roots(labels.numpy())

    def unify(self, a: Tensor, b: Tensor, why: Reason = None) -> None:
        """Make one class of labels at the same place; `why`, if they are of one tensor."""
        one, other = np.broadcast_arrays(self.find(a), self.find(b))
        merged = np.zeros(0, np.int64)
        while (differ := one != other).any():
            one, other = one[differ], other[differ]
            above = np.maximum(one, other)
            np.minimum.at(self._parent, above, np.minimum(one, other))
            merged = np.append(merged, above)
            one, other = self._roots(one), self._roots(other)
        roots = self._roots(merged)
        for events in (self._fixed, self._joined):
            np.minimum.at(events, roots, events[merged])
        if why is not None and len(roots):
            np.minimum.at(self._joined, roots, self._event(why))

    def join(self, labels: Tensor, dims: Iterable[int], why: str) -> None:
        """Unite along dimensions: what lies along them goes together; if it is all, not at all."""
        dims = [d for d in dims if labels.shape[d] > 1]
        if not dims:
            return
        if all(n == 1 or d in dims for d, n in enumerate(labels.shape)):
            self.fix(labels, why)
            return
        for dim in dims:
            self.unify(labels, labels.narrow(dim, 0, 1), why)
            labels = labels.narrow(dim, 0, 1)

    def fix(self, labels: Tensor, why: str) -> None:
        """Let classes stay as they are."""
        np.minimum.at(self._fixed, self.find(labels), self._event(why))

    def reason(self, labels: Labels) -> Reason:
        """Why some of these have to stay, the first reason there was; None if all may go."""
        return self._first(self._fixed, labels)

    def joined(self, labels: Labels) -> Reason:
        """Why the classes of these grew along a tensor, if they did."""
        return self._first(self._joined, labels)

    def _event(self, why: str) -> int:
        self._reasons.append(why)
        return len(self._reasons) - 1

    def _first(self, events: Labels, labels: Labels) -> Reason:
        event = events[self._roots(labels)].min(initial=NEVER)
        return None if event == NEVER else self._reasons[event]

    def _roots(self, index: Labels) -> Labels:
        roots: Labels = self._parent[index]
        while not np.array_equal(roots, above := self._parent[roots]):
            roots = above
        self._parent[index] = roots
        return roots


@dataclass(frozen=True)
class Facet:
    """Labels on a tensor, and the layers whose outputs they are.

    Parameters
    ----------
    labels : Tensor of int
        Of as many dimensions as the tensor, of size 1 where they do not change.
    makers : frozenset of str
        Names of the layers; none for those of bare parameters.
    """

    labels: Tensor
    makers: frozenset[str] = frozenset()

    def along(self, dim: int) -> bool:
        """Whether the labels change along a dimension."""
        return self.labels.shape[dim] > 1

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions along which the labels change."""
        return tuple(d for d, n in enumerate(self.labels.shape) if n > 1)


@dataclass(frozen=True)
class Operand:
    """A tensor of an operation, its facets, and whether it is made of the model's inputs alone."""

    tensor: Tensor
    facets: tuple[Facet, ...]
    given: bool = False

    def like(self, view: Callable[[Tensor], Tensor]) -> Operand:
        """The same under a view that moves no element and merges no dimensions."""
        facets = (Facet(view(f.labels), f.makers) for f in self.facets)
        return Operand(view(self.tensor), tuple(facets), self.given)


class Algebra:
    """What operations on tensors mean for their facets."""

    def __init__(self) -> None:
        self.classes = Classes()
        self.ragged: list[Tensor] = []  # facets that change along two dimensions or more
        self._cuts: dict[tuple[int, int], tuple[Tensor, set[tuple[int, int]], str]] = {}
        self.added: list[Tensor] = []  # labels where what different layers made is added
        self.norms: dict[str, list[Tensor]] = {}  # by module, labels over which it takes a norm

    def settled(self, facets: Iterable[Facet]) -> tuple[Facet, ...]:
        """Facets without the dimensions along which nothing changes; no two along the same one."""
        found: list[Facet] = []
        for facet in facets:
            labels = self._reduced(facet.labels)
            if labels.numel() == 1:
                if len(torch.unique(facet.labels)) > 1:
                    self.classes.fix(labels, "all its channels go together")
                continue
            facet = Facet(labels, facet.makers)
            if any(set(facet.dims) & set(other.dims) for other in found):
                self.classes.fix(labels, "its channels are interleaved with those of another layer")
                continue
            if len(facet.dims) > 1:
                self.ragged.append(labels)
            found.append(facet)
        return tuple(found)

    def meet(
        self, operands: Sequence[Operand], why: Callable[[bool], str], *, adds: bool = False
    ) -> tuple[Facet, ...]:
        """The facets of what is made of tensors one by one, broadcast.

        Parameters
        ----------
        operands : sequence of Operand
        why : callable
            Says why channels must stay that meet a tensor of fixed size; told whether that one is
            made of the model's inputs.
        adds : bool
            The operation is an addition.
        """
        dims = max((o.tensor.dim() for o in operands), default=0)
        operands = [
            replace(o, facets=self.settled(o.facets)).like(lambda t: t[(None,) * (dims - t.dim())])
            for o in operands
        ]
        operands = self._parted(operands)
        for dim in range(dims):
            size = max(o.tensor.shape[dim] for o in operands)
            wide = [o for o in operands if o.tensor.shape[dim] == size > 1]
            covering = [f for o in wide for f in o.facets if f.along(dim)]
            if covering:
                bare = (o for o in wide if not any(f.along(dim) for f in o.facets))
                loose = [o for o in bare if not _even(o, dim)]
                for facet in covering if loose else ():
                    self.classes.join(facet.labels, [dim], why(any(o.given for o in loose)))
        met: list[Facet] = []
        for operand in operands:
            for facet in self.settled(operand.facets):  # no two of which overlap
                alone = True
                for i, other in enumerate(met):
                    if set(facet.dims) & set(other.dims):
                        if adds and facet.makers and other.makers.isdisjoint(facet.makers):
                            self.added.extend([other.labels] * bool(other.makers))
                        self.classes.unify(facet.labels, other.labels)
                        met[i] = Facet(other.labels, other.makers | facet.makers)
                        alone = False
                if alone:
                    met.append(facet)
        return self.settled(met)

    def move(
        self, shape: Sequence[int], facet: Facet, function: Callable[[Tensor], Sequence[Tensor]]
    ) -> list[Facet]:
        """A facet on each result of a function that moves elements of a tensor of this shape."""
        full = facet.labels.expand(tuple(shape))
        return [Facet(labels, facet.makers) for labels in function(full)]

    def concatenate(
        self, operands: Sequence[Operand], dim: int, why: Callable[[bool], str]
    ) -> tuple[Facet, ...]:
        """The facets of tensors laid side by side along a dimension."""
        flat = [
            Operand(
                o.tensor.narrow(dim, 0, 1), tuple(f for f in o.facets if not f.along(dim)), o.given
            )
            for o in operands
        ]
        across = list(self.meet(flat, why))
        if not any(f.along(dim) for o in operands for f in o.facets):
            return tuple(across)
        along: set[int] = {d for o in operands for f in o.facets if f.along(dim) for d in f.dims}
        parts = []
        makers: frozenset[str] = frozenset()
        for operand in operands:
            facet = next((f for f in operand.facets if along.intersection(f.dims)), None)
            size = operand.tensor.shape[dim]
            if facet is None:
                shape = [size if d == dim else 1 for d in range(operand.tensor.dim())]
                labels = self.classes.new(shape, why(operand.given))
            else:
                labels, makers = facet.labels, makers | facet.makers
            wide = [
                n if d in along else m
                for d, (n, m) in enumerate(zip(operand.tensor.shape, labels.shape, strict=True))
            ]
            parts.append(labels.expand(wide))
        across = [f for f in across if not along.intersection(f.dims)]
        return self.settled([Facet(torch.cat(parts, dim), makers), *across])

    def reduce(self, facets: Iterable[Facet], dims: Sequence[int], why: str) -> tuple[Facet, ...]:
        """What is left of facets when a number is made of all along some dimensions."""
        facets = tuple(facets)
        for facet in facets:
            self.classes.join(facet.labels, dims, why)
        return self.summed(facets, dims)

    def summed(self, facets: Iterable[Facet], dims: Sequence[int]) -> tuple[Facet, ...]:
        """What is left of facets when along some dimensions only sums are left."""
        found = []
        for facet in facets:
            labels = facet.labels
            rest = not set(facet.dims) <= set(dims)
            for d in dims:
                if rest:
                    self.classes.unify(labels, labels.narrow(d, 0, 1))
                labels = labels.narrow(d, 0, 1)
            found.append(Facet(labels, facet.makers))
        return self.settled(found)

    def normalise(
        self, facets: Iterable[Facet], dims: Iterable[int], module: str, why: str
    ) -> tuple[Facet, ...]:
        """The facets of what is divided by a number made of all along some dimensions.

        Parameters
        ----------
        facets : iterable of Facet
        dims : iterable of int
        module : str
            Whose norm it is. Channels that lie along this one dimension and no other are noted,
            and can go (see `graph.norms`).
        why : str
            Why all others go together.
        """
        facets, dims = tuple(facets), tuple(dims)
        for facet in facets:
            if len(dims) == 1 and facet.dims == dims:
                self.norms.setdefault(module, []).append(facet.labels.flatten())
            elif inside := [d for d in facet.dims if d in dims]:
                self.classes.join(facet.labels, inside, why)
        return self.settled(facets)

    def cut(self, facets: Iterable[Facet], dim: int, start: int, length: int, why: str) -> None:
        """Note that a part of a dimension is taken."""
        for facet in facets:
            if facet.along(dim) and 0 < length < facet.labels.shape[dim]:
                key = (id(facet.labels), dim)
                _, parts, _ = self._cuts.setdefault(key, (facet.labels, set(), why))
                parts.add((start, length))

    def square(self) -> None:
        """Unite labels until along each tensor whole slices go, and as many from equal parts.

        Parts of different sizes are left to themselves. Of a facet that changes along two
        dimensions the longer one is left to choose from.
        """
        for (_, dim), (labels, parts, why) in self._cuts.items():
            size = labels.shape[dim]
            lengths = {length for _, length in parts}
            (length, *others) = sorted(lengths)
            if length == 1:
                for start, some in parts:
                    if some == 1:
                        self.classes.fix(labels.narrow(dim, start, 1), why)
            elif not others and not size % length and not any(start % length for start, _ in parts):
                equal = runs(labels, dim, length)
                self.classes.unify(equal, equal.narrow(dim, 0, 1), why)
        changed = True
        while changed:
            changed = False
            for labels in self.ragged:
                labels = self._reduced(labels)
                dims = [d for d, n in enumerate(labels.shape) if n > 1]
                if len(dims) > 1:
                    longest = max(dims, key=lambda d: labels.shape[d])
                    shape = " x ".join(str(labels.shape[d]) for d in dims)
                    why = f"its channels are arranged as {shape}"
                    self.classes.join(labels, [d for d in dims if d != longest], why)
                    changed = True

    def _parted(self, operands: Sequence[Operand]) -> list[Operand]:
        """Let bare tensors be of fixed size inside the heads that channels are arranged in.

        They could be cut there, too, but then the same channels of every head would have to go.
        """
        made = [f for o in operands for f in o.facets if f.makers]
        inner = {d for facet in made for d in facet.dims[1:]}
        found = []
        for operand in operands:
            cut = [f for f in operand.facets if not f.makers and inner.intersection(f.dims)]
            for facet in cut:
                why = "a parameter on its channels is used within heads, too"
                self.classes.fix(facet.labels, why)
            kept = tuple(f for f in operand.facets if f.makers or not inner.intersection(f.dims))
            found.append(replace(operand, facets=kept) if cut else operand)
        return found

    def _reduced(self, labels: Tensor) -> Tensor:
        for dim, stride in enumerate(labels.stride()):
            if stride == 0 and labels.shape[dim] > 1:
                labels = labels.narrow(dim, 0, 1)
        if labels.numel() > 1:
            roots = self.classes.find(labels)
            for dim in range(roots.ndim):
                first = roots.take([0], dim)
                if roots.shape[dim] > 1 and (roots == first).all():
                    roots = first
            labels = torch.from_numpy(roots)
        return labels


def runs(labels: Tensor, dim: int, length: int) -> Tensor:
    """A view with a dimension split in two: the runs of this length, and what is in each."""
    shape = labels.shape
    return labels.reshape(*shape[:dim], shape[dim] // length, length, *shape[dim + 1 :])


def _even(operand: Operand, dim: int) -> bool:
    """Whether a tensor is the same all along a dimension, and so of whatever size is needed."""
    tensor = operand.tensor
    if tensor.stride(dim) == 0:
        return True
    return not operand.given and bool((tensor == tensor.narrow(dim, 0, 1)).all())
