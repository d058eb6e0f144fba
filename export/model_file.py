"""Reading and writing ONNX files, with weights inline or in external data."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from qvd_trt.calibrators.errors import UserError
from qvd_trt.export.graph.layers import find_layers

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


def refuse_other_precision(model: ir.Model, path: Path) -> None:
    """Refuse a model whose layers are not float32: calibration reads float32 activations.

    Args:
        model: A prepared model.
        path: Its file.

    Raises:
        UserError: naming the first weight of another type.
    """
    for layer in find_layers(model.graph)[0]:
        dtype = model.graph.initializers[layer.weight].dtype
        if dtype is not None and dtype != ir.DataType.FLOAT:
            raise UserError(
                f"{path} holds {dtype.name} weights ({layer.weight!r}); export the model in "
                "float32, qvd-export lowers the rest of the graph itself (--dtype)"
            )


def model_files(path: Path) -> tuple[Path, ...]:
    """The ONNX file and the external data files it names."""
    proto = onnx.load(path, load_external_data=False)
    names = {
        entry.value
        for tensor in proto.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return (path, *(path.parent / name for name in sorted(names)))


def model_hash(path: Path) -> str:
    """Sha256 of all :func:`model_files`, as ``sha256:<hex>``."""
    digest = hashlib.sha256()
    for file in model_files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 24):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def model_bytes(path: Path) -> int:
    """Size of all :func:`model_files`."""
    return sum(file.stat().st_size for file in model_files(path))


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )


def data_path(path: Path) -> Path:
    """Where :func:`save_model` puts external weights: ``model.onnx`` -> ``model.onnx.data``."""
    return path.with_name(f"{path.name}.data")


@contextmanager
def written_together(path: Path) -> Iterator[Path]:
    """Give the path's stand-in in a scratch folder; at the end all files there move beside it.

    After an error or an interruption nothing of them is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        yield Path(scratch) / path.name
        for file in list(Path(scratch).iterdir()):
            file.replace(path.parent / file.name)


def save_model(model: ir.Model, path: Path, *, external: bool | None = None) -> None:
    """Write the model whole or not at all; weights go to :func:`data_path` when external.

    Args:
        model: What to write.
        path: The ``.onnx`` file.
        external: Whether weights go to a separate file; None decides by the 2 GiB limit.
    """
    if external is None:
        external = weight_bytes(model) > INLINE_LIMIT_BYTES
    with written_together(path) as staged:
        # ir.save points the in-memory tensors at the file it writes: save a copy of the model.
        copy = model.clone()
        if not external:
            # Weights of an external source would stay references to a file that is not beside us.
            ir.external_data.load_to_model(copy)
        ir.save(copy, staged, external_data=data_path(path).name if external else None)


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
