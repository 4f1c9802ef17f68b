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

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from epruner.pruning.network.tree import mapped

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
    source = next((leaf for leaf in args.values() if isinstance(leaf, Tensor)), None)
    if source is None or not source.dim():
        return None
    if name in LAYER_NORMS:
        return source.dim() - 1 if len(args["normalized_shape"]) == 1 else None
    if name == "native_group_norm":
        return 1 if args["group"] == 1 else None
    if name not in STATISTICS or "norm" not in type(module).__name__.lower():
        return None
    if any(True for _ in module.children()):
        return None
    dims = args.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    return dims[0] % source.dim() if dims is not None and len(dims) == 1 else None


def over(function: Any, args: Mapping[str, Any], dim: int, stays: Tensor) -> Any:
    """What a norm gives if it is taken over some of its channels.

    Parameters
    ----------
    function : callable
        The operation.
    args : mapping of str to Any
        By name.
    dim : int
        See `norm_dim`.
    stays : Tensor of bool, shape (channels,)
        Where the operation returns all channels, the others come back as they are.
    """
    source = next(leaf for leaf in args.values() if isinstance(leaf, Tensor))
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
    """The attribute in which a module without a rule holds its number of channels, if it does."""
    values = ((name, getattr(module, name, None)) for name in _SIZES)
    return next((name for name, value in values if value in (size, (size,), [size])), None)
