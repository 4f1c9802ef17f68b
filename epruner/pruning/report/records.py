"""What happened to each layer, as pure data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from epruner._tables import milliseconds
from epruner.pruning.graph.groups import Skipped


def by_reason(skipped: Iterable[Skipped]) -> dict[str, list[str]]:
    """Names of layers left alone, by why."""
    found: dict[str, list[str]] = {}
    for each in skipped:
        found.setdefault(each.reason, []).append(each.name)
    return found


@dataclass(frozen=True)
class LayerReport:
    """What happened to the filters of one layer.

    Parameters
    ----------
    name : str
        Dotted module name.
    kind : str
        Class of the module, e.g. ``"Conv2d"``.
    before, after : int
        Number of filters (output channels or neurons).
    preference : float or None
        The beta that the layer was clustered with, or the price if losses were compared; None
        where exemplars did not set the number.
    n_iter : int or None
        Message-passing iterations; None where nothing was clustered.
    converged : bool or None
        Whether the clustering did; None where nothing was clustered.
    floor : bool
        Whether a floor (``min_filters``, ``round_to``) raised the number of filters kept.
    macs_before, macs_after : int
        Multiply-adds of this layer for the example inputs.
    params_before, params_after : int
        Parameters of this layer, bias included.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> (layer,) = epruner.prune(model, (1, 8), macs=0.5).report.layers
    >>> layer.name, layer.kept, layer.macs_before, layer.macs_after
    ('0', 0.5, 256, 128)
    """

    name: str
    kind: str
    before: int
    after: int
    preference: float | None = None
    n_iter: int | None = None
    converged: bool | None = None
    floor: bool = False
    macs_before: int = 0
    macs_after: int = 0
    params_before: int = 0
    params_after: int = 0

    @property
    def kept(self) -> float:
        """Share of the filters kept, in [0, 1]."""
        return self.after / self.before if self.before else 1.0


@dataclass(frozen=True)
class Timing:
    """How long a forward pass takes before and after, from rounds of both in turn.

    Parameters
    ----------
    before, after : float
        Median seconds.
    before_spread, after_spread : float
        Seconds between the quartiles.
    rounds : int
        How often each was timed.
    batch : int
        First size of the first input.
    device : str
        What it ran on, as torch names it.
    threads : int or None
        Of torch, on a CPU.

    Examples
    --------
    As ``prune(model, inputs, latency=0.5).report.timing`` has it:

    >>> from epruner.pruning.report.records import Timing
    >>> timing = Timing(0.02, 0.01, 0.001, 0.001, rounds=30, batch=1, device="cpu", threads=2)
    >>> timing.share
    0.5
    >>> print(timing)
    medians of 30 rounds of both in turn, batch 1, cpu, threads: 2; quartiles 1 ms apart before, ...
    """

    before: float
    after: float
    before_spread: float
    after_spread: float
    rounds: int
    batch: int
    device: str
    threads: int | None = None

    @property
    def share(self) -> float:
        """Of the time before that is left."""
        return self.after / self.before

    def __str__(self) -> str:
        """One line."""
        where = self.device if self.threads is None else f"{self.device}, threads: {self.threads}"
        spread, after = (milliseconds(s) for s in (self.before_spread, self.after_spread))
        return (
            f"medians of {self.rounds} rounds of both in turn, batch {self.batch}, {where}; "
            f"quartiles {spread} apart before, {after} after"
        )


@dataclass(frozen=True)
class LayerRepair:
    """What the refit of one layer did.

    Parameters
    ----------
    name : str
    target : {"stream", "output"}
        What it was fit to: the residual stream after the addition, or its own output.
    before, after : float
        Squared error over the variance of the target, with the sliced and with the refit weights,
        on the inputs held back.
    ridge : float
        How strongly the weights were drawn towards the sliced ones, of the mean diagonal of the
        normal equations.

    Examples
    --------
    >>> import epruner, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> inputs = torch.randn(256, 8)
    >>> report = epruner.prune(model, (1, 8), macs=0.5, calibrate=inputs).report
    >>> (layer,) = report.repair.layers
    >>> layer.name, layer.target, layer.after < layer.before
    ('2', 'output', True)
    """

    name: str
    target: str
    before: float
    after: float
    ridge: float


@dataclass(frozen=True)
class Repair:
    """What a repair that learnt from inputs did to a pruned network.

    Parameters
    ----------
    layers : tuple of LayerRepair
        Layers that least squares refit, in the order of the network; none if only BatchNorm
        statistics were estimated anew.
    before, after : float
        Squared error of the network's outputs over their variance, on the inputs held back.
    fit, held_back : int
        Numbers of calibration inputs. With none held back all errors are those of the inputs that
        were fit to, and say little of others.
    notes : tuple of str
        Layers that were not refit, and why.
    inputs : {"inputs", "noise", "synthetic"}
        What these were: given, or made up.
    steps : int
        Of distillation, after least squares.

    Examples
    --------
    >>> import epruner, torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> inputs = torch.randn(256, 8)
    >>> report = epruner.prune(model, (1, 8), macs=0.5, calibrate=inputs).report
    >>> report.repair.after < report.repair.before, report.repair.inputs
    (True, 'inputs')
    """

    layers: tuple[LayerRepair, ...]
    before: float
    after: float
    fit: int
    held_back: int
    notes: tuple[str, ...] = ()
    inputs: str = "inputs"
    steps: int = 0

    def __str__(self) -> str:
        """One line."""
        streams = sum(layer.target == "stream" for layer in self.layers)
        done = []
        if self.layers:
            done.append(
                f"{len(self.layers)} layers refit ({streams} to the residual stream, "
                f"{len(self.layers) - streams} to their own outputs)"
            )
        if self.steps:
            done.append(f"distilled for {self.steps} steps")
        what = " and ".join(done) or "BatchNorm statistics re-estimated"
        kind = {"inputs": "inputs", "noise": "noise inputs", "synthetic": "synthetic inputs"}
        where = (
            f"on {self.held_back} inputs held back"
            if self.held_back
            else "on these same inputs, too few to hold some back"
        )
        return (
            f"{what} on {self.fit} {kind[self.inputs]}; error of the output {self.before:.3g} -> "
            f"{self.after:.3g} of its variance {where}"
        )
