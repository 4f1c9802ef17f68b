"""Pictures: what the artists show, on which axes, what is refused, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from epruner import AffinityPropagation, _pictures, merge_exemplars, plots

pytest.importorskip("matplotlib", reason="needs matplotlib (extra plot)")
from matplotlib.figure import Figure

Floats = NDArray[np.floating[Any]]


@dataclass
class PreferencePath:
    preferences: Any
    n_clusters: Any
    net_similarity: Any
    converged: Any


PATH = PreferencePath(
    np.array([-10.0, -30.0, -20.0]),
    np.array([9, 2, 4]),
    np.array([-100.0, -300.0, -180.0]),
    np.array([True, False, True]),
)


@pytest.fixture(scope="module")
def blobs() -> tuple[Floats, AffinityPropagation]:
    X, _ = make_blobs(60, centers=5, random_state=0)
    return X, AffinityPropagation(damping=0.8).fit(X)


@pytest.fixture(scope="module")
def digits() -> tuple[Floats, AffinityPropagation]:
    X = load_digits().data[:300]
    return X, AffinityPropagation(damping=0.7).fit(X)


def drawn(ax: Any) -> None:
    """Everything can be drawn, and nothing warns."""
    ax.figure.canvas.draw()


def test_points_are_tied_to_their_exemplars(blobs: tuple[Floats, AffinityPropagation]) -> None:
    X, model = blobs
    exemplars, labels = model.cluster_centers_indices_, model.labels_
    ax = plots.plot_clusters(model, X)
    ties, members, shown = ax.collections
    segments = np.array(ties.get_segments())  # type: ignore[attr-defined]
    assert len(segments) == len(X) - len(exemplars)
    points = np.setdiff1d(np.arange(len(X)), exemplars)
    np.testing.assert_array_equal(members.get_offsets(), X[points])
    np.testing.assert_array_equal(shown.get_offsets(), X[exemplars])
    np.testing.assert_array_equal(segments[:, 0], X[points])
    np.testing.assert_array_equal(segments[:, 1], X[exemplars[labels[points]]])
    np.testing.assert_array_equal(
        members.get_facecolors(),  # type: ignore[attr-defined]
        shown.get_facecolors()[labels[points]],  # type: ignore[attr-defined]
    )
    assert ax.get_title("left") == f"60 points, {len(exemplars)} clusters"
    drawn(ax)


def test_more_dimensions_are_projected(digits: tuple[Floats, AffinityPropagation]) -> None:
    X, model = digits
    ax = plots.plot_clusters(model, X)
    centred = X - X.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    share = 100 * values / values.sum()
    assert ax.get_xlabel() == f"principal component 1 ({share[0]:.1f} % of the variance)"
    assert ax.get_ylabel() == f"principal component 2 ({share[1]:.1f} %)"
    places = np.asarray(ax.collections[-1].get_offsets())
    spread = np.linalg.norm(centred[model.cluster_centers_indices_], axis=1)
    assert (np.linalg.norm(places, axis=1) <= spread + 1e-9).all()


def test_neighbours_have_different_colours() -> None:
    X = np.stack(np.meshgrid(np.arange(6), np.arange(6)), axis=-1).reshape(-1, 2) * 1.0
    model = AffinityPropagation(preference=1.0).fit(X)  # each point alone
    colours = plots.plot_clusters(model, X).collections[-1].get_facecolors()  # type: ignore[attr-defined]
    beside = np.argwhere(np.square(X[:, None] - X).sum(-1) == 1)
    assert (colours[beside[:, 0]] != colours[beside[:, 1]]).any(axis=1).all()


def test_a_cut_is_drawn_as_a_model_is(blobs: tuple[Floats, AffinityPropagation]) -> None:
    X, model = blobs
    cut = merge_exemplars(model, X).cut(2)
    ax = plots.plot_clusters(cut, X)
    np.testing.assert_array_equal(ax.collections[-1].get_offsets(), X[cut.exemplars])
    images = plots.plot_exemplars(cut, (1, 2), X)
    assert len(images.images) == 2


def test_points_without_an_exemplar(blobs: tuple[Floats, AffinityPropagation]) -> None:
    X, model = blobs
    cut = merge_exemplars(model, X).cut(3)
    labels = cut.labels.copy()
    labels[[7, 8]] = -1
    labels[cut.exemplars] = np.arange(3)
    ax = plots.plot_clusters(replace(cut, labels=labels), X)
    legend = ax.get_legend()
    assert legend is not None
    assert "without exemplar: 2" in [text.get_text() for text in legend.get_texts()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        nothing = AffinityPropagation(max_iter=1, preference=-1e9).fit(X)
    ax = plots.plot_clusters(nothing, X)
    assert ax.get_title("left") == "60 points, 0 clusters, not converged"
    assert len(ax.collections) == 1
    drawn(ax)


def test_rows_of_the_heat_map_are_in_the_order_of_the_leaves(
    digits: tuple[Floats, AffinityPropagation],
) -> None:
    X, model = digits
    hierarchy = merge_exemplars(model, X)
    ax = plots.plot_heatmap(model, X, hierarchy)
    exemplars, labels = model.cluster_centers_indices_, model.labels_
    S = -((X[:, None] - X) ** 2).sum(-1)
    order: list[int] = []
    for leaf in hierarchy.leaf_order:
        members = np.flatnonzero(labels == leaf)
        order += sorted(members, key=lambda i: (i != exemplars[leaf], -S[i, exemplars[leaf]], i))
    shown = ax.images[0].get_array()
    assert shown is not None
    np.testing.assert_allclose(shown, S[np.ix_(order, order)], atol=1e-6)
    sizes = np.bincount(labels)[hierarchy.leaf_order]
    corners = [line.get_xdata()[0] + 0.5 for line in ax.lines]  # type: ignore[index, operator]
    starts = np.cumsum(sizes) - sizes
    assert corners == starts[sizes > 1].tolist()
    tree = ax.child_axes[0]
    forks = np.array(tree.collections[0].get_segments())  # type: ignore[attr-defined]
    np.testing.assert_allclose(forks[:, 1, 0], hierarchy.top - hierarchy.distances)
    # a fork ends on its own middle, which is where a later one begins
    middles = starts + (sizes - 1) / 2
    ends = np.sort(np.concatenate([forks[:, 0, 1], forks[:, 3, 1]]))
    joined = np.sort(np.concatenate([middles, forks[:-1, 1:3, 1].mean(axis=1)]))
    np.testing.assert_allclose(ends, joined)
    drawn(ax)


def test_many_points_are_averaged_to_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    X = load_digits().data[:240]
    features = AffinityPropagation(damping=0.7, memory="tiles").fit(X)
    whole = plots.plot_heatmap(features, X).images[0].get_array()
    monkeypatch.setattr(plots, "_PIXELS", 60)
    S = -((X[:, None] - X) ** 2).sum(-1)
    given = AffinityPropagation(damping=0.7, affinity="precomputed").fit(S)
    assert whole is not None
    for model, data in ((features, X), (given, S)):
        ax = plots.plot_heatmap(model, data)
        small = ax.images[0].get_array()
        assert small is not None
        blocks = whole.reshape(60, 4, 60, 4).mean(axis=(1, 3))
        np.testing.assert_allclose(small, blocks, rtol=1e-9, atol=1e-6)
        assert "a pixel is the mean of about 4 x 4 points" in ax.get_title()
        assert ax.get_xlim() == (-0.5, 239.5)


def test_pairs_that_must_not_be_linked_are_left_white() -> None:
    X, y = make_blobs(30, centers=2, random_state=0)
    S = np.where(y[:, None] == y, -((X[:, None] - X) ** 2).sum(-1), -np.inf)
    model = AffinityPropagation(affinity="precomputed", preference=-2, damping=0.8).fit(S)
    ax = plots.plot_heatmap(model, S)
    assert np.ma.getmaskarray(np.ma.asarray(ax.images[0].get_array())).sum() == 2 * 15 * 15
    drawn(ax)


@pytest.mark.parametrize("preference", [-1e6, 1.0])
def test_one_cluster_or_all_points_alone(preference: float) -> None:
    X, _ = make_blobs(20, centers=1, random_state=0)
    model = AffinityPropagation(preference=preference, damping=0.9).fit(X)
    assert model.cluster_centers_indices_.size in (1, 20)
    drawn(plots.plot_heatmap(model, X))
    drawn(plots.plot_clusters(model, X))


def test_the_path_of_preferences() -> None:
    ax = plots.plot_preference_path(PATH)
    line, converged, other = ax.lines[:3]
    assert line.get_xdata().tolist() == [-30, -20, -10]  # type: ignore[union-attr]
    assert line.get_ydata().tolist() == [2, 4, 9]  # type: ignore[union-attr]
    assert converged.get_ydata().tolist() == [9, 4]  # type: ignore[union-attr]
    assert other.get_ydata().tolist() == [2]  # type: ignore[union-attr]
    assert other.get_markerfacecolor() == "white"
    right = next(axes for axes in ax.figure.axes if axes is not ax)
    assert right.lines[0].get_ydata().tolist() == [-300, -180, -100]  # type: ignore[union-attr]
    assert (ax.get_ylabel(), right.get_ylabel()) == ("number of clusters", "net similarity")
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["not converged"]
    drawn(ax)


def test_preferences_of_different_magnitude_are_spread() -> None:
    wide = replace(PATH, preferences=np.array([-1.0, -1e4, -1e2]))
    ax = plots.plot_preference_path(wide)
    low, mid, high = ax.transData.transform([(p, 1) for p in (-1e4, -1e2, -1.0)])[:, 0]
    assert 0.3 < (mid - low) / (high - low) < 0.7
    first, last = ax.get_xlim()
    assert first < -1e4 < -1 < last < 0
    none = replace(PATH, net_similarity=np.array([-1.0, -np.inf, -2.0]))
    drawn(plots.plot_preference_path(none))


def test_paths_that_are_refused() -> None:
    with pytest.raises(ValueError, match=r"of one length, .* \[\(2,\), \(3,\), \(3,\), \(3,\)\]"):
        plots.plot_preference_path(replace(PATH, preferences=[-1.0, -2.0]))
    with pytest.raises(ValueError, match="at least 1"):
        plots.plot_preference_path(PreferencePath([], [], [], []))


def test_exemplars_as_images(digits: tuple[Floats, AffinityPropagation]) -> None:
    X, model = digits
    sizes = np.bincount(model.labels_)
    ax = plots.plot_exemplars(model, (8, 8), most=5)
    largest = np.argsort(-sizes, kind="stable")[:5]
    assert [text.get_text() for text in ax.texts] == [f"{sizes[c]}" for c in largest]
    for image, c in zip(ax.images, largest, strict=True):
        expected = X[model.cluster_centers_indices_[c]].reshape(8, 8) / 16
        np.testing.assert_allclose(np.asarray(image.get_array()), expected)
    assert ax.get_title().startswith(f"exemplars of the 5 largest of {sizes.size} clusters")
    drawn(ax)
    everything = plots.plot_exemplars(model, (8, 8))
    assert everything.get_title().startswith(f"{sizes.size} exemplars")
    coloured = plots.plot_exemplars(model, (4, 4, 3), np.tile(X[:, :16], 3))
    assert np.asarray(coloured.images[0].get_array()).shape == (4, 4, 3)
    drawn(coloured)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((8, 9), "makes images of 72 numbers; the points have 64 features"),
        ((64,), r"must be \(h, w\) or \(h, w, 3\)"),
        ((4, 8, 2), r"must be \(h, w\) or \(h, w, 3\)"),
        ((-8, -8), r"must be \(h, w\) or \(h, w, 3\)"),
    ],
)
def test_shapes_that_are_refused(
    digits: tuple[Floats, AffinityPropagation], shape: tuple[int, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        plots.plot_exemplars(digits[1], shape)


def test_models_and_points_that_are_refused(blobs: tuple[Floats, AffinityPropagation]) -> None:
    X, model = blobs
    unfitted = AffinityPropagation()
    for draw in (plots.plot_clusters, plots.plot_heatmap):
        with pytest.raises(NotFittedError):
            draw(unfitted, X)
        with pytest.raises(ValueError, match="X has 59 points, the model was fitted on 60"):
            draw(model, X[1:])
    with pytest.raises(NotFittedError):
        plots.plot_exemplars(unfitted, (1, 2))
    with pytest.raises(ValueError, match="X has one column"):
        plots.plot_clusters(model, X[:, :1])
    with pytest.raises(ValueError, match="most=0 must be at least 1"):
        plots.plot_exemplars(model, (1, 2), most=0)
    with pytest.raises(ValueError, match="pass the images as X"):
        plots.plot_exemplars(merge_exemplars(model, X).cut(2), (1, 2))
    tiles = AffinityPropagation(damping=0.8, memory="tiles").fit(X)
    with pytest.raises(ValueError, match="pass the X"):
        plots.plot_heatmap(tiles)
    other = merge_exemplars(AffinityPropagation(damping=0.8).fit(X[:50]))
    with pytest.raises(ValueError, match="another model's"):
        plots.plot_heatmap(model, X, other)
    nothing = replace(merge_exemplars(model, X).leaves, exemplars=np.array([], dtype=np.intp))
    with pytest.raises(ValueError, match="no exemplar to draw"):
        plots.plot_exemplars(nothing, (1, 2), X)


def draws(blobs: tuple[Floats, AffinityPropagation]) -> dict[str, Any]:
    X, model = blobs
    return {
        "clusters": lambda ax: plots.plot_clusters(model, X, ax=ax),
        "heatmap": lambda ax: plots.plot_heatmap(model, X, ax=ax),
        "path": lambda ax: plots.plot_preference_path(PATH, ax=ax),
        "exemplars": lambda ax: plots.plot_exemplars(model, (2, 1), ax=ax),
    }


@pytest.mark.parametrize("name", ["clusters", "heatmap", "path", "exemplars"])
def test_axes_that_are_given_are_drawn_on(
    name: str, blobs: tuple[Floats, AffinityPropagation]
) -> None:
    left, right = Figure(layout="constrained").subplots(1, 2)
    assert draws(blobs)[name](left) is left
    assert not right.has_data()
    drawn(left)


def test_no_window_system_and_no_global_state_are_used() -> None:
    code = (
        "import sys, numpy as np\n"
        "import epruner\n"
        "assert 'matplotlib' not in sys.modules\n"
        "from epruner import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "X = np.random.default_rng(0).normal(size=(40, 2))\n"
        "model = epruner.AffinityPropagation(damping=0.8).fit(X)\n"
        "for ax in (plots.plot_clusters(model, X), plots.plot_heatmap(model, X)):\n"
        "    ax.figure.savefig('/dev/null', format='png')\n"
        "plots.plot_exemplars(model, (1, 2))\n"
        "print(sorted({'matplotlib.pyplot', 'tkinter', 'torch'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("name", ["clusters", "heatmap", "path", "exemplars"])
def test_matplotlib_is_an_extra(
    name: str, blobs: tuple[Floats, AffinityPropagation], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "matplotlib.figure", missing)
    with pytest.raises(ImportError, match=r'pip install "\S+\[plot\]"'):
        draws(blobs)[name](None)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_figure_is_written_in_the_format_of_the_suffix(
    tmp_path: Path, suffix: str, blobs: tuple[Floats, AffinityPropagation]
) -> None:
    file = tmp_path / f"clusters.{suffix}"
    X, model = blobs
    figure = plots.plot_clusters(model, X).figure
    assert isinstance(figure, Figure)
    _pictures.save(figure, file)
    magic = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert file.read_bytes().startswith(magic)
    assert [each.name for each in tmp_path.iterdir()] == [file.name]
    with pytest.raises(ValueError, match=r"suffix must be one of .*'png'"):
        _pictures.save(figure, tmp_path / "clusters.docx")


def test_many_points_are_pixels_in_vector_formats(
    blobs: tuple[Floats, AffinityPropagation], monkeypatch: pytest.MonkeyPatch
) -> None:
    X, model = blobs
    assert not plots.plot_clusters(model, X).collections[0].get_rasterized()
    monkeypatch.setattr(plots, "_RASTERISED", 59)
    assert plots.plot_clusters(model, X).collections[0].get_rasterized()
