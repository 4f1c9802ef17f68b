"""Saving and loading pruned networks: the same bits back, or a clear error and nothing written."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from epruner._files import check_target
from epruner.pruning.graph.costs import Totals
from epruner.pruning.io.checkpoint import load, read, save
from epruner.pruning.plan.parts import ModulePlan
from epruner.pruning.plan.plan import Plan
from epruner.pruning.report.records import LayerReport
from epruner.pruning.report.report import Report

OUT = (0, 2, 5)
PLAN = Plan(
    {
        "0": ModulePlan(out=OUT, out_before=6),
        "1": ModulePlan(out=OUT, out_before=6),
        "3": ModulePlan(in_=OUT, in_before=6),
    }
)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1))


@dataclass
class Result:
    model: nn.Module
    plan: Plan
    report: Report


@pytest.fixture
def result() -> Result:
    totals = Totals(10, 5, 12)
    report = Report((LayerReport("0", "Conv2d", 6, 3, 0.7),), (), totals, totals, {"beta": 0.7})
    return Result(PLAN.apply(network()), PLAN, report)


def states_equal(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype and torch.equal(left[key], right[key]) for key in left
    )


def test_round_trip_gives_the_same_bits(tmp_path: Path, result: Result) -> None:
    fresh = network()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    save(result, tmp_path / "p.safetensors")
    loaded = load(fresh, tmp_path / "p.safetensors")
    assert states_equal(loaded, result.model)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(loaded.eval()(x), result.model.eval()(x))
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())


def test_header_holds_plan_and_report(tmp_path: Path, result: Result) -> None:
    save(result, tmp_path / "p.safetensors")
    saved = read(tmp_path / "p.safetensors")
    assert saved.plan == result.plan
    assert saved.report == result.report
    assert saved.shapes["0.weight"] == (3, 3, 3, 3)
    assert saved.dtypes["1.num_batches_tracked"] == "I64"
    save((result.model, result.plan), tmp_path / "q.safetensors")
    assert read(tmp_path / "q.safetensors").report is None


def test_settings_may_be_numpy_numbers(tmp_path: Path, result: Result) -> None:
    report = replace(result.report, settings={"beta": np.float32(0.5), "round_to": np.int64(8)})
    save(replace(result, report=report), tmp_path / "p.safetensors")
    saved = read(tmp_path / "p.safetensors").report
    assert saved is not None
    assert saved.settings == {"beta": 0.5, "round_to": 8}


def test_half_precision_and_layout_come_back(tmp_path: Path, result: Result) -> None:
    model = result.model.to(torch.bfloat16)
    weight = model.get_parameter("0.weight")
    weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    save((model, PLAN), tmp_path / "p.safetensors")
    loaded = load(network(), tmp_path / "p.safetensors")
    assert states_equal(loaded, model)
    assert loaded.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return model

    model = tied()
    save((model, Plan({})), tmp_path / "p.safetensors")
    loaded = load(tied(), tmp_path / "p.safetensors")
    assert states_equal(loaded, model)
    assert loaded.get_parameter("0.weight") is loaded.get_parameter("2.weight")
    assert "2.weight" not in read(tmp_path / "p.safetensors").shapes


def test_a_network_of_another_size_is_refused(tmp_path: Path, result: Result) -> None:
    save(result, tmp_path / "p.safetensors")
    wrong = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    with pytest.raises(ValueError, match="6"):
        load(wrong, tmp_path / "p.safetensors")
    wide = nn.Sequential(*network(), nn.Conv2d(4, 4, 1))
    with pytest.raises(ValueError, match=r"missing: 4\.weight, 4\.bias"):
        load(wide, tmp_path / "p.safetensors")


def test_files_not_written_by_save_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        read(file)
    torch.save(network().state_dict(), file)
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        read(file)
    save_file(network().state_dict(), file)
    with pytest.raises(ValueError, match=r"holds no pruning plan; .* epruner\.save"):
        read(file)
    save_file({"w": torch.zeros(1)}, file, {"format": "epruner 9"})
    with pytest.raises(ValueError, match="has format 'epruner 9'"):
        read(file)


@pytest.mark.parametrize(
    "damage",
    [
        {"plan": "{"},
        {"plan": '{"modules": 3}'},
        {"report": "[]"},
        {"report": "x"},
        {"aliases": '{"a": "absent"}'},
        {"aliases": "3"},
        {"channels_last": "3"},
        {"plan": "[" * 100_000},
    ],
    ids=lambda damage: f"{next(iter(damage))}",
)
def test_damaged_headers_are_refused(tmp_path: Path, damage: dict[str, str]) -> None:
    header = {"format": "epruner 1", "plan": PLAN.to_json()} | damage
    save_file({"w": torch.zeros(1)}, tmp_path / "p.safetensors", header)
    with pytest.raises(ValueError, match=r"header of .* is damaged"):
        read(tmp_path / "p.safetensors")


def test_missing_folder(tmp_path: Path, result: Result) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent; create it first"):
        save(result, tmp_path / "absent" / "p.safetensors")
    assert not any(tmp_path.iterdir())


def test_targets_that_are_no_files(tmp_path: Path) -> None:
    for target in (tmp_path, Path(os.devnull)):
        with pytest.raises(ValueError, match="not an ordinary file"):
            check_target(target)


def test_a_full_disk_keeps_the_old_file(
    tmp_path: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "p.safetensors"
    file.write_bytes(b"precious")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*No space left on device; nothing was"):
        save(result, file)
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]
    assert file.read_bytes() == b"precious"


def test_a_real_limit_on_file_size(tmp_path: Path, result: Result) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX limits on file size")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large; nothing was written"):
            save(result, tmp_path / "p.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(tmp_path.iterdir())


def test_an_interrupt_leaves_nothing(
    tmp_path: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(result, tmp_path / "p.safetensors")
    assert not any(tmp_path.iterdir())


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> object:
            return {"note": json}

    with pytest.raises(TypeError, match="'_extra_state': it is a dict, not a tensor"):
        save((Odd(2, 2), Plan({})), tmp_path / "p.safetensors")


def test_symbolic_links_are_followed(tmp_path: Path, result: Result) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save(result, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "real").plan == PLAN
