"""The front door: every station by itself, what it says, what it refuses, what it leaves alone."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import threading
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from functools import cache
from itertools import product
from typing import Any

import networks
import numpy as np
import pytest
import torch
from networks import stirred
from terminal import terminal
from torch import Tensor, nn

import epruner
from epruner import Budget, BudgetWarning, Constraints, Method, Plan
from epruner.pruning.graph.costs import measure
from epruner.pruning.network.inputs import as_arguments
from epruner.pruning.options import METHODS, resolve
from epruner.pruning.select.allocation import Sizes

IMAGE = (1, 3, 16, 16)
TOKENS = {"input_ids": torch.arange(7)[None], "attention_mask": torch.ones(1, 7)}
# network, example inputs, calibration inputs
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "vgg": (networks.Vgg, IMAGE, torch.randn(40, 3, 16, 16)),
    "grouped-se": (networks.GroupedSqueezeExcite, IMAGE, torch.randn(40, 3, 16, 16)),
    "residual": (lambda: networks.CifarResNet(1), IMAGE, torch.randn(40, 3, 16, 16)),
    "vit": (networks.Vit, IMAGE, torch.randn(40, 3, 16, 16)),
    "bert": (
        networks.BertLayer,
        TOKENS,
        {"input_ids": torch.randint(0, 50, (40, 7)), "attention_mask": torch.ones(40, 7)},
    ),
    "two-inputs": (
        networks.TwoInputs,
        (torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8)),
        [(torch.randn(20, 3, 8, 8), torch.randn(20, 1, 8, 8)) for _ in range(2)],
    ),
}
OWN = Method("uniform", "l2", features="folded", repair="none")


def vgg() -> networks.Vgg:
    torch.manual_seed(0)
    return stirred(networks.Vgg())


@cache
def halved() -> Plan:
    """What half of the multiply-adds of `vgg` leaves of it."""
    return epruner.analyse(vgg(), IMAGE).select(macs=0.5)


def images(count: int = 40) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def made(name: str) -> tuple[nn.Module, Any, Any]:
    """A network whose BatchNorm statistics are those of its calibration inputs."""
    make, inputs, calibrate = NETWORKS[name]
    torch.manual_seed(0)
    model = stirred(make())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    args, kwargs = as_arguments(model, calibrate[0] if isinstance(calibrate, list) else calibrate)
    with torch.no_grad():
        model(*args, **kwargs)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval(), inputs, calibrate


def rows_of(layer: nn.Module) -> Any:
    """Features of one's own."""
    return layer.get_parameter("weight").detach().flatten(1).numpy()


def draws_of_numpy() -> list[int]:
    """State of the generator that everybody shares."""
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return [*state["state"]["key"].tolist(), state["state"]["pos"]]


def assert_same_bits(found: nn.Module, expected: nn.Module) -> None:
    mine, theirs = found.state_dict(), expected.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def by_stations(
    model: nn.Module, inputs: Any, *, calibrate: Any, repair: str, **options: Any
) -> tuple[Plan, nn.Module, Any]:
    """What `prune` does, one station after the other."""
    plan = epruner.analyse(model, inputs).select(calibrate=calibrate, **options)
    small = plan.apply(model)
    before = copy.deepcopy(small)
    repaired, done = epruner.repair(
        model,
        small,
        plan,
        calibrate=calibrate,
        repair=repair,
        inputs=inputs,
        random_state=options.get("random_state", 0),
    )
    assert_same_bits(small, before)  # what is repaired is a copy
    return plan, repaired, done


