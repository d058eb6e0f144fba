"""`examples.pandigits.sample` as a command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from PIL import Image

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "pandigits_unet"


def sample(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.syspath_prepend(ROOT)
    from examples.pandigits.sample import main

    command = ["sample", "--folder", EXAMPLE, *arguments]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in command])
    return main()


def test_gif_and_sheet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = ["--model", EXAMPLE / "model.onnx", "--steps", "1", "--guidance", "1"]
    assert sample(monkeypatch, *model, "--clips", "2", "-o", tmp_path / "clips.gif") == 0
    with Image.open(tmp_path / "clips.gif") as clips:
        assert clips.size == (2 * 32 * 3, 32 * 3)
        assert getattr(clips, "n_frames", 1) > 1
    assert sample(monkeypatch, *model, "--clips", "1", "-o", tmp_path / "clips.png") == 0
    with Image.open(tmp_path / "clips.png") as sheet:
        assert sheet.size == (6 * 33 * 3, 33 * 3)


def test_other_suffix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = sample(monkeypatch, "--model", EXAMPLE / "model.onnx", "-o", tmp_path / "clips.mp4")
    assert code == 2
    assert "must end in .gif or .png" in capsys.readouterr().err


@pytest.mark.parametrize("option", [("--clips", "0"), ("--steps", "0"), ("--seed", "-1")])
def test_numbers_out_of_range(
    option: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ["--model", EXAMPLE / "model.onnx", "-o", tmp_path / "clips.gif"]
    assert sample(monkeypatch, *model, *option) == 2
    assert f"{option[0]} must be" in capsys.readouterr().err
