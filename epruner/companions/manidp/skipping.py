"""Inference for one input at a time that computes the channels that are on, and no others."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.companions.manidp.gates import Gate, GatedConv, GatedNetwork, check_gated
from epruner.pruning.graph.groups import Member
from epruner.pruning.network.copies import deep_copy
from epruner.pruning.network.layers import scale_shift

Running = dict[str, Tensor]  # by convolution, the channels that are on for the input under way


class _Skipping(nn.Module):
    """A layer that reads, and if it has a gate makes, only channels that are on.

    Parameters
    ----------
    layer : torch.nn.Module
        Linear or convolution, or a convolution with its gate.
    name : str
    sources : sequence of (str, Member)
        Gated convolutions whose channels it reads, and where.
    running : dict of str to Tensor
        Shared by all layers of the network.
    """

    always: Tensor

    def __init__(
        self, layer: nn.Module, name: str, sources: Sequence[tuple[str, Member]], running: Running
    ) -> None:
        super().__init__()
        self.gate = copy.deepcopy(layer.gate) if isinstance(layer, GatedConv) else None
        self.layer: Any = _folded(layer) if isinstance(layer, GatedConv) else copy.deepcopy(layer)
        self.requires_grad_(False)
        self._name, self._running = name, running
        self._sources = [name for name, _ in sources]
        always = set(range(sources[0][1].size)) if sources else set()
        for place, (_, member) in enumerate(sources):
            self.register_buffer(f"entries{place}", torch.from_numpy(member.entries))
            always -= set(member.index.tolist())
        self.register_buffer("always", torch.tensor(sorted(always), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 1:
            raise ValueError(
                f"channels are skipped for one input at a time: a layer read {tuple(x.shape)}, and "
                "the first size must be 1 (inputs[:1])"
            )
        weight, bias = self.layer.weight, self.layer.bias
        read = self._read()
        if read is not None:
            weight = weight.index_select(1, read)
        if self.gate is None:
            return self._apply_layer(x, weight, bias)
        mask = self._mask(self.gate, x, read)
        on = mask.nonzero().flatten()
        if not len(on):  # one channel runs, and gives zeros
            on = mask.argmax(keepdim=True)
        self._running[self._name] = on
        y = self._apply_layer(x, weight.index_select(0, on), bias.index_select(0, on))
        return y.mul_(mask.index_select(0, on).view(-1, *[1] * (y.dim() - 2)))

    def _read(self) -> Tensor | None:
        """Channels that arrive, of all that the layer reads; None if all do."""
        if not self._sources:
            return None
        parts = [
            getattr(self, f"entries{place}").index_select(0, self._running[source]).flatten()
            for place, source in enumerate(self._sources)
        ]
        return torch.cat([self.always, *parts]).sort().values

    def _mask(self, gate: Gate, x: Tensor, read: Tensor | None) -> Tensor:
        weight: Tensor = gate.squeeze.weight
        if read is not None:
            weight = weight.index_select(1, read)
        hidden = F.relu(F.linear(x.flatten(2).mean(2), weight))
        saliency = F.relu(gate.excite(hidden))[0]
        return saliency * (saliency >= gate.tau)

    def _apply_layer(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        y: Tensor = self.layer._conv_forward(x, weight, bias)
        return y


def skipping(gated: GatedNetwork) -> nn.Module:
    """A copy for inference on one input at a time, in which what is off is not computed.

    Weights of a gated convolution, of its gate and of what reads its channels are sliced by the
    mask; the BatchNorm is folded into them. Answers are those of the gated network in eval mode, to
    rounding. Gradients do not flow through it.

    Parameters
    ----------
    gated : GatedNetwork
        Not modified.

    Returns
    -------
    torch.nn.Module
        Called like the network, with a batch of one; a ValueError for any other.

    Raises
    ------
    TypeError
        `gated` did not come from `gate`.

    Examples
    --------
    >>> import torch
    >>> from epruner.companions import manidp
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3))
    >>> gated = manidp.gate(model, (1, 3, 8, 8)).eval()
    >>> one = torch.randn(1, 3, 8, 8)
    >>> torch.allclose(manidp.skipping(gated)(one), gated(one), atol=1e-5)
    True
    """
    check_gated(gated)
    network = deep_copy(gated.network).eval()
    running: Running = {}
    sources: dict[str, list[tuple[str, Member]]] = {group.name: [] for group in gated.groups}
    for group in gated.groups:
        for member in group.consumers:
            sources.setdefault(member.module, []).append((group.name, member))
    for name, read in sources.items():
        layer = network.get_submodule(name)
        network.set_submodule(name, _Skipping(layer, name, read, running).eval())
    return network.to(next(gated.parameters()).device)


def _folded(gated: GatedConv) -> Any:
    """A gated convolution that does the work of its BatchNorm, too."""
    norm: Any = gated.norm
    scale, shift = scale_shift(norm)
    conv: Any = copy.deepcopy(gated.conv)
    weight = conv.weight.detach()
    if conv.bias is not None:
        shift = shift + scale * conv.bias.detach().double()
    scaled = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    conv.weight, conv.bias = nn.Parameter(scaled.to(weight)), nn.Parameter(shift.to(weight))
    return conv
