"""The numbers of `qvd-validate`, against the definitions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from polygraphy.comparator import RunResults
from polygraphy.json import save_json

from tests.tools.validate.validated import (
    OUTPUT,
    Validate,
    calls,
    relative_rms,
    run,
    write_trtexec,
)


def outputs_of_a_scaled_engine(validate: Validate, folder: Path, error: float) -> list[Path]:
    """Files as trtexec writes them, of an engine whose output is (1 + error) times QDQ's."""
    outputs = run(validate.models.qdq, calls())
    return [
        write_trtexec(folder / f"{index}.json", output * np.float32(1 + error))
        for index, output in enumerate(outputs)
    ]


def test_quantization_error_of_every_call(validate: Validate) -> None:
    report = validate.report()
    feeds = calls()
    expected = [
        relative_rms(reference, output)
        for reference, output in zip(
            run(validate.models.float_model, feeds), run(validate.models.qdq, feeds), strict=True
        )
    ]
    measured = [call["errors"]["quantization"] for call in report["calls"]]
    assert [error["relative_rms"] for error in measured] == pytest.approx(expected, rel=1e-5)
    sqnr = [-20 * np.log10(error) for error in expected]
    assert [error["sqnr"] for error in measured] == pytest.approx(sqnr, abs=1e-4)
    assert [call["timestep"] for call in report["calls"]] == [900, 500, 100]
    summary = report["summary"]["quantization"]
    assert summary["mean_sqnr"] == pytest.approx(np.mean(sqnr), abs=1e-4)
    assert summary["worst_sqnr"] == pytest.approx(min(sqnr), abs=1e-4)
    assert summary["worst_timestep"] == [900, 500, 100][int(np.argmin(sqnr))]
    assert summary["mean_relative_rms"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert summary["worst_relative_rms"] == pytest.approx(max(expected), rel=1e-5)
    assert set(report["skipped"]) == {"implementation", "total", "noise_floor"}


def test_rounding_floor_is_measured_in_an_fp32_graph(validate: Validate) -> None:
    floor = validate.report()["summary"]["rounding_floor"]
    assert 25 < floor["mean_sqnr"] < 80


def test_rounding_floor_is_left_out_of_an_fp16_graph(validate: Validate) -> None:
    report = validate.report(qdq=validate.models.folder / "qdq16.onnx")
    assert "rounding_floor" not in report["summary"]
    assert "fp32" in report["skipped"]["rounding_floor"]
    report = validate.report("--no-rounding-floor")
    assert "--no-rounding-floor" in report["skipped"]["rounding_floor"]


def test_known_implementation_error_in_trtexec_files(validate: Validate, tmp_path: Path) -> None:
    files = outputs_of_a_scaled_engine(validate, tmp_path, 0.01)
    summary = validate.report("--engine-outputs", *files)["summary"]
    assert summary["implementation"]["mean_relative_rms"] == pytest.approx(0.01, rel=1e-3)
    assert summary["implementation"]["worst_sqnr"] == pytest.approx(40, abs=0.01)
    assert summary["total"]["mean_sqnr"] < summary["quantization"]["mean_sqnr"]


def test_polygraphy_runs_the_saved_inputs(validate: Validate, tmp_path: Path) -> None:
    """Another process runs the QDQ file on our inputs, and we take its outputs for an engine's."""
    inputs, outputs = tmp_path / "inputs.json", tmp_path / "outputs.json"
    qdq = validate.models.qdq
    validate.report("--save-inputs", inputs, "--no-rounding-floor")
    polygraphy = "import sys, polygraphy.tools; sys.exit(polygraphy.tools.main())"
    command = [sys.executable, "-c", polygraphy, "run", str(qdq), "--onnxrt"]
    command += ["--providers", "CPUExecutionProvider", "--load-inputs", str(inputs)]
    done = subprocess.run(
        [*command, "--save-outputs", str(outputs)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = validate.report("--engine-outputs", outputs)["summary"]
    # ONNX Runtime fuses there, which is the kind of difference an engine shows.
    assert summary["implementation"]["mean_relative_rms"] < 0.02
    assert summary["total"]["mean_sqnr"] == pytest.approx(
        summary["quantization"]["mean_sqnr"], abs=2
    )


def test_order_of_the_outputs_matters(validate: Validate, tmp_path: Path) -> None:
    files = outputs_of_a_scaled_engine(validate, tmp_path, 0.0)
    right = validate.report("--engine-outputs", *files)["summary"]["implementation"]
    wrong = validate.report("--engine-outputs", *files[::-1])["summary"]["implementation"]
    assert right["worst_relative_rms"] < 1e-5
    folder = validate.report("--engine-outputs", tmp_path)["summary"]["implementation"]
    assert folder == right
    assert wrong["worst_relative_rms"] > 0.1


def test_nan_of_an_engine_is_the_worst_error(validate: Validate, tmp_path: Path) -> None:
    outputs = run(validate.models.qdq, calls())
    outputs[1][0, 0, 0, 0] = np.nan
    results = RunResults()
    results.add([{OUTPUT: output} for output in outputs], runner_name="trt")
    save_json(results, str(tmp_path / "out.json"))
    result = validate("--engine-outputs", tmp_path / "out.json", "--min-sqnr", "1", "--json")
    assert result.code == 1
    assert "is -inf" in result.err
    assert result.json()["calls"][1]["errors"]["total"] == {"sqnr": "-inf", "relative_rms": "inf"}


class TestLimits:
    def test_of_the_quantized_model(self, validate: Validate) -> None:
        mean = validate.report()["summary"]["quantization"]["mean_sqnr"]
        assert validate("--min-sqnr", mean - 0.1).code == 0
        result = validate("--min-sqnr", mean + 0.1)
        assert result.code == 1
        assert result.err.count("\n") == 1
        assert f"{mean:.4g}" in result.err
        assert f"{mean + 0.1:g}" in result.err
        assert "NOT kept" in result.out

    def test_of_the_engine_when_there_is_one(self, validate: Validate, tmp_path: Path) -> None:
        files = outputs_of_a_scaled_engine(validate, tmp_path, 0.5)
        limit = validate.report()["summary"]["quantization"]["mean_sqnr"] - 1
        result = validate("--min-sqnr", limit, "--engine-outputs", *files)
        assert result.code == 1
        assert "engine against float" in result.err

    def test_of_the_implementation(self, validate: Validate, tmp_path: Path) -> None:
        files = ["--engine-outputs", *outputs_of_a_scaled_engine(validate, tmp_path, 0.01)]
        assert validate(*files, "--max-implementation-error", "0.02").code == 0
        result = validate(*files, "--max-implementation-error", "0.005", "--min-sqnr", "90")
        assert result.code == 1
        assert result.err.count("\n") == 2
        assert "is 0.01, the limit is 0.005" in result.err


def test_summary_for_people(validate: Validate, tmp_path: Path) -> None:
    files = outputs_of_a_scaled_engine(validate, tmp_path, 0.01)
    result = validate("--engine-outputs", *files, "--report", tmp_path / "report.json")
    assert result.code == 0
    lines = {line.split("  ")[0]: line for line in result.out.splitlines()}
    assert "40.0 dB" in lines["implementation"]
    assert "1.000%" in lines["implementation"]
    assert "no --float-engine was given" in lines["not measured"]
    assert [lines[step].split()[:2] for step in ("900", "500", "100")] == [
        ["900", "1"],
        ["500", "1"],
        ["100", "1"],
    ]
    assert '"mean_sqnr"' in (tmp_path / "report.json").read_text()
