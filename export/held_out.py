"""Measuring the emitted model on the calls that calibration kept out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qvd_trt.calibrators.ort_session import open_session, run_session
from qvd_trt.calibrators.progress import Progress
from qvd_trt.calibrators.sqnr import output_sqnr
from qvd_trt.calibrators.stats import HeldOutCall
from qvd_trt.export.report import HeldOutScore


def measure_held_out(
    model: Path, calls: Sequence[HeldOutCall], progress: Progress
) -> tuple[HeldOutScore, ...]:
    """SQNR of the prediction against the float model's, call by call, in call order.

    Args:
        model: A QDQ model that ONNX Runtime runs; Q and DQ are executed as written.
        calls: Inputs and float predictions.
        progress: Shown one unit per call.
    """
    session = open_session(model, faithful_qdq=True)
    name = session.get_outputs()[0].name
    scores = []
    with progress.step("measure", len(calls)) as advance:
        for call in calls:
            (output,) = run_session(session, [name], call.inputs)
            sqnr = output_sqnr(call.prediction, np.asarray(output, np.float32))
            scores.append(HeldOutScore(call.timestep, round(sqnr, 2)))
            advance()
    return tuple(scores)