@pytest.mark.filterwarnings("ignore::epruner.pruning.errors.BudgetWarning")
@pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning")
class TestStations:
    """Each station by itself equals the whole."""

    @pytest.mark.parametrize("network", NETWORKS)
    @pytest.mark.parametrize(
        "options",
        [
            {"macs": 0.6},
            {"macs": 0.6, "method": "paper"},
            {"params": 0.6, "method": "fpgm", "scope": "all"},
            {"beta": 1.0, "random_state": 3},
            {"macs": 0.5, "method": OWN},
        ],
        ids=["auto", "paper", "fpgm", "beta", "own"],
    )
    def test_without_calibration_inputs(self, network: str, options: dict[str, Any]) -> None:
        model, inputs, _ = made(network)
        whole = epruner.prune(model, inputs, **options)
        settings = whole.report.settings
        repair = settings["method"]["repair"]
        plain = network == "two-inputs"  # no layer normalises: nothing to learn from noise
        if options.get("method") in ("paper", OWN):
            assert (repair, settings["evidence"]) == ("none", "none")
        else:
            expected = ("merge", "none") if plain else ("least_squares", "noise")
            assert (repair, settings["evidence"]) == expected
        plan, small, done = by_stations(model, inputs, calibrate=None, repair=repair, **options)
        assert plan == whole.plan
        assert done == whole.report.repair
        assert (done is None) == (settings["evidence"] == "none")
        assert done is None or (done.inputs == "noise" and done.after < done.before)
        assert_same_bits(small, whole.model)

    @pytest.mark.parametrize("network", ["vgg", "vit"])
    def test_noise_by_its_name_is_the_default(self, network: str) -> None:
        model, inputs, _ = made(network)
        default = epruner.prune(model, inputs, macs=0.6)
        options: dict[str, Any] = {"calibrate": "noise", "macs": 0.6}
        whole = epruner.prune(model, inputs, **options)
        assert whole.report.settings == default.report.settings
        plan, small, done = by_stations(model, inputs, repair="auto", **options)
        assert plan == whole.plan == default.plan
        assert done == whole.report.repair == default.report.repair
        assert_same_bits(small, whole.model)
        assert_same_bits(default.model, whole.model)

    @pytest.mark.parametrize("network", NETWORKS)
    @pytest.mark.parametrize(
        ("method", "repair"),
        [
            ("auto", None),
            ("exemplar", "merge"),
            ("l1", "batchnorm"),
            (Method("uniform", "reconstruction", "activations"), None),
        ],
        ids=["auto", "exemplar", "l1", "own"],
    )
    def test_with_calibration_inputs(
        self, network: str, method: str | Method, repair: str | None
    ) -> None:
        model, inputs, calibrate = made(network)
        options: dict[str, Any] = {"calibrate": calibrate, "macs": 0.6, "method": method}
        whole = epruner.prune(model, inputs, repair=repair, **options)
        used = whole.report.settings["method"]["repair"]
        assert used == (repair or "least_squares")
        plan, small, done = by_stations(model, inputs, repair=used, **options)
        assert plan == whole.plan
        assert done == whole.report.repair
        assert done is None or used != "merge"
        if (network, used) in {("vgg", "batchnorm"), ("residual", "batchnorm")}:
            assert done is not None
            assert done.after < done.before
        assert_same_bits(small, whole.model)

    @pytest.mark.parametrize("network", NETWORKS)
    def test_repair_finds_its_example_among_the_calibration_inputs(self, network: str) -> None:
        model, inputs, calibrate = made(network)
        whole = epruner.prune(model, inputs, macs=0.6, calibrate=calibrate)
        small, done = epruner.repair(
            model, whole.plan.apply(model), whole.plan, calibrate=calibrate
        )
        assert done == whole.report.repair
        assert_same_bits(small, whole.model)

    def test_batches_with_labels(self) -> None:
        model, x = vgg(), images()
        plan = epruner.analyse(model, IMAGE).select(macs=0.6)
        small = plan.apply(model)
        expected, _ = epruner.repair(model, small, plan, calibrate=x)
        labels = torch.zeros(len(x), dtype=torch.long)
        data = torch.utils.data.TensorDataset(x, labels)
        for batches in (
            [(x, labels)],
            torch.utils.data.DataLoader(data, batch_size=7),
            [{"x": x, "labels": labels}],
            {"x": x},
            (part for part in x.split(9)),  # type: ignore[no-untyped-call]
        ):
            found, _ = epruner.repair(model, small, plan, calibrate=batches)
            assert_same_bits(found, expected)


def test_one_analysis_serves_any_number_of_selections() -> None:
    model = vgg()
    net = epruner.analyse(model, IMAGE)
    printed = str(net)
    asked: list[dict[str, Any]] = [
        {"macs": 0.5},
        {"macs": 0.5, "calibrate": images()},
        {"beta": 0.8},
        {"params": 0.3, "method": "paper"},
        {"constraints": Constraints(n_filters={"features.3": 3})},
    ]
    for options in (*asked, *reversed(asked)):
        assert net.select(**options) == epruner.analyse(model, IMAGE).select(**options)
    assert str(net) == printed


def test_an_analysis_outlives_its_network_and_can_be_sent_elsewhere() -> None:
    model = vgg()
    net = epruner.analyse(model, IMAGE)
    expected = net.select(macs=0.5)
    for other in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert other.select(macs=0.5) == expected
        assert str(other) == str(net)
    del model
    assert net.select(macs=0.5) == expected


def test_a_plan_from_a_file_goes_on_from_there() -> None:
    model = vgg()
    result = epruner.prune(model, IMAGE, macs=0.5)
    plan = Plan.from_json(result.plan.to_json())
    small, _ = epruner.repair(model, plan.apply(model), plan, inputs=IMAGE)
    assert_same_bits(small, result.model)


def test_select_takes_the_modules_of_the_network_as_prune_does() -> None:
    model = vgg()
    first, second = model.features[0], model.features[3]
    net = epruner.analyse(model, IMAGE)
    options: dict[str, Any] = {"beta": 1.0, "layers": model.features, "ignore": [first, second]}
    by_module = net.select(**options)
    assert by_module == net.select(beta=1.0, layers=[f"features.{i}" for i in (7, 10, 14)])
    assert by_module == epruner.prune(model, IMAGE, **options).plan
    with pytest.raises(ValueError, match="Vgg is not a module of this model"):
        net.select(beta=1.0, layers=[networks.Vgg()])


def test_select_does_not_ask_for_what_only_the_repair_needs() -> None:
    net = epruner.analyse(networks.Vgg().eval(), IMAGE)
    method = Method("uniform", "l1", repair="least_squares")
    assert net.select(macs=0.5, method=method) == net.select(macs=0.5, method="l1")


