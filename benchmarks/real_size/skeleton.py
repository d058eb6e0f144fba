"""ONNX files without their weights, for latency: small to carry, filled where they are timed.

    python -m benchmarks.real_size.skeleton strip MODEL.onnx SKELETON.onnx.xz --shape x:2x4x64x64
    python -m benchmarks.real_size.skeleton fill SKELETON.onnx.xz FOLDER

`strip` turns every large initializer into a reference to `weights.bin` and reads no weight data. It
also fixes the inputs' shapes and drops all metadata. `fill` writes FOLDER/model.onnx and random
data of the right size: latency does not depend on weights, but it does on activations that are NaN,
zero or huge, so each tensor is drawn by what it is for:

    weights          normal, with the standard deviation of torch's default initialization
    weight scales    three of those standard deviations / 127
    gains of norms, and other factors     1 +- 0.02
    biases, tables   normal, 0.02
    int8             uniform codes; zero points are zero

Small initializers stay in the skeleton: activation scales, shapes, codebooks.

Needs numpy and onnx only, of any version since Python 3.10.
"""

from __future__ import annotations

import argparse
import lzma
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

SKELETONS = Path(__file__).parent / "skeletons"
WEIGHTS = "weights.bin"
MODEL = "model.onnx"
INLINE_ELEMENTS = 256
ALIGNMENT = 4096
BLOCK = 1 << 22
"""Random numbers that are drawn; larger tensors repeat them."""

