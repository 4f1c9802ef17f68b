"""Plain PyTorch checkpoints: what loads, what is refused, what the message says."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import epruner
from epruner.pruning.io.weights import load_weights, rename
from examples.cifar_resnet import resnet20, resnet56


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "best": 0.93},
        lambda s: {"model": s, "optimizer": {"state": {}}},
        lambda s: {"model": {"state_dict": s}},
    ],
    ids=["bare", "state_dict", "model", "twice"],
)
def test_nested_checkpoints_load(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    source, target = network(), network()
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert same(source, target)


def test_safetensors_load(tmp_path: Path) -> None:
    source, target = network(), network()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert same(source, target)


def test_batch_counters_may_be_absent(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "w.pth")
    load_weights(network(), tmp_path / "w.pth")


def test_prefix_and_key_map(tmp_path: Path) -> None:
    source, target = network(), network()
    state = {"module.a." + key: value for key, value in source.state_dict().items()}
    state = {key.replace("a.3", "head"): value for key, value in state.items()}
    torch.save(state, tmp_path / "w.pth")
    load_weights(
        target, tmp_path / "w.pth", prefix_strip="module.", key_map={"a.*": "*", "head": "3"}
    )
    assert same(source, target)


def test_key_map_renames_whole_parts_only() -> None:
    keys = ["conv.weight", "conv1.weight", "layer1.0.conv.weight"]
    state = {key: torch.zeros(1) for key in keys}
    assert list(rename(state, "", {"conv": "stem"})) == ["stem.weight", *keys[1:]]
    starred = rename(state, "", {"*.*.conv": "*.b*.c"})
    assert list(starred) == [*keys[:2], "layer1.b0.c.weight"]


@pytest.mark.parametrize(
    ("prefix", "key_map", "message"),
    [
        ("modul.", {}, "no key starts with 'modul.'"),
        ("", {"stem": "conv1"}, "key map 'stem' matches no key; the keys are a.w, b.w"),
        ("", {"a": "b"}, "two keys become 'b.w'"),
        ("", {"*": "b"}, "both sides need as many"),
    ],
)
def test_bad_renaming(prefix: str, key_map: dict[str, str], message: str) -> None:
    state = {"a.w": torch.zeros(1), "b.w": torch.zeros(1)}
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        rename(state, prefix, key_map)


def test_first_three_mismatching_keys_are_named(tmp_path: Path) -> None:
    torch.save(resnet56().state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="0 keys missing, 216 unexpected") as error:
        load_weights(resnet20(), tmp_path / "w.pth")
    message = str(error.value)
    assert "layer1.3.conv1.weight, layer1.3.bn1.weight, layer1.3.bn1.bias and 213 more" in message
    assert "layer1.3.bn1.running_mean" not in message


def test_shapes_are_named(tmp_path: Path) -> None:
    torch.save(resnet20(classes=100).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"linear.weight is \(100, 64\) in the file and \(10"):
        load_weights(resnet20(), tmp_path / "w.pth")


def test_a_forgotten_prefix_is_suggested(tmp_path: Path) -> None:
    state = {"module." + key: value for key, value in network().state_dict().items()}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"--prefix-strip module\."):
        load_weights(network(), tmp_path / "w.pth")


def test_renamed_modules_are_suggested(tmp_path: Path) -> None:
    state = {key.replace("3.", "head."): value for key, value in network().state_dict().items()}
    torch.save({key.replace("0.", "stem."): value for key, value in state.items()}, tmp_path / "w")
    with pytest.raises(ValueError, match=r"perhaps --key-map stem=0 --key-map head=3$"):
        load_weights(network(), tmp_path / "w")


class _RunsCode:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("writer", ["torch", "pickle", "legacy"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    trap, file = tmp_path / "trap", tmp_path / "w.pth"
    content = {"state_dict": {"w": torch.zeros(1)}, "x": _RunsCode(trap)}
    if writer == "pickle":
        file.write_bytes(pickle.dumps(_RunsCode(trap), protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(ValueError, match=r"refused, .* pickled code \(posix.mkdir"):
        load_weights(network(), file)
    assert not trap.exists()


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="save its state_dict"):
        load_weights(network(), tmp_path / "w.pth")


@pytest.mark.parametrize("content", [b"", b"hello world" * 9, b"PK\x03\x04" + bytes(99)])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_unreadable_files(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="not a readable"):
        load_weights(network(), tmp_path / name)


def test_truncated_file(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    torch.save(network().state_dict(), file)
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        load_weights(network(), file)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_weights(network(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="is a folder"):
        load_weights(network(), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [([1, 2], "holds a list"), ({"epoch": 3}, "holds no tensors; its entries are epoch")],
)
def test_files_without_weights(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        load_weights(network(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "prefix", "key_map"),
    [
        ("akamaster", "module.", {}),
        ("theo", "", {"conv": "conv1", "bn": "bn1"}),
    ],
)
def test_real_checkpoints_fit_one_definition(
    resnet_files: dict[str, Path], name: str, prefix: str, key_map: dict[str, str]
) -> None:
    load_weights(resnet56(), resnet_files[name], prefix_strip=prefix, key_map=key_map)


@pytest.mark.parametrize("name", ["model_state", "params_ema", "ema", "generator"])
def test_usual_entries_are_opened(name: str, tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    torch.save({"epoch": 3, name: model.state_dict()}, tmp_path / "w.pth")
    fresh = nn.Linear(3, 2)
    load_weights(fresh, tmp_path / "w.pth")
    assert torch.equal(fresh.weight, model.weight)


def test_an_entry_can_be_named(tmp_path: Path) -> None:
    models = [nn.Linear(3, 2) for _ in range(3)]
    states = [model.state_dict() for model in models]
    nested = {"ema": states[0], "mine": states[1], "all": {"critic": states[2]}}
    torch.save(nested, tmp_path / "w.pth")
    for entry, model in ((None, models[0]), ("mine", models[1]), ("all/critic", models[2])):
        fresh = nn.Linear(3, 2)
        load_weights(fresh, tmp_path / "w.pth", entry=entry)
        assert torch.equal(fresh.weight, model.weight)
    with pytest.raises(ValueError, match="no entry 'all/actor'; at 'actor' there are critic"):
        load_weights(nn.Linear(3, 2), tmp_path / "w.pth", entry="all/actor")


def test_what_is_no_checkpoint_of_weights_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match=r"empty\.pth is not a readable checkpoint: it is empty"):
        load_weights(nn.Linear(3, 2), tmp_path / "empty.pth")
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    epruner.save(epruner.prune(net, (1, 4), macs=0.5), tmp_path / "small.safetensors")
    with pytest.raises(ValueError, match=r"pruned network written by epruner\.save"):
        load_weights(net, tmp_path / "small.safetensors")


def test_entries_without_tensors_are_passed_over(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    state = {"ema": {"decay": 0.9, "steps": 3}, "model": model.state_dict()}
    torch.save(state, tmp_path / "w.pth")
    fresh = nn.Linear(3, 2)
    load_weights(fresh, tmp_path / "w.pth")
    assert torch.equal(fresh.weight, model.weight)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="no entry 'ema'"):
        load_weights(fresh, tmp_path / "w.safetensors", entry="ema")
