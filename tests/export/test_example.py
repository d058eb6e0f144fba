"""The shipped example, from the command's own code to the real compilers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from qvd_trt.export.apply_plan import ApplyOptions, apply_plan, fold_only
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.model_file import load_model, open_model, save_model
from qvd_trt.export.ort_session import open_session
from qvd_trt.export.plan.plan_json import load_plan
from qvd_trt.export.plan.quant_plan import QuantPlan
from qvd_trt.export.progress import SilentProgress
from qvd_trt.export.targets import TARGETS, FloatType
from qvd_trt.tools.quantize import quantize
from qvd_trt.tools.quantize_report import QuantizationReport
from qvd_trt.tools.quantize_request import QuantizeRequest

EXAMPLE = Path(__file__).parents[2] / "examples" / "pandigits_unet"
COMPILED = [("trt", "fp16"), ("rtx", "fp16"), ("trt8", "fp32")]


@dataclass(frozen=True)
class Outcome:
    """What one export of the example gave."""

    model: FloatModel
    plan: QuantPlan
    report: QuantizationReport
    output: Path


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Four of the ten trajectories, twenty calls, by the default algorithm."""
    output = tmp_path_factory.mktemp("example") / "pandigits.w8a8.onnx"
    files = [EXAMPLE / "calibration" / f"trajectory_0{index}.npz" for index in (0, 3, 6, 9)]
    request = QuantizeRequest(
        model=EXAMPLE / "model.onnx",
        output=output,
        apply=ApplyOptions(TARGETS["ort"], FloatType.FP32),
        calibration=files,
    )
    report = quantize(request, SilentProgress())
    model = open_model(EXAMPLE / "model.onnx")
    return Outcome(model, load_plan(output.with_suffix(".plan.json")), report, output)


def test_nearly_all_macs_are_int8(outcome: Outcome) -> None:
    assert outcome.report.int8_share is not None
    assert outcome.report.int8_share.eligible >= 0.99


def test_held_out_steps_are_close(outcome: Outcome) -> None:
    sqnr = outcome.report.mean_sqnr()
    assert sqnr is not None
    assert sqnr > 20


def test_report_lies_beside_the_output(outcome: Outcome) -> None:
    report = json.loads(outcome.output.with_suffix(".report.json").read_text())
    assert [site["tensor"] for site in report["temporal"]] == ["silu_2"]
    assert report["quantized_bytes"] < report["float_bytes"] / 3


@pytest.mark.parametrize(("batch", "size"), [(1, 32), (2, 24)])
def test_float_rewrite_is_the_same_function(
    outcome: Outcome, batch: int, size: int, tmp_path: Path
) -> None:
    folded = tmp_path / "folded.onnx"
    save_model(fold_only(outcome.model, outcome.plan), folded)
    feed = noise_call(batch, size)
    (expected,) = open_session(EXAMPLE / "model.onnx").run(None, feed)
    (actual,) = open_session(folded).run(None, feed)
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()
    rewritten = [node for node in load_model(folded).graph if "/qvd" in (node.name or "")]
    assert rewritten, "the plan folds nothing: the comparison would prove nothing"


@pytest.mark.slow
@pytest.mark.parametrize(("target", "dtype"), COMPILED)
def test_every_planned_layer_is_int8_in_the_compiler(
    outcome: Outcome, target: str, dtype: str, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    from tests.rtx.builder import build, int8_layers

    path = tmp_path / "model.onnx"
    options = ApplyOptions(TARGETS[target], FloatType(dtype))
    save_model(apply_plan(outcome.model, outcome.plan, options), path)
    shapes = {name: tuple(value.shape) for name, value in noise_call(2, 32).items()}
    built = build(path, ("8.9", "12.0"), {name: (s, s, s) for name, s in shapes.items()})
    planned = {quant.name for site in outcome.plan.dense for quant in site.layers}
    assert int8_layers(built) == planned


def noise_call(batch: int, size: int) -> dict[str, AnyArray]:
    """Inputs of the denoiser at one batch and frame size."""
    rng = np.random.default_rng(batch)
    return {
        "sample": rng.standard_normal((batch, 3, 16, size, size)).astype(np.float32),
        "timestep": np.full(batch, 440, np.int64),
        "encoder_hidden_states": rng.standard_normal((batch, 3, 64)).astype(np.float32),
    }
