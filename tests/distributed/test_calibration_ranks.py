"""Pruning by calibration inputs that are spread over ranks: as one process that has them all."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
import torch
from ranks import Failed, ranks
from torch import Tensor, nn

import epruner
from epruner.pruning.data import synthesis
from epruner.pruning.data.calibration import calibration_inputs
from epruner.pruning.data.dealing import deal, split
from epruner.pruning.latency import stopwatch
from epruner.pruning.network.ranks import ranks_of
from epruner.pruning.network.tree import tensors_in
from epruner.pruning.report.records import Repair
from epruner.pruning.training import distill

SHAPE = (1, 3, 8, 8)
Answer = tuple[str, Tensor, tuple[str, ...]]


class Residual(nn.Module):
    """A block whose branch does little, so that it may go."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.branch(x))


def network(seed: int = 0) -> nn.Module:
    """Residual, with BatchNorm layers that are no longer as they were made."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        Residual(8),
        Residual(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )
    with torch.no_grad():
        for _ in range(5):
            model(images(64, seed + 1))
    return model.eval()


def images(n: int = 300, seed: int = 7) -> Tensor:
    """Inputs whose channels are correlated and whose mean is not zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *SHAPE[1:], generator=generator)
    return x.cumsum(3) / 2 + x.roll(1, 1) + 0.3


