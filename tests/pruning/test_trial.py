"""The trial sees what an example hides, and lets pass what is right."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import networks
import pytest
import torch
from networks import cut, difference, silenced
from torch import Tensor, nn

from epruner.pruning import Constraints
from epruner.pruning.graph.trial import relative_difference

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Operation = Callable[[Tensor], Tensor]


def by_mean(x: Tensor) -> Tensor:
    """Centred over its channels."""
    return x - x.mean(1, keepdim=True)


def by_count(x: Tensor) -> Tensor:
    """Scaled by the number of its channels."""
    return x / math.sqrt(x.shape[1])


def by_maximum(x: Tensor) -> Tensor:
    """Relative to its largest channel."""
    return x - x.amax(1, keepdim=True)


def by_comparison(x: Tensor) -> Tensor:
    """Set to zero where a sum of channels is large; on the example it nowhere is."""
    return x * (x.sum(1, keepdim=True) < 50)


def by_sum_of_negatives(x: Tensor) -> Tensor:
    """Divided by a sum of what its channels are below zero."""
    return x / (1 + torch.relu(-x).sum(1, keepdim=True))


# What the operations themselves tell of these, before any trial.
STATIC: dict[Operation, str] = {by_mean: "(mean)", by_maximum: "(amax)"}


def alone(x: Tensor) -> Tensor:
    """Every channel to itself."""
    return torch.tanh(x) + 0.1 * x


class Body(nn.Module):
    """Two layers with an operation between them."""

    def __init__(self, operation: Operation, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 12, 3, padding=1, bias=bias)
        self.operation = operation

    def forward(self, x: Tensor) -> Any:
        return self.second(self.operation(self.norm(self.first(x))))


class Scores(Body):
    """Only high scores are returned, and on the example none is."""

    def forward(self, x: Tensor) -> Any:
        scores = super().forward(x).mean((2, 3)).sigmoid()
        return torch.where(scores > 0.999, scores, 0.0)


class ZeroScale(Body):
    """A residual branch with a scale of zero, as LayerScale and ReZero begin."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        self.stem = nn.Conv2d(3, 3, 1)
        self.out = nn.Conv2d(12, 3, 1)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return x + self.scale * self.out(torch.relu(super().forward(x)))


class ZeroNorm(Body):
    """The BatchNorm between the layers starts at zero."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        nn.init.zeros_(self.norm.weight)


class ZeroGate(Body):
    """The operation counts for nothing yet."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.first(x))
        return self.second(x + self.gate * self.operation(x))


class Boxes(Body):
    """Scores beside boxes in pixels."""

    def forward(self, x: Tensor) -> Any:
        scores = 1e-4 * super().forward(x).mean((2, 3)).sigmoid()
        return torch.cat([640 + x.mean((2, 3)), scores], 1)


class Dead(Body):
    """Nothing passes the rectifier."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        nn.init.constant_(self.norm.bias, -100.0)

    def forward(self, x: Tensor) -> Any:
        return self.second(self.operation(torch.relu(self.norm(self.first(x)))))


class Bare(Body):
    """Without biases, so that nothing comes of nothing."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation, bias=False)


HIDING: dict[str, tuple[Callable[[Operation], Body], Tensor]] = {
    "plain": (Body, IMAGE),
    "scores": (Scores, IMAGE),
    "zero-scale": (ZeroScale, IMAGE),
    "zero-norm": (ZeroNorm, IMAGE),
    "zero-gate": (ZeroGate, IMAGE),
    "boxes": (Boxes, IMAGE),
    "dead": (Dead, IMAGE),
    "zero-example": (Bare, torch.zeros(1, 3, 8, 8)),
}


def skipped_of(model: nn.Module, x: Any) -> dict[str, str]:
    """Reason of every layer that pruning leaves alone; none at all where it refuses the model."""
    try:
        return {s.name: s.reason for s in cut(model, x).report.skipped}
    except ValueError as error:
        return {"first": str(error)}


