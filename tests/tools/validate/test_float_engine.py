"""The float engine's noise floor, for every form of float file that `qvd-export` takes."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import pytest

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.ort_session import open_session, run_session
from qvd_trt.tools.cli.export import main as export
from qvd_trt.tools.cli.validate import main as validate
from qvd_trt.tools.validation import models
from tests.export.files_people_have import FORMS, denoiser, feeds

PREDICTION = "prediction_out"


class FloatEngine:
    """An engine whose `plan` is the float model itself, and which rounds its result to fp16."""

    def __init__(self, path: Path, runtime: str, plugin: Path | None) -> None:
        del runtime, plugin
        self._session = open_session(Path(path.read_text()))
        self.inputs = {"sample": None, "timestep": None}
        self.outputs = {PREDICTION: None}

    def __enter__(self) -> FloatEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None: ...

    def run(self, inputs: dict[str, AnyArray]) -> dict[str, AnyArray]:
        (output,) = run_session(self._session, [PREDICTION], inputs)
        return {PREDICTION: output.astype(np.float16)}


@pytest.mark.parametrize("form", FORMS)
def test_noise_floor(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "EngineSession", FloatEngine)
    model, quantized, engine = (tmp_path / name for name in ("m.onnx", "q.onnx", "m.plan"))
    onnx.save(FORMS[form](denoiser()), model)
    engine.write_text(str(model))
    steps = [feeds(seed) for seed in range(6)]
    arrays: dict[str, Any] = {name: np.stack([step[name] for step in steps]) for name in steps[0]}
    np.savez(tmp_path / "calls.npz", **arrays)
    calls = ["--calib", str(tmp_path / "calls.npz")]
    assert export([str(model), *calls, "--target", "ort", "-o", str(quantized)]) == 0
    capsys.readouterr()
    command = [str(model), str(quantized), *calls, "--float-engine", str(engine), "--json"]
    assert validate(command) == 0
    floor = json.loads(capsys.readouterr().out)["summary"]["noise_floor"]
    assert 40 < float(floor["mean_sqnr"]) < 90  # rounded in fp16 all along, against once