@pytest.mark.parametrize("network", NETWORKS)
def test_an_analysis_prints_every_layer_and_holds_its_costs(network: str) -> None:
    model, inputs, _ = made(network)
    net = epruner.analyse(model, inputs)
    args, kwargs = as_arguments(model, inputs)
    counted = measure(model, args, kwargs)
    assert net.costs.totals() == counted
    assert counted.params == sum(p.numel() for p in model.parameters())
    text = str(net)
    rows = {row[0]: row for row in net.table().rows}
    can_go = {m.module for group in net.groups for m in group.producers}
    assert set(rows) == can_go
    assert len(net.table().rows) == len(can_go)
    for group in net.groups:
        for member in group.producers:
            assert rows[member.module][2] == str(group.channels)
    lines = text.splitlines()
    assert all(any(line.startswith(name + " ") for line in lines) for name in rows)
    assert all(line == line.rstrip() for line in lines)
    assert net.skipped
    assert all(f"left alone ({skipped.reason}): " in text for skipped in net.skipped)
    assert not can_go & {skipped.name for skipped in net.skipped}
    assert type(model).__name__ in text
    assert f"{len(net.groups)} groups of channels can go" in text


def test_an_analysis_of_what_cannot_be_pruned_says_why() -> None:
    net = epruner.analyse(nn.Sequential(nn.Linear(3, 4)), (1, 3))
    assert str(net).startswith("Sequential: 12 multiply-adds, 16 parameters; 0 groups")
    assert "left alone (its channels are the output of the model): 0" in str(net)
    with pytest.raises(ValueError, match="nothing in this model can be pruned: 0: its channels"):
        net.select(macs=0.5)


def test_an_analysis_tells_streams_and_coupled_layers() -> None:
    model, inputs, _ = made("grouped-se")
    table = epruner.analyse(model, inputs).table()
    together = {row[0]: row[-1] for row in table.rows}
    assert together["stem"] == "1 other layer (stream: scope='all')"
    assert together["reduce"] == ""
    assert together["grouped"] == "1 other layer"


WAYS: dict[str, Any] = {
    "macs": 0.5,
    "params": 0.5,
    "beta": 0.7,
    "budget": Budget(lambda m: float(sum(p.numel() for p in m.parameters())), 0.5),
}


# What needs a network to be shown something, and how it is refused where nothing can be.
SHOWN: list[tuple[dict[str, Any], str]] = [
    ({"method": "reconstruction"}, "allocation='reconstruction' needs calibrate, "),
    (
        {"method": Method("uniform", "reconstruction")},
        "importance='reconstruction' needs calibrate, a few hundred inputs without labels",
    ),
    (
        {"method": Method("uniform", "l1", features="activations")},
        "features='activations' needs calibrate, ",
    ),
    ({"method": METHODS["exemplar"]}, "features='losses' needs calibrate, "),
    ({"repair": "least_squares"}, "repair='least_squares' needs calibrate, "),
]
UNSHOWN: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "untrained": lambda: (networks.Vgg().eval(), IMAGE),
    "plain": lambda: made("two-inputs")[:2],
}


