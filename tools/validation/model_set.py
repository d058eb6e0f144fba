"""Opening every model that a validation compares."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qvd_trt.calibrators.sources.calls import Denoise
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature
from qvd_trt.tools.engine.engine_session import EngineSession
from qvd_trt.tools.validation.models import (
    EngineModel,
    OrtModel,
    check_same_interface,
    is_float32,
    read_model_signature,
    write_lowered,
)
from qvd_trt.tools.validation.recorded_outputs import RecordedOutputs
from qvd_trt.tools.validation.report import (
    COMPARISONS,
    ENGINE,
    FLOAT,
    FLOAT_ENGINE,
    FLOAT_FP16,
    IMPLEMENTATION,
    NOISE_FLOOR,
    QDQ,
    QDQ_FP16,
    ROUNDING_FLOOR,
    TOTAL,
    Comparison,
)
from qvd_trt.tools.validation.request import ValidationRequest


@dataclass(frozen=True, slots=True)
class ModelSet:
    """The opened models.

    Attributes:
        signature: The float model's interface.
        models: By name, in the order in which they run.
        files: What each was made from, for the report.
        skipped: Comparison name -> why it cannot be made.
        recorded: The engine's outputs when they were recorded, not run.
    """

    signature: ModelSignature
    models: Mapping[str, Denoise]
    files: Mapping[str, str]
    skipped: Mapping[str, str]
    recorded: RecordedOutputs | None

    def comparisons(self, models: Mapping[str, Denoise]) -> tuple[Comparison, ...]:
        """Those of which both models are among the given ones."""
        return tuple(c for c in COMPARISONS if c.reference in models and c.candidate in models)

    def running(self) -> dict[str, Denoise]:
        """The models that can be run on any call."""
        return {name: run for name, run in self.models.items() if run is not self.recorded}


def open_models(request: ValidationRequest, stack: ExitStack) -> ModelSet:
    """Open all models of a request; ``stack`` closes them and removes the lowered copies.

    Raises:
        UserError: a model cannot be loaded or does not belong to the others.
    """
    names = request.timestep_input, request.latent_input
    float_model, signature = read_model_signature(request.float_model, *names)
    qdq_model, qdq_signature = read_model_signature(request.qdq_model, *names)
    check_same_interface(signature, qdq_signature, request.qdq_model, request.float_model)
    if not any(node.op_type == "DequantizeLinear" for node in qdq_model.graph):
        raise UserError(
            f"{request.qdq_model} holds no DequantizeLinear node; give the float model first and "
            "the QDQ model second"
        )
    providers = request.providers
    models: dict[str, Denoise] = {
        FLOAT: OrtModel(request.float_model, signature, providers),
        QDQ: OrtModel(request.qdq_model, qdq_signature, providers),
    }
    files = {FLOAT: str(request.float_model), QDQ: str(request.qdq_model)}
    skipped: dict[str, str] = {}
    recorded = None
    if request.engine is not None:
        models[ENGINE] = _open_engine(request, request.engine, signature, stack)
        files[ENGINE] = str(request.engine)
    elif request.engine_outputs:
        recorded = RecordedOutputs(request.engine_outputs, signature.output.name)
        models[ENGINE] = recorded
        files[ENGINE] = f"recorded outputs, {', '.join(map(str, request.engine_outputs))}"
    else:
        skipped[IMPLEMENTATION.name] = skipped[TOTAL.name] = "no engine was given"
    if request.float_engine is not None:
        models[FLOAT_FP16] = _open_lowered(float_model, signature, "float", request, stack)
        models[FLOAT_ENGINE] = _open_engine(request, request.float_engine, signature, stack)
        files[FLOAT_ENGINE] = str(request.float_engine)
    else:
        skipped[NOISE_FLOOR.name] = "no --float-engine was given"
    if not request.rounding_floor:
        skipped[ROUNDING_FLOOR.name] = "left out by --no-rounding-floor"
    elif not is_float32(qdq_model):
        skipped[ROUNDING_FLOOR.name] = (
            "needs the QDQ model with an fp32 graph: export it again with --plan and --dtype fp32"
        )
    else:
        models[QDQ_FP16] = _open_lowered(qdq_model, qdq_signature, "qdq", request, stack)
    return ModelSet(signature, models, files, skipped, recorded)


def _open_engine(
    request: ValidationRequest, path: Path, signature: ModelSignature, stack: ExitStack
) -> EngineModel:
    session = stack.enter_context(EngineSession(path, request.runtime, request.plugin))
    return EngineModel(session, path, signature)


def _open_lowered(
    model: ir.Model,
    signature: ModelSignature,
    name: str,
    request: ValidationRequest,
    stack: ExitStack,
) -> OrtModel:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qvd-")))
    path = folder / f"{name}.fp16.onnx"
    write_lowered(model, path)
    return OrtModel(path, signature, request.providers)
