"""Norms over channels: what is made of all of them, and the same made of those that stay.

A LayerNorm divides by a statistic of all its channels. Without some of them it divides by another,
whatever the weights that are left, so that channels which a norm reads can go as an approximation
only. What can be proved of it is that the smaller network is the full one with its norms taken over
the channels that stay.

Norms are known by their operation. Where they are written by hand (``x * rsqrt(mean(x ** 2))``),
or torch makes several operations of them, it is the statistic that is known, inside of a module
that has no others in it and whose class calls itself a norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from epruner.pruning.network.tree import mapped, tensors_in

LAYER_NORMS = ("native_layer_norm", "_fused_rms_norm", "rms_norm")
STATISTICS = ("mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm")
_SIZES = ("normalized_shape", "embedding_dim")  # what modules without a rule say of their width


def operation_of(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Name of an operation, without the underscore of those in place, and its named arguments."""
    name = function._schema.name.partition("::")[2].rstrip("_")
    named = {a.name: a.default_value for a in function._schema.arguments}
    return name, named | dict(zip(named, args, strict=False)) | dict(kwargs)


def norm_dim(name: str, args: Mapping[str, Any], module: nn.Module) -> int | None:
    """The one dimension along which a norm is taken; None for all else.

    Parameters
    ----------
    name, args
        Of the operation, see `operation_of`.
    module : torch.nn.Module
        Whose forward it is in.
    """
    source = next(iter(tensors_in(args)), None)
    if source is None or not source.dim():
        return None
    if name in LAYER_NORMS:
        return source.dim() - 1 if len(args["normalized_shape"]) == 1 else None
    if name == "native_group_norm":
        return 1 if args["group"] == 1 else None
    alone = next(module.children(), None) is None
    if name not in STATISTICS or not alone or "norm" not in type(module).__name__.lower():
        return None
    dims = args.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    return dims[0] % source.dim() if dims is not None and len(dims) == 1 else None


@contextmanager
def norms_over(model: nn.Module, stays: Mapping[str, Tensor]) -> Iterator[None]:
    """Let modules take their norms over some of their channels.

    Parameters
    ----------
    model : torch.nn.Module
    stays : mapping of str to Tensor of bool, shape (channels,)
        By module. Where a norm returns all channels, the others come back as they are.
    """
    if not stays:
        yield
        return
    mode = _NarrowMode(stays)
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(partial(mode.enter, name)))
            hooks.enter_context(module.register_forward_hook(mode.leave))
        with mode:
            yield


class _Narrow:
    """Takes norms over some channels, apart from the mode that makes torch call it.

    A mode that itself defines ``__torch_dispatch__`` makes torch import its compiler.
    """

    def __init__(self, stays: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._stays = stays
        self._running: list[tuple[str, nn.Module | None]] = []

    def enter(self, name: str, module: nn.Module, _: Any) -> None:
        self._running.append((name, module))

    def leave(self, module: nn.Module, _: Any, output: Any) -> None:
        self._running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, module = self._running[-1] if self._running else ("", None)
        if module is not None and (stays := self._stays.get(name)) is not None:
            operation, named = operation_of(func, args, kwargs or {})
            dim = norm_dim(operation, named, module)
            if dim is not None and tensors_in(named)[0].shape[dim] == len(stays):
                return _over(func, named, dim, stays)
        return func(*args, **(kwargs or {}))


class _NarrowMode(_Narrow, TorchDispatchMode):  # type: ignore[no-untyped-call]
    pass


def _over(function: Any, args: Mapping[str, Any], dim: int, stays: Tensor) -> Any:
    """An operation that takes a norm (see `norm_dim`) over some of its channels."""
    source = tensors_in(args)[0]
    index = stays.nonzero()[:, 0].to(source.device)

    def some(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.index_select(dim if leaf is source else 0, index)

    few = {name: mapped(value, some) for name, value in args.items()}
    sizes = {"normalized_shape": [len(index)], "C": len(index)}
    found = function(**few | {name: size for name, size in sizes.items() if name in few})
    if few.keys().isdisjoint(sizes):  # a statistic alone
        return found
    if isinstance(found, Tensor):
        return source.index_copy(dim, index, found)
    return source.index_copy(dim, index, found[0]), *found[1:]


def advertised(module: nn.Module, size: int) -> str | None:
    """The number (see `Plan.attributes`) that a module without a rule gives as that of channels."""
    for name in _SIZES:
        value = getattr(module, name, None)
        if value == size:
            return name
        if value in ((size,), [size]):
            return f"{name}[0]"
    return None
