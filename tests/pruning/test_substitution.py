"""Exemplars by what the layers that read a channel lose when another stands in for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from networks import (
    ChannelShuffle,
    ConvNext,
    GatedMlp,
    GroupedSqueezeExcite,
    InputConcat,
    SplitNet,
    TwoInputs,
    Upsampler,
    Vgg,
    Vit,
    stirred,
)
from torch import Tensor, nn
from torch.nn import functional as F

import epruner
from epruner.pruning import Constraints, Method
from epruner.pruning.network.batches import Batches
from epruner.pruning.select.readers import Reader, measured
from epruner.pruning.select.substitution import substitution_losses

pytestmark = [
    pytest.mark.filterwarnings("ignore::epruner.pruning.errors.BudgetWarning"),
    pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning"),
]
Array = npt.NDArray[np.float64]


def read(x: Array, weights: Array, channels: int) -> Reader:
    """A reader of rows of inputs, all columns of a channel side by side."""
    gram = np.cov(x, rowvar=False, bias=True)
    return Reader(torch.from_numpy(gram), torch.from_numpy(weights), channels, len(x))


def regressed(x: Array, weights: Array, n: int) -> Array:
    """The losses by one regression for each pair of channels."""
    x = x - x.mean(0)
    k = x.shape[1] // n
    losses = np.zeros((n, n))
    for i in range(n):
        own = x[:, i * k : (i + 1) * k]
        for j in set(range(n)) - {i}:
            other = x[:, j * k : (j + 1) * k]
            fitted = other @ np.linalg.lstsq(other, own, rcond=None)[0]
            lost = (own - fitted) @ weights[i * k : (i + 1) * k]
            losses[i, j] = np.square(lost).sum(1).mean()
    return losses


def correlated(rows: int, columns: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    mixing = np.eye(columns) + 0.25 * rng.standard_normal((columns, columns))
    return rng.standard_normal((rows, columns)) @ mixing + rng.standard_normal(columns)


@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("readers", [1, 3])
def test_losses_are_those_of_regressions_summed_over_readers(k: int, readers: int) -> None:
    n, rng = 6, np.random.default_rng(0)
    parts, expected = [], np.zeros((n, n))
    for reader in range(readers):
        # readers differ in what they read, in how many outputs they have and in taps
        taps = k if reader != 1 else 1
        x = correlated(600, n * taps, reader)
        weights = rng.standard_normal((n * taps, 4 + 60 * reader)) / (1 + reader)
        parts.append(read(x, weights, n))
        expected += regressed(x, weights, n)
    found = substitution_losses(parts)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found.diagonal(), 0)
    np.testing.assert_allclose(found, expected, rtol=1e-2)


@pytest.mark.parametrize("k", [1, 9])
def test_multiples_stand_in_for_each_other_for_nothing(k: int) -> None:
    n, rng = 5, np.random.default_rng(1)
    x = correlated(500, n * k, 3)
    x[:, 3 * k : 4 * k] = -2.5 * x[:, k : 2 * k] + 7  # the bias takes up the 7
    weights = rng.standard_normal((n * k, 8))
    losses = substitution_losses([read(x, weights, n)])
    for i, j in ((1, 3), (3, 1)):
        own = slice(i * k, (i + 1) * k)
        alone = np.square((x - x.mean(0))[:, own] @ weights[own]).sum(1).mean()
        assert losses[i, j] < 5e-3 * alone  # the ridge
        assert np.delete(losses[i], (i, j)).min() > 0.2 * alone


def test_one_may_do_for_another_that_cannot_do_for_it() -> None:
    rng = np.random.default_rng(2)
    rich = rng.standard_normal((800, 9))
    poor = np.zeros((800, 9))
    poor[:, 4] = rich.mean(1)  # of all that the first one gives, its mean
    x = np.concatenate([rich, poor], 1)
    losses = substitution_losses([read(x, rng.standard_normal((18, 5)), 2)])
    alone = np.square((x - x.mean(0))[:, :9] @ rng.standard_normal((9, 5))).sum(1).mean()
    assert losses[1, 0] < 5e-3 * losses[0, 1]
    assert losses[0, 1] > 0.3 * alone


def test_channels_that_say_nothing_cost_nothing_and_do_for_none() -> None:
    n, rng = 4, np.random.default_rng(3)
    x, weights = correlated(400, n, 4), rng.standard_normal((n, 6))
    x[:, 2] = 3.0
    losses = substitution_losses([read(x, weights, n)])
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(losses[2], 0, atol=1e-12)
    alone = x.var(0) * np.square(weights).sum(1)
    np.testing.assert_allclose(losses[[0, 1, 3], 2], alone[[0, 1, 3]], rtol=1e-6)


class Readers(nn.Module):
    """Channels that a convolution with BatchNorm, one onto a shortcut, and a third one read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 10, 3, padding=1)
        self.normed, self.norm = nn.Conv2d(10, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.added = nn.Conv2d(10, 4, 1)
        self.plain = nn.Conv2d(10, 4, (3, 1), stride=2)
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = F.relu(self.wide(x))
        parts = self.norm(self.normed(y)), x + self.added(y), self.plain(y)
        return self.head(torch.cat([F.relu(part).mean((2, 3)) for part in parts], 1))


def test_what_is_measured_on_a_network_is_what_its_readers_lose() -> None:
    net: Any = stirred(Readers())
    x = F.avg_pool2d(torch.randn(40, 3, 10, 10), 3, 1, 1) * 2
    groups = [g for g in epruner.analyse(net, x[:1]).groups if g.name == "wide"]
    batches: Any = [((part,), {}) for part in x.split(16)]  # type: ignore[no-untyped-call]
    found, notes = measured(net, groups, Batches(batches), substitution_losses)
    assert not notes
    expected = np.zeros((10, 10))
    with torch.no_grad():
        x = net.stem(x)
        y = F.relu(net.wide(x))
        gain = net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()
        for layer, scale, target, unfolding in (
            (net.normed, gain, net.norm(net.normed(y)), {"kernel_size": 3, "padding": 1}),
            (net.added, None, x + net.added(y), {"kernel_size": 1}),
            (net.plain, None, net.plain(y), {"kernel_size": (3, 1), "stride": 2}),
        ):
            rows = F.unfold(y, **unfolding).transpose(1, 2).flatten(0, 1).double().numpy()
            weights = layer.weight.flatten(1)
            weights = (weights if scale is None else weights * scale[:, None]).T.double().numpy()
            variance = float(target.double().transpose(0, 1).flatten(1).var(1, correction=0).sum())
            expected += regressed(rows, weights, 10) / variance
    off = ~np.eye(10, dtype=bool)
    np.testing.assert_allclose(found["wide"][off], expected[off], rtol=2e-2)


SHAPE = (1, 3, 16, 16)


def vgg() -> Any:
    torch.manual_seed(0)
    return stirred(Vgg())


def images(count: int = 60, size: int = 16) -> Tensor:
    x = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
    return F.avg_pool2d(x, 3, 1, 1) * 2


def losses_of(net: nn.Module, x: Tensor) -> dict[str, Any]:
    """What the package's own calibration would give: all but every fifth input."""
    x = x[torch.arange(len(x)) % 5 != 4]
    return measured(
        net, epruner.analyse(net, x[:1]).groups, Batches([((x,), {})]), substitution_losses
    )[0]


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("unit", ["macs", "params"])
@pytest.mark.parametrize("evidence", ["inputs", "noise"])
def test_budgets_are_met(unit: str, share: float, evidence: str) -> None:
    options: dict[str, Any] = {unit: share, "method": "exemplar", "repair": "none"}
    calibrate = images() if evidence == "inputs" else None
    report = epruner.prune(vgg(), SHAPE, calibrate=calibrate, **options).report
    assert report.settings["method"]["features"] == "losses"
    assert report.settings["evidence"] == evidence
    got = getattr(report.after, unit) / getattr(report.before, unit)
    assert 0.99 * share <= got <= share


def test_constraints_hold() -> None:
    numbers = Constraints(min_filters=6, round_to=4, n_filters={"features.3": 0.5})
    result = epruner.prune(
        vgg(), SHAPE, macs=0.25, method="exemplar", calibrate=images(), constraints=numbers
    )
    counts = {layer.name: layer.after for layer in result.report.layers}
    assert counts["features.3"] == 8
    assert all(count >= 6 and count % 4 == 0 for count in counts.values())
    alone = epruner.prune(
        vgg(),
        SHAPE,
        method="exemplar",
        calibrate=images(),
        constraints=Constraints(n_filters={"features.*": 5}),
    )
    assert len(alone.kept) == 5
    for name, kept in alone.kept.items():
        assert len(kept) == 5
        assert_nested(alone.clusters_of(name).exemplars, kept)


def assert_nested(exemplars: Any, kept: Any) -> None:
    """What stays are exemplars; if more stay, all of them, if fewer, only them."""
    a, b = set(exemplars.tolist()), set(kept.tolist())
    assert a <= b or b <= a


def test_the_exemplars_stay_and_no_others_do_better() -> None:
    full, x = vgg(), images()
    result = epruner.prune(full, SHAPE, macs=0.5, method="exemplar", calibrate=x)
    losses = losses_of(full, x)
    rng = np.random.default_rng(0)
    assert set(losses) == set(result.kept)
    for name, kept in result.kept.items():
        clusters = result.clusters_of(name)
        assert_nested(clusters.exemplars, kept)
        np.testing.assert_array_equal(clusters.kept, kept)
        error = losses[name]
        lost = error[:, kept].min(1).sum()
        others = [
            error[:, rng.choice(len(error), len(kept), replace=False)].min(1).sum()
            for _ in range(200)
        ]
        assert lost <= min(others)
    assert result.report.repair is not None
    assert result.report.repair.layers


def test_same_inputs_same_choice() -> None:
    options: dict[str, Any] = {"macs": 0.5, "method": "exemplar", "calibrate": images()}
    results = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        results.append(epruner.prune(vgg(), SHAPE, **options))
    assert results[0].plan == results[1].plan
    for key, value in results[0].model.state_dict().items():
        assert torch.equal(value, results[1].model.state_dict()[key])
    select = {**options, "random_state": 0}
    assert epruner.analyse(vgg(), SHAPE).select(**select) == results[0].plan


def test_groups_that_cannot_be_measured_keep_the_share_of_the_others() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n, o, groups in ((3, 40, 1), (40, 40, 1), (40, 40, 2), (40, 40, 1), (40, 40, 1)):
        layers += [nn.Conv2d(n, o, 3, padding=1, groups=groups), nn.ReLU()]
    full: nn.Module = nn.Sequential(*layers, nn.Flatten(), nn.Linear(40 * 64, 5)).eval()
    result = epruner.prune(full, (1, 3, 8, 8), macs=0.4, method="exemplar", calibrate=images(60, 8))
    assert any("cannot be measured for 2, 4 (" in note for note in result.report.notes)
    shares = {layer.name: layer.kept for layer in result.report.layers}
    assert set(shares) == {"0", "2", "4", "6", "8"}
    assert set(result.clusters) == {"0", "6", "8"}
    mean = np.mean([shares[name] for name in result.clusters])
    # up to what brings the network to its budget
    assert abs(shares["2"] - mean) < 0.1
    assert abs(shares["4"] - mean) < 0.1
    assert 0.3 < mean < 0.9


FAMILIES: dict[type[nn.Module], tuple[int, ...]] = {
    GroupedSqueezeExcite: (3, 8, 8),
    ConvNext: (3, 16, 16),
    InputConcat: (3, 8, 8),
    ChannelShuffle: (3, 8, 8),
    SplitNet: (3, 8, 8),
    GatedMlp: (12,),
    Upsampler: (3, 8, 8),
    Vit: (3, 16, 16),
}


@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.__name__)
def test_every_family_gets_smaller_and_runs(kind: type[nn.Module], scope: str) -> None:
    torch.manual_seed(0)
    full, shape = stirred(kind()), FAMILIES[kind]
    x = torch.randn(60, *shape)
    result = epruner.prune(
        full, x[:1], params=0.8, method="exemplar", calibrate=x, scope=scope, repair="none"
    )
    assert result.report.after.params < result.report.before.params
    with torch.no_grad():
        got, wanted = result.model(x), full(x)
    assert got.shape == wanted.shape
    assert torch.isfinite(got).all()
    for layer in result.report.layers:
        assert 1 <= layer.after <= layer.before


