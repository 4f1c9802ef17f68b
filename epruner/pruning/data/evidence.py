"""What is known of how a network behaves: inputs, given or made up, and a network to show them to.

Noise is shown to a copy whose BatchNorm layers remember the noise as if it were what they were
trained on; real inputs, and synthetic ones that match what the layers remember, to the network
itself.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from epruner.pruning.data.calibration import Calibration, calibration_inputs, slots
from epruner.pruning.data.examples import made_up
from epruner.pruning.data.synthesis import synthetic_inputs
from epruner.pruning.errors import RepairWarning
from epruner.pruning.network.batches import NONE
from epruner.pruning.network.copies import working_copy
from epruner.pruning.network.inputs import Arguments, in_float32
from epruner.pruning.network.ranks import Ranks
from epruner.pruning.network.statistics import estimate_statistics, trained_norms
from epruner.pruning.report.progress import Stages

MADE_UP = ("noise", "synthetic")
_MOST, _USUAL, _FEWEST = 256, 64, 16  # inputs made of noise; fewer if they are large
_MANY, _TOO_MANY = 2**20, 2**25  # elements of all inputs


@dataclass(frozen=True)
class Evidence:
    """What choices and repairs are made from.

    Parameters
    ----------
    kind : {"none", "noise", "synthetic", "inputs"}
    model : torch.nn.Module
        Full-size; how it answers in eval mode is what counts.
    calibration : Calibration
        Empty if there is none.
    notes : tuple of str
        What was tried in vain.
    """

    kind: str
    model: nn.Module
    calibration: Calibration = field(default=Calibration(NONE))
    notes: tuple[str, ...] = ()


def kind_of(model: nn.Module, calibrate: Any) -> str:
    """The kind of evidence that `calibrate` asks for.

    By default noise, where it is brought to a scale that the layers know: by BatchNorm that was
    trained, or by layers that normalise each input by itself.

    Raises
    ------
    ValueError
        An unknown name, or nothing that synthetic inputs could match.
    """
    if isinstance(calibrate, str):
        if calibrate not in MADE_UP:
            raise ValueError(
                f"calibrate must be inputs, {' or '.join(map(repr, MADE_UP))}, got "
                f"{calibrate!r:.80}"
            )
        if calibrate == "synthetic" and not trained_norms(model):
            raise ValueError(
                "synthetic inputs are made to match what BatchNorm layers remember of their "
                "training, and this network has none that do; give a few hundred inputs without "
                "labels"
            )
        return calibrate
    if calibrate is not None:
        return "inputs"
    modules = list(model.modules())
    if any(isinstance(module, _BatchNorm) for module in modules):
        return "noise" if trained_norms(model) else "none"
    return "noise" if any(map(_normalises, modules)) else "none"


def _normalises(module: nn.Module) -> bool:
    """Whether a layer brings each input to a scale of its own."""
    if isinstance(module, _InstanceNorm):
        return not module.track_running_stats
    return isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm))


def gather(
    kind: str,
    model: nn.Module,
    calibrate: Any,
    example: Arguments,
    *,
    labelled: bool = False,
    seed: int,
    stages: Stages,
    ranks: Ranks,
) -> Evidence:
    """Inputs, and the network to show them to.

    Parameters
    ----------
    kind : {"none", "noise", "synthetic", "inputs"}
        What `kind_of` says of the next two.
    model : torch.nn.Module
        Not modified.
    calibrate
        As given to `prune`. Noise that was not asked for is done without if it leads to nothing.
    example : (args, kwargs)
    labelled : bool
        Whether the inputs have labels that are wanted, too.
    seed : int
        Of what is made up.
    stages : Stages
    ranks : Ranks
        Among whom the inputs are dealt out.
    """
    if kind == "none":
        return Evidence("none", model)
    with stages.run("inputs"):
        if kind == "inputs":
            inputs = calibration_inputs(model, calibrate, example, labelled=labelled, ranks=ranks)
            return Evidence(kind, model, inputs)
        if kind == "noise":
            return _noise(model, example, seed=seed, asked=calibrate is not None, ranks=ranks)
        with ranks.agree():
            drawn = synthetic_inputs(model, example, seed=seed, advance=stages.advance, ranks=ranks)
        return Evidence(kind, model, calibration_inputs(model, [drawn], example, ranks=ranks))


def _noise(
    model: nn.Module, example: Arguments, *, seed: int, asked: bool, ranks: Ranks
) -> Evidence:
    """Noise like the example, and a copy of the network at home with it."""
    try:
        with ranks.agree():
            reference = working_copy(model)
            exact: Any = tuple(in_float32(part) for part in example)
            elements = sum(tensor[:1].numel() for tensor in slots(reference, exact)[1])
            n = min(_MOST, max(_USUAL, math.ceil(_MANY / max(1, elements))))
            n = min(n, max(_FEWEST, _TOO_MANY // max(1, elements)))
            drawn = [made_up(reference, exact, n, seed=seed)] if ranks.rank == 0 else []
        calibration = calibration_inputs(reference, drawn, exact, ranks=ranks)
        estimate_statistics(reference, calibration.everything, trained_norms(reference))
    except ranks.lost:
        raise
    except Exception as error:
        if asked:
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        note = f"nothing could be learnt from noise, and weights alone decide: {reason}"
        warnings.warn(RepairWarning(note), stacklevel=4)
        return Evidence("none", model, notes=(note,))
    return Evidence("noise", reference, calibration)
