"""A small model, its QDQ files and recorded calls, and a runner of `qvd-validate` on them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from qvd_trt.tools.cli.validate import main

OUTPUT = "conv_out:0"
STEPS = 3
Feeds = dict[str, npt.NDArray[Any]]
Float32Array = npt.NDArray[np.float32]


def calls() -> list[Feeds]:
    """Three calls of one trajectory, each with its own timestep."""
    random = np.random.default_rng(7)
    return [
        {
            "sample": random.standard_normal((1, 16, 8, 8)).astype(np.float32),
            "timestep": np.array([timestep]),
        }
        for timestep in (900, 500, 100)
    ]


def run(model: Path, feeds: list[Feeds], *, faithful: bool = True) -> list[Float32Array]:
    """Predictions of a file, call by call, straight from ONNX Runtime."""
    options = ort.SessionOptions()
    if faithful:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return [session.run(None, feed)[0] for feed in feeds]


def relative_rms(reference: Float32Array, output: Float32Array) -> float:
    """The definition, in float64."""
    noise = np.square(output.astype(np.float64) - reference).sum()
    return float(np.sqrt(noise / np.square(reference.astype(np.float64)).sum()))


def write_trtexec(path: Path, output: Float32Array, name: str = OUTPUT) -> Path:
    """Write what `trtexec --exportOutput` writes, with its six digits and its odd spacing."""
    dimensions = "x".join(map(str, output.shape))
    values = ", ".join(f"{value:.6g}" for value in output.ravel())
    path.write_text(
        f'[\n  {{ "name" : "{name}"\n  , "dimensions" : "{dimensions}"\n'
        f'  , "values" : [ {values} ]\n  }}\n]\n'
    )
    return path


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.out)
        return report


@dataclass(frozen=True)
class Models:
    """`calls.npz`, `model.onnx`, `qdq.onnx`, `qdq16.onnx` (fp16), `qdq8.onnx` (TensorRT 8.6)."""

    folder: Path

    @property
    def float_model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def qdq(self) -> Path:
        return self.folder / "qdq.onnx"


class Validate:
    """The command on the small model."""

    def __init__(self, models: Models, capsys: pytest.CaptureFixture[str]) -> None:
        self.models = models
        self._capsys = capsys

    def __call__(self, *arguments: object, qdq: Path | None = None, calib: bool = True) -> Result:
        command = [self.models.float_model, qdq or self.models.qdq, *arguments]
        if calib:
            command += ["--calib", self.models.folder / "calls.npz"]
        self._capsys.readouterr()
        try:
            code = main([str(argument) for argument in command])
        except SystemExit as leaving:  # argparse
            code = int(leaving.code or 0)
        out, err = self._capsys.readouterr()
        return Result(code, out, err)

    def report(self, *arguments: object, **options: Any) -> dict[str, Any]:
        """Run where it must succeed and return the report."""
        result = self(*arguments, "--json", **options)
        assert result.code == 0, result.err
        return result.json()

    def refused(self, *arguments: object, **options: Any) -> str:
        """Run where it must refuse; returns the one line it says."""
        result = self(*arguments, **options)
        assert result.code == 2, result.err or result.out
        assert result.out == ""
        assert result.err.startswith("qvd-validate: error: ")
        assert result.err.count("\n") == 1, result.err
        return result.err
