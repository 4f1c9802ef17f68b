"""Training over ranks is that of one process whose batches are those of all ranks together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import epruner
from epruner.pruning.training.finetune import Epoch

Found = tuple[list[Epoch], dict[str, Tensor]]
OPTIONS: dict[str, Any] = {"epochs": 3, "lr": 0.1}


def data(count: int = 96) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return x, x.mean((2, 3)).argmax(1)


def network(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
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


def trained(group: Any, norm: Any, dtype: torch.dtype, rows: slice) -> Found:
    model = network(norm).to(dtype)
    part: Any = [(x.to(dtype), y) for x, y in Part(rows)]
    history = epruner.finetune(model, part, eval_loader=part, group=group, **OPTIONS)
    return history, model.state_dict()


def same(a: Found, b: Found) -> bool:
    return a[0] == b[0] and all(torch.equal(a[1][key], value) for key, value in b[1].items())


def near(a: Found, b: Found, digits: float) -> None:
    for mine, theirs in zip(a[0], b[0], strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=digits)
        assert mine.accuracy == theirs.accuracy
    for key, value in b[1].items():
        torch.testing.assert_close(a[1][key], value, rtol=10 * digits, atol=10 * digits)


EVEN, UNEVEN = [slice(12), slice(12, 24)], [slice(3), slice(3, 9), slice(9, 24)]


@pytest.mark.parametrize(
    ("norm", "parts", "dtype", "digits"),
    [
        (identity, EVEN, torch.float64, 1e-10),
        (nn.BatchNorm2d, EVEN, torch.float64, 1e-10),
        (nn.BatchNorm2d, UNEVEN, torch.float64, 1e-10),
        (nn.BatchNorm2d, UNEVEN, torch.float32, 1e-5),
    ],
)
def test_ranks_take_the_steps_of_one_process(
    norm: Any, parts: list[slice], dtype: torch.dtype, digits: float
) -> None:
    alone = trained(None, norm, dtype, slice(24))
    assert alone[0][-1].loss < alone[0][0].loss
    first, *others = ranks().run(len(parts), trained, norm, dtype, each=parts)
    near(first, alone, digits)
    assert all(same(first, other) for other in others)


class Dropping(nn.Dropout):
    """Other random numbers on every rank."""

    def __init__(self, _: int) -> None:
        super().__init__(0.3)


class Sampled(DataLoader[Any]):
    """What most users pass; the rank given is interrupted in the epoch after those given."""

    def __init__(self, group: Any, stop: int | None) -> None:
        self.stop = stop
        sampler: Any = DistributedSampler(
            TensorDataset(*data()), group.size(), group.rank(), seed=3
        )
        super().__init__(sampler.dataset, 12, sampler=sampler)

    def __iter__(self) -> Any:
        if self.stop == 0:
            raise KeyError("stopped")
        self.stop = None if self.stop is None else self.stop - 1
        return super().__iter__()


def resumed(group: Any, folder: Path) -> tuple[Found, Found, str, list[str]]:
    def run(stop: int | None, path: Path | None) -> Found:
        model = network(Dropping)
        torch.manual_seed(group.rank())
        loader = Sampled(group, stop)
        return epruner.finetune(model, loader, checkpoint=path, group=group, **OPTIONS), (
            model.state_dict()
        )

    whole = run(None, None)
    try:
        run(2 if group.rank() else None, folder / "run.pt")
    except ValueError as error:
        said = str(error)
    except KeyError:
        said = "own"
    written = [path.name for path in folder.iterdir()]
    return whole, run(None, folder / "run.pt"), said, written


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    first, second = ranks().run(2, resumed, tmp_path)
    assert (first[2], second[2]) == ("on rank 1: 'stopped'", "own")
    assert first[3] == second[3] == ["run.pt"]
    for whole, again, *_ in (first, second):
        assert same(again, whole)
        assert same(whole, first[0])


def refused(group: Any, number: int) -> None:
    """What rank 1 gets is wrong, or not what rank 0 gets."""
    part, odd = Part(slice(12)), group.rank() == 1
    x, y = part[2]
    model: Any = network(identity if number == 7 else nn.BatchNorm2d)
    options: dict[str, Any] = {"group": group, **OPTIONS}
    if odd and number < 4:
        others: list[Any] = [{"lr": 0.2}, {"lr": -1.0}, {"epochs": 4}, {"eval_loader": part}]
        options |= others[number]
    elif odd and number == 4:
        part.pop()
    elif odd and number == 5:
        model[1] = nn.BatchNorm2d(8, affine=False)
    elif odd and number == 6:
        part[0] = x, y[1:]
    elif odd and number == 7:
        part[0] = x * float("nan"), y
    before = [p.detach().clone() for p in model.parameters()]
    try:
        epruner.finetune(model, part, **options)
    finally:
        assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (0, "ValueError", "lr is 0.1 on rank 0 and 0.2 on rank 1"),
        (1, "ValueError", "lr must be positive, got -1.0"),
        (2, "ValueError", "epochs is 3 on rank 0 and 4 on rank 1"),
        (3, "ValueError", "eval_loader is None on rank 0 and 'given' on rank 1"),
        (4, "ValueError", "len(train_loader) is 4 on rank 0 and 3 on rank 1"),
        (5, "ValueError", "model is 'Sequential, 419 parameters"),
        (6, "ValueError", "12 inputs and labels of shape (11,)"),
        (7, "FloatingPointError", "epoch 1: the loss became nan on rank 1; lower lr"),
    ],
)
def test_what_is_wrong_on_one_rank_is_raised_on_both(number: int, kind: str, message: str) -> None:
    found = ranks().outcomes(2, refused, number)
    assert [error.kind for error in found] == [kind, kind]
    assert all(message in error.text for error in found)


def taught(group: Any, rows: slice, steps: int = 60) -> tuple[dict[str, Tensor], Any]:
    torch.manual_seed(1)
    x, _ = data(200)
    full, small = (
        nn.Sequential(
            nn.Conv2d(3, k, 3), nn.BatchNorm2d(k), nn.ReLU(), nn.Flatten(), nn.Linear(4 * k, 5)
        )
        for k in (24, 4)
    )
    found, done = epruner.distill(full.eval(), small, x[rows], group=group, steps=steps)
    return found.state_dict(), done


def test_ranks_learn_from_a_teacher_what_one_process_learns() -> None:
    _, alone = taught(None, slice(None))
    one, other = ranks().run(2, taught, each=[slice(60), slice(60, None)])
    assert one[1] == other[1]
    assert all(torch.equal(value, other[0][key]) for key, value in one[0].items())
    done = one[1]
    assert (done.fit, done.held_back) == (alone.fit, alone.held_back) == (160, 40)
    assert done.before == pytest.approx(alone.before, rel=1e-6)
    assert done.after == pytest.approx(alone.after, rel=0.1)
    assert done.after < 0.8 * done.before


def untaught(group: Any, wrong: bool) -> None:
    if not wrong:
        taught(group, slice(None), steps=3 + group.rank())
    x, _ = data()
    if group.rank():
        x[3] = float("nan")
    epruner.distill(network(), network(), x, group=group)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(False, "steps is 3 on rank 0 and 4 on rank 1"), (True, "1 of 96 inputs hold NaN")],
)
def test_what_cannot_be_learned_from_is_refused(wrong: bool, message: str) -> None:
    for error in ranks().outcomes(2, untaught, wrong):
        assert error.kind == "ValueError"
        assert message in error.text
