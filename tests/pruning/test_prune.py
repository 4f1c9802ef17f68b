"""The whole way on real networks, against scikit-learn, and every option that is refused."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from networks import stirred, trained_resnet
from sklearn.cluster import AffinityPropagation
from torch import nn
from torch.nn.utils import prune as masks

import epruner
from epruner.pruning import Budget, Constraints, Method, PruningResult, prune
from epruner.pruning.network.filters import filter_matrix
from epruner.pruning.report.progress import STAGES
from epruner.pruning.report.report import Report
from epruner.pruning.select.importance import IMPORTANCE, Candidates, Indices, resize_exemplars

IMAGE = (1, 3, 16, 16)


def three_of(layer: str) -> Constraints:
    """Three filters of one layer stay, all others are left alone."""
    return Constraints(n_filters={layer: 3})


def counts(result: PruningResult) -> dict[str, int]:
    """Filters kept, by layer."""
    return {layer.name: layer.after for layer in result.report.layers}


def test_the_published_rule_on_a_trained_resnet56(data_dir: Path) -> None:
    """The first real run: 0.384 M parameters, 49.4 M multiply-adds, scikit-learn's exemplars."""
    model = trained_resnet(data_dir, "theo")
    result = prune(
        model,
        (1, 3, 32, 32),
        beta=0.76,
        method="paper",
        constraints=Constraints(min_filters=0),
    )
    after = result.report.after
    assert after.macs == pytest.approx(49.4e6, abs=0.5e6)
    assert after.params == pytest.approx(0.384e6, abs=0.003e6)
    assert [layer.name for layer in result.report.layers] == [
        f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(9)
    ]
    for layer in result.report.layers:
        rows = filter_matrix(model.get_submodule(layer.name)).astype(np.float64)
        similarities = -((rows[:, None] - rows[None]) ** 2).sum(-1)
        theirs = AffinityPropagation(
            affinity="precomputed",
            preference=0.76 * np.median(similarities, axis=0),
            random_state=0,
        ).fit(similarities)
        kept = result.plan.modules[layer.name].out
        assert kept is not None
        if layer.converged:
            assert list(kept) == sorted(theirs.cluster_centers_indices_)
        assert layer.after == len(theirs.cluster_centers_indices_)


def test_the_same_rule_on_another_network_collapses_but_never_to_nothing(data_dir: Path) -> None:
    model = trained_resnet(data_dir, "akamaster")
    constraints = Constraints(min_filters=0)
    bare = prune(model, (1, 3, 32, 32), beta=0.76, constraints=constraints, repair="none")
    assert min(counts(bare).values()) == 1
    assert bare.report.after.macs < 0.1 * bare.report.before.macs
    with_floor = prune(model, (1, 3, 32, 32), beta=0.76, repair="none")
    for layer in with_floor.report.layers:
        assert layer.after >= max(1, layer.before / 20)
        assert layer.floor == (layer.after > counts(bare)[layer.name])
    assert any(layer.floor for layer in with_floor.report.layers)


def test_one_filter_stays_where_all_are_alike() -> None:
    model = networks.Vgg()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.zeros_(module.weight)
    result = prune(model, IMAGE, beta=0.73, constraints=Constraints(min_filters=0))
    assert set(counts(result).values()) == {1}
    assert torch.isfinite(result.model(torch.randn(2, 3, 16, 16))).all()


@pytest.mark.parametrize("method", ["paper", "auto"])
@pytest.mark.parametrize("seed", range(2))
def test_the_same_seed_gives_the_same_bits_on_any_number_of_threads(seed: int, method: str) -> None:
    torch.manual_seed(seed)
    model = stirred(networks.Vgg(), seed)
    with torch.no_grad():  # twins, which only the jitter of a seed can part
        first = model.get_parameter("features.0.weight")
        first[8:] = first[:8]
    runs = [
        prune(model, IMAGE, macs=0.5, method=method, random_state=seed, n_threads=threads)
        for threads in (1, 2, 3, 1)
    ]
    for run in runs[1:]:
        assert run.plan == runs[0].plan
        for a, b in zip(run.model.parameters(), runs[0].model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_seeds_decide_ties_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = stirred(networks.Vgg())
    options: dict[str, Any] = {"beta": 0.9, "repair": "none"}
    plain = [prune(model, IMAGE, random_state=seed, **options).plan.modules for seed in range(6)]
    assert all(modules == plain[0] for modules in plain)
    with torch.no_grad():
        for name in ("weight", "bias"):
            tensor = model.get_parameter(f"features.0.{name}")
            tensor[8:] = tensor[:8]
    kept = {
        tuple(prune(model, IMAGE, random_state=seed, **options).kept["features.0"])
        for seed in range(6)
    }
    assert len(kept) > 1


@pytest.mark.parametrize(
    "inputs",
    [
        {"image": torch.randn(1, 3, 8, 8), "depth": torch.randn(1, 1, 8, 8)},
        (torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8)),
        [torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8)],
    ],
    ids=["keywords", "tuple", "list"],
)
def test_several_inputs(inputs: Any) -> None:
    assert len(prune(networks.TwoInputs(), inputs, beta=0.73).report.layers) == 3


