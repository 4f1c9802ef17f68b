"""The exemplar loss is its formula, and a tracker that learned with it mixes up fewer digits."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional as F  # noqa: E402

from epruner.companions.siamese import exemplar_loss  # noqa: E402


def problem(n: int = 5, p: int = 3, d: int = 4) -> tuple[Any, Any, Any]:
    """Embeddings of exemplars and of places, and labels."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = torch.randn(n, p, d, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (n, p), generator=generator) * 2 - 1
    return z, x, y


def test_the_loss_is_its_formula() -> None:
    z, x, y = problem()
    first = [
        math.log1p(math.exp(-int(y[i, p]) * float(z[i] @ x[i, p])))
        for i in range(5)
        for p in range(3)
    ]
    second = [
        math.log1p(math.exp(float(z[i] @ z[j]))) for i in range(5) for j in range(5) if i != j
    ]
    expected = sum(first) / len(first) + 0.7 * sum(second) / len(second)
    assert float(exemplar_loss(z, x, y, 0.7)) == pytest.approx(expected, rel=1e-12)
    assert float(exemplar_loss(z, x, y.float(), 0.7)) == pytest.approx(expected, rel=1e-12)


def test_without_weight_it_is_the_logistic_loss() -> None:
    z, x, y = problem()
    expected = F.soft_margin_loss((z[:, None] * x).sum(2), y.double())
    assert float(exemplar_loss(z, x, y, 0)) == pytest.approx(float(expected), rel=1e-12)
    assert float(exemplar_loss(z[:1], x[:1], y[:1], 0)) > 0  # one exemplar is enough


def test_one_place_for_each_exemplar() -> None:
    z, x, y = problem()
    assert exemplar_loss(z, x[:, 0], y[:, 0]) == exemplar_loss(z, x[:, :1], y[:, :1])


def test_its_gradient_is_that_of_the_formula_and_drives_exemplars_apart() -> None:
    z, x, y = problem()
    z.requires_grad_(True)
    x.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a, b: exemplar_loss(a, b, y, 0.5), (z, x))
    with torch.no_grad():
        z[:] = z[:1] + 0.01 * z  # all alike
    before = float((z @ z.T).detach().triu(1).sum())
    for _ in range(50):
        (gradient,) = torch.autograd.grad(exemplar_loss(z, 0 * x, y, 1.0), z)
        with torch.no_grad():
            z -= gradient
    assert float((z @ z.T).detach().triu(1).sum()) < 0.1 * before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_stays_in_the_dtype_and_is_finite_for_large_products(dtype: Any) -> None:
    z, x, y = (part.to(dtype) for part in problem())
    loss = exemplar_loss(100 * z, 100 * x, y)
    assert loss.dtype == dtype
    assert loss.dim() == 0
    assert bool(loss.isfinite())


Z, X, Y = problem()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Z.numpy(), X, Y), TypeError, "z_exemplar must be a tensor, got a ndarray"),
        ((Z, X, Y.tolist()), TypeError, "labels must be a tensor, got a list"),
        ((Z.long(), X, Y), TypeError, "one floating dtype, got torch.int64 and torch.float64"),
        ((Z, X.float(), Y), TypeError, "got torch.float64 and torch.float32"),
        ((Z[:0], X[:0], Y[:0]), ValueError, r"neither of them 0: got \(0, 4\)"),
        ((Z[0], X, Y), ValueError, r"shape \(n, d\).*got \(4,\)"),
        ((Z, X[:4], Y), ValueError, r"\(5, 4\) or \(5, p, 4\): got \(4, 3, 4\)"),
        ((Z, X[..., :3], Y), ValueError, r"got \(5, 3, 3\)"),
        ((Z, X[:, :0], Y[:, :0]), ValueError, r"got \(5, 0, 4\)"),
        ((Z, X, Y[:, 0]), ValueError, r"shape \(5, 3\), one for each score: got \(5,\)"),
        ((Z, X, (Y + 1) // 2), ValueError, "labels hold 0: they must be 1 or -1"),
        ((Z, X, Y > 0), ValueError, "labels hold True|labels hold False"),
        ((Z, X, Y * math.nan), ValueError, "labels hold nan"),
        ((Z, X, Y, "a"), TypeError, "weight='a' must be a number"),
        ((Z, X, Y, -1.0), ValueError, "weight=-1.0 must be finite"),
        ((Z, X, Y, math.inf), ValueError, "weight=inf must be finite"),
        ((Z[:1], X[:1], Y[:1]), ValueError, "one exemplar makes no pairs for weight=0.25"),
        ((Z * math.nan, X, Y), ValueError, "z_exemplar holds NaN or infinite"),
        ((Z, X * math.inf, Y), ValueError, "z_search holds NaN or infinite"),
    ],
)
def test_what_is_wrong_is_said(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        exemplar_loss(*arguments)


def test_strips_show_digits_where_they_say() -> None:
    from examples.siamese import strips

    parts = torch.rand(6, 3, 8, 8) + 5
    shown, at = strips(parts, 4, torch.Generator().manual_seed(0))
    assert shown.shape == (6, 1, 8, 64)
    for i in range(6):
        assert ((shown[i, 0] > 3).sum(0) > 0).sum() == 24  # nothing overlaps
        for k in range(3):
            column = int(at[i, k])
            assert (shown[i, 0, :, column : column + 8] - parts[i, k]).abs().max() < 1


def test_the_example_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    from examples import siamese

    monkeypatch.setattr(siamese, "EPOCHS", 1)
    monkeypatch.setattr(siamese, "TRAIN", 200)
    picture = tmp_path / "scores.png"
    monkeypatch.setattr(sys, "argv", ["siamese", "--picture", str(picture)])
    siamese.main()
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert picture.stat().st_size > 5_000


@pytest.mark.slow
def test_fewer_digits_are_mixed_up_and_none_is_lost_alone() -> None:
    from examples.siamese import run

    runs = [run(seed) for seed in range(3)]
    logistic, exemplar = (
        np.mean([(t.single, t.wrong, t.right) for t in tried], axis=0)
        for tried in ([r.logistic for r in runs], [r.exemplar for r in runs])
    )
    assert exemplar[0] >= logistic[0] - 0.01
    assert exemplar[1] <= logistic[1] - 0.2
    assert exemplar[2] >= logistic[2] + 0.2
