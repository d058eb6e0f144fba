"""The models of a validation, each opened as a function from a call to its prediction."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from qvd_trt.calibrators.sources.calls import Denoise, DenoiserCall
from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature, read_signature
from qvd_trt.export.model_file import (
    data_folder,
    load_model,
    model_files,
    normalize,
    save_model,
)
from qvd_trt.export.ort_session import open_session, run_session
from qvd_trt.export.passes.normalize import LAST_OPSET
from qvd_trt.export.passes.precision.lower_precision import LowerPrecision
from qvd_trt.export.passes.precision.widen import computes_in_16_bits, is_low_precision
from qvd_trt.export.passes.prepare import Prepare
from qvd_trt.tools.emulated_session import can_emulate, open_emulated
from qvd_trt.tools.engine.array_cast import cast_exactly
from qvd_trt.tools.engine.engine_session import EngineSession
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
    as_float32,
)
from qvd_trt.tools.validation.request import ValidationRequest

_NOT_EMULATED = (
    "{} has If, Loop or Scan: its 16-bit arithmetic is run as ONNX Runtime has kernels for it, "
    "which hides overflows"
)


class OrtModel:
    """An ONNX file in ONNX Runtime, with Q and DQ run as written."""

    def __init__(
        self,
        path: Path,
        signature: ModelSignature,
        providers: Sequence[str],
        emulation: Path | None = None,
        model: ir.Model | None = None,
    ) -> None:
        """Open the model.

        Args:
            path: The file.
            signature: Its interface.
            providers: Execution providers, first choice first.
            emulation: A folder for the model that rounds, and overflows, as the file's 16-bit
                types do; None lets ONNX Runtime compute in the types that it has kernels for.
            model: What is run in place of the file, as the export reads it.

        Raises:
            UserError: ONNX Runtime cannot load it.
        """
        self._path = path
        self._signature = signature
        if emulation is not None:
            self._session = open_emulated(path, emulation, providers)
        else:
            folder = None if model is None else data_folder(path, model)
            self._session = open_session(model or path, folder, providers, faithful_qdq=True)

    def __call__(self, call: DenoiserCall) -> Float32Array:
        """The prediction, float32.

        Raises:
            UserError: an input cannot be given in the dtype that the model takes, or ONNX Runtime
                cannot run its shape.
        """
        feeds = {
            spec.name: cast_exactly(
                call.inputs[spec.name], spec.dtype, f"{self._path.name}: input {spec.name!r}"
            )
            for spec in self._signature.inputs
        }
        (output,) = run_session(self._session, [self._signature.output.name], feeds)
        return as_float32(output)


class EngineModel:
    """An engine, with the name of the output that is compared."""

    def __init__(self, session: EngineSession, path: Path, signature: ModelSignature) -> None:
        """Check the engine's interface.

        Raises:
            UserError: its inputs or outputs are named otherwise than the ONNX model's.
        """
        wanted = {spec.name for spec in signature.inputs}
        if unknown := sorted(session.inputs.keys() - wanted):
            raise UserError(
                f"{path}: the engine's input {unknown[0]!r} is none of the model's, "
                f"{sorted(wanted)}; give an engine that was built from this model"
            )
        self._output = signature.output.name
        if self._output not in session.outputs:
            raise UserError(
                f"{path}: the engine has the outputs {list(session.outputs)}, the model returns "
                f"{self._output!r}; give an engine that was built from this model"
            )
        self._session = session

    def __call__(self, call: DenoiserCall) -> Float32Array:
        """The prediction, float32.

        Raises:
            UserError: the call does not fit the engine, or TensorRT fails.
        """
        return as_float32(self._session.run(call.inputs)[self._output])


def read_model_signature(
    path: Path, timestep: str | None, latent: str | None, prediction: str | None
) -> tuple[ir.Model, ModelSignature]:
    """Load a model; its weights stay on disk where they are external.

    Raises:
        UserError: it is missing or damaged, or its timestep, latent or prediction is not found.
    """
    model = load_model(path)
    return model, read_signature(model.graph, timestep, latent, prediction)


def check_same_interface(
    reference: ModelSignature, other: ModelSignature, path: Path, reference_path: Path
) -> None:
    """Refuse a model that does not take the same inputs and return the same output.

    Raises:
        UserError: naming the difference.
    """
    wanted, found = ({spec.name for spec in s.inputs} for s in (reference, other))
    if found != wanted:
        raise UserError(
            f"{path} takes the inputs {sorted(found)}, {reference_path} takes {sorted(wanted)}; "
            "give the float model that the QDQ model was made from"
        )
    if other.output.name != reference.output.name:
        raise UserError(
            f"{path} returns {other.output.name!r}, {reference_path} {reference.output.name!r}; "
            "give the float model that the QDQ model was made from"
        )


def write_lowered(model: ir.Model, path: Path) -> None:
    """Write the model with its float32 arithmetic lowered to fp16; Q/DQ scales stay float32.

    Raises:
        UserError: the graph cannot be lowered.
    """
    lowered = model.clone()
    Prepare()(lowered)
    LowerPrecision("fp16", qdq_scales="float32")(lowered)
    save_model(lowered, path)


@dataclass(frozen=True, slots=True)
class ModelSet:
    """The opened models.

    Attributes:
        signature: The float model's interface.
        models: By name, in the order in which they run.
        files: What each was made from, for the report.
        skipped: Comparison name -> why it cannot be made.
        recorded: The engine's outputs when they were recorded, not run.
        warnings: For the user.
    """

    signature: ModelSignature
    models: Mapping[str, Denoise]
    files: Mapping[str, str]
    skipped: Mapping[str, str]
    recorded: RecordedOutputs | None
    warnings: tuple[str, ...] = ()

    def comparisons(self, models: Mapping[str, Denoise]) -> tuple[Comparison, ...]:
        """Those of which both models are among the given ones."""
        return tuple(c for c in COMPARISONS if c.reference in models and c.candidate in models)

    def running(self) -> dict[str, Denoise]:
        """The models that can be run on any call."""
        return {name: run for name, run in self.models.items() if run is not self.recorded}


def open_models(request: ValidationRequest, stack: ExitStack) -> ModelSet:
    """Open all models of a request; ``stack`` closes them and removes the lowered copies.

    Raises:
        UserError: a model cannot be loaded or does not belong to the others, or a file to write
            would replace one to read.
    """
    names = request.timestep_input, request.latent_input, request.prediction_output
    float_model = load_model(request.float_model)
    normalized = _is_read_otherwise(float_model)
    if normalized:
        normalize(float_model, request.float_model)
    signature = read_signature(float_model.graph, *names)
    qdq_model, qdq_signature = read_model_signature(request.qdq_model, *names)
    request.check_outputs(
        [
            *model_files(request.float_model, float_model),
            *model_files(request.qdq_model, qdq_model),
        ]
    )
    check_same_interface(signature, qdq_signature, request.qdq_model, request.float_model)
    if not any(node.op_type == "DequantizeLinear" for node in qdq_model.graph):
        raise UserError(
            f"{request.qdq_model} holds no DequantizeLinear node; give the float model first and "
            "the QDQ model second"
        )
    providers = request.providers
    emulation = None
    if can_emulate(qdq_model):
        emulation = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qvd-")))
    read = float_model if normalized else None
    models: dict[str, Denoise] = {
        FLOAT: OrtModel(request.float_model, signature, providers, model=read),
        QDQ: OrtModel(request.qdq_model, qdq_signature, providers, emulation),
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
        # Not the QDQ model: inlined, its HTDQ functions would be lowered otherwise than as written.
        normalize(float_model, request.float_model)
        models[FLOAT_FP16] = _open_lowered(float_model, signature, "float", request, stack)
        models[FLOAT_ENGINE] = _open_engine(request, request.float_engine, signature, stack)
        files[FLOAT_ENGINE] = str(request.float_engine)
    else:
        skipped[NOISE_FLOOR.name] = "no --float-engine was given"
    if not request.rounding_floor:
        skipped[ROUNDING_FLOOR.name] = "left out by --no-rounding-floor"
    elif computes_in_16_bits(qdq_model):
        skipped[ROUNDING_FLOOR.name] = (
            "needs the QDQ model with an fp32 graph: export it again with --plan and --dtype fp32"
        )
    else:
        models[QDQ_FP16] = _open_lowered(qdq_model, qdq_signature, "qdq", request, stack)
    warnings = () if emulation is not None else (_NOT_EMULATED.format(request.qdq_model),)
    return ModelSet(signature, models, files, skipped, recorded, warnings)


def _is_read_otherwise(model: ir.Model) -> bool:
    """Whether the reference is what the export reads of the float file, not the file as it stands.

    ONNX Runtime lacks kernels of the newest opsets, and those of 16 bits round, or do not exist.
    """
    opset = max(model.opset_imports.get(domain, 0) for domain in ("", "ai.onnx"))
    return opset > LAST_OPSET or is_low_precision(model)


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
