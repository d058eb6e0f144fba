"""Options of a calibration that is not made are named in one warning, and nothing else is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.tools.command import FAST, Command, Result

SHAPE = FAST[-2:]


def warnings(result: Result) -> list[str]:
    """The report's warnings, each of which must also be on stderr."""
    found: list[str] = result.json()["warnings"]
    assert [line for line in result.err.splitlines() if line.startswith("qvd-export: warning")] == [
        f"qvd-export: warning: {warning}" for warning in found
    ]
    return found


@pytest.fixture
def recorded(command: Command) -> Command:
    rng = np.random.default_rng(0)
    calls = rng.normal(size=(6, 1, 16, 8, 8)).astype(np.float32)
    timesteps = np.linspace(900, 100, 6).astype(np.int64)[:, None]
    np.savez(command.folder / "calls.npz", sample=calls, timestep=timesteps)
    return command


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (FAST, "--sampler, --steps, --samples and --shapes are not used"),
        (("--guidance", "7.5"), "--guidance is not used"),
        (("--seed", "3", "--schedule", "cosine"), "--schedule and --seed are not used"),
        (("--prediction", "sample", "--spacing", "x"), "--prediction and --spacing are not used"),
        (("--shift", "2", "--inputs", "calls.npz"), "--shift and --inputs are not used"),
    ],
)
def test_beside_calls(recorded: Command, options: Sequence[str], said: str) -> None:
    given = ("model.onnx", "--calib", "calls.npz", "--json")
    (told,) = warnings(recorded.done(*given, *options))
    them = "it" if " is " in said else "them"
    assert told == f"{said}: --calib gives the calls; leave {them} out"
    assert warnings(recorded.done(*given, "--temporal-timesteps", "calibration")) == []


def test_beside_statistics(command: Command) -> None:
    command.done("model.onnx", *FAST, "--stats", "s.npz")
    given = ("model.onnx", "--stats", "s.npz", "--json")
    assert warnings(command.done(*given)) == []
    assert warnings(command.done(*given, "--calib", "c.npz", "--steps", "9")) == [
        "--calib and --steps are not used: s.npz exists; delete it to calibrate again"
    ]
    assert warnings(command.done(*given, "--temporal-timesteps", "training")) == [
        "--temporal-timesteps is not used: s.npz exists; delete it to calibrate again"
    ]


def test_beside_a_plan(command: Command) -> None:
    command.done("model.onnx", *FAST)
    given = ("model.onnx", "--plan", "model.w8a8.plan.json", "-o", "again.onnx", "--json")
    assert warnings(command.done(*given)) == []
    assert warnings(command.done(*given, "--samples", "2", *SHAPE)) == [
        "--samples and --shapes are not used: --plan is applied without calibration; leave them out"
    ]
    # With --stats it is calibrated, for the SQNR on held-out calls.
    assert warnings(command.done(*given, *FAST, "--stats", "s.npz")) == []


def test_beside_a_float_model(command: Command) -> None:
    given = ("model.onnx", "--bits", "w16a16", "--dtype", "fp32", "--json")
    assert warnings(command.done(*given)) == []
    options = ("--calib", "c.npz", "--sampler", "flow", "--stats", "s.npz")
    assert warnings(command.done(*given, *options)) == [
        "--calib, --sampler and --stats are not used: w16a16 quantizes nothing; leave them out"
    ]


def test_from_a_recipe(command: Command) -> None:
    command.done("model.onnx", *FAST, "--stats", "s.npz")
    (command.folder / "r.toml").write_text('sampler = "flow"\nsteps = 7\nstats = "s.npz"\n')
    assert warnings(command.done("model.onnx", "--recipe", "r.toml", "--json")) == [
        "--sampler and --steps are not used: s.npz exists; delete it to calibrate again"
    ]