class TestRefusals:
    """What makes no sense is refused before any work, and the message says what to do."""

    @pytest.mark.parametrize("constraints", [None, Constraints(min_filters=2)])
    def test_nothing_says_how_much(self, constraints: Constraints | None) -> None:
        net = epruner.analyse(vgg(), IMAGE)
        for door in (lambda **o: epruner.prune(vgg(), IMAGE, **o), net.select):
            with pytest.raises(ValueError, match="how much should go") as error:
                door(constraints=constraints)
            for way in ("macs=", "params=", "budget=Budget(", "beta=", "recipe=", "n_filters="):
                assert way in str(error.value)

    @pytest.mark.parametrize("first", WAYS)
    @pytest.mark.parametrize("second", WAYS)
    def test_two_ways_to_say_how_much(self, first: str, second: str) -> None:
        both = {name: WAYS[name] for name in (first, second)}
        net = epruner.analyse(vgg(), IMAGE)
        if first == second:
            net.select(**both)
            return
        with pytest.raises(ValueError, match="exclude each other; give one of them") as error:
            net.select(**both)
        assert first in str(error.value)
        assert second in str(error.value)

    @pytest.mark.parametrize(
        "options",
        [
            *({name: value} for name, value in WAYS.items()),
            {"layers": ["layer1"]},
            {"constraints": Constraints(n_filters={"layer1": 2})},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_a_recipe_with_what_it_sets_itself(self, options: dict[str, Any]) -> None:
        message = (
            "recipe sets layers and beta itself; give it without macs, params, latency, beta, "
            "budget, layers and n_filters"
        )
        with pytest.raises(ValueError, match=message):
            epruner.prune(networks.resnet20(), (1, 3, 32, 32), recipe="resnet56", **options)

    @pytest.mark.parametrize(
        ("parts", "error", "message"),
        [
            (("widest", "l1"), ValueError, "allocation must be one of 'exemplar', 'uniform'.*'wid"),
            ((3, "l1"), TypeError, "allocation must be one of .*got 3"),
            (("uniform", "l3"), ValueError, "importance must be one of .* or a function, got 'l3'"),
            (("uniform", None), TypeError, "importance must be one of .* or a function, got None"),
            (
                ("uniform", "l1", "colour"),
                ValueError,
                "features must be one of 'weights', 'losses', 'folded'",
            ),
            (("uniform", "l1", 3), TypeError, "features must be one of .* or a function, got 3"),
            (("uniform", "l1", "weights", "pray"), ValueError, "repair must be one of 'auto', 'no"),
            (("uniform", "l1", "weights", True), TypeError, "repair must be one of .*got True"),
        ],
        ids=str,
    )
    def test_parts_of_a_method(
        self, parts: tuple[Any, ...], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            Method(*parts)

    @pytest.mark.parametrize(
        ("values", "error", "message"),
        [
            ({"min_filters": -1}, ValueError, "min_filters must be a number .*or a share.*got -1"),
            ({"min_filters": 1.5}, ValueError, "min_filters must be .*got 1.5"),
            ({"min_filters": True}, ValueError, "min_filters must be .*got True"),
            ({"min_filters": "two"}, ValueError, "min_filters must be .*got 'two'"),
            ({"round_to": 0}, ValueError, "round_to must be an integer of at least 1, got 0"),
            ({"round_to": 2.0}, ValueError, "round_to must be an integer of at least 1, got 2.0"),
            ({"n_filters": 0.5}, TypeError, r"must map patterns .*got 0.5; .*\{\"\*\": \.\.\.\}"),
            ({"n_filters": [("a", 1)]}, TypeError, r"n_filters must map patterns .*\[\('a', 1\)\]"),
            (
                {"n_filters": {"a": 0}},
                ValueError,
                r"n_filters\['a'\] must be an integer of .*got 0",
            ),
            ({"n_filters": {"a": 1.5}}, ValueError, r"n_filters\['a'\] .* a share in .*got 1.5"),
            ({"n_filters": {"a": True}}, ValueError, r"n_filters\['a'\] must be .*got True"),
            ({"n_filters": {3: 1}}, TypeError, "n_filters must map names or patterns.*the key 3"),
        ],
        ids=str,
    )
    def test_constraints(
        self, values: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            Constraints(**values)

    @pytest.mark.parametrize(
        ("function", "share", "error", "message"),
        [
            ("bytes", 0.5, TypeError, "measure must be a function from a network .*got 'bytes'"),
            (len, 0.0, ValueError, r"share must be in \(0, 1\].*got 0.0"),
            (len, 2, ValueError, r"share must be in \(0, 1\].*got 2"),
            (len, None, ValueError, r"share must be in \(0, 1\].*got None"),
        ],
    )
    def test_budgets(self, function: Any, share: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            Budget(function, share)

    @pytest.mark.parametrize("network", ["untrained", "plain"])
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            *SHOWN,
            ({"method": "l1", "repair": "batchnorm"}, "repair='batchnorm' needs calibrate, "),
            ({"method": "l1", "repair": "distill"}, "repair='distill' needs calibrate, "),
            (
                {"method": Method("uniform", "l1", repair="batchnorm")},
                "repair='batchnorm' needs calibrate, ",
            ),
        ],
        ids=str,
    )
    def test_methods_where_nothing_can_be_shown(
        self, network: str, options: dict[str, Any], message: str
    ) -> None:
        model, inputs = UNSHOWN[network]()
        with pytest.raises(ValueError, match=message):
            epruner.prune(model, inputs, macs=0.5, **options)

    @pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning")
    @pytest.mark.parametrize("options", [options for options, _ in SHOWN], ids=str)
    def test_noise_will_do_for_others(self, options: dict[str, Any]) -> None:
        result = epruner.prune(vgg(), IMAGE, macs=0.5, **options)
        assert result.report.settings["evidence"] == "noise"
        assert result.report.repair is not None
        assert result.report.repair.inputs == "noise"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "l1", "repair": "batchnorm"}, "repair='batchnorm' .* or 'synthetic'"),
            ({"repair": "distill"}, "repair='distill' needs calibrate, .* or 'synthetic'"),
            (
                {"method": Method("uniform", "l1", repair="batchnorm"), "calibrate": "noise"},
                "repair='batchnorm' needs calibrate, .* or 'synthetic'",
            ),
            (
                {"calibrate": "images"},
                "calibrate must be inputs, 'noise' or 'synthetic', got 'images'",
            ),
            (
                {"method": "exemplars"},
                "method must be one of 'auto', 'exemplar', 'pa.*a Method",
            ),
            ({"repair": "pray"}, "repair must be one of 'auto', 'none', 'merge'.*got 'pray'"),
            (
                {"macs": None, "beta": 0.7, "method": METHODS["exemplar"]},
                "beta and recipe compare weights, not losses",
            ),
        ],
        ids=str,
    )
    def test_methods(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            epruner.prune(vgg(), IMAGE, **({"macs": 0.5} | options))

    @pytest.mark.parametrize("network", ["untrained", "plain"])
    def test_synthetic_inputs_where_nothing_is_remembered(self, network: str) -> None:
        model, inputs = UNSHOWN[network]()
        with pytest.raises(ValueError, match="this network has none that do; give a few hundred"):
            epruner.prune(model, inputs, macs=0.5, calibrate="synthetic")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"macs": 0.5, "method": 3}, "method must be one of 'auto', .* or a Method, got 3"),
            ({"macs": 0.5, "method": Method}, "or a Method, got <class"),
            ({"macs": 0.5, "method": None}, "method must be one of .*got None"),
            ({"macs": 0.5, "repair": 3}, "repair must be one of 'auto', .*got 3"),
            (
                {"macs": 0.5, "constraints": {"min_filters": 3}},
                r"constraints must be an epruner\.Constraints, got \{'min_filters': 3\}",
            ),
            (
                {"budget": (len, 0.5)},
                r"budget must be an epruner\.Budget\(measure, share\), got",
            ),
            ({"budget": 0.5}, r"budget must be an epruner\.Budget\(measure, share\), got 0.5"),
            ({"beta": {3: 0.7}}, "beta must map names or patterns of layers .*got the key 3"),
            ({"recipe": 56}, "recipe must be the name of a published row or a Recipe, got 56"),
            ({"recipe": ["resnet56"]}, "recipe must be the name of a published row"),
            ({"macs": 0.5, "calibrate": 3}, "calibrate must be a tensor of inputs or an iterable"),
        ],
        ids=str,
    )
    def test_wrong_types(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(TypeError, match=message):
            epruner.prune(vgg(), IMAGE, **options)

    def test_old_names_are_no_longer_arguments(self) -> None:
        prune: Any = epruner.prune
        for name in ("criterion", "widths", "descriptor", "compensate", "min_keep", "keep", "init"):
            with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
                prune(vgg(), IMAGE, macs=0.5, **{name: "l1"})

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"model": "vgg"}, TypeError, "model must be a torch.nn.Module, got str"),
            ({"small": "vgg"}, TypeError, r"small must be .*plan\.apply\(model\) gives, got str"),
            ({"plan": None}, TypeError, r"plan must be an epruner\.Plan, got NoneType"),
            ({"repair": "pray"}, ValueError, "repair must be one of 'auto', 'none', .*got 'pray'"),
            ({"repair": None}, TypeError, "repair must be one of .*got None"),
            ({"calibrate": None}, ValueError, "without calibration inputs repair needs inputs="),
            (
                {"calibrate": None, "repair": "merge"},
                ValueError,
                "without calibration inputs repair needs inputs=",
            ),
            ({"calibrate": "noise"}, ValueError, "without calibration inputs repair needs inputs="),
            (
                {"calibrate": None, "repair": "batchnorm", "inputs": IMAGE},
                ValueError,
                "repair='batchnorm' needs calibrate, a few hundred .* labels or 'synthetic'",
            ),
            (
                {"calibrate": "noise", "repair": "distill", "inputs": IMAGE},
                ValueError,
                "repair='distill' needs calibrate, a few hundred .* labels or 'synthetic'",
            ),
            ({"calibrate": []}, ValueError, "calibrate is empty: it must give at least one batch"),
            (
                {"calibrate": "images"},
                ValueError,
                "calibrate must be inputs, 'noise' or 'synthetic', got 'images'",
            ),
            ({"calibrate": b"images"}, TypeError, "calibrate must be a tensor .*got bytes"),
            ({"calibrate": 3}, TypeError, "calibrate must be a tensor .*got int"),
            ({"calibrate": [1, 2]}, TypeError, "batch 0 must be a tensor, a tuple .*got int"),
            (
                {"calibrate": [{"pixels": torch.zeros(3, 3, 16, 16)}]},
                ValueError,
                r"keys \['pixels'\], the model's inputs are \['x'\]; give inputs=",
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, dict) else None,
    )
    def test_repair(self, change: dict[str, Any], error: type[Exception], message: str) -> None:
        model, plan = vgg(), halved()
        given: dict[str, Any] = {"model": model, "small": plan.apply(model), "plan": plan}
        with pytest.raises(error, match=message):
            epruner.repair(**(given | {"calibrate": images()} | change))

    @pytest.mark.parametrize("network", ["untrained", "plain"])
    @pytest.mark.parametrize("repair", ["least_squares", "batchnorm", "distill"])
    def test_repair_where_nothing_can_be_shown(self, network: str, repair: str) -> None:
        model, inputs = UNSHOWN[network]()
        plan = epruner.analyse(model, inputs).select(macs=0.5)
        message = f"repair='{repair}' needs calibrate, a few hundred inputs without labels: nothing"
        with pytest.raises(ValueError, match=message):
            epruner.repair(model, plan.apply(model), plan, repair=repair, inputs=inputs)

    def test_repair_of_what_does_not_belong_together(self) -> None:
        model = vgg()
        net = epruner.analyse(model, IMAGE)
        plan, other = net.select(macs=0.5), net.select(macs=0.3)
        small = plan.apply(model)
        with pytest.raises(ValueError, match=r"small is not what plan makes of model: 'feat"):
            epruner.repair(model, small, other, calibrate=images())
        with pytest.raises(ValueError, match="apply it to a full-size model"):
            epruner.repair(small, model, plan, calibrate=images())

    def test_a_bar_is_put_away_after_a_refusal(self, capsys: pytest.CaptureFixture[str]) -> None:
        model = vgg()
        before = set(threading.enumerate())
        with terminal() as sent:
            with pytest.raises(ValueError, match="nothing in this model"):
                epruner.prune(model, IMAGE, macs=0.5, ignore=["*"], progress=True)
            with pytest.raises(TypeError, match="model must be"):
                epruner.analyse("vgg", IMAGE, progress=True)  # type: ignore[arg-type]
            epruner.analyse(model, IMAGE, progress=True)
            epruner.prune(model, IMAGE, macs=0.5, progress=True)
        for thread in set(threading.enumerate()) - before:
            thread.join(5)  # it has been told to end
        assert set(threading.enumerate()) <= before
        assert sent.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # cursor on, row gone
        assert not capsys.readouterr().out


