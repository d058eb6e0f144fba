"""Opening the float model, and writing ONNX files, with weights inline or in external data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qvd_trt.export.atomic_files import written_together
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.find_layers import find_layers
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.graph.signature import read_signature
from qvd_trt.export.graph.values import nodes_by_name
from qvd_trt.export.passes.insert_htdq import HTDQ_OP
from qvd_trt.export.passes.prepare import Prepare
from qvd_trt.export.plan.site_types import Layer

INLINE_LIMIT_BYTES = 1_900_000_000
"""Above this weights get a file of their own: a protobuf file ends at 2 GiB, graph included."""

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
    path: Path | str, timestep_input: str | None = None, latent_input: str | None = None
) -> FloatModel:
    """Open a float denoiser; its file is read once, external weights when they are asked for.

    Args:
        path: The ``.onnx`` file.
        timestep_input: Name of the timestep input, or None to find it.
        latent_input: Name of the noisy latent input, or None to find it.

    Raises:
        UserError: the file is missing or incomplete, is already quantized, is not float32, or has
            no input that looks like a timestep or a latent.
    """
    path = Path(path)
    return view_model(load_model(path), path, timestep_input, latent_input)


def view_model(
    source: ir.Model,
    path: Path,
    timestep_input: str | None = None,
    latent_input: str | None = None,
) -> FloatModel:
    """What is known of a loaded model; see :func:`open_model`. ``source`` is not changed."""
    _refuse_quantized(source, path)
    prepared = source.clone()
    Prepare()(prepared)
    layers, odd = find_layers(prepared.graph)
    _refuse_other_precision(prepared.graph, layers, path)
    return FloatModel(
        path=path,
        files=model_files(path, source),
        source=source,
        prepared=prepared,
        signature=read_signature(prepared.graph, timestep_input, latent_input),
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
        found = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {found}; give the path of a float .onnx file")
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
                f"{path} keeps its weights in {file.name}, which is not beside it; copy it there"
            )
        if file.stat().st_size < end:
            raise UserError(
                f"{file} is truncated: {file.stat().st_size} bytes, {end} are needed; "
                "copy it again, or export again"
            )
    return model


def model_files(path: Path, model: ir.Model) -> tuple[Path, ...]:
    """The ONNX file and the external data files it names."""
    return (path, *sorted(_external_extents(model)))


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
    """Refuse layers that are not float32: calibration reads float32 activations."""
    for layer in layers:
        dtype = graph.initializers[layer.weight].dtype
        if dtype is not None and dtype != ir.DataType.FLOAT:
            raise UserError(
                f"{path} holds {dtype.name} weights ({layer.weight!r}); export the model in "
                "float32, qvd-export lowers the rest of the graph itself (--dtype)"
            )


def _constants(model: ir.Model) -> list[ir.TensorProtocol]:
    values = model.graph.initializers.values()
    return [value.const_value for value in values if value.const_value is not None]


def _external_extents(model: ir.Model) -> dict[Path, int]:
    """How many bytes of each external file the weights take, from its start."""
    extents: dict[Path, int] = {}
    for tensor in _constants(model):
        if isinstance(tensor, ir.ExternalTensor):
            file = Path(tensor.path)
            end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
            extents[file] = max(extents.get(file, 0), end)
    return extents


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
