"""A network with a gate at every convolution whose channels may be switched off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.companions.manidp.sites import gateable
from epruner.pruning.analysis import analyse
from epruner.pruning.graph.costs import eval_mode
from epruner.pruning.graph.groups import Group, Skipped
from epruner.pruning.network.copies import deep_copy


class Gate(nn.Module):
    """What each channel of a convolution is multiplied by, from the means of what it reads.

    The saliency of the channels is ``π = relu(V relu(U mean(x)) + b)``, the mask ``π [π >= τ]``.
    ``b`` starts at one and V at zero: at first the gate changes nothing.

    Parameters
    ----------
    inputs, outputs : int
        Channels that the convolution reads and makes.

    Attributes
    ----------
    tau : Tensor
        The threshold; zero at first.
    saliency_sum : Tensor of shape (outputs,)
        Over the inputs of the running epoch.
    seen : tuple of Tensor or None
        In training, the means (n, inputs) and saliencies (n, outputs) of the last batch.

    Examples
    --------
    >>> import torch
    >>> from epruner.companions import manidp
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3))
    >>> gated = manidp.gate(model, (1, 3, 8, 8))
    >>> gate = gated.gates()["0"]
    >>> float(gate.tau), gate(torch.randn(5, 3, 8, 8)).shape
    (0.0, torch.Size([5, 16]))
    """

    tau: Tensor
    saliency_sum: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        hidden = outputs if outputs < 80 else outputs // 2
        self.squeeze = nn.Linear(inputs, hidden, bias=False)
        self.excite = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.excite.weight)
        nn.init.ones_(self.excite.bias)
        self.register_buffer("tau", torch.zeros(()))
        self.register_buffer("saliency_sum", torch.zeros(outputs))
        self.seen: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The mask of each input.

        Parameters
        ----------
        x : Tensor of shape (n, inputs, ...)
            What the convolution reads.

        Returns
        -------
        Tensor of shape (n, outputs)
            Saliencies, 0 below the threshold.

        Raises
        ------
        RuntimeError
            `x` has another number of channels.

        Examples
        --------
        >>> import torch
        >>> from epruner.companions.manidp.gates import Gate
        >>> Gate(3, 16)(torch.randn(5, 3, 8, 8)).shape
        torch.Size([5, 16])
        """
        means = x.flatten(2).mean(2)
        saliency = F.relu(self.excite(F.relu(self.squeeze(means))))
        self.seen = (means, saliency) if self.training and torch.is_grad_enabled() else None
        return saliency * (saliency >= self.tau)

    def __getstate__(
        self,
    ) -> dict[str, Any]:  # what hangs in a graph can be neither copied nor saved
        return {**self.__dict__, "seen": None}


