"""Opening ONNX Runtime sessions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime as ort

from qvd_trt.calibrators.errors import UserError

CPU = ("CPUExecutionProvider",)


def open_session(
    model: onnx.ModelProto | Path,
    data_folder: Path | None = None,
    providers: Sequence[str] = CPU,
    *,
    faithful_qdq: bool = False,
    bounded_memory: bool = False,
) -> ort.InferenceSession:
    """Open a model file, or a model in memory whose external data lies in ``data_folder``.

    Args:
        model: A path, or a protobuf without its external data.
        data_folder: Where the external data of a model in memory lies.
        providers: Execution providers, first choice first.
        faithful_qdq: Run Q/DQ nodes as written. Otherwise ONNX Runtime may fuse them to integer
            kernels, which flip least significant bits.
        bounded_memory: Free every activation as soon as its last reader has run. By default ONNX
            Runtime may run readers that feed nothing (our probes) last and keep their inputs.

    Raises:
        UserError: ONNX Runtime cannot load the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if faithful_qdq:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if bounded_memory:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.enable_mem_pattern = False
    available = [name for name in providers if name in ort.get_available_providers()]
    if not available:
        raise UserError(
            f"ONNX Runtime has none of the providers {list(providers)}; use --provider cpu"
        )
    try:
        if isinstance(model, Path):
            return ort.InferenceSession(str(model), options, providers=available)
        if data_folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(data_folder.resolve())
            )
        return ort.InferenceSession(model.SerializeToString(), options, providers=available)
    except Exception as error:  # ONNX Runtime raises classes of no common base
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"ONNX Runtime cannot load the model: {reason}") from error
