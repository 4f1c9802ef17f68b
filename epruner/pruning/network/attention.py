"""torch's own attention with a linear layer per projection, so that its heads can go.

`torch.nn.MultiheadAttention` holds the weights of three projections in one tensor, and cannot have
heads that together are narrower than what it reads. `UnfoldedAttention` computes the same from four
linear layers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UnfoldedAttention(nn.Module):
    """What `torch.nn.MultiheadAttention` computes, heads of which may be missing.

    Made by `unfolded`. It takes the same arguments and returns the same; where a padding mask is
    given, `torch.nn.TransformerEncoder` in eval mode zeroes what it returns at padded positions
    with torch's own attention, and not with this one.

    Attributes
    ----------
    q_proj, k_proj, v_proj : torch.nn.Linear
        To ``num_heads * head_dim`` channels, head by head.
    out_proj : torch.nn.Linear
        From as many to `embed_dim`.
    num_heads, head_dim, embed_dim : int
    dropout : float
        Share of the attention weights that is dropped in training.
    batch_first : bool
    """

    embed_dim: int
    num_heads: int
    head_dim: int
    dropout: float
    batch_first: bool
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention.forward`.

        Parameters
        ----------
        query : Tensor of shape (l, n, embed_dim); (n, l, embed_dim) if `batch_first`
            Without n if not batched, as are `key` and `value`, which have s positions.
        key, value : Tensor
        key_padding_mask : Tensor of shape (n, s), optional
            True, or what is to be added, where keys are not to be seen.
        need_weights, average_attn_weights : bool
            Return the attention weights; their mean over the heads.
        attn_mask : Tensor of shape (l, s) or (n * num_heads, l, s), optional
            True, or what is to be added, where a query does not see a key.
        is_causal : bool
            `attn_mask` is a causal one.

        Returns
        -------
        output : Tensor
            Of the shape of `query`.
        weights : Tensor of shape (n, l, s) or (n, num_heads, l, s), or None

        Raises
        ------
        ValueError
            `is_causal` without `attn_mask`.
        """
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q = self._by_head(self.q_proj(query))  # (n, heads, l, head_dim)
        k = self._by_head(self.k_proj(key))
        v = self._by_head(self.v_proj(value))
        if is_causal and attn_mask is None:
            raise ValueError("is_causal says that attn_mask is causal; give attn_mask, too")
        as_hint = is_causal and key_padding_mask is None and not need_weights
        mask = None if as_hint else self._mask(attn_mask, key_padding_mask, q)
        rate = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * self.head_dim**-0.5 @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, rate, self.training)
            y = weights @ v
            if average_attn_weights:
                weights = weights.mean(1)
            if not batched:
                weights = weights.squeeze(0)
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, rate, as_hint)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if not batched:
            y = y.squeeze(0)
        elif not self.batch_first:
            y = y.transpose(0, 1)
        return y, weights

    def extra_repr(self) -> str:
        """What the parts do not show."""
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}"

    def _by_head(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """What is added to the scores, (n or 1, heads or 1, l or 1, s)."""
        if mask is not None:
            mask = _added(mask, q.dtype)
            if mask.dim() == 3 and len(mask) > 1:
                mask = mask.view(q.shape[0], self.num_heads, *mask.shape[1:])
        if padding is not None:
            padding = _added(padding, q.dtype).view(-1, 1, 1, padding.shape[-1])
            mask = padding if mask is None else mask + padding
        return mask


def unfolded(model: nn.Module, names: Collection[str] | None = None) -> nn.Module:
    """Let modules of a private copy that are a `torch.nn.MultiheadAttention` be unfolded, in place.

    They stay the same objects under the same names, so that what is shared stays shared, and their
    projections are views of the tensors that they had. Those that add keys of their own
    (``add_bias_kv``, ``add_zero_attn``), subclasses and those with computed weights are left as
    they are.

    Parameters
    ----------
    model : torch.nn.Module
    names : collection of str, optional
        The modules to unfold; others named here are ignored. Default: all.

    Returns
    -------
    torch.nn.Module
        `model`.
    """
    for module in _folded(model, names):
        _unfold(module)
    for module in model.modules():
        # it would hand its layers nested tensors, which only torch's own attention takes
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(part, UnfoldedAttention) for part in module.modules()
        ):
            module.use_nested_tensor = False
    return model


def any_folded(model: nn.Module, names: Collection[str] | None) -> bool:
    """Whether there is anything for `unfolded` to do."""
    return bool(_folded(model, names))


def _folded(model: nn.Module, names: Collection[str] | None) -> list[nn.Module]:
    return [
        module
        for name, module in model.named_modules()
        if type(module) is nn.MultiheadAttention  # parametrizations change it, too
        and module.bias_k is None
        and not module.add_zero_attn
        and (names is None or name in names)
    ]


def _unfold(module: Any) -> None:
    # in its place, so that hooks, flags and all who refer to it remain
    if module.in_proj_weight is None:
        weights = [getattr(module, f"{x}_proj_weight") for x in "qkv"]
    else:
        weights = _thirds(module.in_proj_weight)
    bias = module.in_proj_bias
    biases: list[Any] = [None] * 3 if bias is None else _thirds(bias)
    module.__class__ = UnfoldedAttention
    out_proj = module._modules.pop("out_proj")
    for x, weight, offset in zip("qkv", weights, biases, strict=True):
        layer = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
        layer.weight, layer.bias = weight, offset
        setattr(module, f"{x}_proj", layer.train(module.training))
        setattr(module, f"{x}_proj_weight", None)
    module.out_proj = out_proj  # after the others, as it runs
    module.in_proj_weight = module.in_proj_bias = None
    module._qkv_same_embed_dim = False  # with it torch's layers leave their fast paths alone


def _thirds(tensor: nn.Parameter) -> list[nn.Parameter]:
    return [nn.Parameter(x, tensor.requires_grad) for x in tensor.detach().chunk(3)]


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to add."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
