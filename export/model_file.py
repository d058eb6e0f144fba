"""Reading and writing ONNX files, with weights inline or in external data."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qvd_trt.calibrators.errors import UserError

INLINE_LIMIT_BYTES = 1_900_000_000
"""Above this the weights cannot be inside the protobuf file, whose limit is 2 GiB."""

_QUANTIZED_OPS = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "HTDQ",
}


def load_model(path: Path) -> ir.Model:
    """Load an ONNX file; external data stays on disk until a tensor is read.

    Raises:
        UserError: the file is missing or is not a complete ONNX model, or its external data is.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the path of a float .onnx file")
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
            raise UserError(f"{path} keeps its weights in {file.name}, which is not beside it")
        if file.stat().st_size < end:
            raise UserError(f"{file} is truncated: {file.stat().st_size} bytes, {end} are needed")
    return model


def refuse_quantized(model: ir.Model, path: Path) -> None:
    """Refuse a model that already holds quantization operators.

    Raises:
        UserError: naming the first such node.
    """
    for node in model.graph:
        if node.op_type in _QUANTIZED_OPS:
            raise UserError(
                f"{path} is already quantized ({node.op_type} node {node.name!r}); "
                "give the float model it was made from"
            )


def refuse_half_precision(model: ir.Model, path: Path) -> None:
    """Refuse a model whose weights are not float32: calibration reads float32 activations.

    Raises:
        UserError: naming the first such weight.
    """
    for value in model.graph.initializers.values():
        if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            raise UserError(
                f"{path} holds {value.dtype.name} weights ({value.name!r}); export the model in "
                "float32, qvd-export lowers the rest of the graph itself (--dtype)"
            )


def model_hash(path: Path) -> str:
    """Sha256 of the ONNX file and of the external data files it names, as ``sha256:<hex>``."""
    digest = hashlib.sha256()
    proto = onnx.load(path, load_external_data=False)
    files = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for file in (path, *(path.parent / name for name in sorted(files))):
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )


def save_model(model: ir.Model, path: Path, *, external: bool | None = None) -> None:
    """Write the model whole or not at all; weights go to ``<path>.data`` when external.

    Args:
        model: What to write.
        path: The ``.onnx`` file.
        external: Whether weights go to a separate file; None decides by the 2 GiB limit.
    """
    if external is None:
        external = weight_bytes(model) > INLINE_LIMIT_BYTES
    path.parent.mkdir(parents=True, exist_ok=True)
    data_name = f"{path.name}.data"
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        # ir.save points the in-memory tensors at the file it writes: save a copy of the model.
        ir.save(model.clone(), scratch / path.name, external_data=data_name if external else None)
        if external:
            (scratch / data_name).replace(path.parent / data_name)
        (scratch / path.name).replace(path)
        if not external:
            (path.parent / data_name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def uses_external_data(model: ir.Model) -> bool:
    """Whether any weight of the model lies in an external file."""
    return any(
        isinstance(value.const_value, ir.ExternalTensor)
        for value in model.graph.initializers.values()
    )


def _external_extents(model: ir.Model) -> dict[Path, int]:
    extents: dict[Path, int] = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            file = Path(tensor.path)
            end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
            extents[file] = max(extents.get(file, 0), end)
    return extents


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
