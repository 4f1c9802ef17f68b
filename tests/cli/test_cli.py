"""The command line: real runs, exit codes, and messages that say what to do."""

from __future__ import annotations

import json
import os
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from digits import SHAPE, DigitsResNet
from processes import in_a_process

from epruner.cli import options
from epruner.pruning.io.checkpoint import load, read
from epruner.pruning.io.weights import load_weights
from epruner.pruning.latency import layers, stopwatch
from epruner.pruning.options import ALLOCATIONS, METHODS, REPAIRS
from epruner.pruning.pipeline import prune
from epruner.pruning.select.features import FEATURES
from epruner.pruning.select.importance import IMPORTANCE
from examples.cifar_resnet import CifarResNet, resnet20, resnet56

if TYPE_CHECKING:
    from digits import Digits
    from processes import Run

RESNET20 = ["--model", "examples.cifar_resnet:resnet20", "--input-shape", "1,3,32,32"]


@pytest.mark.parametrize(
    ("name", "renaming"),
    [
        ("theo", ["--key-map", "conv=conv1", "--key-map", "bn=bn1"]),
        ("akamaster", ["--prefix-strip", "module."]),
    ],
)
@torch.no_grad()
def test_a_reloaded_file_computes_the_bits_of_the_process_that_pruned(
    run: Run, resnet_files: dict[str, Path], name: str, renaming: list[str]
) -> None:
    code, out, err = run(
        "prune", "--model", "examples.cifar_resnet:resnet56", "--weights", str(resnet_files[name]),
        *renaming, "--input-shape", "1,3,32,32", "--beta", "0.76",
        "--repair", "none", "--out", "p.safetensors",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "layer3.8.conv1" in out
    assert "wrote p.safetensors" in out

    model = resnet56()
    key_map = {"conv": "conv1", "bn": "bn1"} if name == "theo" else {}
    prefix = "module." if name == "akamaster" else ""
    load_weights(model, resnet_files[name], prefix_strip=prefix, key_map=key_map)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = prune(model, (1, 3, 32, 32), beta=0.76, repair="none").model.eval()(x)
    assert torch.equal(load(resnet56(), "p.safetensors").eval()(x), expected)


@torch.no_grad()
def test_trained_weights_are_pruned_repaired_and_reloaded(run: Run, digits: Digits) -> None:
    pixels = (255 * digits.train_images[:300]).round().byte()
    np.savez("train.npz", images=pixels.movedim(1, -1).numpy())
    code, out, err = run(
        "prune", "--model", "digits:DigitsResNet", "--weights", str(digits.weights),
        "--input-shape", "1,1,8,8", "--macs", "0.5", "--calibrate", "train.npz",
        "--mean", "0", "--std", "1", "--out", "p.safetensors",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "blocks.3.conv1" in out
    expected = prune(digits.network(), SHAPE, macs=0.5, calibrate=pixels / 255).model.eval()
    small = load(DigitsResNet(), "p.safetensors").eval()
    assert torch.equal(small(digits.test_images[:9]), expected(digits.test_images[:9]))
    assert digits.accuracy(small) > 0.95


@torch.no_grad()
def test_fisher_reads_the_labels_of_images(run: Run, digits: Digits) -> None:
    pixels = (255 * digits.train_images[:300]).round().byte()
    images = pixels.movedim(1, -1).numpy()
    np.savez("unlabelled.npz", images=images)
    np.savez("train.npz", images=images, labels=digits.train_labels[:300].numpy())
    words = [
        "prune", "--model", "digits:DigitsResNet", "--weights", str(digits.weights),
        "--input-shape", "1,1,8,8", "--macs", "0.5", "--method", "fisher",
        "--mean", "0", "--std", "1", "--out", "p.safetensors",
    ]  # fmt: skip
    code, _, err = run(*words, "--calibrate", "unlabelled.npz")
    assert code == 2
    assert "these images have no labels" in err
    assert run(*words, "--calibrate", "train.npz")[::2] == (0, "")
    pairs = [(pixels / 255, digits.train_labels[:300])]
    expected = prune(digits.network(), SHAPE, macs=0.5, method="fisher", calibrate=pairs)
    small = load(DigitsResNet(), "p.safetensors").eval()
    some = digits.test_images[:9]
    assert torch.equal(small(some), expected.model.eval()(some))


@torch.no_grad()
@pytest.mark.parametrize("more", [[], ["--calibrate", "noise"]], ids=["default", "by name"])
def test_trained_weights_are_repaired_without_images(
    run: Run, digits: Digits, more: list[str]
) -> None:
    code, out, err = run(
        "prune", "--model", "digits:DigitsResNet", "--weights", str(digits.weights),
        "--input-shape", "1,1,8,8", "--macs", "0.5", *more, "--json", "--out", "p.safetensors",
    )  # fmt: skip
    assert (code, err) == (0, "")
    settings = json.loads(out)["settings"]
    assert settings["evidence"] == "noise"
    assert settings["method"]["repair"] == "least_squares"
    expected = prune(digits.network(), SHAPE, macs=0.5).model.eval()
    small = load(DigitsResNet(), "p.safetensors").eval()
    assert torch.equal(small(digits.test_images[:9]), expected(digits.test_images[:9]))
    assert digits.accuracy(small) > 0.95


def test_threads_hold_for_the_call_only(run: Run) -> None:
    before = torch.get_num_threads()
    state = torch.random.get_rng_state()
    for threads in (before + 1, before + 2):
        code, _, err = run(*PRUNE, "--force", "--threads", str(threads))
        assert (code, err) == (0, "")
        assert torch.get_num_threads() == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert run(*PRUNE, "--force", "--threads", "1", "--weights", "absent.pth")[0] == 2
    assert torch.get_num_threads() == before


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version") == (0, f"epruner {version('epruner')}\n", "")


def test_json_is_the_report(run: Run) -> None:
    code, out, _ = run(*PRUNE, "--json", "--threads", "1")
    document = json.loads(out)
    assert code == 0
    assert document["out"] == "p.safetensors"
    assert document["bytes"] == Path("p.safetensors").stat().st_size
    saved = read("p.safetensors").report
    assert saved is not None
    assert document["layers"] == saved.to_dict()["layers"]


def test_options_reach_the_pruning(run: Run) -> None:
    code, out, err = run(
        "prune", *RESNET20, "--out", "p.safetensors", "--json", "--beta", "0.7",
        "--beta", "layer3=0.9", "--ignore", "layer1.*", "--n-filters", "layer2.0.conv1=8",
        "--min-filters", "10%", "--round-to", "2", "--features", "folded", "--repair", "none",
        "--seed", "3",
    )  # fmt: skip
    assert (code, err) == (0, "")
    document = json.loads(out)
    layers = {layer["name"]: layer for layer in document["layers"]}
    assert layers["layer2.0.conv1"]["after"] == 8
    assert layers["layer3.1.conv1"]["preference"] == 0.9
    assert layers["layer2.1.conv1"]["preference"] == 0.7
    assert not any(name.startswith("layer1") for name in layers)
    assert all(layer["after"] % 2 == 0 for layer in layers.values())
    settings = document["settings"]
    assert settings["constraints"]["min_filters"] == 0.1
    assert settings["method"] == {
        "allocation": "exemplar",
        "importance": "exemplar",
        "features": "folded",
        "repair": "none",
    }
    assert settings["random_state"] == 3


def test_options_name_what_there_is() -> None:
    assert set(options.PARTS["importance"]["choices"]) == {
        *IMPORTANCE,
        "reconstruction",
        "fisher",
    }
    assert options.PARTS["allocation"]["choices"] == ALLOCATIONS
    assert options.PARTS["features"]["choices"] == FEATURES
    assert options.REPAIR["choices"] == REPAIRS
    assert set(re.findall(r"\b\w+\b", options.METHOD["help"])) >= {"auto", *METHODS}


def test_budget_and_recipe(run: Run) -> None:
    code, out, _ = run("prune", *RESNET20, "--out", "p.safetensors", "--json", "--macs", "50%")
    document = json.loads(out)
    assert code == 0
    assert document["after"]["macs"] == pytest.approx(document["before"]["macs"] / 2, rel=0.01)
    code, _, err = run("prune", *RESNET20, "--out", "q.safetensors", "--recipe", "resnet56")
    assert code == 2
    assert "27 residual blocks" in err


@pytest.mark.filterwarnings("ignore:the budget is")  # others may be using the machine
def test_a_budget_of_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (stopwatch, layers):  # as few rounds as can be
        monkeypatch.setattr(module, "SECONDS", 0.0)
    monkeypatch.setattr(stopwatch, "TURN", 0.001)
    code, out, _ = run(
        "prune", *RESNET20, "--out", "p.safetensors", "--json", "--latency", "60%",
        "--threads", "1", "--method", "l1", "--repair", "none",
    )  # fmt: skip
    document = json.loads(out)
    assert code == 0
    assert document["settings"]["latency"] == 0.6
    assert document["timing"]["threads"] == 1
    assert document["after"]["macs"] < document["before"]["macs"]


def test_compare_puts_budgets_side_by_side(run: Run) -> None:
    arguments = ["compare", *RESNET20, "--macs", "0.7", "0.5", "--method", "exemplar", "l1"]
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    rows = [line.split()[:3] for line in out.splitlines()[2:6]]
    assert rows == [["macs", b, c] for b in ("0.7", "0.5") for c in ("exemplar", "l1")]
    code, out, _ = run(*arguments, "--json")
    runs = json.loads(out)["runs"]
    assert [(r["budget"], r["method"]) for r in runs] == [
        (f"macs {b}", c) for b in (0.7, 0.5) for c in ("exemplar", "l1")
    ]


def test_inspect_needs_no_model(run: Run) -> None:
    run("prune", *RESNET20, "--out", "p.safetensors", "--beta", "1.5")
    code, out, err = run("inspect", "p.safetensors")
    assert (code, err) == (0, "")
    assert "tensors (F32, I64)" in out
    assert "beta=1.5" in out
    assert "layer2.1.conv1" in out
    code, out, _ = run("inspect", "p.safetensors", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["tensors"]["conv1.weight"] == {"shape": [16, 3, 3, 3], "dtype": "F32"}
    assert document["plan"]["modules"]["layer2.1.conv1"]["out_before"] == 32


def test_plots(run: Run) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (extra plot)")
    heat = ["--plot-layer", "layer3.1.conv1=c.png"]
    code, _, _ = run(*PRUNE, "--method", "exemplar", "--plot", "a.png", *heat)
    assert code == 0
    assert Path("c.png").stat().st_size > 10_000
    assert run("inspect", "p.safetensors", "--plot", "b.svg")[0] == 0
    assert Path("a.png").stat().st_size > 10_000
    assert Path("b.svg").stat().st_size > 10_000


@torch.no_grad()
def test_export(run: Run) -> None:
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra test)")
    model = ["--model", "examples.cifar_resnet:CifarResNet", "--model-arg", "blocks=1"]
    shape = ["--input-shape", "1,3,32,32"]
    run("prune", *model, *shape, "--out", "p.safetensors", "--macs", "0.5")
    code, out, err = run(
        "export", "p.safetensors", *model, *shape, "--onnx", "m.onnx", "--pt2", "m.pt2"
    )
    assert (code, err) == (0, "")
    assert "m.onnx" in out
    x = torch.randn(3, 3, 32, 32)
    expected = load(CifarResNet(1), "p.safetensors").eval()(x)
    (got,) = ort.InferenceSession("m.onnx").run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-5, atol=1e-5)
    got = torch.export.load("m.pt2").module()(x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_current_folder_is_importable(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n"
        "def build(width, name='x'):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 2, 1))\n"
    )
    shape = ["--input-shape", "1,3,8,8", "--macs", "0.5", "--out", "p.safetensors", "--force"]
    code, out, err = run("prune", "--model", "my_net:build", "--model-arg", "width=12", *shape)
    assert (code, err) == (0, "")
    assert "12" in out
    code, _, err = run("prune", "--model", "my_net:build", *shape)
    assert code == 2
    assert "'width'; give its arguments with --model-arg" in err


PRUNE = ["prune", *RESNET20, "--macs", "0.5", "--out", "p.safetensors"]
MODEL = RESNET20[:2]


def but(option: str, *values: str) -> list[str]:
    """A prune command with other values for one of its options."""
    at = PRUNE.index(option)
    return [*PRUNE[: at + 1], *values, *PRUNE[at + 2 :]]


HOW_MUCH = [*PRUNE[:5], *PRUNE[7:]]  # without saying so


def beta(value: str) -> list[str]:
    """A prune command with a preference for its budget."""
    return [*HOW_MUCH, "--beta", value]


BAD_INPUT: list[tuple[list[str], str]] = [
    (["prune"], "required: --model, --input-shape, --out"),
    (["purne"], "invalid choice: 'purne'"),
    (but("--model", "examples.cifar_resnet.resnet20"), "write examples.cifar_resnet:resnet20, or"),
    (but("--model", "examples/cifar_resnet.py:resnet20"), "write examples.cifar_resnet:resnet20"),
    (but("--model", "absent.module:net"), "there is no module 'absent'"),
    (but("--model", "examples.cifar_resnet:resnet2"), "did you mean resnet20"),
    (but("--model", "examples.cifar_resnet:F"), "is a module, not a callable"),
    (but("--model", "builtins:dict"), "object of type dict, no torch network"),
    (but("--model", "torch.nn:Sequential"), "no convolution and no linear layer"),
    (but("--model", "torch.nn:ReLU"), "no convolution and no linear layer"),
    (but("--input-shape", "3x32x32"), "'3x32x32' is no shape"),
    (but("--input-shape", "1,3,0,32"), "is no shape"),
    (but("--input-shape", "1,3,32,32:float31"), "unknown type 'float31'"),
    (but("--input-shape", "1,4,32,32"), "the forward pass failed in module 'conv1'"),
    (but("--out", "absent/p.safetensors"), "create it first"),
    ([*PRUNE, "--weights", "absent.pth"], "no such file: absent.pth"),
    ([*PRUNE, "--weights", "text.pth"], "not a readable PyTorch checkpoint"),
    ([*PRUNE, "--weights", "other.pth"], "missing: conv1.weight, bn1.weight, bn1.bias and"),
    ([*PRUNE, "--prefix-strip", "module."], "are about --weights, which is missing"),
    ([*PRUNE, "--key-map", "conv"], "'conv' has no '='"),
    (beta("much"), "'much' is not a number"),
    (beta("-1"), "beta must be a positive number, got -1"),
    (HOW_MUCH, "how much should go? Give --macs, --params"),
    ([*PRUNE, "--method", "reconstruction"], "needs calibrate"),
    ([*PRUNE, "--repair", "distill"], "repair='distill' needs calibrate"),
    ([*PRUNE, "--calibrate", "synthetic"], "this network has none that do"),
    (beta("nan"), "'nan' is not a number"),
    ([*PRUNE, "--macs", "50"], "'50' is not in (0, 1]"),
    ([*PRUNE, "--macs", "0.5", "--beta", "0.7"], "not allowed with argument"),
    ([*PRUNE, "--layers", "layer9.*"], "'layer9.*' matches no convolution"),
    ([*PRUNE, "--ignore", "layer9.*"], "'layer9.*' matches no convolution"),
    ([*PRUNE, "--min-filters", "x"], "'x' is not a number"),
    ([*PRUNE, "--round-to", "0"], "'0' is not a positive integer"),
    ([*PRUNE, "--method", "l3"], "method must be one of 'auto', 'exemplar'"),
    (
        [*PRUNE[:5], *PRUNE[7:], "--recipe", "resnet57"],
        "no published recipe 'resnet57'; there are vgg16",
    ),
    ([*PRUNE, "--threads", "none"], "'none' is not a positive integer"),
    ([*PRUNE, "--plot", "p.docx"], "suffix must be one of"),
    (
        [*PRUNE, "--method", "exemplar", "--plot-layer", "linear=p.png"],
        "'linear' was not clustered; layers",
    ),
    ([*PRUNE, "--plot-layer", "layer1.0.conv1=p"], "suffix must be one of"),
    ([*PRUNE, "--plot", "absent/p.png"], "create it first"),
    (["inspect"], "required: FILE"),
    (["inspect", "absent.safetensors"], "no such file"),
    (["inspect", "other.pth"], "not a readable safetensors file"),
    (["export", "absent.safetensors", *RESNET20], "nothing to write: give --onnx FILE"),
    (["export", "absent.safetensors", *RESNET20, "--onnx", "m.onnx"], "no such file"),
    (["export", "other.pth", *RESNET20, "--onnx", "no/m.onnx"], "create it first"),
    (["compare", *RESNET20], "nothing to compare"),
    (["compare", *RESNET20, "--macs", "0.5", "2"], "'2' is not in (0, 1]"),
    (["compare", *RESNET20, "--macs", "0.5", "--method", "l7"], "method must be one of"),
    (["demo", "--seeds", "3"], "epruner demo: error: unrecognized arguments: --seeds 3"),
    (["demo", "--out", os.devnull], "not an ordinary file"),
    (["inspect", "."], ". is a folder"),
    (["demo", "--seed", "x"], "invalid int value: 'x'"),
    (["demo", "--out", "absent/p.safetensors"], "create it first"),
    (["demo", "--threads", "-1"], "'-1' is not a positive integer"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=lambda v: str(v)[-50:])
def test_bad_input_is_one_clear_line(
    run: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "text.pth").write_text("these are not the weights")
    torch.save({"w": torch.zeros(1)}, tmp_path / "other.pth")
    code, out, err = run(*arguments)
    assert message in err
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.pth", "text.pth"]


def test_a_file_that_is_there_is_overwritten_only_by_force(run: Run, tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_text("mine")
    code, out, err = run(*PRUNE)
    assert (code, out) == (2, "")
    assert "p.safetensors is there already; --force overwrites it" in err
    assert (tmp_path / "p.safetensors").read_text() == "mine"
    assert run(*PRUNE, "--plot", "p.safetensors")[0] == 2
    assert run(*PRUNE, "--force")[0] == 0
    assert read("p.safetensors").plan.modules
    for command in (
        ["export", "p.safetensors", *RESNET20, "--pt2", "p.safetensors"],
        ["demo", "--out", "p.safetensors"],
    ):
        code, _, err = run(*command)
        assert (code, "--force overwrites it" in err) == (2, True)


def test_no_file_is_written_twice_or_over_what_is_read(run: Run, tmp_path: Path) -> None:
    torch.save(resnet20().state_dict(), tmp_path / "w.pth")
    (tmp_path / "a.png").write_text("mine")
    heat = ["--method", "exemplar", "--plot-layer", "layer3.1.conv1=a.png"]
    for more in (
        ["--plot", "p.safetensors"],
        ["--weights", "w.pth", "--out", "w.pth", "--force"],
        [*heat, "--plot-layer", "layer3.1.conv1=b.png"],
    ):
        code, _, err = run(*PRUNE, *more)
        assert code == 2, more
        assert "named twice" in err or "suffix must be" in err or "--force overwrites" in err
    assert (tmp_path / "a.png").read_text() == "mine"
    load_weights(resnet20(), tmp_path / "w.pth")
    code, _, err = run(*PRUNE, "--plot-layer", "layer3.1.conv1=c.png")
    assert (code, "as --method exemplar makes them" in err) == (2, True)


@pytest.mark.filterwarnings("default::epruner.pruning.errors.BudgetWarning")
def test_a_missed_budget_is_said_on_standard_error(run: Run) -> None:
    code, _, err = run(*but("--macs", "0.02"))
    assert code == 0
    assert "epruner: warning: the budget is 0.02 of the network" in err


def test_a_malicious_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, ("trap",)

    torch.save({"state_dict": Trap()}, tmp_path / "w.pth")
    code, _, err = run(*PRUNE, "--weights", "w.pth")
    assert code == 2
    assert "pickled code (posix.mkdir)" in err
    assert not Path("trap").exists()


def test_a_wrong_folder_is_found_before_the_work(run: Run) -> None:
    start = time.perf_counter()
    code, _, err = run("prune", "--model", "absent:x", "--input-shape", "1", "--out", "no/p")
    assert code == 2
    assert "cannot write no/p" in err
    assert time.perf_counter() - start < 1


def test_a_full_disk_is_no_input_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, out, err = run(*PRUNE)
    assert (code, out) == (1, "")
    assert "No space left on device; nothing was written" in err
    assert err.count("\n") == 1
    assert not any(Path.cwd().iterdir())


def test_an_unforeseen_failure_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("epruner.pruning.pipeline.prune", broken)
    code, _, err = run(*PRUNE)
    assert code == 1
    assert err == "epruner prune: error: RuntimeError: two lines (--traceback shows where)\n"
    assert "in broken" in run(*PRUNE, "--traceback")[2]


def test_help_is_quick_and_imports_no_torch() -> None:
    program = (
        "import sys; from epruner.cli import parser; parser().format_help();"
        "print([m for m in ('torch', 'numpy', 'sklearn') if m in sys.modules])"
    )
    assert in_a_process(program) == "[]"


def test_an_interrupt_is_quiet(run: Run, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it\n"
        "signal.raise_signal(signal.SIGINT)\n"
    )
    code, out, err = run(
        "prune", "--model", "slow:x", "--input-shape", "1", "--out", "p.safetensors"
    )
    assert (code, out, err) == (130, "", "")
    assert not (tmp_path / "p.safetensors").exists()