class GatedConv(nn.Module):
    """A convolution, its BatchNorm, and the gate whose mask multiplies what comes out of both.

    Masks are not negative: behind a ReLU they would give the same.
    """

    def __init__(self, conv: nn.Module, norm: nn.Module, gate: Gate) -> None:
        super().__init__()
        self.conv, self.norm, self.gate = conv, norm, gate

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, ...) -> (n, outputs, ...)."""
        y = self.norm(self.conv(x))
        mask = self.gate(x)
        return y * mask.view(*mask.shape, *[1] * (y.dim() - 2))  # type: ignore[no-any-return]


class GatedNetwork(nn.Module):
    """A network with gates; made by `gate`, called like the network, and not to be pruned.

    All that training needs to go on from a checkpoint is in parameters and buffers.

    Attributes
    ----------
    network : torch.nn.Module
        In the place of a gated convolution stands a `GatedConv`, in that of its BatchNorm an
        identity.
    groups : tuple of Group
        The channels that have gates, each group of one convolution.
    skipped : tuple of Skipped
        Layers without a gate, each with its reason.
    easy_below : Tensor
        Half the mean cross-entropy of the last epoch; inputs below it are easy.
    loss_sum, count : Tensor
        Cross-entropies of the running epoch's inputs, and their number.

    Examples
    --------
    >>> from epruner.companions import manidp
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3))
    >>> gated = manidp.gate(model, (1, 3, 8, 8))
    >>> [group.name for group in gated.groups], [layer.name for layer in gated.skipped]
    (['0'], ['2'])
    """

    easy_below: Tensor
    loss_sum: Tensor
    count: Tensor

    def __init__(
        self,
        plain: nn.Module,
        groups: Sequence[Group],
        gates: Mapping[str, Gate],
        skipped: Sequence[Skipped],
    ) -> None:
        super().__init__()
        for group in groups:
            norm = group.followers[0].module
            conv = plain.get_submodule(group.name)
            gated = GatedConv(conv, plain.get_submodule(norm), gates[group.name])
            plain.set_submodule(group.name, gated)
            plain.set_submodule(norm, nn.Identity())
        self.network = plain
        self.groups, self.skipped = tuple(groups), tuple(skipped)
        for name in ("easy_below", "loss_sum", "count"):
            self.register_buffer(name, torch.zeros(()))
        self.to(next(plain.parameters()).device).train(plain.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network answers with the channels that each input leaves on.

        Parameters
        ----------
        *args, **kwargs
            Of the network's forward.

        Returns
        -------
        Tensor, or what the network returns
            For the same inputs.

        Raises
        ------
        RuntimeError
            As the network does.

        Examples
        --------
        >>> import torch
        >>> from epruner.companions import manidp
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3))
        >>> inputs = torch.randn(2, 3, 8, 8)
        >>> gated = manidp.gate(model.eval(), inputs)
        >>> torch.allclose(gated(inputs), model(inputs), atol=1e-6)  # at first all channels are on
        True
        """
        return self.network(*args, **kwargs)

    def gates(self) -> dict[str, Gate]:
        """All gates, by the names of their convolutions.

        Returns
        -------
        dict of str to Gate
            In the order of the network.

        Examples
        --------
        >>> from epruner.companions import manidp
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3))
        >>> list(manidp.gate(model, (1, 3, 8, 8)).gates())
        ['0']
        """
        found: dict[str, Gate] = {}
        for group in self.groups:
            gated: Any = self.network.get_submodule(group.name)
            found[group.name] = gated.gate
        return found

    def plain(self) -> nn.Module:
        """A copy of the network without gates, with the weights it has now.

        Returns
        -------
        torch.nn.Module
            Of the class and sizes of the network that was gated.

        Examples
        --------
        >>> from epruner.companions import manidp
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3))
        >>> manidp.gate(model, (1, 3, 8, 8)).plain()[0]
        Conv2d(3, 16, kernel_size=(3, 3), stride=(1, 1))
        """
        network = deep_copy(self.network)
        for group in self.groups:
            gated: Any = network.get_submodule(group.name)
            network.set_submodule(group.name, gated.conv)
            network.set_submodule(group.followers[0].module, gated.norm)
        return network

    @torch.no_grad()
    def masks(self, inputs: Tensor) -> dict[str, Tensor]:
        """Masks (n, channels) of all gates, by the names of their convolutions, in eval mode.

        Parameters
        ----------
        inputs : Tensor of shape (n, ...)
            Of the network's forward, on its device.

        Returns
        -------
        dict of str to Tensor of shape (n, channels)
            0 where a channel is off.

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
        >>> masks = manidp.gate(model, (1, 3, 8, 8)).masks(torch.randn(5, 3, 8, 8))
        >>> masks["0"].shape
        torch.Size([5, 16])
        """
        if not isinstance(inputs, Tensor):
            raise TypeError(f"inputs must be a tensor (n, ...), got {type(inputs).__name__}")
        if not len(inputs):
            raise ValueError(f"inputs must hold at least one, got shape {tuple(inputs.shape)}")
        gates = self.gates()
        found: dict[str, list[Tensor]] = {name: [] for name in gates}
        hooks = [
            gate.register_forward_hook(lambda *call, masks=found[name]: masks.append(call[2]))
            for name, gate in gates.items()
        ]
        try:
            with eval_mode(self):
                for batch in inputs.split(256):  # type: ignore[no-untyped-call]
                    self(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return {name: torch.cat(masks) for name, masks in found.items()}


def check_gated(gated: object) -> None:
    """Raise a TypeError unless it came from `gate`."""
    if not isinstance(gated, GatedNetwork):
        raise TypeError(f"gated must come from manidp.gate, got {type(gated).__name__}")


def gate(model: nn.Module, inputs: Any) -> GatedNetwork:
    """A copy of a network in which inputs switch channels off.

    Channels that may be switched are those that pruning may remove, as `epruner.analyse` finds
    them, where one convolution makes them and its BatchNorm follows; residual streams stay whole.
    At first all are on and the copy answers as the network does; what can go is learned by
    `epruner.finetune` with a `Regularizer`.

    Parameters
    ----------
    model : torch.nn.Module
        Never modified.
    inputs : Tensor, shape, tuple of arguments, or dict of keyword arguments
        Of its forward.

    Returns
    -------
    GatedNetwork
        On the model's device and in its mode.

    Raises
    ------
    TypeError, ValueError, TraceError
        As `epruner.analyse`; a network with nothing to gate.

    Examples
    --------
    >>> import torch
    >>> from epruner.companions import manidp
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3))
    >>> gated = manidp.gate(model, (1, 3, 8, 8))
    >>> gated(torch.randn(5, 3, 8, 8)).shape
    torch.Size([5, 4, 4, 4])
    """
    analysis = analyse(model, inputs)
    plain = deep_copy(model)
    groups, skipped = gateable(plain, analysis)
    if not groups:
        raise ValueError(
            f"{type(model).__name__} has no channels to gate: "
            + "; ".join(f"{layer.name}: {layer.reason}" for layer in skipped[:3])
        )
    gates = {}
    for group in groups:
        conv: Any = plain.get_submodule(group.name)
        gates[group.name] = Gate(conv.in_channels, conv.out_channels).to(conv.weight)
    return GatedNetwork(plain, groups, gates, skipped)