def test_layers_that_are_joined_are_measured_each_by_its_columns() -> None:
    torch.manual_seed(0)
    full: Any = TwoInputs().eval()
    with torch.no_grad():  # of each half of the concatenation two channels are one
        for layer, channels in ((full.left, 12), (full.right, 10)):
            layer.weight[channels - 1] = layer.weight[0]
            layer.bias[channels - 1] = layer.bias[0]
    x = torch.randn(60, 3, 8, 8), torch.randn(60, 1, 8, 8)
    result = epruner.prune(
        full,
        tuple(part[:1] for part in x),
        method="exemplar",
        calibrate=[x],
        constraints=Constraints(n_filters={"left": 11, "right": 9}),
    )
    assert len({0, 11} & set(result.kept["left"].tolist())) == 1
    assert len({0, 9} & set(result.kept["right"].tolist())) == 1
    with torch.no_grad():
        torch.testing.assert_close(result.model(*x), full(*x), rtol=0, atol=1e-2)


def test_streams_of_several_layers_are_clustered_too() -> None:
    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 16, 3, padding=1)
            self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.head = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Any:
            x = F.relu(self.stem(x))
            x = F.relu(x + self.b(F.relu(self.a(x))))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    result = epruner.prune(
        Stream().eval(),
        (1, 3, 8, 8),
        macs=0.5,
        method="exemplar",
        scope="all",
        calibrate=images(80, 8),
    )
    stream = next(group for group in result.groups if len(group.producers) > 1)
    assert stream.name in result.clusters
    assert_nested(result.clusters_of(stream.name).exemplars, result.kept[stream.name])
    assert len(result.kept[stream.name]) < 16


