"""The whole way on a trained network, judged on images that neither it nor any repair has seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from digits import SHAPE
from problems import judge
from processes import in_a_process
from sklearn.cluster import AffinityPropagation
from test_surgery import check_exact
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import epruner
from epruner.cluster import backends
from epruner.cluster.similarity import median_preference, negative_squared_distances
from epruner.cluster.types import Options
from epruner.pruning.network.filters import filter_matrix

if TYPE_CHECKING:
    from digits import Digits


def macs(network: nn.Module) -> int:
    """Multiply-adds of one image, by torch's own counter."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.eval()(torch.zeros(SHAPE))
    return counter.get_total_flops() // 2


def test_it_is_trained(digits: Digits) -> None:
    assert digits.accuracy(digits.network()) > 0.97


@pytest.mark.parametrize("beta", [0.76, 2.0, 5.0])
def test_the_published_rule_keeps_scikit_learns_exemplars(digits: Digits, beta: float) -> None:
    network = digits.network()
    constraints = epruner.Constraints(min_filters=0)
    result = epruner.prune(network, SHAPE, beta=beta, method="paper", constraints=constraints)
    compared = 0
    for layer in result.report.layers:
        if not layer.converged:
            continue
        rows = filter_matrix(network.get_submodule(layer.name)).astype(np.float64)
        similarities = -((rows[:, None] - rows[None]) ** 2).sum(-1)
        theirs = AffinityPropagation(
            affinity="precomputed",
            preference=beta * np.median(similarities, axis=0),
            random_state=0,
        ).fit(similarities)
        compared += 1
        np.testing.assert_array_equal(
            result.kept[layer.name], sorted(theirs.cluster_centers_indices_)
        )
    assert compared >= 3


@pytest.mark.parametrize("backend", ["native", "dense", "numba"])
def test_solvers_agree_on_its_filters(digits: Digits, backend: str) -> None:
    if backend == "numba":
        pytest.importorskip("numba", reason="the numba solver needs its extra")
    compared = 0
    for module in digits.network().modules():
        if not isinstance(module, nn.Conv2d) or module.in_channels == 1:
            continue
        S = negative_squared_distances(filter_matrix(module))
        p = median_preference(S, 2.0)
        p *= (1 + 1e-3 * np.random.default_rng(0).normal(size=p.size)).astype(p.dtype)
        expected = judge(S, p, lambda seed: Options(seed=seed))
        if expected.is_exemplar is None:
            continue
        compared += 1
        for threads in (1, 2):
            found = backends.get(backend)(S, p, Options(n_threads=threads))
            np.testing.assert_array_equal(found.is_exemplar, expected.is_exemplar)
    assert compared >= 5


@pytest.mark.parametrize("scope", ["inner", "all"])
def test_slicing_does_what_silencing_does(digits: Digits, scope: str) -> None:
    network = digits.network()
    result = epruner.prune(network, SHAPE, macs=0.5, method="paper", scope=scope)
    check_exact(network, digits.test_images[:100], result)


@pytest.mark.parametrize("share", [0.7, 0.5, 0.4])
@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("method", ["auto", "paper"])
def test_budgets_are_met_by_torchs_own_count(
    digits: Digits, share: float, scope: str, method: str
) -> None:
    network = digits.network()
    result = epruner.prune(network, SHAPE, macs=share, scope=scope, method=method)
    assert 0.99 * share <= macs(result.model) / macs(network) <= share
    assert result.report.notes == ()


def test_a_budget_on_parameters(digits: Digits) -> None:
    network = digits.network()
    result = epruner.prune(network, SHAPE, params=0.5)
    before, after = (sum(p.numel() for p in n.parameters()) for n in (network, result.model))
    assert 0.495 <= after / before <= 0.5


@pytest.mark.parametrize("features", ["weights", "losses"])
@pytest.mark.parametrize("scope", ["inner", "all"])
def test_repair_brings_the_accuracy_back(digits: Digits, scope: str, features: str) -> None:
    network = digits.network()
    accuracy = {
        repair: digits.accuracy(
            epruner.prune(
                network,
                SHAPE,
                macs=0.5,
                scope=scope,
                calibrate=digits.train_images[:300],
                method=epruner.Method("exemplar", "exemplar", features),
                repair=repair,
            ).model
        )
        for repair in ("none", "batchnorm", "least_squares")
    }
    assert accuracy["none"] < (0.5 if features == "weights" else 0.8)
    assert accuracy["none"] < accuracy["batchnorm"] <= accuracy["least_squares"]
    assert accuracy["least_squares"] > digits.accuracy(network) - 0.02


def test_reconstruction_loses_less_than_equal_shares(digits: Digits) -> None:
    after = {}
    for allocation in ("uniform", "reconstruction"):
        report = epruner.prune(
            digits.network(),
            SHAPE,
            macs=0.4,
            method=epruner.Method(allocation, "reconstruction"),
            calibrate=digits.train_images[:200],
        ).report
        assert 0.98 * 0.4 * report.before.macs <= report.after.macs <= 0.4 * report.before.macs
        assert report.repair is not None
        after[allocation] = report.repair.after
    assert after["reconstruction"] < after["uniform"]


def test_a_saved_network_computes_the_same_bits_in_another_process(
    digits: Digits, tmp_path: Path
) -> None:
    result = epruner.prune(digits.network(), SHAPE, macs=0.5, scope="all")
    epruner.save(result, tmp_path / "small.safetensors")
    with torch.no_grad():
        torch.save(result.model.eval()(digits.test_images[:50]), tmp_path / "expected.pt")
    torch.save(digits.test_images[:50], tmp_path / "images.pt")
    code = (
        "import sys, torch\n"
        "import epruner\n"
        "from digits import DigitsResNet\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "images, expected = (torch.load(f, weights_only=True) for f in sys.argv[2:])\n"
        "with torch.no_grad():\n"
        "    found = epruner.load(DigitsResNet(), sys.argv[1]).eval()(images)\n"
        "sys.exit(not torch.equal(found, expected))\n"
    )
    files = [str(tmp_path / name) for name in ("small.safetensors", "images.pt", "expected.pt")]
    in_a_process(code, *files)


def test_no_image_is_needed_to_keep_the_accuracy(digits: Digits) -> None:
    network = digits.network()
    result = epruner.prune(network, SHAPE, macs=0.5)
    assert result.report.settings["evidence"] == "noise"
    assert digits.accuracy(result.model) > digits.accuracy(network) - 0.02
    merged = epruner.prune(network, SHAPE, macs=0.5, method="l1", repair="merge")
    assert digits.accuracy(merged.model) < 0.5


@pytest.mark.parametrize("repair", ["none", "auto"])
def test_fine_tuning_goes_on_from_it(digits: Digits, repair: str) -> None:
    result = epruner.prune(digits.network(), SHAPE, macs=0.5, repair=repair)
    data = torch.utils.data.TensorDataset(digits.train_images, digits.train_labels)
    loader = torch.utils.data.DataLoader(data, batch_size=64)
    before = digits.accuracy(result.model)
    epruner.finetune(result.model, loader, epochs=2, lr=1e-3, optimizer="adamw")
    after = digits.accuracy(result.model)
    assert after > (max(before, 0.9) if repair == "none" else before - 0.01)
