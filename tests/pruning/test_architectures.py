"""Whole networks as people write them: what is found, and that slicing is silencing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import CASES
from networks import difference
from torch import Tensor, nn

from epruner.pruning import PruningResult, analyse, load, prune, save
from epruner.pruning.analysis import Analysis
from epruner.pruning.io.export import export_onnx

TOLERANCE = 1e-5
TOO_COARSE = pytest.mark.filterwarnings("ignore:the budget is")


@cache
def analysed(name: str) -> tuple[nn.Module, Analysis]:
    """A network and its analysis, which several tests read."""
    model = CASES[name].network()
    return model, analyse(model, CASES[name].inputs)


@cache
def halved(name: str) -> PruningResult:
    """Cut to half of its multiply-adds, as they are: no repair."""
    model, analysis = analysed(name)
    return prune(model, analysis, macs=0.5, method="l1", repair="none")


@torch.no_grad()
def run(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Every output by name."""
    if isinstance(inputs, dict):
        output = model(**inputs)
    else:
        output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return output if isinstance(output, dict) else {"": output}


def zeroed(dropped: Tensor, dim: int) -> Callable[[nn.Module, Any], Any]:
    """A hook before a module: these channels of what it reads are zero."""

    def hook(_: nn.Module, args: Any) -> Any:
        return (args[0].index_fill(dim, dropped, 0), *args[1:])

    return hook


def others(kept: tuple[int, ...], before: int) -> Tensor:
    """The channels that do not stay."""
    return torch.tensor(sorted(set(range(before)) - set(kept)), dtype=torch.long)


def silenced(model: nn.Module, result: PruningResult) -> nn.Module:
    """The full network, in which nothing reads what the plan drops.

    Readers are layers (their inputs are zeroed), recurrent layers themselves (the next step reads
    a unit of the last one), and the projection inside torch's attention.
    """
    full = copy.deepcopy(model)
    modules = dict(full.named_modules())
    for name, part in result.plan.modules.items():
        module: Any = modules.get(name)
        if part.in_ is not None and part.in_before is not None:
            dim = 1 if isinstance(module, nn.modules.conv._ConvNd) else -1
            module.register_forward_pre_hook(zeroed(others(part.in_, part.in_before), dim))
        if isinstance(module, nn.RNNBase) and part.out is not None and part.out_before is not None:
            # units of the first direction, then of the second
            for unit in others(part.out, part.out_before).tolist():
                backwards, column = divmod(unit, module.hidden_size)
                recurrent = getattr(module, "weight_hh_l0" + "_reverse" * backwards)
                recurrent.data[:, column] = 0
    for name, module in modules.items():
        if isinstance(module, nn.MultiheadAttention):
            # what stays is known by its values: nothing was repaired
            left = result.model.get_submodule(name).out_proj.weight.unbind(1)  # type: ignore[union-attr, operator]
            for column in module.out_proj.weight.data.unbind(1):
                if not any(torch.equal(column, other) for other in left):
                    column.zero_()
    return full


def missing(name: str) -> set[str]:
    """Patterns of units that the analysis did not find as the case states them."""
    model, analysis = analysed(name)
    channels = {p.module: g.channels for g in analysis.groups for p in g.producers}
    names = {name for name, _ in model.named_modules()} | set(channels)
    found = set()
    for pattern, units in CASES[name].units.items():
        layers = [name for name in names if fnmatch(name, pattern)]
        assert layers, f"{pattern!r} names nothing"
        if not all(
            layer in channels and channels[layer] == (units or channels[layer]) for layer in layers
        ):
            found.add(pattern)
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_belongs_together_is_found(name: str) -> None:
    assert not missing(name)


@TOO_COARSE
@pytest.mark.parametrize("name", CASES)
def test_slicing_is_silencing(name: str) -> None:
    model, _ = analysed(name)
    result = halved(name)
    assert result.report.after.macs < result.report.before.macs
    got, whole = run(result.model, CASES[name].inputs), run(model, CASES[name].inputs)
    expected = run(silenced(model, result), CASES[name].inputs)
    for key in whole:
        assert difference(got[key], expected[key]) <= TOLERANCE
    assert any(difference(got[key], whole[key]) > 1e-2 for key in whole)


@TOO_COARSE
@pytest.mark.parametrize("name", CASES)
def test_half_of_the_multiply_adds_can_go(name: str) -> None:
    report = halved(name).report
    assert report.after.macs <= 0.5 * report.before.macs


@TOO_COARSE
@pytest.mark.parametrize("name", CASES)
def test_the_saved_network_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    result = halved(name)
    save(result, tmp_path / "small.safetensors")
    fresh = CASES[name].make().eval()
    loaded = load(fresh, tmp_path / "small.safetensors")
    expected = run(result.model, CASES[name].inputs)
    for key, value in run(loaded, CASES[name].inputs).items():
        assert torch.equal(value, expected[key])


@pytest.mark.slow
@TOO_COARSE
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_onnx_computes_the_same(name: str, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra test)")
    inputs, small = CASES[name].inputs, halved(name).model
    export_onnx(small, inputs, tmp_path / "small.onnx")
    session = ort.InferenceSession(tmp_path / "small.onnx")
    given = inputs.values() if isinstance(inputs, dict) else inputs
    given = given if isinstance(inputs, dict | tuple) else (inputs,)
    names = [entry.name for entry in session.get_inputs()]
    got = session.run(None, {n: x.numpy() for n, x in zip(names, given, strict=True)})
    for value, expected in zip(got, run(small, inputs).values(), strict=True):
        assert difference(torch.from_numpy(value), expected) <= TOLERANCE
