"""What is made up because nothing was given is said, and before the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.tools.command import FAST, Command

SHAPES = ("--shapes", "sample:1x16x8x8", "--steps", "3", "--samples", "2")


def test_settings_are_named(command: Command) -> None:
    result = command.done("model.onnx", *SHAPES, "--seed", "7", "--json")
    (line,) = (line for line in result.err.splitlines() if "default settings" in line)
    assert line.startswith("qvd-export: warning: no --calib is given: the model is sampled")
    told = (
        "sampler ddim (prediction epsilon, schedule linear, spacing trailing), 3 steps, 2 samples"
    )
    assert f"{told}, seed 7, other inputs than latent and timestep drawn; give --calib" in line
    assert line.removeprefix("qvd-export: warning: ") in result.json()["warnings"]


def test_before_the_work(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qvd_trt.tools.collect_statistics.calibrate_share", stop)
    result = command("model.onnx", *SHAPES)
    assert result.code == 130
    assert "default settings" in result.err


def test_refusals_stay_one_line(command: Command) -> None:
    """Nothing was sampled then."""
    assert "absent.onnx does not exist" in command.refused("absent.onnx")
    assert "use 1 to 1000" in command.refused("model.onnx", *SHAPES, "--steps", "0")


def test_misspelled_statistics(command: Command) -> None:
    command.done("model.onnx", *FAST, "--stats", "model.stats.npz")
    result = command.done("model.onnx", *SHAPES, "--stats", "model.stat.npz")
    line = result.err.splitlines()[0]
    assert "--stats model.stat.npz does not exist (did you mean model.stats.npz?)" in line
    assert "default settings" in line
    told = command.done("model.onnx", *FAST, "--stats", "model.stas.npz").err
    assert "does not exist (did you mean model.stats.npz?): the model is sampled" in told
    assert "default settings" not in told


QUIET = [
    (*FAST, "--stats", "new.npz"),
    (*FAST, "--stats", "none/new.npz"),
    (*SHAPES, "--prediction", "v_prediction"),
    (*SHAPES, "--stats", "there.npz"),
    (*SHAPES, "--bits", "w16a16"),
    (*SHAPES, "--calib", "calls.npz", "--stats", "new.npz"),
    (*SHAPES, "--plan", "there.plan.json"),
]


@pytest.mark.parametrize("arguments", QUIET, ids=" ".join)
def test_what_is_given_is_not_told(command: Command, arguments: tuple[str, ...]) -> None:
    """Negative control."""
    command.done("model.onnx", *FAST, "--stats", "there.npz", "-o", "there.onnx")
    sample = np.random.default_rng(0).standard_normal((6, 1, 16, 8, 8)).astype(np.float32)
    np.savez(Path("calls.npz"), sample=sample, timestep=np.arange(6)[:, None])
    assert "default settings" not in command.done("model.onnx", *arguments, "-o", "x.onnx").err
