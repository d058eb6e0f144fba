"""What fp16 or calibration cannot hold is found, and the report measures the written file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qvd_trt.calibrators.statistics.stats_file import load_stats
from qvd_trt.export.apply_plan import ApplyOptions, apply_plan
from qvd_trt.export.errors import UserError
from qvd_trt.export.model_file import open_model, save_model
from qvd_trt.export.plan.plan_json import load_plan
from qvd_trt.export.targets import TARGETS, FloatType
from qvd_trt.tools.cli.export import main
from qvd_trt.tools.cli.validate import main as validate_main
from qvd_trt.tools.measure_held_out import measure_file
from tests.models.token_denoiser import token_denoiser, write_calls

MASSIVE, TINY = 1e6, 3e-6


@dataclass(frozen=True)
class Exported:
    folder: Path
    report: dict[str, Any]
    plan: dict[str, Any]

    @property
    def file(self) -> Path:
        return self.folder / "out.onnx"

    def types(self) -> dict[str, int]:
        model = onnx.load(self.file)
        graph = onnx.shape_inference.infer_shapes(model).graph
        return {v.name: v.type.tensor_type.elem_type for v in graph.value_info}


Export = Callable[..., Exported]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    def run(*options: str, control: float | None = None, **model: Any) -> Exported:
        onnx.save(token_denoiser(control=control is not None, **model), tmp_path / "model.onnx")
        calls = write_calls(tmp_path / "calls", control=control)
        arguments = [str(tmp_path / "model.onnx"), "--calib", str(calls), *options]
        arguments += ["--stats", str(tmp_path / "stats.npz"), "-o", str(tmp_path / "out.onnx")]
        assert main(arguments) == 0
        report = json.loads((tmp_path / "out.report.json").read_text())
        return Exported(tmp_path, report, json.loads((tmp_path / "out.plan.json").read_text()))

    return run


FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def test_ordinary_values_change_nothing(export: Export) -> None:
    found = export()
    assert "float32" not in found.plan
    assert found.report["warnings"] == []
    assert found.report["held_out_mean_sqnr"] > 30


@pytest.mark.parametrize("target", ["trt", "rtx", "ort"])
def test_a_massive_stream_stays_float32(export: Export, target: str) -> None:
    found = export("--target", target, "--dtype", "fp16", massive=MASSIVE)
    assert found.plan["float32"] == ["up_out", "stream_out", "stream2_out"]
    assert found.report["held_out_mean_sqnr"] > 25
    types = found.types()
    assert types["stream_out"] == types["stream2_out"] == FLOAT
    assert types["mid_bias_out"] == types["embed_bias_out"] == FLOAT16


def test_a_file_that_overflows_is_refused_and_fails_validation(
    export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    found = export(massive=MASSIVE)
    model = open_model(found.folder / "model.onnx")
    plan = replace(load_plan(found.folder / "out.plan.json"), float32=())
    old = found.folder / "old.onnx"
    save_model(apply_plan(model, plan, ApplyOptions(TARGETS["trt"], FloatType.FP16)), old)
    calls = load_stats(found.folder / "stats.npz").held_out
    # QuantizeLinear makes finite codes of NaN: what comes out is wrong, and need not be NaN.
    assert max(score.sqnr for score in measure_file(old, model.signature.output.name, calls)) < 5
    assert len(measure_file(found.file, model.signature.output.name, calls)) == len(calls) == 4
    limits = ["--calib", str(found.folder / "calls"), "--min-sqnr", "25"]
    codes = [
        validate_main([str(found.folder / "model.onnx"), str(file), *limits])
        for file in (old, found.file)
    ]
    assert codes == [1, 0]
    capsys.readouterr()


def test_a_file_that_gives_nan_is_an_error(export: Export) -> None:
    found = export("--keep", "mid", "--keep", "small", massive=MASSIVE)
    model = open_model(found.folder / "model.onnx")
    plan = replace(load_plan(found.folder / "out.plan.json"), float32=())
    old = found.folder / "old.onnx"
    save_model(apply_plan(model, plan, ApplyOptions(TARGETS["trt"], FloatType.FP16)), old)
    calls = load_stats(found.folder / "stats.npz").held_out
    with pytest.raises(UserError, match=r"quantized model's prediction holds NaN or Inf.*bf16"):
        measure_file(old, model.signature.output.name, calls)


def test_the_plan_alone_gives_the_same_file(export: Export) -> None:
    found = export(massive=MASSIVE)
    again, model = found.folder / "again.onnx", str(found.folder / "model.onnx")
    assert main([model, "--plan", str(found.folder / "out.plan.json"), "-o", str(again)]) == 0
    assert again.read_bytes() == found.file.read_bytes()
    wrong = found.folder / "wrong.plan.json"
    wrong.write_text(json.dumps({**found.plan, "float32": ["nowhere"]}))
    assert main([model, "--plan", str(wrong), "-o", str(again)]) == 2


def test_the_float_model_takes_the_ranges_of_the_statistics(export: Export) -> None:
    found = export(massive=MASSIVE)
    export("--bits", "w16a16", massive=MASSIVE)
    report = json.loads((found.folder / "out.report.json").read_text())
    assert found.types()["stream_out"] == FLOAT
    assert report["warnings"] == [
        f"--calib is not used: {found.folder / 'stats.npz'} exists; delete it to calibrate again"
    ]
    assert report["held_out_mean_sqnr"] > 40


def test_bf16_holds_the_stream_and_is_measured(export: Export) -> None:
    found = export("--dtype", "bf16", massive=MASSIVE)
    assert found.types()["stream_out"] == onnx.TensorProto.BFLOAT16
    assert np.isfinite(found.report["held_out_mean_sqnr"])


def test_tiny_weights_are_as_good_as_with_float32_scales(export: Export) -> None:
    exact = export("--target", "ort", tiny=TINY).report["held_out_mean_sqnr"]
    for options in ((), ("--keep", "small")):
        found = export(*options, tiny=TINY)
        assert found.report["held_out_mean_sqnr"] > exact - 1
        (layer,) = (node for node in onnx.load(found.file).graph.node if node.name == "small")
        assert found.types()[layer.output[0]] == FLOAT
        assert found.types()["mid_bias_out"] == FLOAT16


def test_a_site_that_was_never_exercised_stays_float(
    export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    found = export(control=0.0)
    reasons = {layer["name"]: layer["reason"] for layer in found.report["kept"]}
    assert reasons["control_in"] == reasons["control_out"]
    assert reasons["control_in"] == "its input was constant in calibration"
    (warning,) = found.report["warnings"]
    assert "depends on control;" in warning
    used = write_calls(found.folder / "used", control=0.3)
    model = str(found.folder / "model.onnx")
    limits = ["--calib", str(used), "--min-sqnr", "25"]
    assert validate_main([model, str(found.file), *limits]) == 0
    capsys.readouterr()


def test_an_exercised_control_is_quantized(export: Export) -> None:
    found = export(control=1.0)
    assert found.report["warnings"] == []
    assert not any("constant" in layer["reason"] for layer in found.report["kept"])


def test_a_float_prediction_that_is_not_finite_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proto = token_denoiser()
    (beta,) = (c for c in proto.graph.initializer if c.name == "last.bias")
    values = onnx.numpy_helper.to_array(beta).copy()
    values[3] = np.inf
    beta.CopyFrom(onnx.numpy_helper.from_array(values, beta.name))
    onnx.save(proto, tmp_path / "model.onnx")
    calls = write_calls(tmp_path / "calls")
    arguments = [str(tmp_path / "model.onnx"), "--calib", str(calls)]
    assert main([*arguments, "-o", str(tmp_path / "out.onnx")]) == 2
    assert "the float model's prediction holds NaN or Inf" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()