_NUMPY: Mapping[int, npt.DTypeLike] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT8: np.int8,
}
"""Types that may leave the skeleton; others mean something by their values."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Filling:
    """Normal numbers with this mean and standard deviation; uniform codes when int8."""

    mean: float
    deviation: float


ZERO = Filling(0.0, 0.0)


def strip(model_path: Path, skeleton_path: Path, shapes: Shapes) -> str:
    """Write the skeleton of a model; returns a line about it.

    Args:
        model_path: An ONNX file; its external data is not read.
        skeleton_path: Where to write, compressed by xz.
        shapes: Static shapes of all inputs.
    """
    model = onnx.load(str(model_path), load_external_data=False)
    graph = model.graph
    offset = 0
    for tensor in graph.initializer:
        elements = int(np.prod(list(tensor.dims), dtype=np.int64))
        if elements <= INLINE_ELEMENTS or tensor.data_type not in _NUMPY:
            if tensor.data_location == TensorProto.EXTERNAL:
                onnx.external_data_helper.load_external_data_for_tensor(
                    tensor, str(model_path.parent)
                )
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")
            continue
        length = elements * np.dtype(_NUMPY[tensor.data_type]).itemsize
        reference = TensorProto(
            dims=tensor.dims,
            data_type=tensor.data_type,
            name=tensor.name,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (("location", WEIGHTS), ("offset", offset), ("length", length)):
            reference.external_data.add(key=key, value=str(value))
        tensor.CopyFrom(reference)
        offset += -(-length // ALIGNMENT) * ALIGNMENT
    _fix_shapes(graph, shapes)
    _drop_metadata(model)
    skeleton_path.write_bytes(lzma.compress(model.SerializeToString()))
    pairs = sum(node.op_type == "QuantizeLinear" for node in graph.node)
    return (
        f"{skeleton_path.stat().st_size / 1e6:.1f} MB for {offset / 1e9:.2f} GB of weights, "
        f"{len(graph.node)} nodes, {pairs} QuantizeLinear"
    )


def fill(skeleton_path: Path, folder: Path, seed: int = 0) -> Path:
    """Write the skeleton's model with random weights; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MODEL
    path.write_bytes(lzma.decompress(skeleton_path.read_bytes()))
    graph = onnx.load(str(path), load_external_data=False).graph
    fillings = _fillings(graph)
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal(BLOCK, np.float32)
    codes = generator.integers(-127, 128, BLOCK, np.int8)
    with (folder / WEIGHTS).open("wb") as file:
        for tensor in graph.initializer:
            if tensor.data_location != TensorProto.EXTERNAL:
                continue
            where = {entry.key: entry.value for entry in tensor.external_data}
            file.seek(int(where["offset"]))
            dtype = np.dtype(_NUMPY[tensor.data_type])
            start = int(generator.integers(BLOCK))
            for block in _blocks(int(where["length"]) // dtype.itemsize, start):
                filling = fillings.get(tensor.name, Filling(0.0, 0.02))
                if dtype == np.int8:
                    file.write((codes[block] * (filling is not ZERO)).astype(np.int8).tobytes())
                    continue
                values = normal[block] * np.float32(filling.deviation) + np.float32(filling.mean)
                file.write(values.astype(dtype, copy=False).tobytes())
    return path


def _blocks(elements: int, start: int) -> Iterator[slice]:
    """Cut a number of elements into slices of the block, the first one from ``start``."""
    while elements > 0:
        taken = min(elements, BLOCK - start)
        yield slice(start, start + taken)
        elements, start = elements - taken, 0


def _fillings(graph: onnx.GraphProto) -> dict[str, Filling]:
    """How to fill initializers, by name; scales after the weights that they belong to."""
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    behind: dict[str, str] = {}  # output of a Q, DQ or Cast on an initializer -> the initializer
    found: dict[str, Filling] = {}
    scales: list[tuple[str, str]] = []
    for node in graph.node:
        names = [behind.get(name, name) for name in node.input]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast") and names[0] in dims:
            behind[node.output[0]] = names[0]
            if len(names) > 1:
                scales.append((names[1], names[0]))
            for name in names[2:]:
                found[name] = ZERO
        elif node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            if names[1] in dims:
                found[names[1]] = Filling(0.0, (3 * _fan_in(node, dims[names[1]])) ** -0.5)
        elif node.op_type in ("LayerNormalization", "InstanceNormalization", "Mul", "Div"):
            for name in names[:2]:
                if name in dims:
                    found.setdefault(name, Filling(1.0, 0.02))
    for scale, weight in scales:
        deviation = found.get(weight, Filling(0.0, 0.02)).deviation
        found[scale] = Filling(3 * deviation / 127, 0.0)
    return found


def _fan_in(node: onnx.NodeProto, shape: tuple[int, ...]) -> int:
    if node.op_type == "MatMul":
        return shape[-2]
    if node.op_type == "Gemm":
        transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
        return shape[1] if transposed else shape[0]
    return int(np.prod(shape[1:]))


def _fix_shapes(graph: onnx.GraphProto, shapes: Shapes) -> None:
    """Make the inputs static; the outputs and everything between are inferred from them."""
    for value in graph.input:
        dimensions = value.type.tensor_type.shape.dim
        shape = shapes[value.name]
        if len(shape) != len(dimensions):
            raise ValueError(f"{value.name} has {len(dimensions)} axes, not {shape}")
        for dimension, extent in zip(dimensions, shape, strict=True):
            if dimension.HasField("dim_value") and dimension.dim_value != extent:
                raise ValueError(f"{value.name} has extent {dimension.dim_value}, not {extent}")
            dimension.dim_value = extent
    for value in graph.output:
        for dimension in value.type.tensor_type.shape.dim:
            dimension.Clear()
    graph.ClearField("value_info")


def _drop_metadata(model: onnx.ModelProto) -> None:
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    graph: Any = model.graph
    for message in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        message.ClearField("doc_string")
        if "metadata_props" in message.DESCRIPTOR.fields_by_name:
            message.ClearField("metadata_props")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    stripping = commands.add_parser("strip")
    stripping.add_argument("model", type=Path)
    stripping.add_argument("skeleton", type=Path)
    stripping.add_argument("--shape", action="append", default=[], help="NAME:1x2x3")
    filling = commands.add_parser("fill")
    filling.add_argument("skeleton", type=Path)
    filling.add_argument("folder", type=Path)
    filling.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.command == "fill":
        print(fill(options.skeleton, options.folder, options.seed))
        return
    shapes = {
        name: tuple(int(extent) for extent in shape.split("x"))
        for name, shape in (entry.split(":") for entry in options.shape)
    }
    print(strip(options.model, options.skeleton, shapes))


if __name__ == "__main__":
    main()