def test_layers_and_ignore_take_names_parents_globs_and_modules() -> None:
    model = networks.Vgg()
    first = model.features[0]
    assert set(counts(prune(model, IMAGE, beta=0.73, layers=["features"]))) == {
        f"features.{i}" for i in (0, 3, 7, 10, 14)
    }
    by_glob = prune(model, IMAGE, beta=0.73, layers=["*.0", first])
    assert set(counts(by_glob)) == {"features.0", "classifier.0"}
    left = prune(model, IMAGE, beta=0.73, ignore=["classifier", first])
    assert set(counts(left)) == {f"features.{i}" for i in (3, 7, 10, 14)}
    reasons = {s.name: s.reason for s in left.report.skipped}
    assert reasons["features.0"] == "ignored on request"


def test_beta_by_layer_and_the_last_match_counts() -> None:
    model = stirred(networks.Vgg())
    result = prune(model, IMAGE, beta={"features": 0.6, "features.14": 1.4})
    assert {x.name: x.preference for x in result.report.layers} == {
        "features.0": 0.6, "features.3": 0.6, "features.7": 0.6, "features.10": 0.6,
        "features.14": 1.4,
    }  # fmt: skip
    alone = prune(model, IMAGE, beta=1.4)
    assert counts(result)["features.14"] == counts(alone)["features.14"]


def test_n_filters_sets_exact_numbers() -> None:
    model = stirred(networks.Vgg())
    given = {"features": 0.5, "features.3": 5, "classifier.0": 20}
    result = prune(model, IMAGE, constraints=Constraints(n_filters=given))
    assert counts(result) == {
        "features.0": 8, "features.3": 5, "features.7": 12, "features.10": 12, "features.14": 16,
        "classifier.0": 20,
    }  # fmt: skip
    mixed = prune(model, IMAGE, beta=0.73, constraints=Constraints(n_filters={"features.3": 5}))
    assert counts(mixed)["features.3"] == 5
    assert len(counts(mixed)) == 6


def test_round_to_and_min_filters() -> None:
    model = stirred(networks.Vgg())
    rounded = prune(model, IMAGE, beta=0.9, constraints=Constraints(round_to=8))
    assert all(n % 8 == 0 or n == 20 for n in counts(rounded).values())
    floored = prune(model, IMAGE, beta=5.0, constraints=Constraints(min_filters=0.5))
    assert all(x.after >= x.before / 2 for x in floored.report.layers)
    seven = prune(model, IMAGE, beta=5.0, constraints=Constraints(min_filters=7))
    assert all(x.after >= 7 for x in seven.report.layers)
    assert all(x.floor for x in floored.report.layers if x.after > 1)


def test_scope_all_prunes_the_stream_of_a_residual_network() -> None:
    torch.manual_seed(0)
    model = stirred(networks.GroupedSqueezeExcite())
    inner = prune(model, IMAGE, beta=1.1)
    everything = prune(model, IMAGE, beta=1.1, scope="all")
    assert "several layers add" in {s.name: s.reason for s in inner.report.skipped}["stem"]
    assert {"stem", "expand"} == set(counts(everything)) - set(counts(inner))
    assert counts(everything)["stem"] == counts(everything)["expand"] < 16


@pytest.mark.parametrize("importance", IMPORTANCE)
def test_importance_chooses_members_and_exemplars_the_number(importance: str) -> None:
    model = stirred(networks.Vgg())
    exemplars = prune(model, IMAGE, beta=1.0, method="paper")
    result = prune(model, IMAGE, beta=1.0, method=Method("exemplar", importance))
    assert counts(result) == counts(exemplars)
    uniform = prune(model, IMAGE, macs=0.5, method=Method("uniform", importance))
    shares = [x.kept for x in uniform.report.layers]
    assert max(shares) - min(shares) < 0.15
    if importance != "exemplar":
        assert uniform.report.layers[0].preference is None


