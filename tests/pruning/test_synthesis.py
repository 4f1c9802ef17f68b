"""Inputs that BatchNorm layers take for those they were trained on."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from networks import BertLayer, ConvNext, TwoInputs, Vgg
from terminal import terminal
from torch import Tensor, nn
from torch.nn import functional as F

import epruner
from epruner.pruning.data.examples import made_up
from epruner.pruning.network.batches import Batches
from epruner.pruning.network.statistics import estimate_statistics

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Net(nn.Module):
    """Two convolutions with BatchNorm and a head, in any number of dimensions."""

    def __init__(self, dims: int = 2, channels: int = 3) -> None:
        super().__init__()
        self.a, self.k = CONVS[dims](channels, 8, 3, padding=1), NORMS[dims](8)
        self.b, self.m = CONVS[dims](8, 12, 3, padding=1), NORMS[dims](12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.m(self.b(F.relu(self.k(self.a(x))))))
        return self.head(x.flatten(2).mean(2))


def coloured(*shape: int) -> Tensor:
    """Inputs of another mean, size and spectrum than noise has."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    gains = torch.linspace(0.3, 2, shape[1]).view(1, -1, *[1] * (len(shape) - 2))
    return (x + x.roll(1, -1) + x.roll(2, -1)) * gains - 0.7


@cache
def _trained(dims: int) -> Net:
    torch.manual_seed(0)
    net = Net(dims).eval()
    estimate_statistics(net, Batches([((coloured(60, 3, *SIZES[dims]),), {})]))
    return net


SIZES: dict[int, tuple[int, ...]] = {1: (40,), 2: (12, 16), 3: (6, 7, 8)}


def trained(dims: int = 2) -> Net:
    return copy.deepcopy(_trained(dims))


def loss(net: nn.Module, *x: Tensor) -> float:
    """The published loss: mean and variance of what each BatchNorm reads, in units of its own."""
    read: dict[Any, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda m, args, _: read.__setitem__(m, args[0].detach()))
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    net.eval()
    with torch.no_grad():
        net(*x)
    for hook in hooks:
        hook.remove()
    total = 0.0
    for norm, y in read.items():
        rows = y.double().transpose(0, 1).flatten(1)
        mean, var = norm.running_mean.double(), norm.running_var.double()
        total += float(((rows.mean(1) - mean) ** 2 / var).mean())
        total += float(
            (((rows - rows.mean(1, keepdim=True)) ** 2).mean(1).div(var).sqrt() - 1).pow(2).mean()
        )
    return total


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_norms_read_what_they_remember(dims: int) -> None:
    net = trained(dims)
    example = torch.zeros(1, 3, *SIZES[dims])
    x = epruner.synthesise(net, example, n=40)
    assert isinstance(x, Tensor)
    assert x.shape == (40, 3, *SIZES[dims])
    assert x.dtype == torch.float32
    assert not x.requires_grad
    assert torch.isfinite(x).all()
    (noise,) = made_up(net, ((example,), {}), 40, seed=0)
    before, after = loss(net, noise), loss(net, x)
    assert after < 0.1 * before, (before, after)


