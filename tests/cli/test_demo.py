"""The embedded run: real digits, a smaller network that still reads them, the same every time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from epruner._demo import pruning
from epruner.pruning.io.checkpoint import load, save


def test_demo_prunes_and_recovers(tmp_path: Path) -> None:
    lines: list[str] = []
    outcome = pruning.run(say=lines.append)
    trained, sliced, repaired, tuned = outcome.stages
    assert sliced.accuracy < repaired.accuracy
    assert repaired.accuracy > 0.8
    assert trained.accuracy > 0.97
    assert tuned.accuracy > 0.96
    assert tuned.totals.macs < 0.7 * trained.totals.macs
    assert tuned.totals.params == sum(p.numel() for p in outcome.model.parameters())
    assert lines[0].startswith("training on 1297 images")
    assert "fine-tuned" in str(outcome)

    save((outcome.model, outcome.plan), tmp_path / "digits.safetensors")
    loaded = load(pruning.DigitsNet(), tmp_path / "digits.safetensors").eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), outcome.model.eval()(x))


def test_demo_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "_TRAIN_EPOCHS", 1)
    monkeypatch.setattr(pruning, "_TUNE_EPOCHS", 1)
    before = torch.random.get_rng_state()
    first, second = (pruning.run(seed=5, say=lambda _: None) for _ in range(2))
    assert first.stages == second.stages
    assert first.plan == second.plan
    assert torch.equal(before, torch.random.get_rng_state())