def test_an_importance_of_ones_own() -> None:
    def last(candidates: Candidates, count: int) -> Indices:
        n = len(candidates.features)
        return np.arange(n - count, n)

    result = prune(
        networks.Vgg(), IMAGE, method=Method("uniform", last), constraints=three_of("features.3")
    )
    assert result.plan.modules["features.3"].out == (13, 14, 15)
    assert result.report.settings["method"]["importance"] == "last"


@pytest.mark.parametrize(
    "found", [[0, 1], [0, 1, 1], [0, 1, 16], [-1, 0, 1], [0.0, 1.0, 2.0], None], ids=str
)
def test_an_importance_is_held_to_what_it_must_return(found: Any) -> None:
    method = Method("uniform", lambda *_: found)
    message = "importance must return 3 different indices of the 16 filters of 'features.3'"
    with pytest.raises(ValueError, match=message):
        prune(networks.Vgg(), IMAGE, method=method, constraints=three_of("features.3"))


def test_the_order_that_an_importance_returns_does_not_matter() -> None:
    method = Method("uniform", lambda *_: np.array([7, 2, 5]))
    result = prune(networks.Vgg(), IMAGE, method=method, constraints=three_of("features.3"))
    assert result.plan.modules["features.3"].out == (2, 5, 7)


def test_the_report_states_what_was_asked() -> None:
    model = stirred(networks.Vgg())

    def smallest(candidates: Candidates, count: int, power: int) -> Indices:
        return np.argsort(np.abs(candidates.features**power).sum(axis=1))[:count]

    def size(network: nn.Module) -> float:
        return float(sum(p.numel() for p in network.parameters()))

    result = prune(
        model,
        IMAGE,
        budget=Budget(size, 0.6),
        method=Method("uniform", partial(smallest, power=2)),
        constraints=Constraints(n_filters={"features.3": 5}),
        layers=["features"],
        ignore=[model.features[0]],
    )
    settings = result.report.settings
    assert (settings["budget"], settings["share"]) == ("size", 0.6)
    assert settings["method"]["importance"] == "smallest"
    assert settings["constraints"]["n_filters"] == {"features.3": 5}
    assert (settings["layers"], settings["ignore"]) == (["features"], ["features.0"])
    assert Report.from_dict(json.loads(json.dumps(result.report.to_dict()))) == result.report
    assert tuple(result.report.seconds) == STAGES


def test_every_layer_is_pruned_or_has_a_reason() -> None:
    model = stirred(networks.Vgg())
    everything = {f"features.{i}" for i in (0, 3, 7, 10, 14)} | {"classifier.0", "classifier.2"}
    options: list[dict[str, Any]] = [
        {"beta": 0.73, "layers": ["features.3"]},
        {"beta": {"features.3": 0.8}},
        {"constraints": three_of("features.3")},
        {"beta": {"features.7": 0.8}, "constraints": three_of("features.3")},
    ]
    for given in options:
        report = prune(model, IMAGE, **given).report
        assert {s.name for s in report.skipped} | {x.name for x in report.layers} == everything
        reasons = {s.name: s.reason for s in report.skipped}
        assert reasons["features.0"].startswith(("not among layers", "no pattern of"))


def test_a_depthwise_convolution_asked_for_names_the_way() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )
    with pytest.raises(ValueError, match="depthwise convolutions go with the layer before"):
        prune(model, IMAGE, macs=0.5, layers=["1"])


def test_importances_on_filters_made_for_them() -> None:
    rows = np.array([[9.0, 0], [0, 1], [0, 1.1], [3, 3], [-4, -4]], np.float32)
    s = -((rows[:, None] - rows[None]) ** 2).sum(-1)
    candidates = Candidates(rows, np.array([0, 3]), 0, "layer", lambda: s)
    assert IMPORTANCE["l1"](candidates, 2).tolist() == [0, 4]
    assert IMPORTANCE["l2"](candidates, 2).tolist() == [0, 4]
    assert IMPORTANCE["fpgm"](candidates, 2).tolist() == [0, 4]
    assert IMPORTANCE["exemplar"](candidates, 2).tolist() == [0, 3]
    assert IMPORTANCE["exemplar"](candidates, 3).tolist() == [0, 3, 4]
    assert IMPORTANCE["exemplar"](candidates, 1).tolist() == [3]
    assert sorted(IMPORTANCE["random"](candidates, 5)) == list(range(5))
    none = Candidates(rows, np.empty(0, np.intp), 0, "", lambda: s)
    assert len(IMPORTANCE["exemplar"](none, 5)) == 5