def test_the_seed_alone_decides_and_the_network_is_left_as_it_was() -> None:
    net = trained().train()
    net.b.weight.requires_grad_(False)
    net.b.weight.grad, net.a.weight.grad = None, torch.ones_like(net.a.weight)
    net.k.eval()
    before = copy.deepcopy(net.state_dict())
    state = torch.random.get_rng_state()
    first, again, other = (
        epruner.synthesise(net, (1, 3, 12, 16), n=8, random_state=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert isinstance(first, Tensor)
    assert isinstance(again, Tensor)
    assert isinstance(other, Tensor)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    assert [m.training for m in net.children()] == [True, False, True, True, True]
    assert [n for n, p in net.named_parameters() if not p.requires_grad] == ["b.weight"]
    assert torch.equal(net.a.weight.grad, torch.ones_like(net.a.weight))
    assert all(p.grad is None for n, p in net.named_parameters() if n != "a.weight")


def test_number_of_inputs_is_as_asked_for_or_128() -> None:
    net = trained(1)
    for n in (2, 33):
        assert len(epruner.synthesise(net, (1, 3, 40), n=n)) == n
    assert len(epruner.synthesise(net, (4, 3, 40))) == 128


def test_large_inputs_are_made_in_parts_of_several() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(2)

        def forward(self, x: Tensor) -> Any:
            return self.net(x[..., ::64, ::64])

    model = Wide()
    model.net = trained()
    x = epruner.synthesise(model, (1, 3, 512, 512), n=5)  # two at most at a time
    assert isinstance(x, Tensor)
    assert x.shape == (5, 3, 512, 512)
    assert torch.isfinite(x).all()
    assert len({float(one.mean()) for one in x}) == 5


class Both(nn.Module):
    """Two inputs, each with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 6, 3)
        self.k, self.m = nn.BatchNorm2d(8), nn.BatchNorm2d(6)
        self.head = nn.Linear(14, 3)

    def forward(self, image: Tensor, depth: Tensor) -> Any:
        y = torch.cat([F.relu(self.k(self.left(image))), F.relu(self.m(self.right(depth)))], 1)
        return self.head(y.mean((2, 3)))


def test_two_inputs_by_place_and_by_name() -> None:
    torch.manual_seed(0)
    net = Both().eval()
    real = coloured(50, 3, 10, 10), 3 * coloured(50, 1, 10, 10)
    estimate_statistics(net, Batches([(real, {})]))
    image, depth = torch.zeros(1, 3, 10, 10), torch.zeros(1, 1, 10, 10)
    by_place = epruner.synthesise(net, (image, depth), n=30)
    by_name = epruner.synthesise(net, {"image": image, "depth": depth}, n=30)
    assert isinstance(by_place, tuple)
    assert [x.shape for x in by_place] == [(30, 3, 10, 10), (30, 1, 10, 10)]
    for a, b in zip(by_place, by_name, strict=True):
        assert torch.equal(a, b)
    noise = made_up(net, ((image, depth), {}), 30, seed=0)
    assert loss(net, *by_place) < 0.1 * loss(net, *noise)


class Pointed(nn.Module):
    """An image and how much of it counts, a whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor, count: Tensor) -> Any:
        return self.net(x) * count.view(-1, 1)


def test_inputs_that_are_no_signals_stay_those_of_the_example() -> None:
    model = Pointed()
    model.net = trained()
    example = torch.zeros(1, 3, 12, 16), torch.tensor([3])
    found = epruner.synthesise(model, example, n=10)
    assert isinstance(found, tuple)
    assert found[0].shape == (10, 3, 12, 16)
    assert found[1].tolist() == [3] * 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_of_half_precision_get_inputs_of_float32(dtype: torch.dtype) -> None:
    net = trained()
    half = copy.deepcopy(net).to(dtype)
    x = epruner.synthesise(half, torch.zeros(1, 3, 12, 16, dtype=dtype), n=20)
    assert isinstance(x, Tensor)
    assert x.dtype == torch.float32
    assert {p.dtype for p in half.parameters()} == {dtype}
    (noise,) = made_up(net, ((torch.zeros(1, 3, 12, 16),), {}), 20, seed=0)
    assert loss(net, x) < 0.2 * loss(net, noise)


class Detaches(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.detach())


def test_no_way_for_a_gradient_is_an_error() -> None:
    net = Detaches().eval()
    net.load_state_dict(trained().state_dict())
    with pytest.raises(ValueError, match="no gradient reaches the inputs"):
        epruner.synthesise(net, (1, 3, 12, 16), n=4)


class Idle(Net):
    """Its norms are not used."""

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.b(self.a(x))).flatten(2).mean(2))


def test_norms_that_are_not_used_are_an_error() -> None:
    net = Idle().eval()
    net.load_state_dict(trained().state_dict())
    with pytest.raises(ValueError, match="none of those with trained statistics is used"):
        epruner.synthesise(net, (1, 3, 12, 16), n=4)