class TestObjects:
    """Methods, constraints and budgets as values."""

    @pytest.mark.parametrize(
        ("thing", "attribute"),
        [(OWN, "repair"), (Constraints(), "round_to"), (WAYS["budget"], "share")],
        ids=["method", "constraints", "budget"],
    )
    def test_frozen(self, thing: Any, attribute: str) -> None:
        with pytest.raises(FrozenInstanceError):
            setattr(thing, attribute, getattr(thing, attribute))
        with pytest.raises(FrozenInstanceError):
            delattr(thing, attribute)
        assert hash(thing) == hash(copy.copy(thing))

    def test_constraints_do_not_follow_the_mapping_they_were_made_of(self) -> None:
        numbers: dict[str, int | float] = {"features": 0.5}
        constraints = Constraints(n_filters=numbers)
        numbers["features"] = 0
        assert constraints.n_filters == {"features": 0.5}
        assert constraints.to_dict()["n_filters"] is not constraints.n_filters

    @pytest.mark.parametrize(
        "thing",
        [
            *METHODS.values(),
            OWN,
            Constraints(),
            Constraints(0.25, 8, {"layer1.*": 3, "layer2": 0.5}),
            Constraints(min_filters=4),
        ],
        ids=repr,
    )
    def test_repr_is_code(self, thing: Method | Constraints) -> None:
        again = eval(repr(thing), {"Method": Method, "Constraints": Constraints})
        assert again == thing
        assert type(again) is type(thing)
        assert hash(again) == hash(thing)
        assert pickle.loads(pickle.dumps(thing)) == thing
        assert json.loads(json.dumps(thing.to_dict())) == thing.to_dict()
        assert type(thing)(**thing.to_dict()) == thing

    @pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning")
    @pytest.mark.parametrize(
        ("name", "method"),
        [
            ("exemplar", Method("exemplar", "exemplar", "losses", "auto")),
            ("paper", Method("exemplar", "exemplar", "weights", "none")),
            ("reconstruction", Method("reconstruction", "reconstruction", "weights", "auto")),
            ("l1", Method("uniform", "l1", "weights", "auto")),
            ("l2", Method("uniform", "l2", "weights", "auto")),
            ("fpgm", Method("uniform", "fpgm", "weights", "auto")),
            ("random", Method("uniform", "random", "weights", "auto")),
            ("fisher", Method("fisher", "fisher", "weights", "auto")),
        ],
    )
    def test_presets(self, name: str, method: Method) -> None:
        assert METHODS[name] == method
        assert len(METHODS) == 8
        labelled = [(images(), torch.arange(len(images())) % 10)]
        options: dict[str, Any] = {"params": 0.5, "calibrate": labelled}
        model = vgg()
        named, spelt = (epruner.prune(model, IMAGE, method=m, **options) for m in (name, method))
        assert named.plan == spelt.plan
        assert named.report.settings == spelt.report.settings
        assert_same_bits(named.model, spelt.model)

    @pytest.mark.parametrize("evidence", ["none", "noise", "synthetic", "inputs"])
    @pytest.mark.parametrize("exemplars", [False, True])
    def test_auto_is_settled_and_says_why(self, evidence: str, exemplars: bool) -> None:
        method, why = resolve("auto", None, evidence=evidence, exemplars=exemplars)
        repair = "merge" if evidence == "none" else "least_squares"
        if exemplars:
            expected = Method("exemplar", "exemplar", "weights", repair)
        elif evidence == "none":
            expected = Method("uniform", "l1", "weights", repair)
        else:
            expected = Method("reconstruction", "reconstruction", "weights", repair)
        assert method == expected
        assert why
        assert ("calibrate=" in why) == (evidence == "none" and not exemplars)
        for name, preset in METHODS.items():
            learns = {"reconstruction": ("none",), "fisher": ("none", "noise", "synthetic")}
            if evidence in learns.get(name, ()):
                with pytest.raises(ValueError, match=r"needs calibrate|calibrate inputs"):
                    resolve(name, None, evidence=evidence, exemplars=exemplars)
                continue
            settled, why = resolve(name, "none", evidence=evidence, exemplars=exemplars)
            by_weights = name == "exemplar" and (exemplars or evidence == "none")
            assert bool(why) == by_weights
            assert settled.features == ("weights" if by_weights else preset.features)
            assert settled.repair == "none"
            assert settled.importance == preset.importance
            assert settled.allocation == ("exemplar" if exemplars else preset.allocation)

    def test_noise_is_no_measure_of_statistics(self) -> None:
        for repair in ("batchnorm", "distill"):
            with pytest.raises(ValueError, match="'synthetic'"):
                resolve("l1", repair, evidence="noise", exemplars=False)
            assert resolve("l1", repair, evidence="synthetic", exemplars=False)[0].repair == repair


