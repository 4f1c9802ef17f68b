"""Forward passes under the clock, in turn, so that what slows the machine down slows them all."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from epruner.pruning.graph.costs import eval_mode
from epruner.pruning.network.inputs import Arguments
from epruner.pruning.network.tree import tensors_in
from epruner.pruning.report.records import Timing

clock = time.perf_counter
LEAST, MOST = 7, 60  # rounds
SECONDS = 10.0  # after which no round begins
SURE = 0.01  # standard error of a share that needs no more rounds
TURN = 0.1  # seconds: shorter ones are either within a slice of a busy core's time or not


def wait(device: torch.device) -> None:
    """Until a device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def device_of(model: nn.Module) -> torch.device:
    """Where a network is, by its first tensor."""
    tensor: Tensor | None = next((t for t in (*model.parameters(), *model.buffers())), None)
    return torch.device("cpu") if tensor is None else tensor.device


def in_turn(
    networks: Sequence[nn.Module],
    arguments: Arguments,
    after: Callable[[int, float], None],
    *,
    until: Callable[[int, float], bool],
    turn: float = 0.0,
) -> None:
    """Run networks in turn, round after round.

    Parameters
    ----------
    networks : sequence of torch.nn.Module
        In eval mode.
    arguments : (args, kwargs)
    after : callable
        Gets the place of a network and the seconds of a pass, after each turn.
    until : callable
        From the number of rounds and the seconds that they took to whether they are enough.
    turn : float
        Seconds that a turn takes at least, with as many passes as that needs; one in the first
        round.
    """
    args, kwargs = arguments
    device = device_of(networks[0])
    passes = [1] * len(networks)
    start = clock()
    with torch.no_grad():
        done = 0
        while not until(done, clock() - start):
            for place, network in enumerate(networks):
                if passes[place] > 1:  # so short that it matters whose weights the caches hold
                    network(*args, **kwargs)
                wait(device)
                begun = clock()
                for _ in range(passes[place]):
                    network(*args, **kwargs)
                wait(device)
                taken = (clock() - begun) / passes[place]
                after(place, taken)
                if done == 0:
                    passes[place] = max(1, math.ceil(turn / max(taken, TURN / 1000)))
            done += 1


def compared(model: nn.Module, small: nn.Module, arguments: Arguments) -> Timing:
    """Time a network and a smaller one against each other.

    Parameters
    ----------
    model, small : torch.nn.Module
        On the same device; their modes are put back.
    arguments : (args, kwargs)
        Of both.

    Returns
    -------
    Timing
        Of as many rounds as make its share sure, and no more than some seconds allow; the first
        does not count.
    """
    taken: tuple[list[float], list[float]] = ([], [])

    def enough(rounds: int, seconds: float) -> bool:
        if rounds <= LEAST:
            return False
        return rounds > MOST or seconds >= SECONDS or _error_of_share(*taken) <= SURE

    with eval_mode(model), eval_mode(small):
        in_turn(
            (model, small),
            arguments,
            lambda place, seconds: taken[place].append(seconds),
            until=enough,
            turn=TURN,
        )
    before, after = (_quartiles(each[1:]) for each in taken)
    shown = tensors_in(arguments)
    device = device_of(model)
    return Timing(
        before=before[1],
        after=after[1],
        before_spread=before[2] - before[0],
        after_spread=after[2] - after[0],
        rounds=len(taken[0]) - 1,
        batch=shown[0].shape[0] if shown and shown[0].dim() else 1,
        device=str(device),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
    )


def _error_of_share(*taken: Sequence[float]) -> float:
    """Standard error of a ratio of medians, as a share of it, if times are about normal."""
    quartiles = [_quartiles(each[1:]) for each in taken]
    spread = math.hypot(*((high - low) / middle for low, middle, high in quartiles))
    return 0.93 * spread / math.sqrt(len(taken[0]) - 1)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
