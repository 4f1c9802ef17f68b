"""The fine-tuning helper."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import epruner
from epruner.pruning.training.finetune import evaluate


def task(count: int = 256) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(64), (x[:, :3].argmax(1)).split(64), strict=True))  # type: ignore[no-untyped-call]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_learns(optimizer: Any, schedule: Any) -> None:
    model = network().eval()
    before = evaluate(model, task())
    rate = {"sgd": 0.1, "adamw": 0.01}[optimizer]
    history = epruner.finetune(
        model, task(), epochs=8, lr=rate, optimizer=optimizer, schedule=schedule,
        eval_loader=task(), label_smoothing=0.05,
    )  # fmt: skip
    assert [epoch.epoch for epoch in history] == list(range(1, 9))
    assert history[-1].loss < history[0].loss
    assert history[-1].accuracy is not None
    assert history[-1].accuracy > max(before, 0.85)
    assert not model.training


def test_learns_from_a_teacher_alone() -> None:
    teacher = network()
    epruner.finetune(teacher, task(), epochs=10, lr=0.1)
    torch.manual_seed(1)
    student = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    wrong = [(x, torch.zeros_like(y)) for x, y in task()]
    epruner.finetune(student, wrong, epochs=20, lr=0.05, teacher=teacher, distill=1.0)
    assert evaluate(student, task()) > 0.8


def test_a_regularizer_of_squares_is_weight_decay() -> None:
    class Squares:
        def __init__(self) -> None:
            self.epochs: list[int] = []

        def set_epoch(self, done: int) -> None:
            self.epochs.append(done)

        def __call__(self, model: nn.Module, scores: Tensor, labels: Tensor) -> Tensor:
            assert scores.shape == (len(labels), 3)
            squares = [p.square().sum() for p in model.parameters() if p.dim() > 1]
            return 0.05 * torch.stack(squares).sum()

    decayed, regularized = network().double(), network().double()
    in_doubles = [(x.double(), y) for x, y in task()]
    epruner.finetune(decayed, in_doubles, epochs=3, weight_decay=0.1)
    squares = Squares()
    epruner.finetune(regularized, in_doubles, epochs=3, weight_decay=0.0, regularizer=squares)
    for one, other in zip(decayed.parameters(), regularized.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert squares.epochs == [0, 1, 2]


def test_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = network()
    epruner.finetune(whole, task(), epochs=4)

    class Stops(list[Any]):
        passes = 0

        def __iter__(self) -> Any:
            type(self).passes += 1
            if type(self).passes == 3:
                raise KeyboardInterrupt
            return super().__iter__()

    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        epruner.finetune(network(), Stops(task()), epochs=4, checkpoint=path)
    resumed = network()
    history = epruner.finetune(resumed, task(), epochs=4, checkpoint=path)
    assert len(history) == 4
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key]), key
    with pytest.raises(ValueError, match="another epochs"):
        epruner.finetune(resumed, task(), epochs=5, checkpoint=path)
    with pytest.raises(ValueError, match="another network"):
        epruner.finetune(nn.Linear(6, 3), task(), epochs=4, checkpoint=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "optimizer"),
        ({"schedule": "warm"}, "schedule"),
        ({"epochs": 0}, "epochs"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"distill": 2.0}, "distill"),
        ({"temperature": 0}, "temperature"),
        ({"lr": -1.0}, "lr"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        epruner.finetune(network(), task(), **options)


def test_bad_data() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    x, y = task()[0]
    with pytest.raises(ValueError, match="64 inputs and labels of shape"):
        epruner.finetune(model, [(x, y[:5])])
    with pytest.raises(ValueError, match="64 inputs and labels of shape"):
        evaluate(model, [(x, y[:5])])
    with pytest.raises(TypeError, match="pair"):
        epruner.finetune(model, [x])
    with pytest.raises(ValueError, match="length"):
        epruner.finetune(model, iter(task()))
    with pytest.raises(ValueError, match="empty"):
        evaluate(model, [])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    with pytest.raises(FloatingPointError, match="lower lr"):
        epruner.finetune(model, [(x * float("nan"), y)])