@pytest.mark.parametrize("n", [1, 0, -3, 2.0, True, "8"])
def test_numbers_that_have_no_variance_or_are_none(n: Any) -> None:
    with pytest.raises(ValueError, match="n must be an integer of at least 2"):
        epruner.synthesise(trained(), (1, 3, 12, 16), n=n)


def test_networks_without_memory_or_signals() -> None:
    for model, inputs in ((ConvNext(), (1, 3, 16, 16)), (Vgg(), (1, 3, 16, 16))):
        with pytest.raises(ValueError, match="this network has none that do"):
            epruner.synthesise(model, inputs)
    with pytest.raises(ValueError, match="this network has none that do"):
        epruner.synthesise(TwoInputs(), (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)))
    with pytest.raises(TypeError, match="must be a torch"):
        epruner.synthesise(7, (1, 3, 8, 8))  # type: ignore[arg-type]

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Embedding(20, 6), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Any:
            return self.norm(self.table(x).transpose(1, 2))

    tokens = Tokens()
    with torch.no_grad():
        tokens(torch.randint(20, (30, 5)))
    with pytest.raises(ValueError, match="no input of x can be changed by gradient"):
        epruner.synthesise(tokens, torch.zeros(1, 5, dtype=torch.long))
    ids = {"input_ids": torch.zeros(1, 5, dtype=torch.long), "attention_mask": torch.ones(1, 5)}
    with pytest.raises(ValueError, match="this network has none that do"):
        epruner.synthesise(BertLayer(), ids)


def test_activations_that_overflow_are_an_error() -> None:
    net = trained()
    with torch.no_grad():
        net.a.weight.fill_(3e38)
    with pytest.raises(FloatingPointError, match=r"became (nan|inf) on inputs made of noise"):
        epruner.synthesise(net, (1, 3, 12, 16), n=4)


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    net = trained(1)
    with terminal() as sent:
        quiet = epruner.synthesise(net, (1, 3, 40), n=4)
        assert sent.getvalue() == ""
        shown = epruner.synthesise(net, (1, 3, 40), n=4, progress=True)
    assert torch.equal(shown, quiet)  # type: ignore[arg-type]
    assert capsys.readouterr() == ("", "")
    assert "synthetic inputs" in sent.getvalue()


def test_prune_makes_its_own_and_says_so() -> None:
    full, shape = trained(), (1, 3, 12, 16)
    result = epruner.prune(full, shape, macs=0.6, calibrate="synthetic")
    report = result.report
    assert report.settings["evidence"] == "synthetic"
    assert report.settings["method"]["repair"] == "least_squares"
    assert report.repair is not None
    assert report.repair.inputs == "synthetic"
    assert report.repair.fit + report.repair.held_back == 128
    assert f"on {report.repair.fit} synthetic inputs" in str(report)
    sliced = result.plan.apply(full).eval()
    real = coloured(80, *shape[1:])
    with torch.no_grad():
        expected = full(real)
        errors = [
            float((m.eval()(real) - expected).square().mean()) for m in (result.model, sliced)
        ]
    assert errors[0] < 0.5 * errors[1]
    inputs = epruner.synthesise(full, shape)
    again = epruner.prune(full, shape, macs=0.6, calibrate=inputs)
    assert again.plan == result.plan
    assert again.report.settings["evidence"] == "inputs"


@pytest.mark.parametrize("what", ["running_mean", "running_var"])
def test_memory_that_is_not_a_number_is_an_error(what: str) -> None:
    net = trained()
    getattr(net.m, what)[2] = float("nan")
    for calibrate in (None, "synthetic"):
        with pytest.raises(ValueError, match=rf"statistics 'm\.{what}' hold NaN or infinity"):
            epruner.prune(net, (1, 3, 12, 16), macs=0.6, calibrate=calibrate)
    with pytest.raises(ValueError, match=rf"statistics 'm\.{what}' hold NaN or infinity"):
        epruner.synthesise(net, (1, 3, 12, 16), n=4)
