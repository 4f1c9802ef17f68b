"""Steps down a gradient: optimiser, schedule and mixed precision, for whatever is learned."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from epruner.pruning.network.ranks import ALONE, Ranks

RATES = {"sgd": 0.02, "adamw": 1e-3}


class Descent:
    """Trains the parameters of a model that require a gradient, step by step.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.
    steps : int
        Of the schedule.
    optimizer, lr, weight_decay, amp
        As of `finetune`.
    schedule : {"cosine", "step", "one-cycle"}
        Down to zero over all steps; a tenth after half and after three quarters of them; or up for
        three tenths of them and down to zero.
    ranks : Ranks
        Those that take each step together.

    Raises
    ------
    ValueError
        No parameter requires a gradient, or the rate is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        *,
        optimizer: str,
        lr: float | None = None,
        weight_decay: float,
        schedule: str,
        amp: bool | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self.lr = RATES[optimizer] if lr is None else lr
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {lr!r}")
        self.device = next(model.parameters()).device
        self._mixed = self.device.type == "cuda" if amp is None else amp
        self._optimizer = _optimizer(model, optimizer, self.lr, weight_decay)
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, _factor(schedule, steps)
        )
        scaled = self._mixed and self.device.type == "cuda"
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)

    @property
    def parts(self) -> dict[str, Any]:
        """What a checkpoint must hold, by name."""
        return {
            "optimizer": self._optimizer, "scheduler": self._scheduler, "scaler": self._scaler
        }  # fmt: skip

    def step(self, loss_of: Callable[[], Tensor], count: int = 1) -> float:
        """One step; the loss before it.

        Parameters
        ----------
        loss_of : callable
            The mean over this rank's inputs. Its gradients are averaged over ranks.
        count : int
            Of these inputs; what matters is whether other ranks have more.

        Returns
        -------
        float
            The mean over the inputs of all ranks.

        Raises
        ------
        FloatingPointError
            It is NaN or infinite on some rank, and nothing was changed on any.
        """
        self._optimizer.zero_grad(set_to_none=True)
        with self._ranks.naming():
            with torch.autocast(self.device.type, enabled=self._mixed):
                loss = loss_of()
            own = torch.tensor([[float(loss.detach()), count]], dtype=torch.float64)
            values, counts = torch.cat(self._ranks.gather(own)).numpy().T
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                where = f" on rank {bad[0]}" if bad.size < len(values) else ""
                raise FloatingPointError(
                    f"the loss became {values[bad[0]]}{where}; lower lr (now {self.lr:g})"
                )
            share = float(len(counts) * count / counts.sum())
            torch.autograd.backward(self._scaler.scale(loss * share))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        with warnings.catch_warnings():  # the scaler may leave out the first steps
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler")
            self._scheduler.step()
        return float(np.average(values, weights=counts))


def _optimizer(
    model: nn.Module, kind: str, rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("no parameter of the model requires a gradient")
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def _factor(schedule: str, steps: int) -> Callable[[int], float]:
    if schedule == "step":
        return lambda step: 0.1 ** ((step >= steps / 2) + (step >= 0.75 * steps))
    rise = 0.3 * steps if schedule == "one-cycle" else 0.0

    def cosine(step: int) -> float:
        if step < rise:
            return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * step / rise))
        return 0.5 * (1 + math.cos(math.pi * min((step - rise) / (steps - rise), 1)))

    return cosine