@pytest.mark.parametrize("allocation", ["uniform", "reconstruction", "exemplar"])
def test_losses_choose_members_whatever_sets_the_numbers(allocation: str) -> None:
    method = Method(allocation, "exemplar", "losses", repair="none")
    full, x = vgg(), images()
    result = epruner.prune(full, SHAPE, macs=0.5, method=method, calibrate=x)
    report = result.report
    assert 0.495 * report.before.macs <= report.after.macs <= 0.5 * report.before.macs
    shares = [layer.kept for layer in report.layers]
    assert (max(shares) - min(shares) < 0.15) == (allocation == "uniform")
    for name, kept in result.kept.items():
        assert_nested(result.clusters_of(name).exemplars, kept)
    by_weights = Method(allocation, "exemplar", repair="none")
    other = epruner.prune(full, SHAPE, macs=0.5, method=by_weights, calibrate=x)
    assert other.plan != result.plan


def test_what_others_can_do_for_goes_first() -> None:
    full = vgg()
    with torch.no_grad():  # four channels of the first layer twice, one of them half as large
        for place in range(4):
            for tensor in (
                full.features[0].weight,
                full.features[0].bias,
                full.features[1].weight,
                full.features[1].bias,
                full.features[1].running_mean,
                full.features[1].running_var,
            ):
                tensor[12 + place] = tensor[place]
    result = epruner.prune(
        full,
        SHAPE,
        constraints=Constraints(n_filters={"features.0": 12}),
        method="exemplar",
        calibrate=images(),
    )
    kept = set(result.kept["features.0"].tolist())
    assert all(len(kept & {i, 12 + i}) == 1 for i in range(4))
    labels = result.clusters_of("features.0").labels
    if len(result.clusters_of("features.0").exemplars) == 12:
        assert all(labels[i] == labels[12 + i] for i in range(4))


@pytest.mark.parametrize("options", [{"beta": 0.7}, {"beta": {"features.0": 0.7}}])
def test_betas_compare_weights_not_losses(options: dict[str, Any]) -> None:
    method = Method("exemplar", "exemplar", "losses")
    with pytest.raises(ValueError, match="compare weights, not losses"):
        epruner.prune(vgg(), SHAPE, method=method, calibrate=images(), **options)
    result = epruner.prune(vgg(), SHAPE, method="exemplar", calibrate=images(), **options)
    assert result.report.settings["method"]["features"] == "weights"


def test_without_anything_to_show_weights_are_compared() -> None:
    result = epruner.prune(GatedMlp().eval(), (1, 12), macs=0.6, method="exemplar")
    assert result.report.settings["method"]["features"] == "weights"
    assert "nothing to tell what their readers lose" in result.report.settings["why"]
    with pytest.raises(ValueError, match="features='losses' needs calibrate"):
        epruner.prune(
            GatedMlp().eval(), (1, 12), macs=0.6, method=Method("uniform", "exemplar", "losses")
        )
