"""A file that `qvd-export` takes is one that `qvd-validate` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qvd_trt.calibrators.statistics.stats_file import load_stats
from qvd_trt.export.graph.signature import read_signature
from qvd_trt.export.model_file import load_model
from qvd_trt.export.ort_session import open_session, run_session
from qvd_trt.tools.cli.export import main as export
from qvd_trt.tools.cli.validate import main as validate
from tests.export.files_people_have import FORMS, denoiser, feeds, nameless_dimensions


def recorded(folder: Path) -> str:
    """Six steps of calls in a file."""
    steps = [feeds(seed) for seed in range(6)]
    arrays: dict[str, Any] = {name: np.stack([step[name] for step in steps]) for name in steps[0]}
    np.savez(folder / "calls.npz", **arrays)
    return str(folder / "calls.npz")


@pytest.mark.parametrize("form", FORMS)
def test_as_export_does(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, quantized, calls = str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), recorded(tmp_path)
    onnx.save(FORMS[form](denoiser()), model)
    assert export([model, "--calib", calls, "--target", "ort", "-o", quantized]) == 0
    assert validate([model, quantized, "--calib", calls, "--min-sqnr", "20"]) == 0
    free = ["--free-run", "--steps", "2", "--samples", "1", "--shapes", "sample:1x16x24"]
    assert validate([model, quantized, *free]) == 0
    capsys.readouterr()


def test_prediction_that_is_not_the_first_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first output of the latent's rank is the latent with its sign turned."""
    model, quantized, calls = str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), recorded(tmp_path)
    graph = denoiser()
    graph.graph.node.append(helper.make_node("Neg", ["sample"], ["turned"], name="turned"))
    shape: list[int | str | None] = ["b", 16, "n"]
    graph.graph.output.insert(0, helper.make_tensor_value_info("turned", TensorProto.FLOAT, shape))
    onnx.save(graph, model)
    named, stats = ["--prediction-output", "prediction_out"], tmp_path / "s.npz"
    written = ["--calib", calls, "--target", "ort", "--stats", str(stats), "-o", quantized]
    assert export([model, *named, *written]) == 0
    call = load_stats(stats).held_out[0]
    (expected,) = run_session(open_session(Path(model)), ["prediction_out"], call.inputs)
    np.testing.assert_allclose(call.prediction, expected, rtol=1e-4, atol=1e-5)
    capsys.readouterr()
    for options, as_quantized in ((named, True), ([], False)):
        assert validate([model, quantized, "--calib", calls, "--json", *options]) == 0
        summary = json.loads(capsys.readouterr().out)["summary"]
        assert (float(summary["quantization"]["mean_sqnr"]) < 100) is as_quantized
    assert export([model, "--prediction-output", "x", *written]) == 2
    assert "--prediction-output 'x' is no output of the model" in capsys.readouterr().err


def test_nameless_dimensions_all_differ(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(nameless_dimensions(denoiser()), path)
    signature = read_signature(load_model(path).graph)
    assert signature.input("sample").shape == ("sample_0", 16, "sample_2")
    assert signature.input("timestep").shape == ("timestep_0",)
