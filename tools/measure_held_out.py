"""Measuring a plan on the calls that calibration kept out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qvd_trt.calibrators.statistics.activation_stats import HeldOutCall
from qvd_trt.export.apply_plan import ApplyOptions, apply_plan
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.metrics import sqnr
from qvd_trt.export.model_file import save_model
from qvd_trt.export.ort_session import open_session, run_session
from qvd_trt.export.passes.normalize import LOWEST_OPSET
from qvd_trt.export.plan.quant_plan import QuantPlan
from qvd_trt.export.progress import SILENT, Progress
from qvd_trt.export.targets import TARGETS, FloatType, HtdqForm
from qvd_trt.tools.quantize_report import HeldOutScore

REFERENCE = ApplyOptions(
    replace(TARGETS["ort"], base_opset=LOWEST_OPSET), FloatType.FP32, HtdqForm.INLINE
)
"""Held-out calls are measured in float32 around the Q/DQ nodes: ONNX Runtime's CPU kernels have no
fp16 arithmetic, so a lower type would be measured with roundings that no engine makes. At the
model's own opset, since nothing but ONNX Runtime reads this file."""


def measure(
    model: FloatModel,
    plan: QuantPlan,
    calls: Sequence[HeldOutCall],
    progress: Progress = SILENT,
) -> tuple[HeldOutScore, ...]:
    """SQNR of the prediction against the float model's, call by call, in call order.

    Args:
        model: The float model.
        plan: Its plan; Q and DQ are executed as written.
        calls: Inputs and float predictions.
        progress: Shown one unit per call.

    Raises:
        UserError: the model does not run.
    """
    if not calls:
        return ()
    with tempfile.TemporaryDirectory(prefix="qvd-") as folder:
        reference = Path(folder) / "reference.onnx"
        with progress.step("prepare measuring", None):
            save_model(apply_plan(model, plan, REFERENCE), reference)
        return measure_file(reference, model.signature.output.name, calls, progress)


def measure_file(
    path: Path, prediction: str, calls: Sequence[HeldOutCall], progress: Progress
) -> tuple[HeldOutScore, ...]:
    """As :func:`measure`, of a QDQ file that ONNX Runtime runs, by the name of its prediction."""
    session = open_session(path, faithful_qdq=True)
    scores = []
    with progress.step("measure", len(calls)) as advance:
        for call in calls:
            (output,) = run_session(session, [prediction], call.inputs)
            error = sqnr(call.prediction, np.asarray(output, np.float32))
            scores.append(HeldOutScore(call.timestep, round(error, 2)))
            advance()
    return tuple(scores)
