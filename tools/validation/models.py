"""The models that are compared, each as a function from a call to its prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature, read_signature
from qvd_trt.export.model import load_model, save_model
from qvd_trt.export.passes.precision.lower_precision import LowerPrecision
from qvd_trt.export.passes.prepare import Prepare
from qvd_trt.export.session import open_session, run_session
from qvd_trt.tools.engine.array_cast import cast_exactly
from qvd_trt.tools.engine.engine_session import EngineSession
from qvd_trt.tools.validation.report import as_float32

_LOW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class OrtModel:
    """An ONNX file in ONNX Runtime, with Q and DQ run as written."""

    def __init__(self, path: Path, signature: ModelSignature, providers: Sequence[str]) -> None:
        """Open the model.

        Args:
            path: The file.
            signature: Its interface.
            providers: Execution providers, first choice first.

        Raises:
            UserError: ONNX Runtime cannot load it.
        """
        self._path = path
        self._signature = signature
        self._session = open_session(path, providers=providers, faithful_qdq=True)

    def __call__(self, call: DenoiserCall) -> Float32Array:
        """The first output, float32.

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
    path: Path, timestep: str | None, latent: str | None
) -> tuple[ir.Model, ModelSignature]:
    """Load a model; its weights stay on disk where they are external.

    Raises:
        UserError: it is missing or damaged, or its timestep or latent is not found.
    """
    model = load_model(path)
    return model, read_signature(model.graph, timestep, latent)


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


def is_float32(model: ir.Model) -> bool:
    """Whether no tensor of the graph is a 16-bit float."""
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [output for node in model.graph for output in node.outputs]
    casts = {node.attributes["to"].as_int() for node in model.graph if node.op_type == "Cast"}
    return not casts & {int(dtype) for dtype in _LOW} and all(v.dtype not in _LOW for v in values)


def write_lowered(model: ir.Model, path: Path) -> None:
    """Write the model with its float32 arithmetic lowered to fp16; Q/DQ scales stay float32.

    Raises:
        UserError: the graph cannot be lowered.
    """
    lowered = model.clone()
    Prepare()(lowered)
    LowerPrecision("fp16", qdq_scales="float32")(lowered)
    save_model(lowered, path)
