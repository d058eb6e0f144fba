"""Opening the float model, and writing ONNX files, with weights inline or in external data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qvd_trt.export.atomic_files import not_a_file, written_together
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_layers import find_layers
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.graph.signature import read_signature
from qvd_trt.export.graph.values import constant_array, nodes_by_name
from qvd_trt.export.passes.insert_htdq import HTDQ_OP
from qvd_trt.export.passes.normalize import Normalize
from qvd_trt.export.passes.opset.decompose_attention import DecomposeAttention
from qvd_trt.export.passes.prepare import Prepare
from qvd_trt.export.plan.site_types import Layer
from qvd_trt.export.stored_weights import stored_tensor
from qvd_trt.export.targets import FloatType

INLINE_LIMIT_BYTES = 1_900_000_000
"""Above this weights get a file of their own: a protobuf file ends at 2 GiB, graph included."""

_FLOAT_TYPES = {
    ir.DataType.FLOAT: FloatType.FP32,
    ir.DataType.FLOAT16: FloatType.FP16,
    ir.DataType.BFLOAT16: FloatType.BF16,
}
_QUANTIZED_OPS = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    HTDQ_OP,
}


def open_model(
    path: Path | str,
    timestep_input: str | None = None,
    latent_input: str | None = None,
    prediction_output: str | None = None,
) -> FloatModel:
    """Open a float denoiser; its file is read once, external weights when they are asked for.

    Args:
        path: The ``.onnx`` file.
        timestep_input: Name of the timestep input, or None to find it.
        latent_input: Name of the noisy latent input, or None to find it.
        prediction_output: Name of the output that is the prediction, or None to find it.

    Raises:
        UserError: the file is missing or incomplete, is already quantized, is of other floats than
            float32, fp16 and bf16, holds NaN or infinite weights, or has no input that looks like a
            timestep or a latent.
    """
    path = Path(path)
    source = load_model(path)
    _refuse_quantized(source, path)
    files = model_files(path, source)
    _follow_cache_links(source, path)
    normalize(source, path)
    return view_model(source, path, files, timestep_input, latent_input, prediction_output)


def view_model(
    source: ir.Model,
    path: Path,
    files: tuple[Path, ...],
    timestep_input: str | None = None,
    latent_input: str | None = None,
    prediction_output: str | None = None,
) -> FloatModel:
    """What is known of a normalized model; see :func:`open_model`. ``source`` is not changed."""
    prepared = source.clone()
    Prepare()(prepared)
    # What is inside must be measured: its logits may be beyond fp16.
    DecomposeAttention(strict=False)(prepared)
    layers, odd = find_layers(prepared.graph)
    _refuse_other_precision(prepared.graph, layers, path)
    _refuse_unsound_weights(prepared.graph, layers, path)
    return FloatModel(
        path=path,
        files=files,
        data_folder=data_folder(path, source),
        stored=_stored_type(source),
        source=source,
        prepared=prepared,
        signature=read_signature(prepared.graph, timestep_input, latent_input, prediction_output),
        layers={layer.name: layer for layer in layers},
        odd_layers=tuple(odd),
        nodes=nodes_by_name(prepared.graph),
    )


def load_model(path: Path) -> ir.Model:
    """Load an ONNX file; external data stays on disk until a tensor is read.

    Raises:
        UserError: the file is missing or is not a complete ONNX model, or its external data is.
    """
    if not path.is_file():
        raise UserError(f"{path} {not_a_file(path)}; give the path of a float .onnx file")
    try:
        model = ir.load(path)
    except (DecodeError, ValueError, TypeError, KeyError, IndexError, OSError) as error:
        raise UserError(
            f"{path} is not a complete ONNX file ({_first_line(error)}); export it again"
        ) from error
    if not len(model.graph):
        raise UserError(f"{path} holds no graph; it may be truncated: export it again")
    for file, end in _external_extents(model).items():
        if not file.is_file():
            raise UserError(
                f"{path} keeps its weights in {file.name}, which {not_a_file(file)}; copy the file "
                "beside the model"
            )
        if file.stat().st_size < end:
            raise UserError(
                f"{file} is truncated: {file.stat().st_size} bytes, {end} are needed; "
                "copy it again, or export again"
            )
    return model


def normalize(model: ir.Model, path: Path) -> None:
    """Bring a loaded model into the one form that the passes read, in place.

    Args:
        model: The model.
        path: What errors call it.

    Raises:
        UserError: its opset is not read, or it cannot be brought in order; see
            :class:`~qvd_trt.export.passes.normalize.Normalize`.
    """
    try:
        Normalize()(model)
    except ir.passes.PassError as error:
        raise _true_cause(error, path) from error


def model_files(path: Path, model: ir.Model) -> tuple[Path, ...]:
    """The ONNX file and the external data files it names."""
    return (path, *sorted(_external_extents(model)))


def data_folder(path: Path, model: ir.Model) -> Path:
    """The folder that locations of external weights are relative to."""
    constants = map(stored_tensor, _constants(model))
    tensors = [tensor for tensor in constants if isinstance(tensor, ir.ExternalTensor)]
    return Path(tensors[0].base_dir) if tensors else path.parent


def needs_external_data(model: ir.Model, limit: int = INLINE_LIMIT_BYTES) -> bool:
    """Whether the weights have more bytes than the ONNX file itself may hold."""
    return sum(tensor.nbytes for tensor in _constants(model)) > limit


def data_path(path: Path) -> Path:
    """Where :func:`save_model` puts external weights: ``model.onnx`` -> ``model.onnx.data``."""
    return path.with_name(f"{path.name}.data")


def save_model(
    model: ir.Model, path: Path | str, *, external: bool | None = None
) -> tuple[Path, ...]:
    """Write the model whole or not at all; weights go to :func:`data_path` when external.

    Args:
        model: What to write.
        path: The ``.onnx`` file.
        external: Whether weights go to a separate file; None decides by the 2 GiB limit.

    Returns:
        The files that were written: the model, and its weights where they have one of their own.

    Raises:
        UserError: a folder stands in the place of one of them.
    """
    path = Path(path)
    if external is None:
        external = needs_external_data(model)
    with written_together(path) as staged:
        # ir.save points the in-memory tensors at the file it writes: save a copy of the model.
        copy = model.clone()
        if not external:
            # Weights of an external source would stay references to a file that is not beside us.
            ir.external_data.load_to_model(copy)
        ir.save(copy, staged, external_data=data_path(path).name if external else None)
    return tuple(file for file in (path, data_path(path)) if file == path or external)


def _refuse_quantized(model: ir.Model, path: Path) -> None:
    for node in model.graph:
        if node.op_type in _QUANTIZED_OPS:
            raise UserError(
                f"{path} is already quantized ({node.op_type} node {node.name!r}); "
                "give the float model it was made from"
            )


def _refuse_other_precision(graph: ir.Graph, layers: Iterable[Layer], path: Path) -> None:
    """Refuse layers that are not float32 by now: calibration reads float32 activations."""
    for layer in layers:
        dtype = graph.initializers[layer.weight].dtype
        if dtype is not None and dtype != ir.DataType.FLOAT:
            mend = (
                "export the model in float32, or without If, Loop and Scan, around which 16-bit "
                "tensors are not read"
                if dtype in _FLOAT_TYPES
                else "export the model in float32, fp16 or bf16"
            )
            raise UserError(f"{path} holds {dtype.name} weights ({layer.weight!r}); {mend}")


def _refuse_unsound_weights(graph: ir.Graph, layers: Iterable[Layer], path: Path) -> None:
    for layer in layers:
        array = constant_array(graph.initializers[layer.weight])
        with np.errstate(invalid="ignore", over="ignore"):
            total = array.sum(dtype=np.float64)
        if not np.isfinite(total):
            bad = int(np.count_nonzero(~np.isfinite(array)))
            raise UserError(
                f"{path}: {bad} numbers of the weight {layer.weight!r} (node {layer.name!r}) are "
                "NaN or infinite; repair the checkpoint and export it again"
            )


def _follow_cache_links(model: ir.Model, path: Path) -> None:
    """Let weights behind the links of a hub's cache be read where they really lie.

    There the model and its data are links to files of one folder. A link that leads anywhere else
    is refused.
    """
    home = path.resolve().parent
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        file = Path(tensor.path)
        real = file.resolve()
        if real == file.absolute() or path.parent.resolve() in real.parents:
            continue
        if real.parent != home:
            raise UserError(
                f"{path} keeps weights in {file}, a link out of the model's folder; copy the real "
                "file beside the model"
            )
        value.const_value = ir.ExternalTensor(
            real.name,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=tensor.name,
            base_dir=home,
        )


def _stored_type(model: ir.Model) -> FloatType:
    """The float type that most bytes of the constants have."""
    sizes = dict.fromkeys(_FLOAT_TYPES, 0)
    in_nodes = [
        node.attributes["value"].as_tensor()
        for node in model.graph
        if node.op_type == "Constant" and "value" in node.attributes
    ]
    for tensor in map(stored_tensor, (*_constants(model), *in_nodes)):
        if tensor.dtype in sizes:
            sizes[tensor.dtype] += tensor.nbytes
    return _FLOAT_TYPES[max(sizes, key=lambda dtype: sizes[dtype])]


def _true_cause(error: BaseException, path: Path) -> UserError:
    """What a pass failed of, in one line."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, UserError):
        return cause
    return UserError(
        f"{path} cannot be brought in order ({_first_line(cause)}); check it with "
        "`python -m onnx.checker`, or export it again"
    )


def _constants(model: ir.Model) -> list[ir.TensorProtocol]:
    values = model.graph.initializers.values()
    return [value.const_value for value in values if value.const_value is not None]


def _external_extents(model: ir.Model) -> dict[Path, int]:
    """How many bytes of each external file the weights take, from its start."""
    extents: dict[Path, int] = {}
    for tensor in map(stored_tensor, _constants(model)):
        if isinstance(tensor, ir.ExternalTensor):
            file = Path(tensor.path)
            end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
            extents[file] = max(extents.get(file, 0), end)
    return extents


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