DEFAULTS: dict[str, dict[str, Any]] = {
    "macs": {"macs": 0.6},
    "params": {"params": 0.6},
    "budget": {"budget": WAYS["budget"]},
    "n_filters": {"constraints": Constraints(n_filters={"features.3": 0.5})},
    "beta": {"beta": 0.9},
}


@pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning")
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "untrained"])
@pytest.mark.parametrize("calibrate", [None, images()], ids=["", "calibrated"])
@pytest.mark.parametrize("goal", DEFAULTS)
def test_the_default_is_the_method_that_the_report_says(
    goal: str, calibrate: Tensor | None, trained: bool
) -> None:
    model = vgg() if trained else networks.Vgg().eval()
    options = {**DEFAULTS[goal], "calibrate": calibrate}
    found = epruner.prune(model, IMAGE, **options)
    settings = found.report.settings
    evidence = "inputs" if calibrate is not None else "noise" if trained else "none"
    names = ("uniform", "l1") if evidence == "none" else ("reconstruction",) * 2
    expected = Method(
        *(("exemplar",) * 2 if goal == "beta" else names),
        repair="merge" if evidence == "none" else "least_squares",
    )
    assert Method(**settings["method"]) == expected
    assert settings["evidence"] == evidence
    assert settings["why"]
    assert settings["why"] in str(found.report)
    by_reconstruction = expected.importance == "reconstruction"  # which compares no features
    assert ("weights compared" in found.report.method) == (not by_reconstruction)
    assert (found.report.repair is None) == (evidence == "none")
    spelt = epruner.prune(model, IMAGE, method=expected, **options)
    assert spelt.report.settings == {**settings, "why": None}
    assert spelt.plan == found.plan
    assert_same_bits(spelt.model, found.model)


