"""Opening ONNX Runtime sessions."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.stored_weights import with_stored_weights

CPU = ("CPUExecutionProvider",)
CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")

# TF32 would round every product of the float model to 10 bits, in the statistics too.
_OPTIONS: Mapping[str, Mapping[str, str]] = {"CUDAExecutionProvider": {"use_tf32": "0"}}
_EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


def open_session(
    model: ir.Model | Path,
    data_folder: Path | None = None,
    providers: Sequence[str] = CPU,
    *,
    faithful_qdq: bool = False,
    bounded_memory: bool = False,
    optimized: bool = True,
) -> ort.InferenceSession:
    """Open a model file, or a model in memory whose external data lies in ``data_folder``.

    Args:
        model: A path, or a model whose external weights, if any, are still in their files; those of
            16 bits that are read as float32 are given as they are stored.
        data_folder: Where the external data of a model in memory lies.
        providers: Execution providers, first choice first.
        faithful_qdq: Run Q/DQ nodes as written. Otherwise ONNX Runtime may fuse them to integer
            kernels, which flip least significant bits.
        bounded_memory: Free every activation as soon as its last reader has run. By default ONNX
            Runtime may run readers that feed nothing (our probes) last and keep their inputs.
        optimized: Let ONNX Runtime fuse and simplify the graph.

    Raises:
        UserError: ONNX Runtime cannot load the model, or the first provider does not start.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised too
    # Threads that wait in a loop take the cores of whoever else works here (docs/results.md).
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if faithful_qdq:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if bounded_memory:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.enable_mem_pattern = False
    wanted = [(name, dict(_OPTIONS.get(name, {}))) for name in providers]
    if providers[0] not in ort.get_available_providers():
        raise _not_started(providers[0])
    if providers[0] == CUDA[0]:
        _load_cuda()
    try:
        if isinstance(model, Path):
            source: str | bytes = str(model)
        else:
            source = ir.to_proto(with_stored_weights(model)).SerializeToString()
            if data_folder is not None:
                options.add_session_config_entry(_EXTERNAL_DATA_FOLDER, str(data_folder.resolve()))
        session = ort.InferenceSession(source, options, providers=wanted)
    except Exception as error:  # ONNX Runtime raises classes of no common base
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"ONNX Runtime cannot load the model: {reason}") from error
    # ONNX Runtime warns and goes on without a provider that does not start.
    if providers[0] not in session.get_providers():
        raise _not_started(providers[0])
    return session


def run_session(
    session: ort.InferenceSession, outputs: Sequence[str] | None, feed: Mapping[str, AnyArray]
) -> list[AnyArray]:
    """The named outputs, or all.

    Raises:
        UserError: the model does not run on these inputs.
    """
    try:
        found: list[AnyArray] = session.run(outputs, dict(feed))
    except Exception as error:  # ONNX Runtime raises classes of no common base
        raise cannot_run(error, {name: array.shape for name, array in feed.items()}) from error
    return found


def cannot_run(error: Exception, shapes: Mapping[str, Sequence[int]]) -> UserError:
    """What to say when a session fails on inputs of these shapes."""
    reason = str(error).strip().splitlines()[0]
    listed = {name: list(shape) for name, shape in shapes.items() if not name.startswith("qvd/")}
    return UserError(
        f"the model does not run on shapes {listed}; give others. ONNX Runtime says: {reason}"
    )


def _load_cuda() -> None:
    """Find the CUDA libraries that pip installed; what fails shows in the session's providers."""
    ort.set_default_logger_severity(4)
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()


def _not_started(provider: str) -> UserError:
    return UserError(
        f"ONNX Runtime's {provider} does not start here: it needs an NVIDIA GPU and the "
        "CUDA libraries (pip install 'onnxruntime-gpu[cuda,cudnn]'); or use --provider cpu"
    )