def naive_resize(s: np.ndarray[Any, Any], exemplars: list[int], count: int) -> list[int]:
    """Add or remove one at a time, trying all: the definition."""
    chosen = list(exemplars)

    def net(members: list[int]) -> float:
        return float(s[:, members].max(axis=1).sum(dtype=np.float64))

    while len(chosen) < count:
        rest = [k for k in range(len(s)) if k not in chosen]
        chosen.append(max(rest, key=lambda k: net([*chosen, k])))
    while len(chosen) > count:
        chosen.remove(max(chosen, key=lambda k: net([x for x in chosen if x != k])))
    return sorted(chosen)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("n", "start", "count"), [(30, 3, 17), (30, 17, 3), (30, 12, 12), (25, 1, 25), (25, 25, 1)]
)
def test_exemplars_are_added_and_removed_as_defined(
    dtype: type[Any], n: int, start: int, count: int
) -> None:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 6, (n, 2))  # whole numbers have ties, which sums of floats would break
    s = -((rows[:, None] - rows[None]) ** 2).sum(-1).astype(dtype)
    exemplars = np.sort(rng.permutation(n)[:start])
    expected = naive_resize(s, exemplars.tolist(), count)
    assert resize_exemplars(s, exemplars, count).tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [({"init": "zeros"}, "init must be one of"), ({"bn": "drop"}, "bn must be one of")],
    ids=str,
)
def test_refused_ways_to_make_weights(options: Mapping[str, Any], message: str) -> None:
    model = networks.Vgg()
    plan = prune(model, IMAGE, constraints=three_of("features.3")).plan
    with pytest.raises(ValueError, match=message):
        plan.apply(model, **options)


def test_what_was_clustered_can_be_looked_at() -> None:
    result = prune(stirred(networks.GroupedSqueezeExcite()), IMAGE, beta=1.0)
    clusters = result.clusters["grouped"]
    assert clusters.features.shape == (24, 6 * 9 + 8)
    assert clusters.labels.shape == (24,)
    assert len(np.unique(clusters.labels)) == len(clusters.exemplars)
    group = next(g for g in result.groups if g.name == "grouped")
    assert [m.module for m in group.consumers] == ["squeeze", "expand"]
    assert result.kept["grouped"].tolist() == list(result.plan.modules["grouped"].out or ())


