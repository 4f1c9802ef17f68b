"""What filters respond to: found where it is known, compared wherever it is, refused in words."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from digits import Digits
from scipy.stats import spearmanr
from torch import Tensor, nn

import epruner
from epruner.pruning import Constraints, Method
from epruner.pruning.analysis import Analysis
from epruner.pruning.network.filters import filter_matrix
from epruner.pruning.select import visual
from epruner.pruning.select.visual import Visual, outlets, visualise

SIZE = 16


def found(model: nn.Module, inputs: Any, seed: int = 0) -> tuple[Analysis, dict[str, Visual]]:
    net = epruner.analyse(model.eval(), inputs)
    return net, visualise(model, net.groups, net.arguments, seed=seed)


def colours() -> nn.Sequential:
    """Filters that see a colour each, and one that reads them."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 12, 1, bias=False), nn.ReLU(), nn.Conv2d(12, 4, 1))


def waves(frequencies: list[tuple[int, int]]) -> nn.Sequential:
    """Filters of the second layer that answer to waves of one direction and length each.

    The first layer has each wave in four phases. Rectified and summed they are the energy of the
    wave, wherever it lies.
    """
    rows, columns = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    phases = np.arange(4) * np.pi / 2
    kernels = [
        np.cos(2 * np.pi * (f * rows + g * columns) / SIZE + phase)
        for f, g in frequencies
        for phase in phases
    ]
    count = len(frequencies)
    first = nn.Conv2d(1, 4 * count, SIZE, padding="same", padding_mode="circular", bias=False)
    second = nn.Conv2d(4 * count, count, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.from_numpy(np.stack(kernels))[:, None] / SIZE)
        second.weight.copy_(torch.eye(count).repeat_interleave(4, 1)[..., None, None])
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(count, 2, 1)).eval()


def test_a_filter_of_colours_responds_to_its_colour() -> None:
    model = colours()
    _, visuals = found(model, (1, 3, SIZE, SIZE))
    v, weights = visuals["0"].inputs, model[0].weight.detach()[:, :, 0, 0]  # type: ignore[operator]
    assert v.shape == (12, 3, SIZE, SIZE)
    assert float(v.square().mean((1, 2, 3)).max()) <= 1 + 1e-5
    cosine = torch.cosine_similarity(v.mean((2, 3)), weights)
    assert float(cosine.min()) > 0.99
    # of all inputs of mean square one, that of the filter's colour gives the most: sqrt(3) |w|
    share = visuals["0"].responses.diagonal() / (3**0.5 * weights.norm(dim=1))
    assert 0.9 < float(share.min()) <= float(share.max()) < 1 + 1e-5


def test_a_filter_of_waves_responds_to_its_wave() -> None:
    frequencies = [(0, 2), (2, 0), (2, 2), (2, -2), (1, 3), (3, 1)]
    _, visuals = found(waves(frequencies), (1, 1, SIZE, SIZE))
    spectra = torch.fft.fft2(visuals["2"].inputs[:, 0]).abs()
    for spectrum, (f, g) in zip(spectra, frequencies, strict=True):
        peak = divmod(int(spectrum.argmax()), SIZE)
        assert peak in {(f % SIZE, g % SIZE), (-f % SIZE, -g % SIZE)}


def test_the_same_filter_at_another_place_is_alike() -> None:
    model = waves([(0, 2), (2, 0), (2, 2)])
    first: Any = model[0]
    with torch.no_grad():  # the first six look a little further down than the others
        first.weight[:6] = first.weight[6:].roll(3, 2)
    _, visuals = found(model, (1, 1, SIZE, SIZE))
    rows = visuals["0"].features()
    assert np.allclose(rows[:6], rows[6:], atol=1e-3)
    weights = first.weight.detach().flatten(1).numpy()
    assert not np.allclose(weights[:6], weights[6:], atol=1e-3)


def test_of_two_equal_filters_one_stays() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 4, 3)
    ).eval()
    layer: Any = model[0]
    with torch.no_grad():
        layer.weight[6:], layer.bias[6:] = layer.weight[:6].clone(), layer.bias[:6].clone()
    result = epruner.prune(
        model,
        (1, 3, SIZE, SIZE),
        constraints=Constraints(n_filters={"0": 6}),
        method=Method("exemplar", "exemplar", "visual"),
        repair="none",
    )
    assert {i % 6 for i in result.kept["0"].tolist()} == set(range(6))
    assert result.report.settings["evidence"] == "none"


