"""Float files of opsets that ONNX Runtime has not every kernel of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qvd_trt.tools.cli.export import main as export
from qvd_trt.tools.cli.validate import main as validate
from tests.tools.test_opsets import write


@pytest.mark.parametrize("opset", [24, 25])
def test_are_compared_all_the_same(
    opset: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, calls = write(tmp_path, opset)
    quantized = tmp_path / "q.onnx"
    recorded = ["--calib", str(calls)]
    assert export([str(source), *recorded, "--target", "ort", "-o", str(quantized)]) == 0
    capsys.readouterr()
    assert validate([str(source), str(quantized), *recorded, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert 10 < float(summary["quantization"]["mean_sqnr"]) < 90
