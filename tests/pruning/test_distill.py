"""Small networks that learn, without labels, to answer as the original does."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import BertLayer, TwoInputs, Vgg, stirred
from torch import Tensor, nn
from torch.nn import functional as F

import epruner
from epruner.pruning import Constraints, RepairWarning
from epruner.pruning.data.calibration import calibration_inputs
from epruner.pruning.training.descent import Descent
from epruner.pruning.training.distill import feature_points, varied

if TYPE_CHECKING:
    from digits import Digits

pytestmark = pytest.mark.filterwarnings("ignore::epruner.pruning.errors.BudgetWarning")
SHAPE = (1, 1, 8, 8)


def relative_error(got: nn.Module, full: nn.Module, x: Tensor) -> float:
    """Squared error over the variance, of every fifth input: those that are held back."""
    x = x[4::5]
    with torch.no_grad():
        a, b = copy.deepcopy(got).eval()(x).double(), copy.deepcopy(full).eval()(x).double()
    return float(((a - b) ** 2).sum() / ((b - b.mean(0)) ** 2).sum())


def cut(full: nn.Module, repair: str = "none", **options: Any) -> epruner.PruningResult:
    return epruner.prune(full, SHAPE, **{"macs": 0.4, "method": "l1", "repair": repair, **options})


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_the_small_network_comes_nearer_to_the_original(digits: Digits) -> None:
    full, x = digits.network().train(), digits.train_images[:300]
    small = cut(full).model
    small.head.bias.requires_grad_(False)  # type: ignore[union-attr]
    before = [copy.deepcopy(m.state_dict()) for m in (full, small)]
    state = torch.random.get_rng_state()
    trained, done = epruner.distill(full, small, x, steps=60)
    assert torch.equal(state, torch.random.get_rng_state())

    assert done is not None
    assert 0 < done.steps <= 60
    assert (done.fit, done.held_back, done.inputs, done.layers) == (240, 60, "inputs", ())
    assert done.after < 0.5 * done.before
    assert f"distilled for {done.steps} steps on 240 inputs" in str(done)
    assert relative_error(small, full, x) == pytest.approx(done.before, rel=1e-4)
    assert relative_error(trained, full, x) == pytest.approx(done.after, rel=1e-4)
    assert relative_error(trained, full, digits.test_images) < 0.6 * relative_error(
        small, full, digits.test_images
    )

    # nothing but the weights of the copy is another
    for model, old in zip((full, small), before, strict=True):
        assert model.training
        assert model.state_dict().keys() == old.keys()
        assert all(torch.equal(value, old[key]) for key, value in model.state_dict().items())
    assert trained is not small
    assert trained.training
    assert [n for n, p in trained.named_parameters() if not p.requires_grad] == ["head.bias"]
    assert all(p.grad is None for m in (full, small, trained) for p in m.parameters())
    changed = set()
    for key, value in trained.state_dict().items():
        if "running" in key or "num_batches" in key:
            assert torch.equal(value, before[1][key])
        elif not torch.equal(value, before[1][key]):
            changed.add(key)
    assert {"stem.weight", "bn.weight", "blocks.3.conv1.weight", "head.weight"} <= changed


def test_the_seed_alone_decides(digits: Digits) -> None:
    full, x = digits.network(), digits.train_images[:100]
    small = cut(full).model
    found: list[Any] = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))
        found.append(epruner.distill(full, small, x, steps=10, random_state=seed))
    assert found[0][1] == found[1][1]
    assert same(found[0][0], found[1][0])
    assert not same(found[0][0], found[2][0])


def test_steps_rate_and_variation_are_those_asked_for(digits: Digits) -> None:
    full, x = digits.network(), digits.train_images[:100]
    small = cut(full).model
    seen: list[Any] = []

    def augment(inputs: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        seen.append((inputs, generator))
        return inputs

    calm, _ = epruner.distill(full, small, x, steps=7, augment=augment)
    assert len(seen) == 7
    assert len({id(generator) for _, generator in seen}) == 1
    assert isinstance(seen[0][1], torch.Generator)
    fit = x[torch.arange(100) % 5 != 4]
    counts = torch.zeros(len(fit))
    for inputs, _ in seen:
        (batch,) = inputs
        assert batch.shape == (64, 1, 8, 8)
        counts += torch.stack([(batch == one).flatten(1).all(1).sum() for one in fit])
    assert counts.sum() == 7 * 64
    assert counts.max() - counts.min() <= 1  # all as often
    varied_by_default, _ = epruner.distill(full, small, x, steps=7)
    assert not same(calm, varied_by_default)
    fast, _ = epruner.distill(full, small, x, steps=7, lr=5e-3, augment=augment)
    distances = [
        sum(
            float((a - b).detach().square().sum())
            for a, b in zip(m.parameters(), small.parameters(), strict=True)
        )
        for m in (calm, fast)
    ]
    assert distances[1] > 4 * distances[0] > 0


def test_where_no_step_is_of_use_it_stays_as_it_was(digits: Digits) -> None:
    full, x = digits.network(), digits.train_images[:100]
    small = cut(full).model
    calls = []

    def count(inputs: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        calls.append(1)
        return varied(inputs, generator)

    with pytest.warns(RepairWarning, match="no step brought the outputs nearer"):
        trained, done = epruner.distill(full, small, x, steps=20, lr=10.0, augment=count)
    assert done is None
    assert same(trained, small)
    assert len(calls) < 20  # given up where nothing could make up for it


def test_a_loss_that_is_not_a_number_ends_it(digits: Digits) -> None:
    full, x = digits.network(), digits.train_images[:40]
    small = cut(full).model

    def spoil(inputs: list[Tensor], _: torch.Generator) -> list[Tensor]:
        return [part * math.nan for part in inputs]

    before = copy.deepcopy(small)
    for options in ({"steps": 5, "augment": spoil}, {"steps": 20, "lr": 1e9}):
        with pytest.warns(RepairWarning, match="no step brought the outputs nearer"):
            trained, done = epruner.distill(full, small, x, **options)
        assert done is None
        assert same(trained, before)
    assert same(small, before)


def bare() -> tuple[nn.Module, Tensor]:
    """A network of few operations with statistics of some inputs, and these."""
    torch.manual_seed(0)
    full = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    x = F.interpolate(torch.randn(200, 1, 4, 4), scale_factor=2) + torch.randn(200, 1, 1, 1)
    with torch.no_grad():
        for _ in range(30):
            full(x)
    return full.eval(), x


def test_prune_distills_after_least_squares() -> None:
    full, x = bare()
    both = cut(full, "distill", calibrate=x)
    fitted = cut(full, "least_squares", calibrate=x)
    done, first = both.report.repair, fitted.report.repair
    assert done is not None
    assert first is not None
    assert done.steps > 0
    assert done.layers == first.layers
    assert done.before == first.before
    assert done.after < first.after
    assert "layers refit" in str(done)
    assert f"and distilled for {done.steps} steps" in str(done)
    assert relative_error(both.model, full, x) == pytest.approx(done.after, rel=1e-4)
    trained, after = epruner.distill(full, fitted.model, x, inputs=SHAPE)
    assert after is not None
    assert (after.steps, after.after) == (done.steps, done.after)
    assert after.before == pytest.approx(first.after, rel=1e-4)
    assert same(trained, both.model)
    alone, again = epruner.repair(
        full, both.plan.apply(full), both.plan, calibrate=x, repair="distill"
    )
    assert again == done
    assert same(alone, both.model)


def test_synthetic_inputs_are_distilled_from_too() -> None:
    full, x = bare()
    small = cut(full).model
    with pytest.raises(ValueError, match="needs inputs="):
        epruner.distill(full, small, "synthetic")
    trained, done = epruner.distill(full, small, "synthetic", inputs=SHAPE, steps=40, lr=1e-2)
    assert done is not None
    assert done.inputs == "synthetic"
    assert done.fit + done.held_back == 128
    assert f"on {done.fit} synthetic inputs" in str(done)
    assert relative_error(trained, full, x) < 0.9 * relative_error(small, full, x)


def test_half_precision_comes_back_in_its_type(digits: Digits) -> None:
    full, x = digits.network(), digits.train_images[:60]
    half = copy.deepcopy(full).to(torch.bfloat16)
    small = cut(full).model.to(torch.bfloat16)
    trained, done = epruner.distill(half, small, x, inputs=x[:1].bfloat16(), steps=20)
    assert done is not None
    for key, value in trained.state_dict().items():
        assert value.dtype == small.state_dict()[key].dtype
    assert {p.dtype for p in trained.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"calibrate": None}, ValueError, "needs calibrate"),
        ({"calibrate": "noise"}, ValueError, "needs calibrate"),
        ({"calibrate": "folder"}, ValueError, "calibrate must be"),
        ({"calibrate": []}, ValueError, "empty"),
        ({"calibrate": 7}, TypeError, "DataLoader"),
        ({"steps": 0}, ValueError, "steps must be a positive integer, got 0"),
        ({"steps": 2.0}, ValueError, "steps must be a positive integer"),
        ({"steps": True}, ValueError, "steps must be a positive integer"),
        ({"lr": 0}, ValueError, "lr must be positive, got 0"),
        ({"lr": -1.0}, ValueError, "lr must be positive"),
        ({"lr": math.nan}, ValueError, "lr must be positive"),
        ({"model": 3}, TypeError, "model must be"),
        ({"small": "net"}, TypeError, "small must be a torch.nn.Module, got str"),
    ],
)
def test_bad_arguments(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    full = stirred(Vgg())
    given: dict[str, Any] = {
        "model": full,
        "small": copy.deepcopy(full),
        "calibrate": torch.randn(20, 3, 16, 16),
    }
    given |= options
    with pytest.raises(kind, match=message):
        epruner.distill(**given)


def test_features_are_those_of_blocks_where_there_are_some(digits: Digits) -> None:
    full = digits.network()
    small = cut(full).model.eval()
    batch: Any = (torch.zeros(2, 1, 8, 8),), {}
    assert feature_points(full, small, batch) == [f"blocks.{i}" for i in range(4)]
    plain = stirred(Vgg())
    result = epruner.prune(plain, (1, 3, 16, 16), macs=0.5, method="l1", repair="none")
    points = feature_points(plain, result.model.eval(), ((torch.zeros(2, 3, 16, 16),), {}))
    modules = dict(plain.named_modules())
    assert 0 < len(points) <= 9
    assert points[-1] == "classifier"
    narrower = {layer.name for layer in result.report.layers if layer.after < layer.before}
    assert not narrower & set(points)
    assert all(isinstance(modules[name], nn.Module) for name in points)


class Deep(nn.Module):
    """Twenty blocks, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(20))

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.blocks[3](x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Any:
        return x + self.b(self.a(x).relu())


def test_of_many_blocks_nine_are_looked_at_the_last_among_them() -> None:
    net = Deep().eval()
    points = feature_points(net, copy.deepcopy(net), ((torch.zeros(2, 4),), {}))
    assert len(points) == len(set(points)) == 9
    assert points[-1] == "blocks.19"
    assert "blocks.3" not in points  # it has two outputs
    places = [int(name.removeprefix("blocks.")) for name in points]
    assert places == sorted(places)
    assert max(b - a for a, b in pairwise(places)) <= 3


class Tuples(nn.Module):
    """Scores, features and a class, as a tuple in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.second(self.first(x).relu())
        return {"both": (y, y[:, :1].tanh()), "class": y.argmax(1)}


def test_outputs_of_any_shape() -> None:
    torch.manual_seed(0)
    full, x = Tuples().eval(), torch.randn(200, 6)
    numbers = Constraints(n_filters={"first": 0.5})
    small = epruner.prune(full, x[:1], constraints=numbers, method="l1", repair="none").model
    trained, done = epruner.distill(full, small, x, steps=100, lr=1e-2)
    assert done is not None
    assert done.after < 0.5 * done.before
    with torch.no_grad():
        got, wanted = (m(x[4::5]) for m in (trained, full))
    pairs = list(zip(got["both"], wanted["both"], strict=True))
    error = sum(float((a - b).square().sum()) for a, b in pairs)
    spread = sum(float((b - b.mean(0)).square().sum()) for _, b in pairs)
    assert error / spread == pytest.approx(done.after, rel=1e-4)


def test_tokens_by_name() -> None:
    torch.manual_seed(0)
    full = BertLayer().eval()
    ids, mask = torch.randint(50, (120, 7)), torch.ones(120, 7)
    mask[:, 5:] = torch.rand(120, 2).round()
    calibrate = {"input_ids": ids, "attention_mask": mask}
    example = {name: value[:1] for name, value in calibrate.items()}
    numbers = Constraints(n_filters={"intermediate": 0.3})
    result = epruner.prune(full, example, constraints=numbers, method="l1", repair="none")
    trained, done = epruner.distill(full, result.model, calibrate, steps=60)
    assert done is not None
    assert done.after < 0.8 * done.before
    held_back = {name: value[4::5] for name, value in calibrate.items()}
    with torch.no_grad():
        a, b = (m.eval()(**held_back)["logits"] for m in (trained, full))
    expected = float((a - b).square().sum() / (b - b.mean(0)).square().sum())
    assert expected == pytest.approx(done.after, rel=1e-4)


def test_two_inputs_are_varied_together() -> None:
    torch.manual_seed(0)
    full = TwoInputs().eval()
    x = torch.randn(100, 3, 8, 8), torch.randn(100, 1, 8, 8)
    example = tuple(part[:1] for part in x)
    small = epruner.prune(full, example, macs=0.5, method="l1", repair="none").model
    shapes = set()

    def augment(inputs: list[Tensor], generator: torch.Generator) -> list[Tensor]:
        shapes.add(tuple(tuple(part.shape) for part in inputs))
        return varied(inputs, generator)

    _, done = epruner.distill(full, small, [x], steps=50, augment=augment, lr=5e-3)
    assert done is not None
    assert done.after < 0.8 * done.before
    assert shapes == {((64, 3, 8, 8), (64, 1, 8, 8))}


def test_images_are_varied_and_nothing_else_is() -> None:
    x = torch.rand(50, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    first, again, other = (
        varied([x, x[:, :1]], torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert [part.shape for part in first] == [(50, 3, 16, 24), (50, 1, 16, 24)]
    assert [part.dtype for part in first] == [torch.float32] * 2
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.isfinite(first[0]).all()
    assert first[0].min() >= 0  # mixed, not extrapolated
    assert first[0].max() <= 1
    for inputs in (
        [torch.rand(5, 3, 20)],
        [torch.rand(5, 8)],
        [torch.randint(9, (5, 7))],
        [torch.zeros(5, 3, 8, 8, dtype=torch.uint8)],
        [torch.rand(5, 3, 8, 8), torch.rand(5, 2)],
    ):
        kept = varied(inputs, torch.Generator().manual_seed(0))
        assert all(torch.equal(a, b) for a, b in zip(kept, inputs, strict=True))


def test_variation_mirrors_shifts_and_mixes_two() -> None:
    # one pixel an image, of a height that tells the images apart
    n, size = 64, 32
    x = torch.zeros(n, 1, size, size)
    columns = torch.arange(n) % 4 + 6
    x[torch.arange(n), 0, 16, columns] = 1
    (y,) = varied([x], torch.Generator().manual_seed(0))
    torch.testing.assert_close(y.sum((1, 2, 3)), torch.ones(n))
    lit = (y[:, 0] > 0).flatten(1).sum(1)
    assert set(lit.tolist()) <= {1, 2}
    assert 10 < int((lit == 2).sum()) < 54
    heaviest = y.flatten(1).argmax(1)
    rows, places = heaviest // size, heaviest % size
    assert len(set(rows.tolist())) == 1  # all images of a batch are shifted alike
    assert abs(int(rows[0]) - 16) <= size // 8
    assert 10 < int((places > size // 2).sum()) < 54  # mirrored
    assert float(y.flatten(1).max(1).values.min()) >= 0.5


@pytest.mark.parametrize("steps", [10, 37])
def test_rates_follow_the_schedule(steps: int) -> None:
    rates = {}
    for schedule in ("cosine", "step", "one-cycle"):
        net = nn.Linear(2, 1)
        descent = Descent(net, steps, optimizer="sgd", lr=0.3, weight_decay=0.0, schedule=schedule)
        optimizer = descent.parts["optimizer"]
        rates[schedule] = [optimizer.param_groups[0]["lr"]]
        for _ in range(steps):
            descent.step(lambda net=net: 0 * net.weight.sum())  # type: ignore[misc]
            rates[schedule].append(optimizer.param_groups[0]["lr"])
    for schedule, theirs in (
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps)),
        (
            "step",
            lambda o: torch.optim.lr_scheduler.MultiStepLR(
                o, [math.ceil(steps / 2), math.ceil(0.75 * steps)]
            ),
        ),
    ):
        reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
        scheduler: Any = theirs(reference)
        expected = [reference.param_groups[0]["lr"]]
        for _ in range(steps):
            reference.step()
            scheduler.step()
            expected.append(reference.param_groups[0]["lr"])
        assert rates[schedule] == pytest.approx(expected, abs=1e-12)
    cycle = rates["one-cycle"]
    assert cycle[0] == pytest.approx(0.04 * 0.3)
    assert cycle[-1] == pytest.approx(0, abs=1e-12)
    top = max(range(len(cycle)), key=cycle.__getitem__)
    assert abs(top - 0.3 * steps) <= 1
    assert 0.28 < cycle[top] <= 0.3
    assert cycle[: top + 1] == sorted(cycle[: top + 1])
    assert cycle[top:] == sorted(cycle[top:], reverse=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_without_a_finite_loss_changes_nothing(optimizer: str, bad: float) -> None:
    net = nn.Linear(3, 2)
    descent = Descent(net, 5, optimizer=optimizer, weight_decay=0.1, schedule="cosine")
    assert descent.step(lambda: net(torch.ones(1, 3)).square().sum()) > 0
    before = copy.deepcopy(net.state_dict())
    state = copy.deepcopy(descent.parts["scheduler"].state_dict())
    with pytest.raises(FloatingPointError, match="lower lr"):
        descent.step(lambda: net.weight.sum() * bad)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert descent.parts["scheduler"].state_dict() == state


def test_weights_decay_and_biases_do_not() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    descent = Descent(net, 5, optimizer="adamw", lr=0.1, weight_decay=0.5, schedule="cosine")
    before = copy.deepcopy(net.state_dict())
    descent.step(lambda: sum(0 * p.sum() for p in net.parameters()))  # type: ignore[arg-type, return-value]
    for key, value in net.state_dict().items():
        factor = 0.95 if key == "0.weight" else 1
        torch.testing.assert_close(value, factor * before[key])
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        Descent(net.requires_grad_(False), 5, optimizer="sgd", weight_decay=0.0, schedule="cosine")


def test_inputs_too_few_to_hold_some_back_judge_themselves(digits: Digits) -> None:
    full, x = digits.network(), digits.train_images[:10]
    small = cut(full).model
    assert not calibration_inputs(full, x, ((x[:1],), {})).held_back
    _, done = epruner.distill(full, small, x, steps=20)
    assert done is not None
    assert (done.fit, done.held_back) == (10, 0)
    assert "too few to hold some back" in str(done)