def test_a_recipe_is_a_rule_of_exemplars() -> None:
    recipe = epruner.recipes.Recipe("own", 0.9, "residual", convs=(1,), blocks=9)
    model = stirred(networks.resnet20())
    result = epruner.prune(model, (1, 3, 32, 32), recipe=recipe)
    settings = result.report.settings
    assert Method(**settings["method"]) == Method("exemplar", "exemplar", repair="least_squares")
    assert settings["evidence"] == "noise"
    assert "recipe" in settings["why"]
    assert settings["recipe"] == "own"
    net = epruner.analyse(model, (1, 3, 32, 32))
    assert net.select(recipe=recipe) == result.plan
    assert net.select(recipe=recipe, method="paper") == result.plan


@pytest.mark.filterwarnings("ignore::epruner.pruning.errors.BudgetWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"macs": 0.6},
        {"params": 1},
        {"budget": WAYS["budget"], "method": OWN},
        {"beta": {"features": 0.7, "*.3": np.float64(0.9)}, "random_state": np.int64(3)},
        {
            "macs": 0.6,
            "method": Method("uniform", lambda c, n: np.arange(n), rows_of),
            "repair": "none",
            "constraints": Constraints(2, 2, {"features.3": 0.5}),
            "layers": ["features"],
            "ignore": ["features.0"],
            "scope": "all",
        },
    ],
    ids=["macs", "params", "budget", "beta", "all"],
)
def test_settings_are_json(options: dict[str, Any]) -> None:
    report = epruner.prune(vgg(), IMAGE, **options).report
    settings = report.settings
    assert json.loads(json.dumps(settings)) == settings
    constraints = options.get("constraints", Constraints())
    assert Constraints(**settings["constraints"]) == constraints
    assert set(settings["method"]) == {"allocation", "importance", "features", "repair"}
    assert "auto" not in settings["method"].values()
    for name in ("layers", "ignore", "scope"):
        assert name not in options or settings[name] == options[name]
    assert settings["random_state"] == options.get("random_state", 0)


def test_signatures() -> None:
    for function in (epruner.prune, epruner.analyse):
        parameters = inspect.signature(function).parameters
        assert list(parameters)[:2] == ["model", "inputs"]
        assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[2:])
        assert all(p.default is not p.empty for p in list(parameters.values())[2:])
    prune = inspect.signature(epruner.prune).parameters
    select = inspect.signature(epruner.analyse(vgg(), IMAGE).select).parameters
    assert prune["method"].default == "auto"
    assert set(prune) - set(select) == {"model", "inputs", "repair", "progress"}
    assert set(select) <= set(prune)
    assert all(select[name].default == prune[name].default for name in select)
    assert list(inspect.signature(epruner.repair).parameters)[:3] == ["model", "small", "plan"]