def test_a_seed_is_one_result_and_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = colours()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    net, once = found(model, (1, 3, SIZE, SIZE))
    again = visualise(model, net.groups, net.arguments, seed=0)
    other = visualise(model, net.groups, net.arguments, seed=1)
    assert torch.equal(once["0"].inputs, again["0"].inputs)
    assert not torch.equal(once["0"].inputs, other["0"].inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    monkeypatch.setattr(visual, "_AT_ONCE", 5 * 3 * SIZE * SIZE)  # a few at a time
    parts = visualise(model, net.groups, net.arguments, seed=0)
    assert torch.allclose(once["0"].inputs, parts["0"].inputs, atol=1e-4)


def test_only_layers_that_are_pruned_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noted(model: nn.Module, groups: Any, *rest: Any, **named: Any) -> dict[str, Visual]:
        asked.extend(group.name for group in groups)
        return visualise(model, groups, *rest, **named)

    monkeypatch.setattr("epruner.pruning.select.features.visualise", noted)
    model = nn.Sequential(*colours(), nn.ReLU(), nn.Conv2d(4, 4, 1)).eval()
    net = epruner.analyse(model, (1, 3, 8, 8))
    method = Method("exemplar", "exemplar", "visual")
    plan = net.select(constraints=Constraints(n_filters={"2": 2}), method=method)
    assert asked == ["2"]
    assert plan.apply(model)[2].out_channels == 2  # type: ignore[index]
    assert (
        plan
        == epruner.prune(
            model, net, constraints=Constraints(n_filters={"2": 2}), method=method, repair="none"
        ).plan
    )


class Series(nn.Module):
    """A recurrent layer over series whose channels come last."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 10)
        self.memory = nn.GRU(10, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(torch.relu(self.lift(x)))[0][:, -1])  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two layers that add onto the same channels, and grouped ones in between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 12, 3, padding=1, groups=2)
        self.outer = nn.Conv2d(12, 8, 3, padding=1, groups=2)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        # works in place on what is listened to
        x = x + self.outer(self.inner(x).relu_())
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "shape", "groups"),
    [
        (nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 2, 3)), (2, 24), {"0"}),
        (nn.Sequential(nn.Conv3d(2, 8, 3), nn.ReLU(), nn.Conv3d(8, 2, 3)), (2, 6, 7, 8), {"0"}),
        (Series(), (24, 3), {"lift", "memory"}),
        (Residual(), (3, 12, 12), {"stem", "inner"}),
    ],
    ids=["series", "volume", "channels last", "stream and groups"],
)
def test_signals_of_every_kind(model: nn.Module, shape: Any, groups: set[str]) -> None:
    net, visuals = found(model, (1, *shape))
    assert set(visuals) == groups
    for group in net.groups:
        looked_at = visuals[group.name]
        assert looked_at.inputs.shape == (group.channels, *shape)
        own, others = looked_at.responses.diagonal(), looked_at.responses.mean(0)
        assert bool((own > others).all())  # each is found for its filter
    method = Method("uniform", "exemplar", "visual")
    half = Constraints(n_filters={"*": 0.5})
    small = net.select(constraints=half, method=method, scope="all").apply(model)
    assert small(torch.zeros(2, *shape)).shape[0] == 2


def test_what_goes_with_a_signal_is_that_of_the_example() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)

        def forward(self, which: Tensor, x: Tensor) -> Tensor:
            return self.head(self.convolution(x) * which[:, None, None, None])  # type: ignore[no-any-return]

    torch.manual_seed(0)
    _, visuals = found(Gated(), (torch.tensor([2, 7]), torch.zeros(2, 3, 8, 8)))
    assert visuals["convolution"].inputs.shape == (6, 3, 8, 8)


class Tokens(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Embedding(9, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


class Rounded(nn.Module):
    """No gradient comes through."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = colours()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.detach().round())  # type: ignore[no-any-return]


class Overflowing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = colours()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.exp(1e3 * x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (
            Tokens(),
            torch.zeros(1, 5, dtype=torch.long),
            "reads no signal but 'input' of torch.int",
        ),
        (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), (1, 6), r"shape \(1, 6\)"),
        (Rounded(), (1, 3, 8, 8), r"no gradient reaches the input from layer 'layers.0'"),
        (Overflowing(), torch.zeros(1, 3, 8, 8), r"layer 'layers.0' gives NaN or infinity"),
    ],
)
def test_what_cannot_be_looked_at_is_said(model: nn.Module, inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        epruner.prune(model.eval(), inputs, macs=0.5, method=Method("uniform", "l1", "visual"))


def test_all_filters_dead_are_all_alike() -> None:
    dead = Visual(torch.zeros(4, 1, 2, 2), torch.full((4, 4), 0.5, dtype=torch.float64))
    assert not dead.features().any()


def test_what_is_alike_by_it_answers_images_alike(digits: Digits) -> None:
    """Images that no network has seen: the order of filters' likeness, better than by weights."""
    model = digits.network()
    net, visuals = found(model, digits.test_images[:1])
    modules = dict(model.named_modules())
    agreement: dict[str, list[float]] = {"visual": [], "weights": []}
    for group in net.groups:
        answers: list[Tensor] = []
        place = modules[outlets(modules, group)[0].module]
        hook = place.register_forward_hook(lambda _, __, y, answers=answers: answers.append(y))
        with torch.no_grad():
            model(digits.test_images)
        hook.remove()
        pairs = np.triu_indices(group.channels, 1)
        wanted = np.corrcoef(answers[0].relu().mean((2, 3)).T.numpy())[pairs]
        weights = filter_matrix(modules[group.name])
        for name, rows in (("visual", visuals[group.name].features()), ("weights", weights)):
            alike = [
                -float(np.square(rows[i] - rows[j]).sum()) for i, j in zip(*pairs, strict=True)
            ]
            agreement[name].append(spearmanr(alike, wanted).statistic)
    assert np.mean(agreement["visual"]) > np.mean(agreement["weights"]) + 0.05
