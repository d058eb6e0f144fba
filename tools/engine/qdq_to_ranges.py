"""A QDQ file without its Q/DQ, and the ranges that TensorRT 8 takes in their place.

TensorRT calls this implicit quantization. Its versions from 10 on have deprecated or dropped it;
in 8.6 it keeps attention fused, which Q/DQ in the network prevent (docs/design.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import external_data_helper, numpy_helper

from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.export.errors import UserError
from qvd_trt.export.plan.grid import activation_levels, quantize_dequantize
from qvd_trt.tools.engine.build_plan import BuildPlan
from qvd_trt.tools.engine.onnx_file import node_name

INT8 = activation_levels(8)
MODEL = "qvd-build.model.onnx"
WEIGHTS = "qvd-build.weights.data"


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


def with_ranges(plan: BuildPlan, folder: Path) -> BuildPlan:
    """The plan of a build with ranges, from that of a QDQ file; see :func:`write_implicit`."""
    implicit = write_implicit(plan.model, folder)
    return replace(plan, source=plan.model, model=implicit.model, ranges=implicit.ranges)


def write_implicit(source: Path, folder: Path) -> ImplicitInt8:
    """Write the float file into a folder; weights that stay as they are become links.

    The weights of quantized convolutions are rounded as the QDQ file rounds them, so that
    TensorRT's own symmetric scale of a channel, its largest magnitude / 127, finds the same codes
    where they are of 8 bits. All other layers compute with their float weights.

    Args:
        source: A QDQ file with float weights, as ``--target trt8`` writes them.
        folder: An empty folder, on a file system with links.

    Raises:
        UserError: No Conv is quantized, or the file is not as ``--target trt8`` writes it: int8
            weights, a zero point other than int8 zero, a scale per channel of an activation,
            subgraphs, Q/DQ at an output, or external data that cannot be read or linked.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    _check_structure(graph)
    pairs = _Pairs(graph, source)
    ranges: dict[str, float] = {}
    weights: set[str] = set()
    for node in graph.node:
        if node.op_type == "Conv" and all(name in pairs.quantizers for name in node.input[:2]):
            ranges[node_name(node)] = INT8[1] * pairs.scale(node.input[0])
            weights.add(node.input[1])
    if not ranges:
        raise UserError(
            f"--implicit: {source} has no quantized Conv, the only layers it gives ranges to; "
            "leave it out"
        )
    _bypass(graph, {name: pairs.source(name) for name in pairs.quantizers if name not in weights})
    _store(graph, ((name, pairs.rounded(name)) for name in sorted(weights)), folder / WEIGHTS)
    _drop_unused(graph)
    for name in {_location(tensor) for tensor in graph.initializer} - {None, WEIGHTS}:
        _link(source.parent, Path(str(name)), folder)
    onnx.save(model, folder / MODEL)
    return ImplicitInt8(folder / MODEL, ranges)


def _check_structure(graph: Any) -> None:
    dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if any(entry.HasField("g") or entry.graphs for entry in node.attribute):
            raise UserError(
                f"--implicit cannot rewrite subgraphs, and {node_name(node)} has one; export the "
                "model without control flow, or leave --implicit out"
            )
    for value in graph.output:
        if value.name in dequantized:
            raise UserError(
                f"--implicit: the output {value.name!r} comes from a DequantizeLinear; leave "
                "--implicit out"
            )


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
                    f"--implicit reads files with float weights, and {node_name(node)} reads codes "
                    "that are stored; export the model with `qvd-export --target trt8`"
                )
            self.quantizers[node.output[0]] = quantizer

    def source(self, name: str) -> str:
        """The tensor before all Q/DQ pairs in front of this one."""
        while name in self.quantizers:
            name = self.quantizers[name].input[0]
        return name

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
        """A float32 constant as Q and DQ make it."""
        quantizer = self.quantizers[name]
        weight = self._constant(quantizer.input[0])
        if weight.dtype != np.float32:
            raise UserError(
                f"--implicit: {quantizer.input[0]!r} is {weight.dtype}; export the model with "
                "`qvd-export --target trt8`, which keeps weights in float32"
            )
        scales = self._scales(quantizer)
        axis = next((int(entry.i) for entry in quantizer.attribute if entry.name == "axis"), 1)
        if scales.size > 1:
            shape = [1] * weight.ndim
            shape[axis] = scales.size
            scales = scales.reshape(shape)
        return quantize_dequantize(weight, scales, INT8)

    def _scales(self, quantizer: Any) -> Float32Array:
        zero_point = quantizer.input[2] if len(quantizer.input) > 2 else ""
        codes = self._constant(zero_point) if zero_point else np.zeros(1, np.uint8)
        if codes.dtype != np.int8 or codes.any():
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
        try:
            array: AnyArray = numpy_helper.to_array(self._initializers[name], self._folder)
        except (onnx.checker.ValidationError, ValueError) as error:
            raise UserError(
                f"--implicit: the data of {name!r} cannot be read: {error}; put the real file, no "
                "link to it, beside the model"
            ) from error
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


def _link(source: Path, location: Path, folder: Path) -> None:
    """Make external data of the source appear at the same place in the folder."""
    if location.is_absolute() or ".." in location.parts or location.name in (MODEL, WEIGHTS):
        raise UserError(
            f"--implicit: the weights lie in {str(location)!r}; save the model with its data "
            "beside it, under another name"
        )
    link = folder / location
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to((source / location).absolute())


def _location(tensor: Any) -> str | None:
    """The file of an external tensor."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return next(str(entry.value) for entry in tensor.external_data if entry.key == "location")
