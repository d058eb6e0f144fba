"""Measuring the written file on the calls that calibration kept out."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort

from qvd_trt.calibrators.statistics.activation_stats import ReferenceCall
from qvd_trt.export.apply_plan import ApplyOptions, apply_plan
from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.metrics import sqnr
from qvd_trt.export.model_file import save_model
from qvd_trt.export.ort_session import run_session
from qvd_trt.export.passes.normalize import LOWEST_OPSET
from qvd_trt.export.plan.quant_plan import QuantPlan
from qvd_trt.export.progress import SILENT, Progress
from qvd_trt.export.targets import TARGETS, FloatType, HtdqForm
from qvd_trt.tools.emulated_session import open_emulated
from qvd_trt.tools.quantize_report import CallScore

REFERENCE = ApplyOptions(
    replace(TARGETS["ort"], base_opset=LOWEST_OPSET), FloatType.FP32, HtdqForm.INLINE
)
"""float32 around the Q/DQ nodes, at the model's own opset: nothing but ONNX Runtime reads it."""


def measure(
    model: FloatModel,
    plan: QuantPlan,
    calls: Sequence[ReferenceCall],
    progress: Progress = SILENT,
    options: ApplyOptions = REFERENCE,
) -> tuple[CallScore, ...]:
    """As :func:`measure_file`, of the file that a plan becomes with these options.

    Args:
        model: The float model.
        plan: Its plan.
        calls: Inputs and float predictions.
        progress: Shown one unit per call.
        options: Target and type of the file.

    Raises:
        UserError: as :func:`measure_file`.
    """
    if not calls:
        return ()
    with tempfile.TemporaryDirectory(prefix="qvd-") as folder:
        written = Path(folder) / "written.onnx"
        save_model(apply_plan(model, plan, options), written)
        return measure_file(written, model.signature.output.name, calls, progress)


def measure_file(
    path: Path,
    prediction: str,
    calls: Sequence[ReferenceCall],
    progress: Progress = SILENT,
) -> tuple[CallScore, ...]:
    """SQNR of the prediction against the float model's, call by call, in call order.

    Args:
        path: The written QDQ file. Q and DQ are executed as written, and every 16-bit tensor is
            rounded and overflows as the file says.
        prediction: Name of the output that is compared.
        calls: Inputs and float predictions.
        progress: Shown one unit per call.

    Raises:
        UserError: the model does not run, or a prediction holds NaN or Inf.
    """
    if not calls:
        return ()
    with ExitStack() as stack:
        with progress.step("prepare measuring", None):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qvd-")))
            session = open_emulated(path, folder)
        return _scores(session, prediction, calls, progress)


def _scores(
    session: ort.InferenceSession,
    name: str,
    calls: Sequence[ReferenceCall],
    progress: Progress,
) -> tuple[CallScore, ...]:
    scores = []
    with progress.step("measure", len(calls)) as advance:
        for call in calls:
            (output,) = run_session(session, [name], call.inputs)
            prediction = np.asarray(output, np.float32)
            _refuse_not_finite(call, prediction)
            error = sqnr(call.prediction, prediction)
            scores.append(CallScore(call.timestep, round(error, 2), call.step))
            advance()
    return tuple(scores)


def _refuse_not_finite(call: ReferenceCall, prediction: Float32Array) -> None:
    where = f"holds NaN or Inf on the call at timestep {call.timestep:g}"
    if not np.isfinite(call.prediction).all():
        raise UserError(
            f"the float model's prediction {where}; calibrate again on sound calls (--calib)"
        )
    if not np.isfinite(prediction).all():
        raise UserError(
            f"the quantized model's prediction {where}: a value is beyond its 16-bit type; use "
            "--dtype bf16 or fp32, or calibrate again, so that what needs float32 is found"
        )
