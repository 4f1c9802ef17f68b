"""Multiply-adds and parameters as arithmetic on shapes.

One hooked forward pass records what each layer costs; every later question ("and with 17 of its
64 filters?") is answered from these records without running the network again.

Counted is what the rules of the layer types count, and the matrix products that a model makes of
what it computes (the inside of attention).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from epruner.pruning.network.layers import multiplies, rule_of, sides
from epruner.pruning.network.tree import tensors_in
from epruner.pruning.plan.apply import counterpart


@dataclass(frozen=True)
class Totals:
    """Size of a whole network.

    Parameters
    ----------
    macs : int
        Multiply-adds of the layers (convolutions, linear, recurrent) and of the matrix products
        between them, for the example inputs.
    params : int
        Parameters.
    macs_with_norm : int
        ``macs`` plus four per element of every BatchNorm output: the convention behind the
        figures published for this method.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> epruner.analyse(model, (1, 8)).costs.totals()
    Totals(macs=384, params=420, macs_with_norm=384)
    """

    macs: int
    params: int
    macs_with_norm: int


@dataclass(frozen=True)
class Cost:
    """What one module costs at full size.

    Parameters
    ----------
    macs : int
        Multiply-adds over all its calls in the recorded pass.
    norm : int
        Elements that it writes if it is a BatchNorm, else 0.
    weights : int
        Parameters that scale with both sides (a weight matrix).
    per_output : int
        Parameters that scale with the output side alone (biases, BatchNorm rows).
    outputs, inputs : int
        Channels of the two sides; 0 inputs where they are the outputs (BatchNorm, depthwise).
    calls : int
        How often the recorded pass ran it.
    squared : Fraction
        Share of `macs` and `weights` that scales with the square of the output side (recurrence).

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> cost = epruner.analyse(model, (1, 8)).costs.modules["0"]
    >>> cost.macs, cost.macs_at(16, 8), cost.params_at(16, 8)
    (256, 128, 144)
    """

    macs: int
    norm: int
    weights: int
    per_output: int
    outputs: int
    inputs: int
    calls: int = 1
    squared: Fraction = Fraction(0)

    def macs_at(self, outputs: int, inputs: int) -> int:
        """Multiply-adds with so many channels kept; exact.

        Parameters
        ----------
        outputs, inputs : int
            Channels of the two sides, at most those of full size.

        Returns
        -------
        int
            As many as for the example inputs.

        Examples
        --------
        >>> from epruner.pruning.graph.costs import Cost
        >>> linear = Cost(macs=256, norm=0, weights=256, per_output=32, outputs=32, inputs=8)
        >>> linear.macs_at(16, 8)
        128
        """
        return self._scale(self.macs, outputs, inputs)

    def norm_at(self, outputs: int) -> int:
        """BatchNorm output elements with so many channels kept.

        Parameters
        ----------
        outputs : int
            Channels, at most those of full size.

        Returns
        -------
        int
            0 if it is no BatchNorm.

        Examples
        --------
        >>> from epruner.pruning.graph.costs import Cost
        >>> norm = Cost(macs=0, norm=576, weights=0, per_output=32, outputs=16, inputs=0)
        >>> norm.norm_at(8)
        288
        """
        return self.norm * outputs // self.outputs if self.norm else 0

    def params_at(self, outputs: int, inputs: int) -> int:
        """Parameters with so many channels kept.

        Parameters
        ----------
        outputs, inputs : int
            Channels of the two sides, at most those of full size.

        Returns
        -------
        int
            Bias included.

        Examples
        --------
        >>> from epruner.pruning.graph.costs import Cost
        >>> linear = Cost(macs=256, norm=0, weights=256, per_output=32, outputs=32, inputs=8)
        >>> linear.params_at(16, 8)
        144
        """
        scaled = self.per_output * outputs // self.outputs if self.outputs else self.per_output
        return scaled + self._scale(self.weights, outputs, inputs)

    def _scale(self, amount: int, outputs: int, inputs: int) -> int:
        if not self.outputs:
            return amount
        if not self.inputs:
            return amount * outputs // self.outputs
        square = int(amount * self.squared)
        return square * outputs**2 // self.outputs**2 + (amount - square) * outputs * inputs // (
            self.outputs * self.inputs
        )


@dataclass(frozen=True)
class Costs:
    """Costs of a network: per module, and the parameters that no rule knows.

    Parameters
    ----------
    modules : mapping of str to Cost
        By dotted name.
    other_params : int
        Parameters that belong to no module of a known type.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> costs = epruner.analyse(model, (1, 8)).costs
    >>> {name: cost.macs for name, cost in costs.modules.items()}
    {'0': 256, '2': 128}
    """

    modules: Mapping[str, Cost]
    other_params: int

    def totals(
        self,
        sizes: Mapping[str, tuple[int, int]] | None = None,
        without: Collection[str] = (),
    ) -> Totals:
        """Size of the whole network.

        Parameters
        ----------
        sizes : mapping of str to (outputs, inputs), optional
            Channels of the modules that are not at full size.
        without : collection of str
            Modules that are not there.

        Returns
        -------
        Totals
            With so many channels.

        Examples
        --------
        >>> import epruner
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        >>> costs = epruner.analyse(model, (1, 8)).costs
        >>> costs.totals({"0": (16, 8), "2": (4, 16)}).macs
        192
        """
        sizes = sizes or {}
        macs = norm = 0
        params = self.other_params
        for name, cost in self.modules.items():
            if name in without:
                continue
            outputs, inputs = sizes.get(name, (cost.outputs, cost.inputs))
            macs += cost.macs_at(outputs, inputs)
            norm += cost.norm_at(outputs)
            params += cost.params_at(outputs, inputs)
        return Totals(macs=macs, params=params, macs_with_norm=macs + 4 * norm)


class Recorder:
    """Counts the multiply-adds of every forward pass made inside ``with recorder.recording():``.

    ``running`` lists the modules entered and not left: after an exception its last entry is the
    innermost module at fault.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self.macs: dict[str, int] = {}
        self.norm: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self.running: list[str] = []
        self.products: list[tuple[str, int]] = []  # names, as of modules, and multiply-adds
        self._inside = 0  # of layers that count what they multiply

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Hook the model for the length of a with statement."""
        hooks = []
        for module in self._names:
            hooks.append(module.register_forward_pre_hook(self._enter))
            hooks.append(module.register_forward_hook(self._leave))
        try:
            with _Multiplying(self):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def multiplied(self, *matrices: Tensor) -> None:
        """Count the product of two matrices; of three, also that of the result with the third."""
        if self._inside:
            return
        running = self.running[-1] if self.running else ""
        *batch, rows, last = matrices[0].shape
        for matrix in matrices[1:]:
            name = f"{running}.product{len(self.products)}".lstrip(".")
            macs = math.prod(batch) * rows * last * matrix.shape[-1]
            self.products.append((name, macs))
            last = matrix.shape[-1]

    def costs(
        self, channels: Mapping[str, int] | None = None, bare: Mapping[str, int] | None = None
    ) -> Costs:
        """What was recorded, with the parameters of every module.

        Parameters
        ----------
        channels : mapping of str to int, optional
            By name of a matrix product, channels for each of which it is made once more.
        bare : mapping of str to int, optional
            Channels of parameters that no known layer owns, by name.
        """
        seen: set[int] = set()
        modules = {
            name: Cost(macs, 0, 0, 0, (channels or {}).get(name, 0), 0)
            for name, macs in self.products
        }
        other = 0
        for module, name in self._names.items():
            own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
            seen.update(map(id, own))  # a tied parameter counts once
            params = sum(p.numel() for p in own)
            outputs, inputs = sides(module)
            if outputs or multiplies(module):
                biases = sum(p.numel() for p in own if p.dim() <= 1)
                modules[name] = Cost(
                    macs=self.macs.get(name, 0),
                    norm=self.norm.get(name, 0),
                    weights=params - biases if outputs else 0,
                    per_output=biases if outputs else params,
                    outputs=outputs,
                    inputs=inputs,
                    calls=self.calls.get(name, 0),
                    squared=rule_of(module).squared(module),
                )
            else:
                other += params
        parameters = dict(self._model.named_parameters())
        for name, outputs in (bare or {}).items():
            if name in parameters:
                size = parameters[name].numel()
                modules[name] = Cost(0, 0, 0, size, outputs, 0)
                other -= size
        return Costs(modules, other)

    def _enter(self, module: nn.Module, _: object) -> None:
        self.running.append(self._names[module])
        self._inside += multiplies(module)

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = self.running.pop()
        self._inside -= multiplies(module)
        self.calls[name] = self.calls.get(name, 0) + 1
        tensors = tensors_in(output)
        if not tensors:
            return
        written = tensors[0]
        if isinstance(module, _BatchNorm):
            self.norm[name] = self.norm.get(name, 0) + written.numel()
        if multiplies(module):
            read = next((t.shape for t in tensors_in(inputs)), written.shape)
            macs = rule_of(module).macs(module, read, written.shape)
            self.macs[name] = self.macs.get(name, 0) + macs


# the places, among the arguments of matrix products, of those that are the matrices
MATRICES = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "baddbmm": (1, 2),
}
ATTENTION = frozenset(
    f"_scaled_dot_product_{kind}"
    for kind in (
        "flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention",
        "fused_attention_overrideable", "attention_math",
    )
)  # fmt: skip


class _Watching:
    """Tells a recorder of matrix products, apart from the mode that makes torch call it.

    A mode that itself defines ``__torch_dispatch__`` makes torch import its compiler, which takes
    seconds and 150 MB.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in MATRICES:
            self._recorder.multiplied(*(args[place] for place in MATRICES[name]))
        elif name in ATTENTION:
            query, key, value = args[:3]
            self._recorder.multiplied(query, key.mT, value)
        return func(*args, **(kwargs or {}))


class _Multiplying(_Watching, TorchDispatchMode):  # type: ignore[no-untyped-call]
    pass


def measure(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Totals:
    """Multiply-adds and parameters of a network for given inputs.

    Parameters
    ----------
    model : torch.nn.Module
        Run once in eval mode; its mode is put back.
    args, kwargs
        Arguments of its forward.

    Returns
    -------
    Totals
        Multiply-adds; parameters; and multiply-adds in the convention of the
        published tables, plus four per element of every BatchNorm output.
    """
    model = counterpart(model)  # what is pruned is counted unfolded, and so is what is not
    recorder = Recorder(model)
    with eval_mode(model), torch.no_grad(), recorder.recording():
        model(*args, **(kwargs or {}))
    return recorder.costs().totals()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and every module back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
