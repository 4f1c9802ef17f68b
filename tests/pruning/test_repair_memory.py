"""The memory of a repair is bounded, whatever waits between two layers; no bit depends on it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ConvNext, Vit, stirred
from test_repair import SHAPES, Dense, Mobile, inputs
from torch import Tensor, nn

import epruner
from epruner.pruning.data import calibration
from epruner.pruning.trace import replay
from epruner.pruning.trace.record import record
from epruner.pruning.trace.replay import Replay, is_plain_memory

pytestmark = pytest.mark.filterwarnings("ignore::epruner.pruning.errors.BudgetWarning")

# Peak of the process above what it held before, in MB. `{setup}` makes the network and the images.
MEASURED = """
import resource, sys, warnings
sys.path.insert(0, {tests!r})
warnings.simplefilter("ignore")
import torch
import epruner
{setup}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = epruner.prune(
    model, tuple(images[:1].shape), macs=0.5, calibrate=images, method="reconstruction"
)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert result.report.repair is not None and result.report.repair.layers
print(before / 1e3, after / 1e3)
"""

SMALL = """
from epruner.pruning.data import calibration
from epruner.pruning.trace import replay
from epruner.pruning.trace.record import record
from torch import nn
torch.set_num_threads(1)
replay.WAITING = {waiting}
calibration._MOST_IMAGES = 8

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(24, 24, 3, padding=1), nn.Conv2d(24, 24, 1)
        self.norm = nn.BatchNorm2d(24)
    def forward(self, x):
        return torch.relu(x + self.norm(self.b(torch.relu(self.a(x)))))

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 24, 3, padding=1), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(24, 5),
).eval()
images = torch.randn(128, 3, 64, 64)
"""

RESNET50 = """
from pytorchcv.model_provider import get_model
torch.manual_seed(0)
model = get_model("resnet50").eval()
images = torch.nn.functional.avg_pool2d(torch.randn(256, 3, 224, 224), 3, 1, 1)
"""


def peak(setup: str, timeout: float) -> tuple[float, float]:
    """Largest resident size before and after, MB."""
    code = MEASURED.format(tests=str(Path(__file__).parent), setup=setup)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split()
    return float(before), float(after)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak in kB, as Linux gives it")
def test_what_waits_is_bounded() -> None:
    # each value that waits takes 128 x 24 x 64 x 64 x 4 bytes = 50 MB; some six of them do
    before, after = peak(SMALL.format(waiting=2**23), 600)
    assert after - before < 160, (before, after)


@pytest.mark.slow
@pytest.mark.timeout(7200)  # a quarter of an hour on two quiet cores
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak in kB, as Linux gives it")
def test_resnet50_with_256_images_of_224_takes_less_than_4_gb() -> None:
    pytest.importorskip("pytorchcv")
    _, after = peak(RESNET50, 7200)
    assert after < 4000, after


@pytest.mark.filterwarnings("ignore::epruner.pruning.errors.RepairWarning")
@pytest.mark.parametrize("kind", [Mobile, Dense, ConvNext, Vit], ids=lambda kind: kind.__name__)
def test_where_values_wait_changes_no_bit(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_MOST_IMAGES", 16)
    written: list[Any] = []
    save = torch.save

    def counted(values: Any, path: Any) -> None:
        written.append(path)
        save(values, path)

    monkeypatch.setattr(torch, "save", counted)
    states = []
    for waiting in (replay.WAITING, 0):
        monkeypatch.setattr(replay, "WAITING", waiting)
        torch.manual_seed(0)
        result = epruner.prune(
            stirred(kind()),
            (1, *SHAPES[kind]),
            macs=0.6,
            method=epruner.Method("exemplar", "reconstruction"),
            calibrate=inputs(SHAPES[kind], 40),
        )
        assert bool(written) == (waiting == 0)
        states.append(result.model.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


class Views(nn.Module):
    """Writes into a part of what waits."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        part = x[:, :2]
        y = torch.sigmoid(x)
        part.add_(y[:, :2])
        return x * 2


def test_tensors_of_one_storage_come_back_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "WAITING", 0)
    x = torch.randn(4, 6)
    taken = record(Views(), (x[:2],), {})
    run = Replay([taken] * 2, [((part,), {}) for part in x.chunk(2)])
    for stop in range(len(taken.ops) + 1):
        for batch in range(2):
            run.advance(batch, stop)
    assert torch.equal(torch.cat([run.outputs(b)[0] for b in range(2)]), Views()(x))


def test_the_folder_goes_with_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "WAITING", 0)
    x = torch.randn(4, 6)
    run = Replay([record(Views(), (x[:2],), {})] * 2, [((part,), {}) for part in x.chunk(2)])
    for batch in range(2):
        run.advance(batch, 1)
    assert run._folder is not None
    folder = run._folder
    assert [file.name for file in folder.iterdir()] == ["0.pt"]
    del run
    assert not folder.exists()


def test_full_disk_leaves_values_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    model, x = stirred(Mobile()), inputs((3, 8, 8), 8)
    monkeypatch.setattr(replay, "WAITING", 0)
    monkeypatch.setattr(torch, "save", full)
    with torch.no_grad():
        run = Replay([record(model, (x[:4],), {})] * 2, [((part,), {}) for part in x.chunk(2)])
        run.advance(0, 5)
        with pytest.warns(RuntimeWarning, match="TMPDIR"):
            run.advance(1, 5)
        for batch in range(2):
            run.advance(batch, len(run.traces[0].ops))
        assert torch.equal(torch.cat([run.outputs(b)[0] for b in range(2)]), model(x))


def test_what_is_not_plain_memory_stays() -> None:
    assert is_plain_memory(torch.zeros(3))
    others: list[Tensor] = [
        torch.zeros(3, device="meta"),
        torch.zeros(3).to_sparse(),
        nn.Parameter(torch.zeros(3)),
    ]
    assert not any(is_plain_memory(tensor) for tensor in others)


def test_branches_that_wait_for_their_weights_leave_nothing_behind() -> None:
    model, x = stirred(Mobile()), inputs((3, 8, 8), 4)
    taken = record(model, (x,), {})
    ops = [s.module for s in taken.ops]
    branch = [ops.index("block2.6"), ops.index("block2.7")]
    run = Replay([taken], [((x,), {})], {taken.ops[branch[0]].reads[0]: branch[1] + 1})
    run.advance(0, branch[1] + 1, branch)
    assert not {s for i in branch for s in taken.ops[i].writes} & set(run._values[0])
    with torch.no_grad():
        model.get_submodule("block2.6").weight.mul_(2)  # type: ignore[operator]
        run.advance(0, len(ops))
        assert torch.equal(run.outputs(0)[0], model(x))
    assert len(run._values[0]) == 1