def test_the_package_is_the_function() -> None:
    model = stirred(networks.Vgg())
    assert epruner.prune is prune
    assert epruner.prune(model, IMAGE, macs=0.5).plan == prune(model, IMAGE, macs=0.5).plan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 0.0}, r"macs must be in \(0, 1\].*got 0.0"),
        ({"macs": 1.5}, r"macs must be in \(0, 1\].*got 1.5"),
        ({"params": -1}, r"params must be in \(0, 1\].*got -1"),
        ({"macs": float("nan")}, r"macs must be in \(0, 1\]"),
        ({"params": True}, r"params must be in \(0, 1\].*got True"),
        ({"macs": "0.5"}, r"macs must be in \(0, 1\].*got '0.5'"),
        ({"beta": {}}, "beta is an empty mapping"),
        ({"macs": 0.5, "params": 0.5}, "macs and params exclude each other"),
        ({"macs": 0.5, "beta": 0.7}, "macs and beta exclude each other"),
        ({"beta": 0}, "beta must be a positive number, got 0"),
        ({"beta": {"features": -1.0}}, "beta must be a positive number, got -1"),
        ({"beta": float("inf")}, "beta must be a positive number"),
        ({"beta": {"feature": 0.5}}, "'feature' matches no convolution.*'features.0'"),
        ({"beta": {"classifier.2": 0.5}}, "matches no layer that is pruned"),
        (
            {"constraints": Constraints(n_filters={"features.0": 17})},
            "17 filters of 'features.0' asked for, which has 16",
        ),
        ({"constraints": three_of("nothing")}, "'nothing' matches no convolution"),
        ({"beta": 1, "layers": ["nothing"]}, "layers: 'nothing' matches no convolution"),
        (
            {"beta": 1, "layers": ["classifier.2"]},
            "cannot be pruned: classifier.2: its channels are the",
        ),
        ({"beta": 1, "layers": [nn.Linear(2, 2)]}, "Linear is not a module of this model"),
        ({"beta": 1, "ignore": ["nothing"]}, "ignore: 'nothing' matches no convolution"),
        (
            {"beta": 1, "scope": "outer"},
            "scope must be one of 'inner', 'all', 'blocks', got 'outer'",
        ),
        ({"beta": 1, "random_state": -1}, "random_state must be an integer of at least 0, got -1"),
        ({"beta": 1, "n_threads": 0}, "n_threads=0 must be at least 1"),
        ({"recipe": "resnet56", "beta": 0.5}, "recipe sets layers and beta itself"),
        ({"recipe": "resnet57"}, "no published recipe 'resnet57'"),
        ({"beta": 1, "ignore": ["features", "classifier"]}, "nothing in this model can be pruned"),
    ],
    ids=str,
)
def test_refused_options(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(networks.Vgg(), IMAGE, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1, "scope": None}, "scope must be one of 'inner', 'all', 'blocks', got None"),
        ({"beta": 1, "layers": [3]}, "layers: 3 is neither a name or pattern nor a module"),
        ({"beta": 1, "ignore": 3}, "ignore must be"),
        ({"beta": 1, "n_threads": "two"}, "n_threads='two' must be an integer or None"),
    ],
    ids=str,
)
def test_options_of_the_wrong_type(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        prune(networks.Vgg(), IMAGE, **options)


def test_refused_arguments() -> None:
    with pytest.raises(TypeError, match="model must be"):
        prune("resnet", IMAGE, macs=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="inputs must be a tensor, a shape"):
        prune(networks.Vgg(), None, macs=0.5)
    with pytest.raises(ValueError, match="size below 1"):
        prune(networks.Vgg(), (1, 3, 0, 16), macs=0.5)
    with pytest.raises(TypeError, match=r"sizes of a shape are integers, got \(1, 3, 16.0, 16\)"):
        prune(networks.Vgg(), (1, 3, 16.0, 16), macs=0.5)
    with pytest.raises(TypeError, match="got an object of type ndarray"):
        prune(networks.Vgg(), np.zeros(IMAGE), macs=0.5)


def test_what_is_not_a_network_with_weights_is_refused() -> None:
    with warnings.catch_warnings():  # deprecated, but people have such networks
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))
    with pytest.raises(TypeError, match="TorchScript; give the network that it was made of"):
        prune(scripted, (1, 4), macs=0.5)
    with pytest.raises(ValueError, match=r"'features\.0\.weight' is on the meta device"):
        prune(networks.Vgg().to("meta"), IMAGE, macs=0.5)
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"'0\.weight' has no shape yet; run the model once"):
        prune(lazy, (1, 4), macs=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, dtype: torch.dtype) -> None:
    model = networks.Vgg().to(dtype)
    for name in ("features.3.bias", "classifier.0.weight"):
        model.get_parameter(name).data[3] = value
    with pytest.raises(ValueError, match=r"parameter 'features\.3\.bias' holds NaN or infinity"):
        prune(model, IMAGE, macs=0.5)


def test_large_weights_are_finite() -> None:
    model = networks.Vgg().half()
    model.get_parameter("features.0.bias").data.fill_(60000)  # the sum of two overflows
    assert len(prune(model, IMAGE, beta=0.9).report.layers) == 6


def test_masked_weights_are_refused_with_advice() -> None:
    model = networks.Vgg()
    masks.l1_unstructured(model.features[3], "weight", 0.5)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=r"model\.features\.3 are .* by a mask .*prune\.remove"):
        prune(model, IMAGE, macs=0.5)
    masks.remove(model.features[3], "weight")  # type: ignore[no-untyped-call]
    assert "features.3" in prune(model, IMAGE, beta=0.9).plan.modules


def test_a_stream_asked_for_by_name_needs_the_scope() -> None:
    with pytest.raises(ValueError, match="scope='all'"):
        prune(networks.GroupedSqueezeExcite(), IMAGE, macs=0.5, layers=["stem"])
