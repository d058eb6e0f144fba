"""Running an ONNX file on the CPU in the arithmetic that it is written for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from qvd_trt.export.model_file import load_model, save_model
from qvd_trt.export.ort_session import CPU, open_session
from qvd_trt.export.passes.emulate_low_precision import EmulateLowPrecision
from qvd_trt.export.passes.insert_htdq import HTDQ_DOMAIN, DefineHtdq
from qvd_trt.export.passes.precision.widen import computes_in_16_bits, has_subgraphs
from qvd_trt.export.targets import HtdqForm


def open_emulated(path: Path, folder: Path, providers: Sequence[str] = CPU) -> ort.InferenceSession:
    """Open a file with Q and DQ as written and every 16-bit result rounded to its type.

    HTDQ nodes that only a plugin runs get their body. A file that computes in float32 is
    opened as it is.

    Args:
        path: The file.
        folder: Takes the model that is run instead, where one is needed; keep it as long as the
            session.
        providers: Execution providers, first choice first.

    Raises:
        UserError: the file cannot be loaded, or has 16-bit tensors around If, Loop or Scan.
    """
    model = load_model(path)
    bodiless = _needs_body(model)
    low = computes_in_16_bits(model)
    if not bodiless and not low:
        return open_session(path, providers=providers, faithful_qdq=True)
    if bodiless:
        DefineHtdq(HtdqForm.FUNCTION)(model)
    if low:
        EmulateLowPrecision()(model)
    stand_in = folder / "emulated.onnx"
    save_model(model, stand_in)
    return open_session(stand_in, providers=providers, faithful_qdq=True, optimized=not low)


def can_emulate(model: ir.Model) -> bool:
    """Whether :func:`open_emulated` takes a loaded model."""
    return not (computes_in_16_bits(model) and has_subgraphs(model))


def _needs_body(model: ir.Model) -> bool:
    defined = {function.domain for function in model.functions.values()}
    return HTDQ_DOMAIN not in defined and any(n.domain == HTDQ_DOMAIN for n in model.graph)
