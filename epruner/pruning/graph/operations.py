"""What each operation of torch does to the labels of channels.

An operation is known by its name in torch's own (ATen) schema, into which all others fall apart.
Those that make each number of the numbers at the same place say so of themselves; a family of
others is one function under `@operation`. One that is not known is not trusted: the channels that
pass it stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from epruner.pruning.graph.costs import ATTENTION, MATRICES
from epruner.pruning.graph.labels import Algebra, Facet, Operand, runs
from epruner.pruning.graph.norms import LAYER_NORMS, norm_dim
from epruner.pruning.network.tree import mapped, tensors_in

Facets = tuple[Facet, ...]


@dataclass(frozen=True)
class Look:
    """Numbers made of several channels each, which a forward pass may only look at.

    Parameters
    ----------
    result : Tensor
        Held, so that nothing else can be in its place.
    facets : tuple of Facet
    dims : tuple of int
        Along these the channels would have to stay if anything were made of the numbers.
    why : str
    """

    result: Tensor
    facets: Facets
    dims: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class Call:
    """One call of an operation.

    Parameters
    ----------
    algebra : Algebra
    name : str
        In the schema, without its namespace, overload and the underscore of those that write in
        place.
    function : callable
        The overload itself.
    args : dict of str to Any
        By their names in the schema, those left out too.
    results : list of Tensor
    operand : callable
        A tensor with what is known of it.
    module : str
        Name of the module whose forward is under way.
    owner : Module
        That module.
    product : callable
        Told of the facets of each matrix product that is made.
    look : callable
        Told of a single number that is made.
    """

    algebra: Algebra
    name: str
    function: Any
    args: dict[str, Any]
    results: list[Tensor]
    operand: Callable[[Tensor], Operand]
    module: str
    owner: nn.Module
    product: Callable[[Facets], None]
    look: Callable[[Look], None]

    @property
    def where(self) -> str:
        """The module, for reasons."""
        return f" in {self.module!r}" if self.module else ""

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def operands(self) -> list[Operand]:
        """All tensors among the arguments."""
        return [self.operand(tensor) for tensor in tensors_in(self.args)]

    @property
    def first(self) -> Operand:
        """The first tensor among the arguments."""
        return self.operands()[0]

    def dims(self, name: str = "dim") -> list[int]:
        """Dimensions that an argument names; all, if it names none."""
        count = self.first.tensor.dim()
        given = self.args.get(name)
        if given is None or given == []:
            return list(range(count))
        return [d % max(count, 1) for d in (given if isinstance(given, (list, tuple)) else [given])]

    @property
    def norm_dim(self) -> int | None:
        """The one dimension along which a norm is taken."""
        return norm_dim(self.name, self.args, self.owner)

    def meets(self, fixed: bool) -> str:
        """Why channels stay that meet a tensor without channels."""
        if not fixed:
            return f"its channels meet a tensor of fixed size{self.where}"
        how = "added to" if self.name == "add" else "combined with"
        return f"its channels are {how} the model's input and must keep their number and order"

    @property
    def unknown(self) -> str:
        """Why channels stay of which nobody knows what becomes of them."""
        return f"its channels pass {self.name!r}{self.where}, which may not keep them apart"

    def fix(self, facets: Iterable[Facet], why: str) -> None:
        """Let the channels of facets stay."""
        for facet in facets:
            self.algebra.classes.fix(facet.labels, why)


Rule = Callable[[Call], "list[Facets] | Facets"]
_RULES: dict[str, Rule] = {}


def operation(*names: str) -> Callable[[Rule], Rule]:
    """Register what these operations do; the facets of one result, or of each."""

    def register(known: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, known))
        return known

    return register


def facets_after(call: Call) -> list[Facets]:
    """The facets of each result of an operation."""
    known = _RULES.get(call.name)
    if known is None and torch.Tag.pointwise in call.function.tags:
        known = _one_by_one
    operands = call.operands()
    if not any(operand.facets for operand in operands):
        return [()] * len(call.results)
    if known is None:
        for operand in operands:
            call.fix(operand.facets, call.unknown)
        return [()] * len(call.results)
    found = known(call)
    return found if isinstance(found, list) else [found] * len(call.results)


@operation(
    "hardswish", "leaky_relu", "_to_copy", "native_dropout", "bernoulli", "copy", "_prelu_kernel",
    "detach", "alias", "lift_fresh", "log_sigmoid_forward", "rrelu_with_noise", "fill",
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like",
    "complex", "polar", "_conj", "_neg_view", "resolve_conj", "resolve_neg",
)  # fmt: skip
def _one_by_one(call: Call) -> Facets:
    return call.algebra.meet(call.operands(), call.meets, adds=call.name == "add")


@operation(
    "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "repeat", "flip",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "diagonal",
    "movedim", "tile", "unsafe_chunk", "rot90",
)  # fmt: skip
def _moved(call: Call) -> list[Facets]:
    """Elements change their places, as they would whatever their number."""
    return _apply(call, call.function)


@operation("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
def _unrelated(call: Call) -> Facets:
    """Of the tensor only its data type is asked."""
    return ()


@operation("view", "_unsafe_view", "_reshape_alias", "reshape", "view_copy")
def _viewed(call: Call) -> list[Facets]:
    size = call.results[0].shape
    if call.results[0].dtype != call.first.tensor.dtype:  # a view of the same bytes
        call.fix(call.first.facets, call.unknown)
        return [()]
    return _apply(call, lambda labels: labels.reshape(size))


@operation("as_strided")
def _restrided(call: Call) -> Facets:
    """Followed where no element moves, as after pooling to one position."""
    source = call.first
    strides = zip(source.tensor.shape, source.tensor.stride(), call["stride"], strict=False)
    moves = any(size > 1 and old != new for size, old, new in strides)
    if moves or list(call["size"]) != list(source.tensor.shape) or call["storage_offset"]:
        call.fix(source.facets, call.unknown)
        return ()
    return source.facets


@operation("slice", "select", "split", "split_with_sizes", "unbind", "narrow", "unsafe_split")
def _taken(call: Call) -> list[Facets]:
    """A part of a dimension, or all of its parts."""
    dim = call.dims()[0]
    size = call.first.tensor.shape[dim]
    why = f"its channels are split into parts{call.where}"
    if call.name in ("select", "unbind"):
        for facet in call.first.facets:
            picked = f"its channels are picked one by one{call.where}"
            call.algebra.classes.join(facet.labels, [dim], picked)
    elif call.name == "slice" and call["step"] > 1:
        _strided(call, dim, call["step"])
    elif size:
        start = (call.args.get("start") or 0) % size
        for result in call.results:
            call.algebra.cut(call.first.facets, dim, start, result.shape[dim], why)
            start += result.shape[dim]
    return _apply(call, call.function)


def _strided(call: Call, dim: int, step: int) -> None:
    for facet in call.first.facets:
        if not facet.along(dim):
            continue
        size = facet.labels.shape[dim]
        why = f"its channels are taken in steps of {step}{call.where}"
        if size % step:
            call.fix([facet], why)
        else:
            each = runs(facet.labels, dim, step)
            call.algebra.classes.unify(each, each.narrow(dim + 1, 0, 1), why)


@operation("index", "index_select", "gather", "embedding", "take_along_dim")
def _picked(call: Call) -> list[Facets]:
    """Elements by their numbers."""
    source = call.first
    if call.name == "index":
        dims = [d for d, index in enumerate(call["indices"]) if index is not None]
        indices = [index for index in call["indices"] if index is not None]
    else:
        dims = [0] if call.name == "embedding" else call.dims()
        indices = [call[name] for name in ("index", "indices") if name in call.args]
    why = f"its channels are picked by their numbers{call.where}"
    kept = []
    for facet in source.facets:
        if any(facet.along(d) for d in dims):
            call.fix([facet], why)
        else:
            kept.append(facet)
    for index in indices:
        call.fix(call.operand(index).facets, why)
    return _apply(call, call.function, kept)


@operation("index_put")
def _masked(call: Call) -> Facets:
    """A number where a mask of the same shape holds; no other kind is followed."""
    source, values = call.first, call.operand(call["values"])
    masks = [call.operand(index) for index in call["indices"] if index is not None]
    mask = masks[0].tensor
    if (
        mask.dtype == torch.bool
        and mask.dim() == source.tensor.dim()
        and values.tensor.numel() == 1
    ):
        return call.algebra.meet([source, *masks], call.meets)
    for operand in (source, values, *masks):
        call.fix(operand.facets, call.unknown)
    return ()


@operation("index_add", "index_copy", "scatter", "scatter_add", "scatter_reduce")
def _written(call: Call) -> Facets:
    """Numbers put to numbered places along a dimension."""
    source, *others = call.operands()
    dim = call.dims()[0]
    if call.name.startswith("index"):  # with one number for all the rest
        others = [operand for operand in others if operand.tensor is not call["index"]]
    why = f"its channels are picked by their numbers{call.where}"
    thin = []
    for operand in (source, *others):
        kept = []
        for facet in operand.facets:
            whole = all(
                d != dim and o.tensor.shape[d] == source.tensor.shape[d]
                for d in facet.dims
                for o in others
            )
            if whole:
                kept.append(facet)
            else:
                call.fix([facet], why)
        same = replace(operand, facets=tuple(kept))
        thin.append(same.like(lambda t: t.narrow(dim, 0, 1)))
    return call.algebra.meet(thin, call.meets)


@operation("cat", "stack")
def _joined(call: Call) -> Facets:
    parts = [call.operand(tensor) for tensor in call["tensors"]]
    dims = max(part.tensor.dim() for part in parts)
    parts = [part for part in parts if part.tensor.dim() == dims]  # torch lets empty ones pass
    dim = call["dim"]
    if call.name == "stack":
        dim %= dims + 1
        parts = [part.like(lambda t: t.unsqueeze(dim)) for part in parts]
    dim %= parts[0].tensor.dim()
    parts = [part for part in parts if part.tensor.shape[dim]]
    return call.algebra.concatenate(parts, dim, call.meets)


@operation("constant_pad_nd")
def _padded(call: Call) -> Facets:
    pad, found = call["pad"], call.first
    why = "a shortcut pads its channels with zeros, which fixes their positions"
    for place in range(len(pad) // 2):
        dim = found.tensor.dim() - 1 - place
        before, after = pad[2 * place : 2 * place + 2]
        if min(before, after) < 0:
            call.fix((f for f in found.facets if f.along(dim)), "its channels are cropped")
            found = replace(found, facets=tuple(f for f in found.facets if not f.along(dim)))
        facets = found.facets
        if (before or after) and any(f.along(dim) for f in facets):
            parts = [_blank(found.tensor, dim, before), found, _blank(found.tensor, dim, after)]
            parts = [part for part in parts if part.tensor.shape[dim]]
            facets = call.algebra.concatenate(parts, dim, lambda _: why)
        size = found.tensor.shape[dim] + before + after
        found = replace(_blank(found.tensor, dim, size), facets=facets)
    return found.facets


def _blank(like: Tensor, dim: int, size: int) -> Operand:
    """Zeros that differ from a tensor in one size."""
    shape = [size if d == dim else n for d, n in enumerate(like.shape)]
    return Operand(like.new_zeros(()).expand(shape), ())


@operation(
    "sum", "nansum", "mean", "prod", "amax", "amin", "max", "min", "aminmax", "any", "all",
    "argmax", "argmin", "var", "std", "var_mean", "std_mean", "logsumexp", "linalg_vector_norm",
    "norm", "median", "nanmedian", "mode", "kthvalue", "count_nonzero",
)  # fmt: skip
def _reduced(call: Call) -> Facets:
    operands = call.operands()
    if call.name in ("max", "min") and len(operands) == 2:
        return call.algebra.meet(operands, call.meets)
    dims = call.dims()
    facets = operands[0].facets
    mixed = any(facet.along(d) for facet in facets for d in dims)
    if mixed and call.name not in ("sum", "nansum"):
        why = f"its channels are mixed{call.where}: one number is made of them ({call.name})"
        if call.norm_dim is not None:
            call.algebra.normalise(facets, dims, call.module, why)
        else:
            for result in call.results:
                call.look(Look(result, facets, tuple(dims), why))
    facets = call.algebra.summed(facets, dims)
    return _dropped(facets, dims) if not call.args.get("keepdim") else facets


@operation("view_as_real", "view_as_complex")
def _paired(call: Call) -> Facets:
    """Real and imaginary parts lie along one dimension more."""
    last = call.first.tensor.dim() - 1
    if call.name == "view_as_real":
        return tuple(Facet(f.labels[..., None], f.makers) for f in call.first.facets)
    why = f"its channels are the parts of complex numbers{call.where}"
    return _dropped(call.algebra.reduce(call.first.facets, [last], why), [last])


@operation(
    "_softmax", "_log_softmax", "softmax", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin",
    "sort", "topk", "roll", "_safe_softmax", "renorm", "_fft_r2c", "_fft_c2r", "_fft_c2c",
)  # fmt: skip
def _along(call: Call) -> list[Facets]:
    """What is made along a dimension, which is there still, if not always as long as it was."""
    dims = call.dims("dims" if call.name == "roll" else "dim")
    why = f"its channels are mixed{call.where}: {call.name.lstrip('_')} runs along them"
    for facet in call.first.facets:
        if inside := [d for d in facet.dims if d in dims]:
            call.algebra.classes.join(facet.labels, inside, why)
    facets = call.algebra.settled(call.first.facets)
    return [
        tuple(f for f in facets if all(f.labels.shape[d] == result.shape[d] for d in f.dims))
        for result in call.results
    ]


@operation(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices",
    "max_pool3d_with_indices", "mkldnn_max_pool2d", "mkldnn_max_pool3d", "quantized_max_pool2d",
    "fractional_max_pool2d", "fractional_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "max_unpool2d", "max_unpool3d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d",
    "_upsample_bicubic2d_aa", "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d",
    "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
    "grid_sampler_2d", "grid_sampler_3d",
)  # fmt: skip
def _spatial(call: Call) -> Facets:
    """The positions of one channel at a time: the last one, two or three dimensions."""
    places = int(next(c for c in call.name if c in "123"))
    dims = range(call.first.tensor.dim() - places, call.first.tensor.dim())
    why = f"its channels lie where {call.name!r} expects positions"
    facets = call.first.facets
    if call.name.startswith("max_unpool"):  # each number with the place that it goes to
        facets = call.algebra.meet(call.operands(), call.meets)
    else:
        for other in call.operands()[1:]:
            call.fix(other.facets, f"its channels tell {call.name!r} where to read")
    return call.algebra.reduce(facets, dims, why)


@operation(*MATRICES)
def _multiplied(call: Call) -> Facets:
    arguments = list(call.args.values())
    a, b = (call.operand(arguments[place]) for place in MATRICES[call.name])
    facets = _product(call, a, b)
    if call.name in ("addmm", "baddbmm"):
        made = Operand(call.results[0], facets)
        return call.algebra.meet([made, call.operand(call["self"])], call.meets, adds=True)
    return facets


@operation(*ATTENTION)
def _attended(call: Call) -> list[Facets]:
    query, key, value = (call.operand(call[name]) for name in ("query", "key", "value"))
    if query.tensor.shape[-3] != key.tensor.shape[-3]:  # grouped queries
        times = query.tensor.shape[-3] // key.tensor.shape[-3]
        key, value = (_repeated(call, operand, times) for operand in (key, value))
    scores = query.tensor @ key.tensor.mT
    facets = _product(call, query, key.like(lambda t: t.mT))
    given = tensors_in([call.args.get(name) for name in ("attn_mask", "attn_bias")])
    masks = [call.operand(mask) for mask in given]
    if masks:
        facets = call.algebra.meet([Operand(scores, facets), *masks], call.meets)
    why = f"its channels are mixed{call.where}: attention runs along them"
    for facet in facets:
        if facet.along(scores.dim() - 1):
            call.algebra.classes.join(facet.labels, [scores.dim() - 1], why)
    made = _product(call, Operand(scores, call.algebra.settled(facets)), value)
    return [made, *[()] * (len(call.results) - 1)]


def _repeated(call: Call, operand: Operand, times: int) -> Operand:
    def repeat(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(times, -3)

    facets = [
        moved
        for facet in operand.facets
        for moved in call.algebra.move(operand.tensor.shape, facet, lambda x: [repeat(x)])
    ]
    return Operand(repeat(operand.tensor), call.algebra.settled(facets), operand.given)


def _product(call: Call, a: Operand, b: Operand) -> Facets:
    """Facets of a matrix product, (..., i, k) by (..., k, j)."""
    one, other = a.like(lambda t: t[..., None]), b.like(lambda t: t[..., None, :, :])
    why = f"its channels are summed in a matrix product{call.where}, outside of a layer"
    for operand in (one, other):  # before they meet, as one of them may have fewer heads
        for facet in operand.facets:
            call.algebra.classes.join(facet.labels, [operand.tensor.dim() - 2], why)
    facets = call.algebra.meet([one, other], call.meets)
    k = max(one.tensor.dim(), other.tensor.dim()) - 2
    facets = _dropped(call.algebra.reduce(facets, [k], why), [k])
    call.product(facets)
    return facets


@operation(*LAYER_NORMS)
def _normalized(call: Call) -> list[Facets]:
    source = call.first
    count = len(call["normalized_shape"])
    dims = range(source.tensor.dim() - count, source.tensor.dim())
    kind = "LayerNorm" if call.name == "native_layer_norm" else "RMSNorm"
    why = f"its channels are mixed{call.where}: {kind} runs along them"
    facets = call.algebra.normalise(source.facets, dims, call.module, why)
    scales = [call.operand(call[n]) for n in ("weight", "bias") if tensors_in(call.args.get(n))]
    made = call.algebra.meet([replace(source, facets=facets), *scales], call.meets)
    return [made, *[()] * (len(call.results) - 1)]


@operation(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm", "_batch_norm_no_update",
)  # fmt: skip
def _batch_normalized(call: Call) -> list[Facets]:
    source, *rows = call.operands()
    places = (1,) * (source.tensor.dim() - 2)
    rows = [row.like(lambda t: t.reshape(-1, *places)) for row in rows if row.tensor.dim() == 1]
    facets = call.algebra.meet([source, *rows], call.meets)
    return [facets, *[()] * (len(call.results) - 1)]


@operation("native_group_norm")
def _group_normalized(call: Call) -> list[Facets]:
    source, *rows = call.operands()
    why = f"its channels are mixed{call.where}: GroupNorm runs along them"
    for facet in source.facets:
        if facet.along(1) and call.norm_dim is None:
            width = facet.labels.shape[1] // call["group"]
            call.algebra.classes.join(runs(facet.labels, 1, width), [2], why)
        call.algebra.classes.join(facet.labels, [d for d in facet.dims if d > 1], why)
    places = (1,) * (source.tensor.dim() - 2)
    rows = [row.like(lambda t: t.reshape(-1, *places)) for row in rows]
    dims = [] if call.norm_dim is None else [1]
    whole = replace(source, facets=call.algebra.normalise(source.facets, dims, call.module, why))
    return [call.algebra.meet([whole, *rows], call.meets), *[()] * (len(call.results) - 1)]


@operation("glu")
def _gated(call: Call) -> Facets:
    dim = call.dims()[0]
    length = call.results[0].shape[dim]
    call.algebra.cut(call.first.facets, dim, 0, length, f"its channels gate each other{call.where}")

    def half(start: int) -> Operand:
        return call.first.like(lambda t: t.narrow(dim, start, length) if t.shape[dim] > 1 else t)

    return call.algebra.meet([half(0), half(length)], call.meets)


def _apply(
    call: Call, function: Callable[..., Any], facets: Iterable[Facet] | None = None
) -> list[Facets]:
    """Let the labels go where the numbers of the first tensor go."""
    source = call.first

    def moved(labels: Tensor) -> Sequence[Tensor]:
        if function is not call.function:
            return tensors_in(function(labels))
        args = mapped(call.args, lambda leaf: _on_cpu(leaf, source.tensor, labels))
        return tensors_in(function(**args))

    found: list[list[Facet]] = [[] for _ in call.results]
    for facet in source.facets if facets is None else facets:
        parts = call.algebra.move(source.tensor.shape, facet, moved)
        for mine, part in zip(found, parts, strict=True):
            mine.append(part)
    return [call.algebra.settled(mine) for mine in found]


def _on_cpu(leaf: Any, source: Tensor, labels: Tensor) -> Any:
    if leaf is source:
        return labels
    return leaf.cpu() if isinstance(leaf, Tensor) else leaf


def _dropped(facets: Facets, dims: Sequence[int]) -> Facets:
    """Without dimensions along which nothing changes."""

    def without(labels: Tensor) -> Tensor:
        return labels.squeeze(tuple(dims)) if dims else labels

    return tuple(Facet(without(facet.labels), facet.makers) for facet in facets)