class TestBudgets:
    """What budgets promise, through the door."""

    def test_beside_given_numbers_they_are_shares_of_the_whole_network(self) -> None:
        model = vgg()
        constraints = Constraints(n_filters={"features.3": 4, "features.10": 4})
        result = epruner.prune(model, IMAGE, macs=0.2, constraints=constraints)
        assert 0.198 <= result.report.after.macs / result.report.before.macs <= 0.2
        with pytest.warns(BudgetWarning) as caught:
            result = epruner.prune(model, IMAGE, macs=0.9, constraints=constraints)
        left = result.report.after.macs / result.report.before.macs
        counts = {x.name: (x.before, x.after) for x in result.report.layers}
        assert all(b == a for name, (b, a) in counts.items() if name not in constraints.n_filters)
        assert counts["features.3"] == (16, 4)
        note = (
            f"the budget is 0.9 of the network; the closest met is {left:.4g}, with all that "
            "n_filters leaves free whole"
        )
        assert result.report.notes == (note,)
        assert str(caught[0].message) == note

    def test_any_measure_beside_given_numbers_is_of_the_whole_network(self) -> None:
        model = vgg()

        def size(network: nn.Module) -> float:
            return float(sum(p.numel() for p in network.parameters()))

        constraints = Constraints(n_filters={"features.14": 16})
        result = epruner.prune(model, IMAGE, budget=Budget(size, 0.5), constraints=constraints)
        assert 0.495 <= size(result.model) / size(model) <= 0.5

    @pytest.mark.parametrize("method", ["auto", "paper", "fpgm"])
    @pytest.mark.parametrize("share", [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    @pytest.mark.parametrize("kind", ["convolutions", "linear layers"])
    def test_two_layers_are_not_too_coarse(self, kind: str, share: float, method: str) -> None:
        torch.manual_seed(0)
        model: nn.Module
        inputs: tuple[int, ...]
        if kind == "convolutions":
            inputs = (1, 3, 8, 8)
            model = nn.Sequential(
                nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
            )  # fmt: skip
        else:
            inputs = (1, 3)
            model = nn.Sequential(
                nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)
            )
        result = epruner.prune(model, inputs, macs=share, method=method)
        after, before = (
            measure(network, as_arguments(network, inputs)[0]).macs
            for network in (result.model, model)
        )
        assert 0.99 * share <= after / before <= share
        assert not result.report.notes

    @pytest.mark.filterwarnings("ignore::epruner.pruning.errors.BudgetWarning")
    @pytest.mark.parametrize("share", [0.9, 0.8, 0.6, 0.5, 0.4, 0.3])
    @pytest.mark.parametrize("layers", [None, ["reduce"], ["reduce", "squeeze"]], ids=str)
    def test_what_reconstruction_cannot_rank_meets_them_where_anything_does(
        self, layers: list[str] | None, share: float
    ) -> None:
        model, inputs, calibrate = made("grouped-se")
        result = epruner.prune(model, inputs, macs=share, layers=layers, calibrate=calibrate)
        assert result.report.settings["method"]["allocation"] == "reconstruction"
        assert any("the channels cannot be measured for " in n for n in result.report.notes)
        net = epruner.analyse(model, inputs)
        groups = [g for g in net.groups if not g.stream and (not layers or g.name in layers)]
        sizes = Sizes(net.costs, groups)
        numbers = product(*(range(g.blocks, g.channels + 1, g.blocks) for g in groups))
        names = [g.name for g in groups]
        possible = [sizes.totals(dict(zip(names, n, strict=True))).macs for n in numbers]
        wanted, after = share * result.report.before.macs, result.report.after.macs
        best = max([macs for macs in possible if macs <= wanted], default=min(possible))
        assert min(best, 0.99 * wanted) <= after <= max(best, wanted)
        warned = any("the budget is" in note for note in result.report.notes)
        assert warned == (not 0.99 * wanted <= best <= wanted)

    @pytest.mark.parametrize("method", ["auto", "paper"])
    def test_a_little_too_much_is_not_met(self, method: str) -> None:
        model = vgg()
        half = Constraints(min_filters=0.5)
        net = epruner.analyse(model, IMAGE)
        floors = Constraints(n_filters={"*": 0.5})
        least = measure(net.select(constraints=floors).apply(model), (images(1),)).macs
        share = least / net.costs.totals().macs
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            epruner.prune(model, IMAGE, macs=share * 1.002, method=method, constraints=half)
        with pytest.warns(BudgetWarning, match="at their floors"):
            epruner.prune(model, IMAGE, macs=share * 0.995, method=method, constraints=half)

    def test_warnings_point_at_who_asked(self) -> None:
        model = vgg()
        net = epruner.analyse(model, IMAGE)
        floors = Constraints(min_filters=0.9)
        with pytest.warns(BudgetWarning) as by_prune:
            epruner.prune(model, IMAGE, macs=0.1, constraints=floors)
        with pytest.warns(BudgetWarning) as by_select:
            net.select(macs=0.1, constraints=floors)
        assert [w.filename for w in (*by_prune, *by_select)] == [__file__] * 2
        assert str(by_prune[0].message) == str(by_select[0].message)


@pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning")
@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("network", ["vgg", "grouped-se", "residual", "bert"])
def test_nothing_of_the_network_and_the_world_is_touched(network: str, scope: str) -> None:
    model, inputs, calibrate = made(network)
    model.train()
    modules = dict(model.named_modules())
    for module in list(modules.values())[::3]:
        module.training = False
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    last = [p for p in model.parameters() if p.requires_grad][-1]
    last.grad = torch.ones_like(last)
    first = next(m for m in modules.values() if isinstance(m, (nn.Conv2d, nn.Linear)))
    first.register_forward_hook(lambda module, args, output: None)
    first.register_forward_pre_hook(lambda module, args: None)

    def look() -> dict[str, Any]:
        return {
            "modules": [(name, id(m), m.training) for name, m in model.named_modules()],
            "tensors": [
                (name, id(t), t.data_ptr(), t._version, t.requires_grad, id(t.grad))
                for name, t in (*model.named_parameters(), *model.named_buffers())
            ],
            "hooks": {
                name: [dict(getattr(m, kind)) for kind in vars(m) if kind.endswith("hooks")]
                for name, m in model.named_modules()
            },
            "attributes": {name: set(vars(m)) for name, m in model.named_modules()},
        }

    before, bits = look(), copy.deepcopy(model.state_dict())
    batches = copy.deepcopy(calibrate)
    draws = torch.get_rng_state().clone(), draws_of_numpy()
    grad = torch.is_grad_enabled()
    results = [epruner.prune(model, inputs, macs=0.6, scope=scope, calibrate=calibrate)]
    results += [epruner.prune(model, inputs, beta=0.9, scope=scope)]
    plan = epruner.analyse(model, inputs).select(macs=0.6, scope=scope)
    small = plan.apply(model)
    epruner.repair(model, small, plan, calibrate=calibrate)
    epruner.repair(model, small, plan, inputs=inputs)
    assert look() == before
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, bits[name]), name
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert draws_of_numpy() == draws[1]
    assert torch.is_grad_enabled() == grad
    if isinstance(calibrate, Tensor):
        assert torch.equal(calibrate, batches)
    for result in results:  # and the small network is in the same modes
        assert {n: m.training for n, m in result.model.named_modules()} == {
            name: training for name, _, training in before["modules"]
        }
        assert {n: p.requires_grad for n, p in result.model.named_parameters()}.items() >= {
            n: p.requires_grad for n, p in model.named_parameters()
        }.items()
