"""Training over ranks is that of one process whose batches are those of all ranks together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Failed, ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import epruner
from epruner.pruning.training.finetune import Epoch

Found = tuple[list[Epoch], dict[str, Tensor]]
OPTIONS: dict[str, Any] = {"epochs": 3, "lr": 0.1}


def data(count: int = 96) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return x, x.mean((2, 3)).argmax(1)


def network(norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False), norm(8),
        nn.ReLU(), nn.Flatten(), nn.Linear(32, 3), nn.Unflatten(1, (3, 1)), nn.Flatten(),
    )  # fmt: skip


def identity(_: int) -> nn.Module:
    return nn.Identity()


class Part(list[tuple[Tensor, Tensor]]):
    """Some rows of every batch of 24."""

    def __init__(self, rows: slice) -> None:
        x, y = data()
        super().__init__((x[i : i + 24][rows], y[i : i + 24][rows]) for i in range(0, len(x), 24))


def trained(group: Any, norm: Any, rows: slice, **options: Any) -> Found:
    model, part = network(norm), Part(rows)
    given = {"eval_loader": part, "group": group, **OPTIONS, **options}
    return epruner.finetune(model, part, **given), model.state_dict()


def same(a: Found, b: Found) -> bool:
    return a[0] == b[0] and all(torch.equal(a[1][key], value) for key, value in b[1].items())


def near(a: Found, b: Found) -> None:
    for mine, theirs in zip(a[0], b[0], strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=1e-5)
        assert mine.accuracy == theirs.accuracy
    for key, value in b[1].items():
        torch.testing.assert_close(a[1][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [identity, nn.BatchNorm2d])
@pytest.mark.parametrize("parts", [[slice(12), slice(12, 24)], [slice(3), slice(3, 9), slice(9, 24)]])
def test_ranks_take_the_steps_of_one_process(norm: Any, parts: list[slice]) -> None:
    alone = trained(None, norm, slice(24))
    assert alone[0][-1].loss < alone[0][0].loss
    first, *others = ranks().run(len(parts), trained, norm, each=parts)
    near(first, alone)
    assert all(same(first, other) for other in others)
