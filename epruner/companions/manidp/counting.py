"""What an input costs: multiply-adds of the channels that it leaves on."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from epruner.companions.manidp.gates import GatedNetwork, check_gated
from epruner.pruning.graph.costs import Recorder, eval_mode


@dataclass(frozen=True)
class MultiplyAdds:
    """What each of some inputs takes.

    Parameters
    ----------
    per_input : Tensor of shape (n,), int64
        Multiply-adds with the channels that it leaves on, the gates' own included.
    channels : Tensor of shape (n,), int64
        How many of all gated channels it leaves on.
    whole : int
        Multiply-adds of the network without gates, for one input; of what `to_static` left, that.

    Examples
    --------
    >>> import torch
    >>> from epruner.companions import manidp
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3))
    >>> gated = manidp.gate(model, (1, 3, 8, 8))
    >>> found = manidp.multiply_adds(gated, torch.randn(2, 3, 8, 8))
    >>> found.channels.tolist(), found.whole
    ([16, 16], 24768)
    """

    per_input: Tensor
    channels: Tensor
    whole: int

    @property
    def share(self) -> float:
        """Mean over the inputs, as a share of the whole network's."""
        return float(self.per_input.double().mean()) / self.whole


@torch.no_grad()
def multiply_adds(gated: GatedNetwork, inputs: Tensor) -> MultiplyAdds:
    """Count what runs for each input, where channels that are off are skipped.

    A convolution takes kernel × positions × channels on of those it reads × its own channels on; a
    gate takes those of its two linear layers, the first on the channels that are on. Where an
    input switches off all channels of a convolution, one runs.

    Parameters
    ----------
    gated : GatedNetwork
        Not modified.
    inputs : Tensor of shape (n, ...)
        Of the network's forward, on its device.

    Returns
    -------
    MultiplyAdds
        Of each input.

    Raises
    ------
    TypeError, ValueError
        No tensor, or one without inputs.

    Examples
    --------
    >>> import torch
    >>> from epruner.companions import manidp
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3))
    >>> gated = manidp.gate(model, (1, 3, 8, 8))
    >>> _ = gated.gates()["0"].excite.bias.data[:8].fill_(-1)  # as training may: half go off
    >>> found = manidp.multiply_adds(gated, torch.randn(2, 3, 8, 8))
    >>> found.channels.tolist(), round(found.share, 2)
    ([8, 8], 0.51)
    """
    check_gated(gated)
    on = {name: (mask > 0).sum(1) for name, mask in gated.masks(inputs).items()}
    recorder = Recorder(gated.network)
    with eval_mode(gated), recorder.recording():
        gated(inputs[:1])
    costs = recorder.costs()
    outputs = {f"{name}.conv": count.clamp_min(1).tolist() for name, count in on.items()}
    off: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.int64))
    for group in gated.groups:
        without = group.channels - on[group.name].clamp_min(1).cpu()
        for member in group.consumers:
            off[member.module] = off[member.module] + without * member.fold
    inputs_off = {
        part: missing.tolist()
        for name, missing in off.items()
        for part in ((f"{name}.conv", f"{name}.gate.squeeze") if name in on else (name,))
    }
    per_input = []
    for row in range(len(inputs)):
        sizes = {}
        for name in {*outputs, *inputs_off}:
            cost = costs.modules[name]
            made = outputs[name][row] if name in outputs else cost.outputs
            read = cost.inputs - (inputs_off[name][row] if name in inputs_off else 0)
            sizes[name] = made, read
        per_input.append(costs.totals(sizes).macs)
    gates = [f"{name}.gate.{part}" for name in on for part in ("squeeze", "excite")]
    return MultiplyAdds(
        torch.tensor(per_input),
        torch.stack([count.cpu() for count in on.values()]).sum(0),
        costs.totals(without=gates).macs,
    )
