"""Functionality-oriented pruning: less is lost than by l1; each part against something simpler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import epruner
from epruner.companions.functionality import (
    contributions,
    first_to_go,
    functional_importance,
    plot_filters,
)
from epruner.pruning import Constraints, Method
from epruner.pruning.select.importance import Candidates
from examples import functionality as example

SHAPE = (1, 3, 12, 12)


def small_network(groups: int = 1) -> nn.Sequential:
    torch.manual_seed(3)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 12, 3, padding=1, groups=groups),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=groups),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):  # one that does something
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert isinstance(tensor, Tensor)
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


def images(count: int = 30) -> Tensor:
    return torch.randn(count, *SHAPE[1:], generator=torch.Generator().manual_seed(5))


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_less_is_lost_than_with_as_many_of_least_l1() -> None:
    """Of held-out images, nothing repaired, mean over three seeds."""
    runs = [example.run(seed) for seed in range(3)]
    lost = {
        rule: float(np.mean([run.losses[rule] - run.loss for run in runs]))
        for rule in runs[0].losses
    }
    assert min(run.accuracy for run in runs) > 0.97
    assert lost["functional"] < 0.8 * lost["least l1"]
    assert str(runs[0]).count("\n") == 1 + len(lost)


def one_at_a_time(labels: list[int], scores: list[float]) -> list[int]:
    """The order by the words of the rule: go, look again, go."""
    left, gone = set(range(len(labels))), []
    sizes = {label: labels.count(label) for label in labels}
    while left:
        members = {x: sorted((scores[i], -i) for i in left if labels[i] == x) for x in sizes}
        several = {x: m for x, m in members.items() if len(m) > 1}
        if several:
            turn = {x: sizes[x] / (sizes[x] - len(m) + 1) for x, m in several.items()}
            first = min(several, key=lambda x: (-turn[x], several[x][0]))
            index = -several[first][0][1]
        else:
            index = -min(m[0] for m in members.values() if m)[1]
        left.remove(index)
        gone.append(index)
    return gone


@pytest.mark.parametrize("seed", range(20))
def test_clusters_give_in_proportion_and_the_least_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 24)
    scores = rng.integers(0, 6, 24).astype(float)  # some are equal
    order = first_to_go(labels, scores)
    assert order.tolist() == one_at_a_time(labels.tolist(), scores.tolist())
    rounds = 24 - len(np.unique(labels))
    assert len(np.unique(labels[order[rounds:]])) == len(order[rounds:])  # one of each is left
    sizes = np.bincount(labels, minlength=5)
    for count in range(rounds):
        given = np.bincount(labels[order[:count]], minlength=5)
        for big, small in np.argwhere(sizes[:, None] > sizes[None]):
            assert given[big] >= min(given[small], sizes[big] - 1)


def test_who_is_alone_stays_while_there_are_others() -> None:
    order = first_to_go(np.array([0, 1, 1, 1, 2]), np.array([0.1, 5.0, 6.0, 7.0, 0.2]))
    assert order.tolist() == [1, 2, 0, 4, 3]


def test_contributions_are_mean_slopes() -> None:
    """Against differences, one activation after the other, in double precision."""
    model, step = small_network().double(), 1e-7
    inputs = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(5)).double()
    net = epruner.analyse(model, inputs[:1])
    found = contributions(model, net.groups, inputs, net.arguments)
    assert set(found) == {"0", "3", "6"}
    for name, norm, side in (("0", model[1], 6), ("3", model[4], 6), ("6", model[6], 4)):
        slopes = np.zeros((len(found[name]), side, side))
        for place in np.ndindex(slopes.shape):

            def nudge(_: nn.Module, __: Any, y: Tensor, place: Any = place) -> Tensor:
                y = y.clone()
                y[(slice(None), *place)] += step
                return y

            with torch.no_grad():
                before = model(inputs)
                handle = norm.register_forward_hook(nudge)
                after = model(inputs)
                handle.remove()
            top = before.argmax(1, keepdim=True)
            slopes[place] = float(((after - before).gather(1, top) / step).abs().mean())
        assert np.allclose(found[name], slopes.mean((1, 2)), rtol=1e-4, atol=1e-7)


def test_batches_of_any_size_count_as_their_inputs() -> None:
    model, inputs = small_network(), images(150)  # of which two batches are made, of 128 at most
    net = epruner.analyse(model, SHAPE)
    whole = contributions(model, net.groups, inputs, net.arguments)
    parts = [contributions(model, net.groups, x, net.arguments) for x in (inputs[:50], inputs[50:])]
    for name, scores in whole.items():
        assert np.allclose(scores, (parts[0][name] + 2 * parts[1][name]) / 3, rtol=1e-4)


def test_each_exemplar_s_cluster_keeps_its_largest_contribution() -> None:
    model = small_network()
    importance = functional_importance(model, images())
    scores = contributions(
        model, epruner.analyse(model, SHAPE).groups, images(), ((images(1),), {})
    )
    result = epruner.prune(
        model, SHAPE, beta=1.0, method=Method("exemplar", importance, "visual"), repair="none",
        constraints=Constraints(min_filters=1),
    )  # fmt: skip
    for name, clusters in result.clusters.items():
        own = scores[name]
        best = {max(np.flatnonzero(clusters.labels == x), key=lambda i: own[i])
                for x in np.unique(clusters.labels)}  # fmt: skip
        assert set(result.kept[name].tolist()) == best
    assert result.report.settings["method"]["importance"] == "functional"


def test_groups_of_a_grouped_convolution_have_scores_of_their_own() -> None:
    model = small_network(groups=2)
    importance = functional_importance(model, images(), inputs=SHAPE)
    net = epruner.analyse(model, SHAPE)
    scores = contributions(model, net.groups, images(), net.arguments)["3"]

    def chosen(first: int) -> list[int]:
        apart = -1.0 + np.eye(6)  # all are equally unlike, so that scores decide
        candidates = Candidates(np.eye(6), np.empty(0, np.intp), 0, "3", lambda: apart, first)
        return list(importance(candidates, 3))

    for first in (0, 6):
        assert chosen(first) == sorted(np.argsort(scores[first : first + 6])[3:].tolist())


def test_network_is_left_as_it_was() -> None:
    model = small_network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    functional_importance(model, images())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.inner, self.head = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.inner(self.embedding(ids)).relu().mean(1))  # type: ignore[no-any-return]


def test_tokens_have_contributions_but_nothing_to_look_at(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = Words().eval(), torch.randint(20, (40, 6))
    importance = functional_importance(model, ids)
    half = Constraints(n_filters={"inner": 6})
    small = epruner.prune(model, ids[:1], constraints=half, method=Method("uniform", importance))
    assert len(small.kept["inner"]) == 6
    with pytest.raises(ValueError, match=r"reads no signal but 'ids' of torch.int64"):
        epruner.prune(
            model, ids[:1], constraints=half, method=Method("uniform", importance, "visual")
        )
    with pytest.raises(ValueError, match=r"reads no signal but 'ids' of torch.int64"):
        plot_filters(model, ids[:1], "inner", tmp_path / "f.png")


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = small_network()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.layers(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("calibrate", "message"),
    [
        (torch.ones(7, *SHAPE[1:]), "all 7 inputs are equal"),
        (torch.empty(0, *SHAPE[1:]), "calibrate is empty"),
        ([], "calibrate is empty"),
        (torch.full((4, *SHAPE[1:]), torch.nan), "hold NaN"),
        (torch.zeros(4, 3, 5, 5), "inputs of shape"),
    ],
)
def test_inputs_that_say_nothing(calibrate: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functional_importance(small_network(), calibrate, inputs=SHAPE)


def test_other_networks_and_what_is_none() -> None:
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module"):
        functional_importance("network", images())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="calibrate must be"):
        functional_importance(small_network(), 3)
    importance = functional_importance(small_network(), images())
    other = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(600, 9))
    named = nn.Sequential()
    named.add_module("other", other)
    with pytest.raises(ValueError, match=r"made for another network.*not 'other.0'"):
        epruner.prune(named, SHAPE, macs=0.5, method=Method("uniform", importance), repair="none")
    with pytest.raises(ValueError, match="the analysis is of another network"):
        functional_importance(
            small_network(), images(), inputs=epruner.analyse(small_network(2), SHAPE)
        )
    with pytest.raises(ValueError, match="no gradient reaches the layers"):
        functional_importance(Detached().eval(), images())


def test_filters_are_drawn_by_cluster(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra plot)")
    from epruner.pruning.report.plots import draw_filters

    pictures = torch.rand(21, 3, 5, 5).numpy()
    labels = np.array([0] * 18 + [1, 2, 2])
    figure = draw_filters(pictures, labels, [0, 1, 19], name="conv1")
    (axes,) = figure.axes
    words = [text.get_text() for text in axes.texts]
    first, second = [*map(str, range(16))], ["16", "17"]
    assert words == ["18 alike", *first, "", *second, "2 alike", "19", "20", "1 alone", "18"]
    assert len(axes.lines) == 18  # crossed out
    shown = np.asarray(axes.images[0].get_array())
    reach = 3 * np.sqrt(np.square(pictures[0]).mean())
    assert np.allclose(shown, 0.5 + pictures[0].transpose(1, 2, 0) / (2 * reach))
    for others in ((21, 1, 5, 5), (21, 2, 4, 5, 6), (21, 2, 30)):
        draw_filters(np.zeros(others), labels, range(21), name="other")

    model = small_network()
    result = epruner.prune(
        model, SHAPE, macs=0.6, method=Method("uniform", "l1"), repair="none",
    )  # fmt: skip
    plot_filters(model, SHAPE, "3", tmp_path / "f.svg", result=result)
    text = (tmp_path / "f.svg").read_text()
    assert text.startswith("<?xml")
    with pytest.raises(
        ValueError, match=r"'fc' is no layer of which filters can go; layers are like '0'"
    ):
        plot_filters(model, SHAPE, "fc", tmp_path / "g.png")
    with pytest.raises(ValueError, match="suffix must be one of"):
        plot_filters(model, SHAPE, "3", tmp_path / "g.docx")
    assert not (tmp_path / "g.png").exists()
