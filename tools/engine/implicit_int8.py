"""A QDQ file without its Q/DQ, and the ranges that TensorRT 8 takes in their place.

TensorRT calls this implicit quantization. Its versions from 10 on have deprecated or dropped it;
in 8.6 it keeps attention fused, which Q/DQ anywhere in the network prevent (docs/design.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import external_data_helper, numpy_helper

from qvd_trt.calibrators.arrays import AnyArray, Float32Array
from qvd_trt.calibrators.errors import UserError
from qvd_trt.tools.engine.onnx_file import node_name

INT8_CODES = 127
MODEL = "model.onnx"
WEIGHTS = "qvd-build.rounded.data"


@dataclass(frozen=True, slots=True)
class ImplicitInt8:
    """What is built in place of a QDQ file.

    Attributes:
        model: The float file.
        ranges: ``{Conv node: largest magnitude of its input that INT8 holds}`` of every Conv that
            the QDQ file quantizes.
    """

    model: Path
    ranges: Mapping[str, float]


def write_implicit(source: Path, folder: Path) -> ImplicitInt8:
    """Write the float file into a folder; weights that stay as they are become links.

    The weights of quantized convolutions are rounded as the QDQ file rounds them, so that
    TensorRT's own symmetric scale of a channel, its largest magnitude / 127, finds the same codes.
    All other layers compute with their float weights.

    Args:
        source: A QDQ file with float weights, as ``--target trt8`` writes them.
        folder: An empty folder, on a file system with links.

    Raises:
        UserError: A weight is stored as int8, a zero point is not zero, an activation has a scale
            per channel, or no Conv is quantized.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    pairs = _Pairs(graph, source)
    ranges: dict[str, float] = {}
    weights: set[str] = set()
    for node in graph.node:
        if node.op_type == "Conv" and all(name in pairs.quantizers for name in node.input[:2]):
            ranges[node_name(node)] = INT8_CODES * pairs.scale(node.input[0])
            weights.add(node.input[1])
    if not ranges:
        raise UserError(
            f"--implicit: {source} has no quantized Conv, the only layers it gives ranges to; "
            "leave it out"
        )
    _bypass(graph, {n: q.input[0] for n, q in pairs.quantizers.items() if n not in weights})
    _store(graph, ((name, pairs.rounded(name)) for name in sorted(weights)), folder / WEIGHTS)
    _drop_unused(graph)
    for name in {_location(tensor) for tensor in graph.initializer} - {None, WEIGHTS}:
        link = folder / str(name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((source.parent / str(name)).absolute())
    onnx.save(model, folder / MODEL)
    return ImplicitInt8(folder / MODEL, ranges)


class _Pairs:
    """The Q/DQ pairs of a graph.

    Attributes:
        quantizers: ``{output of a DequantizeLinear: the QuantizeLinear before it}``.
    """

    def __init__(self, graph: Any, source: Path) -> None:
        self._folder = str(source.parent)
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        producers = {output: node for node in graph.node for output in node.output}
        self.quantizers: dict[str, Any] = {}
        for node in graph.node:
            if node.op_type != "DequantizeLinear":
                continue
            quantizer = producers.get(node.input[0])
            if quantizer is None or quantizer.op_type != "QuantizeLinear":
                raise UserError(
                    f"--implicit reads files with float weights, and {node_name(node)} reads int8 "
                    "ones; export the model with `qvd-export --target trt8`"
                )
            self.quantizers[node.output[0]] = quantizer

    def scale(self, name: str) -> float:
        """The scale of a tensor that is quantized as a whole."""
        quantizer = self.quantizers[name]
        scales = self._scales(quantizer)
        if scales.size != 1:
            raise UserError(
                f"--implicit: {node_name(quantizer)} has {scales.size} scales, a range holds for a "
                "whole tensor; export the model with `qvd-export --target trt8`"
            )
        return float(scales.item())

    def rounded(self, name: str) -> Float32Array:
        """A constant as Q and DQ make it, float32: codes -128 to 127, symmetric."""
        quantizer = self.quantizers[name]
        weight = self._constant(quantizer.input[0]).astype(np.float32)
        scales = self._scales(quantizer)
        axis = next((int(entry.i) for entry in quantizer.attribute if entry.name == "axis"), 1)
        if scales.size > 1:
            shape = [1] * weight.ndim
            shape[axis] = scales.size
            scales = scales.reshape(shape)
        codes = np.clip(np.rint(weight / scales), -INT8_CODES - 1, INT8_CODES)
        values: Float32Array = (codes * scales).astype(np.float32)
        return values

    def _scales(self, quantizer: Any) -> Float32Array:
        zero_point = quantizer.input[2] if len(quantizer.input) > 2 else ""
        if not zero_point or self._constant(zero_point).any():
            raise UserError(
                f"--implicit: {node_name(quantizer)} is not symmetric int8, and ranges are; export "
                "the model with `qvd-export --target trt8`"
            )
        scales: Float32Array = self._constant(quantizer.input[1]).astype(np.float32)
        return scales

    def _constant(self, name: str) -> AnyArray:
        if name not in self._initializers:
            raise UserError(
                f"--implicit: {name!r} is no constant; export the model with "
                "`qvd-export --target trt8`"
            )
        array: AnyArray = numpy_helper.to_array(self._initializers[name], self._folder)
        return array


def _bypass(graph: Any, sources: Mapping[str, str]) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in sources:
                node.input[index] = sources[name]


def _store(graph: Any, arrays: Iterable[tuple[str, Float32Array]], path: Path) -> None:
    """Add initializers whose values lie in a file."""
    with path.open("wb") as file:
        for name, array in arrays:
            tensor = onnx.TensorProto(name=name, dims=array.shape, data_type=onnx.TensorProto.FLOAT)
            tensor.raw_data = b""  # set_external_data wants the field
            external_data_helper.set_external_data(
                tensor, path.name, offset=file.tell(), length=array.nbytes
            )
            tensor.ClearField("raw_data")
            file.write(array.tobytes())
            graph.initializer.append(tensor)


def _drop_unused(graph: Any) -> None:
    """Remove the Q/DQ nodes, and constants that nothing reads any more."""
    nodes = [n for n in graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | {o.name for o in graph.output}
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    del graph.value_info[:]


def _location(tensor: Any) -> str | None:
    """The file of an external tensor."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return next(str(entry.value) for entry in tensor.external_data if entry.key == "location")