def parts(x: Tensor, size: int) -> list[Tensor]:
    """Uneven; of three or more ranks the second has none."""
    shares = [1, *([0] if size > 2 else []), *range(2, size + 1)][:size]
    cuts = [len(x) * sum(shares[:rank]) // sum(shares) for rank in range(size + 1)]
    return [x[first:end] for first, end in pairwise(cuts)]


def answer(result: Any) -> Answer:
    with torch.no_grad():
        return result.plan.to_json(), result.model.eval()(images(20, 3)), result.report.notes


def pruned(group: Any, options: dict[str, Any], mine: Any) -> Answer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calibrate = mine if options.get("calibrate") is None else options["calibrate"]
        return answer(
            epruner.prune(network(), SHAPE, **{**options, "calibrate": calibrate}, group=group)
        )


WAYS: dict[str, dict[str, Any]] = {
    "best": {"macs": 0.6},
    "exemplar": {"macs": 0.6, "method": "exemplar"},
    "streams": {"params": 0.5, "scope": "all"},
    "batchnorm": {"macs": 0.6, "repair": "batchnorm"},
    "activations": {
        "macs": 0.6, "method": epruner.Method("exemplar", "exemplar", "activations")
    },
    "blocks": {"macs": 0.6, "scope": "blocks", "method": "reconstruction"},
    "noise": {"macs": 0.6, "calibrate": "noise"},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_ranks_prune_as_one_process_does(way: str) -> None:
    options = WAYS[way]
    x = images()
    plan, outputs, notes = pruned(None, options, x)
    size = 4 if way == "best" else 2
    for theirs in ranks().run(size, pruned, options, each=parts(x, size)):
        assert theirs[0] == plan
        torch.testing.assert_close(theirs[1], outputs, rtol=0, atol=1e-5)
        assert theirs[2] == notes


def by_gradient(group: Any, mine: Tensor) -> Answer:
    labels = mine[:, 0, 0, 0].mul(10).long() % 5
    pairs = [(mine, labels.to(torch.int32 if group and group.rank() else torch.int64))]
    return pruned(group, {"macs": 0.6, "method": "fisher"}, pairs if len(mine) else [])


def test_labels_are_dealt_out_with_their_inputs_also_to_ranks_without() -> None:
    x = images()
    plan, outputs, _ = by_gradient(None, x)
    for theirs in ranks().run(3, by_gradient, each=parts(x, 3)):
        assert theirs[0] == plan
        torch.testing.assert_close(theirs[1], outputs, rtol=0, atol=1e-5)


def labels_apart(group: Any, mine: Tensor) -> Answer:
    labels = torch.zeros(len(mine), *[2] * group.rank())
    return pruned(group, {"macs": 0.6, "method": "fisher"}, [(mine, labels)])


def test_labels_of_ranks_that_differ_in_kind() -> None:
    for found in ranks().outcomes(2, labels_apart, each=parts(images(), 2)):
        assert isinstance(found, Failed)
        assert "labels of an input differ in kind" in found.text


def batches(group: Any, mine: Tensor) -> list[tuple[bool, list[Tensor]]]:
    found = calibration_inputs(network(), mine, ((mine[:1],), {}), ranks=ranks_of(group))
    return [(p.stands_in, [tensors_in(x)[0] for x in p]) for p in (found.fit, found.held_back)]


@pytest.mark.parametrize(("n", "size"), [(300, 2), (300, 4), (1200, 3), (9, 2)])
def test_batches_are_those_of_one_process(n: int, size: int) -> None:
    x = images(n)
    alone = batches(None, x)
    found = ranks().run(size, batches, each=parts(x, size))
    for part in range(2):
        dealt = [x for rank in found for x in rank[part][1] if not rank[part][0]]
        assert len(dealt) == len(alone[part][1])
        assert all(map(torch.equal, dealt, alone[part][1]))
        for stands_in, own in (rank[part] for rank in found):
            assert not stands_in or all(map(torch.equal, own, alone[part][1][:1]))


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 40, 1000])
def test_work_is_dealt_out_evenly(count: int, n_ranks: int) -> None:
    wholes = split(torch.arange(count), 13), split(torch.arange(count // 4), 13)
    work = [0] * n_ranks
    for whole, late in zip(wholes, (False, True), strict=True):
        shares = deal(whole, n_ranks, late=late)
        own = [() if share.stands_in else share.batches for share in shares]
        assert [len(b) for some in own for b in some] == [len(b) for b in whole]
        work = [have + len(some) for have, some in zip(work, own, strict=True)]
    assert max(work) - min(work) <= 1


def test_budget_is_measured_on_rank_0() -> None:
    found = ranks().run(2, with_budget, each=parts(images(), 2))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def with_budget(group: Any, mine: Tensor) -> Answer:
    def measure(model: nn.Module) -> float:
        assert group.rank() == 0
        return sum(parameter.numel() for parameter in model.parameters())

    options = {"budget": epruner.Budget(measure, 0.6), "method": "l1", "repair": "none"}
    return pruned(group, options, mine)


def with_latency(group: Any, mine: Tensor) -> Answer:
    hasty: Any = {"MOST": 7, "TURN": 0.0}
    with patch.multiple(stopwatch, **hasty):
        return pruned(group, {"latency": 0.9, "method": "l1", "repair": "none"}, mine)


def test_latency_is_measured_on_rank_0() -> None:
    found = ranks().run(2, with_latency, each=parts(images(), 2))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def in_steps(group: Any, mine: Tensor) -> Answer:
    model = network()
    plan = epruner.analyse(model, SHAPE).select(macs=0.6, calibrate=mine, group=group)
    small, done = epruner.repair(model, plan.apply(model), plan, calibrate=mine, group=group)
    assert done is not None
    with torch.no_grad():
        return plan.to_json(), small.eval()(images(20, 3)), done.notes


def test_the_same_in_steps() -> None:
    x = images()
    plan, outputs, _ = pruned(None, WAYS["best"], x)
    for theirs in ranks().run(2, in_steps, each=parts(x, 2)):
        assert theirs[0] == plan
        torch.testing.assert_close(theirs[1], outputs, rtol=0, atol=1e-5)


def distilled(group: Any, mine: Tensor) -> tuple[str, nn.Module, Repair]:
    few: Any = {"STEPS": 40, "STEPS_PER_ROOT": 0}
    with patch.multiple(distill, **few):
        result = epruner.prune(
            network(), SHAPE, macs=0.6, calibrate=mine, repair="distill", group=group
        )
    assert result.report.repair is not None
    return result.plan.to_json(), result.model, result.report.repair


@pytest.mark.filterwarnings("ignore::epruner.BudgetWarning")
def test_ranks_distil_what_they_have_repaired() -> None:
    x = images()  # two batches to fit to
    alone = epruner.prune(network(), SHAPE, macs=0.6, calibrate=x)
    refit = alone.report.repair
    assert refit is not None
    held_back = x[4::5]
    with torch.no_grad():
        expected = network()(held_back)
    variance = (expected - expected.mean(0)).square().sum()
    for plan, model, done in ranks().run(3, distilled, each=parts(x, 3)):
        assert plan == alone.plan.to_json()
        with torch.no_grad():
            error = (model.eval()(held_back) - expected).square().sum() / variance
        assert done.after == pytest.approx(float(error), rel=1e-4)
        assert done.after < refit.after
        assert (done.fit, done.held_back) == (240, 60)


def made(group: Any) -> tuple[Tensor, Answer]:
    few: Any = {"STEPS": 2, "MOST": 64}
    with patch.multiple(synthesis, **few):
        share: Any = epruner.synthesise(network(), SHAPE, n=40, group=group)
        return share, pruned(group, {"macs": 0.6, "calibrate": "synthetic"}, None)


def test_ranks_make_synthetic_inputs_side_by_side() -> None:
    (none, mine), (share, theirs) = ranks().run(2, made)
    assert (len(none), len(share)) == (0, 40)  # fewer than 32 together would not do
    assert theirs[0] == mine[0]
    assert torch.equal(theirs[1], mine[1])


class Branching(nn.Module):
    """Takes another course for bright inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        if x.mean() > 5:
            y = torch.tanh(y)
        scores: Tensor = self.last(torch.relu(y).mean((2, 3)))
        return scores


def branching(group: Any, mine: Tensor) -> Answer:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return answer(
            epruner.prune(Branching().eval(), SHAPE, macs=0.6, calibrate=mine, group=group)
        )


def test_what_one_rank_cannot_follow_none_follows() -> None:
    x = torch.cat([images(), images() + 20])
    plan, outputs, notes = branching(None, x)
    assert any("another course" in note for note in notes)
    for theirs in ranks().run(2, branching, each=[x[:300], x[300:]]):
        assert theirs[0] == plan
        torch.testing.assert_close(theirs[1], outputs, rtol=0, atol=1e-5)
        assert any("another course" in note for note in theirs[2])


def faulty(group: Any, what: str) -> Answer:
    second = group.rank() == 1
    mine: Any = images(40)
    goals = {"options": ("macs", 0.5), "goal": ("params", 0.6)}
    name, share = goals.get(what, ("macs", 0.6)) if second else ("macs", 0.6)
    options: dict[str, Any] = {name: share}
    model = network(seed=int(what == "weights" and second))
    if second:
        if what == "NaN":
            mine[3, 0, 0, 0] = math.nan
        wrong: dict[str, Any] = {"shape": mine[:, :, 1:], "nothing": None, "type": 3}
        mine = wrong.get(what, mine)
    if what == "empty":
        mine = []
    return answer(epruner.prune(model, SHAPE, calibrate=mine, group=group, **options))


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("NaN", "ValueError", "calibrate: 1 of 40 inputs hold NaN or infinity"),
        ("shape", "ValueError", "calibrate: batch 0 has inputs of shape (40, 3, 7, 8)"),
        ("type", "TypeError", "calibrate must be a tensor of inputs or an iterable"),
        ("weights", "ValueError", "the hash of model's weights is"),
        ("options", "ValueError", "macs is 0.6 on rank 0 and 0.5 on rank 1"),
        ("goal", "ValueError", "macs is 0.6 on rank 0 and None on rank 1"),
        ("nothing", "ValueError", "calibrate is 'inputs' on rank 0 and 'noise' on rank 1"),
        ("empty", "ValueError", "calibrate is empty"),
    ],
)
def test_what_is_wrong_on_one_rank_is_said_on_all(what: str, kind: str, said: str) -> None:
    for found in ranks().outcomes(3, faulty, what):
        assert isinstance(found, Failed)
        assert found.kind == kind, found.trace
        assert said in found.text