@pytest.mark.parametrize(
    "operation", [by_mean, by_count, by_maximum, by_comparison, by_sum_of_negatives]
)
@pytest.mark.parametrize("hiding", HIDING)
def test_nothing_hides_what_counts_or_mixes_channels(hiding: str, operation: Operation) -> None:
    make, x = HIDING[hiding]
    if (hiding, operation) == ("dead", by_sum_of_negatives):
        return  # after a rectifier there are none
    for seed in range(3):
        torch.manual_seed(seed)
        assert (
            STATIC.get(operation, "more than silencing")
            in skipped_of(make(operation).eval(), x)["first"]
        )


@pytest.mark.parametrize("operation", [alone, torch.relu, torch.sigmoid, nn.ReLU6()])
@pytest.mark.parametrize("hiding", HIDING)
def test_what_is_right_is_not_refused_where_it_is_hidden(hiding: str, operation: Operation) -> None:
    make, x = HIDING[hiding]
    torch.manual_seed(0)
    model = make(operation).eval()
    before = copy.deepcopy(model.state_dict())
    result = cut(model, x, constraints=Constraints(n_filters={"first": 5}))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    other = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        got, expected = result.model(other), silenced(model, result.plan)(other)
    assert torch.allclose(got, expected, atol=1e-5)


def test_the_reason_says_where_it_shows() -> None:
    torch.manual_seed(0)
    assert "as seen in what 'second' reads" in skipped_of(Body(by_count).eval(), IMAGE)["first"]


def test_a_forward_pass_that_checks_its_values_is_tried_with_finite_ones() -> None:
    class Checked(Body):
        def forward(self, x: Tensor) -> Any:
            x = self.norm(self.first(x))
            if not x.isfinite().all():
                raise ValueError("diverged")
            return self.second(self.operation(x))

    torch.manual_seed(0)
    assert "first" not in skipped_of(Checked(alone).eval(), IMAGE)
    assert "more than silencing" in skipped_of(Checked(by_count).eval(), IMAGE)["first"]


def test_a_forward_pass_that_needs_its_zeros_keeps_them() -> None:
    class Masked(Body):
        def __init__(self) -> None:
            super().__init__(alone)
            self.offset = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Any:
            if self.offset.item() != 0:
                raise ValueError("not centred")
            return super().forward(x)

    torch.manual_seed(0)
    assert "first" not in skipped_of(Masked().eval(), IMAGE)


def test_a_grouped_convolution_may_become_a_depthwise_one() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.grouped = nn.Conv2d(8, 8, 3, groups=4)
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Any:
            return self.last(torch.relu(self.grouped(torch.relu(self.first(x)))))

    torch.manual_seed(0)
    assert set(skipped_of(Grouped(), IMAGE)) == {"last"}


def test_where_no_trial_tells_anything_the_group_is_left_alone() -> None:
    class Empty(Body):
        def forward(self, x: Tensor) -> Any:
            return self.second(self.operation(0.0 * self.norm(self.first(x)).clamp(-1, 1)))

    assert "no trial" in skipped_of(Empty(by_count).eval(), IMAGE)["first"]


def test_integers_stay_as_they_are() -> None:
    torch.manual_seed(0)
    inputs = {"input_ids": torch.zeros(1, 7, dtype=torch.long), "attention_mask": torch.zeros(1, 7)}
    found = {s.name: s.reason for s in cut(networks.BertLayer(), inputs).report.skipped}
    assert "intermediate" not in found


def test_a_batch_of_which_one_part_is_not_a_number() -> None:
    x = torch.cat([IMAGE, torch.full_like(IMAGE, math.nan)])
    torch.manual_seed(0)
    assert "first" not in skipped_of(Body(alone).eval(), x)
    assert "more than silencing" in skipped_of(Body(by_count).eval(), x)["first"]


def test_relative_difference() -> None:
    nan, inf = math.nan, math.inf
    a = torch.tensor([1.0, -4.0, nan, inf])
    assert relative_difference(a, a.clone()) == 0
    assert relative_difference(a + torch.tensor([1.0, 0, 0, 0]), a) == 0.25
    for place, other in ((0, nan), (2, 1.0), (3, 5.0), (3, -inf)):
        b = a.clone()
        b[place] = other
        assert relative_difference(b, a) == inf
    assert relative_difference(torch.zeros(2), torch.zeros(3)) == inf
    assert relative_difference(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_difference(torch.tensor([1, 2]), torch.tensor([1, 3])) == 1
    assert difference(torch.tensor([3.0]), torch.tensor([4.0])) == 0.25
