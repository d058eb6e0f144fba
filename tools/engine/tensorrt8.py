"""What TensorRT 8.6 alone needs: ranges in place of Q/DQ, and kernels without cuBLAS.

A QDQ file without its Q/DQ, and the ranges that TensorRT takes in their place, is what TensorRT
calls implicit quantization. Its versions from 10 on have deprecated or dropped it; in 8.6 it keeps
attention fused, which Q/DQ in the network prevent (docs/tensorrt8.md#attention-beside-qdq).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.values import has_subgraph
from qvd_trt.export.plan.scale_math import activation_levels, quantize_dequantize
from qvd_trt.tools.engine.engine_layers import EngineLayer
from qvd_trt.tools.engine.onnx_file import OnnxFile, node_name

INT8 = activation_levels(8)
MODEL = "qvd-build.model.onnx"
WEIGHTS = "qvd-build.weights.data"
UNUSED_RANGE = 1.0
"""Without a range of its output TensorRT hardly takes a layer for INT8; floats do not use it."""

_LIBRARIES = frozenset({"CUBLAS", "CUBLAS_LT", "CUDNN"})


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
    model = ir.load(source)
    graph = model.graph
    _check_structure(graph)
    quantizers = _quantizers(graph)
    ranges: dict[str, float] = {}
    weights: set[ir.Value] = set()
    for node in graph:
        if node.op_type != "Conv":
            continue
        data, weight = node.inputs[:2]
        if data in quantizers and weight in quantizers:
            ranges[node_name(node)] = INT8[1] * _scale(quantizers[data])
            weights.add(weight)
    if not ranges:
        raise UserError(
            f"--implicit: {source} has no quantized Conv, the only layers it gives ranges to; "
            "leave it out"
        )
    rounded = sorted(weights, key=lambda value: value.name or "")
    tensors = [_rounded(quantizers[value], value.name or "") for value in rounded]
    stored = ir.external_data.convert_tensors_to_external(tensors, folder, WEIGHTS)
    tape = ir.tape.Tape(graph)
    sources = {value: _source(value, quantizers) for value in quantizers}
    sources |= zip(rounded, map(tape.initializer, stored), strict=True)
    ir.convenience.replace_all_uses_with(list(sources), list(sources.values()))
    _drop_unused(graph)
    for location in _locations(graph, besides=folder):
        _link(source.parent, location, folder)
    ir.save(model, folder / MODEL)
    return ImplicitInt8(folder / MODEL, ranges)


def set_ranges(trt: Any, network: Any, ranges: Mapping[str, float]) -> list[str]:
    """Let convolutions run in INT8, with float32 results.

    A result in INT8 would need a range that nobody calibrated, and round the residual stream.

    Args:
        trt: The module.
        network: As parsed from a file without Q/DQ.
        ranges: ``{Conv node: largest magnitude of its input}``.

    Returns:
        The nodes that the network has no convolution of.
    """
    convolutions = [
        layer
        for layer in map(network.get_layer, range(network.num_layers))
        if layer.type == trt.LayerType.CONVOLUTION and layer.name in ranges
    ]
    largest: dict[str, float] = {}
    for layer in convolutions:
        source = layer.get_input(0)
        largest[source.name] = max(largest.get(source.name, 0.0), ranges[layer.name])
        source.dynamic_range = (-largest[source.name], largest[source.name])
    for layer in convolutions:
        result = layer.get_output(0)
        if result.name not in largest:
            result.dynamic_range = (-UNUSED_RANGE, UNUSED_RANGE)
        layer.set_output_type(0, trt.float32)
    return sorted({*ranges} - {layer.name for layer in convolutions})


def own_tactic_sources(tensorrt: Any) -> list[Any]:
    """All sources but cuBLAS and cuDNN, which TensorRT 8.6 else needs for plugins."""
    members = tensorrt.TacticSource.__members__
    return [getattr(tensorrt.TacticSource, name) for name in sorted(set(members) - _LIBRARIES)]


def attention_warnings(model: OnnxFile) -> tuple[str, ...]:
    """What TensorRT 8.6 does to attention beside Q/DQ (docs/tensorrt8.md, measured)."""
    if not (model.is_quantized and model.has_softmax):
        return ()
    return (
        "TensorRT 8 runs attention in float32, unfused, in a file with Q/DQ: time the engine "
        "against one that is built with --implicit, and against the float model",
    )


def stray_int8_warnings(layers: Sequence[EngineLayer]) -> tuple[str, ...]:
    """Tell of layers that read INT8 although no range was meant for them."""
    found = [
        layer.name
        for layer in layers
        if "Int8" in layer.inputs and not (layer.is_int8_product or layer.is_copy)
    ]
    if not found:
        return ()
    return (
        f"{len(found)} layers beside the convolutions read INT8, {found[0]} first, by a range that "
        "may not be theirs: compare the engine with the float model (`qvd-validate --min-sqnr`)",
    )


def _check_structure(graph: ir.Graph) -> None:
    for node in graph:
        if has_subgraph(node):
            raise UserError(
                f"--implicit cannot rewrite subgraphs, and {node_name(node)} has one; export the "
                "model without control flow, or leave --implicit out"
            )
    for value in graph.outputs:
        producer = value.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            raise UserError(
                f"--implicit: the output {value.name!r} comes from a DequantizeLinear; leave "
                "--implicit out"
            )


def _quantizers(graph: ir.Graph) -> dict[ir.Value, ir.Node]:
    """``{output of a DequantizeLinear: the QuantizeLinear before it}``."""
    quantizers: dict[ir.Value, ir.Node] = {}
    for node in graph:
        if node.op_type != "DequantizeLinear":
            continue
        codes = node.inputs[0]
        quantizer = None if codes is None else codes.producer()
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            raise UserError(
                f"--implicit reads files with float weights, and {node_name(node)} reads codes "
                "that are stored; export the model with `qvd-export --target trt8`"
            )
        quantizers[node.outputs[0]] = quantizer
    return quantizers


def _source(value: ir.Value, quantizers: Mapping[ir.Value, ir.Node]) -> ir.Value:
    """The tensor before all Q/DQ pairs in front of this one."""
    while value in quantizers:
        above = quantizers[value].inputs[0]
        assert above is not None
        value = above
    return value


def _scale(quantizer: ir.Node) -> float:
    """The scale of a tensor that is quantized as a whole."""
    scales = _scales(quantizer)
    if scales.size != 1:
        raise UserError(
            f"--implicit: {node_name(quantizer)} has {scales.size} scales, a range holds for a "
            "whole tensor; export the model with `qvd-export --target trt8`"
        )
    return float(scales.item())


def _rounded(quantizer: ir.Node, name: str) -> ir.LazyTensor:
    """A float32 constant as Q and DQ make it, computed when it is written."""
    weight = quantizer.inputs[0]
    tensor = _constant(weight)
    if tensor.dtype != ir.DataType.FLOAT:
        raise UserError(
            f"--implicit: {tensor.name!r} is {tensor.dtype.numpy()}; export the model with "
            "`qvd-export --target trt8`, which keeps weights in float32"
        )

    def compute() -> ir.TensorProtocol:
        values, scales = _array(weight), _scales(quantizer)
        if scales.size > 1:
            shape = [1] * values.ndim
            shape[quantizer.attributes.get_int("axis", 1)] = scales.size
            scales = scales.reshape(shape)
        return ir.Tensor(quantize_dequantize(values, scales, INT8), name=name)

    return ir.LazyTensor(compute, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=name)


def _scales(quantizer: ir.Node) -> Float32Array:
    zero_point = quantizer.inputs[2] if len(quantizer.inputs) > 2 else None
    codes = np.zeros(1, np.uint8) if zero_point is None else _array(zero_point)
    if codes.dtype != np.int8 or codes.any():
        raise UserError(
            f"--implicit: {node_name(quantizer)} is not symmetric int8, and ranges are; export "
            "the model with `qvd-export --target trt8`"
        )
    return _array(quantizer.inputs[1]).astype(np.float32)


def _constant(value: ir.Value | None) -> ir.TensorProtocol:
    if value is None or value.const_value is None:
        raise UserError(
            f"--implicit: {'' if value is None else value.name!r} is no constant; export the model "
            "with `qvd-export --target trt8`"
        )
    return value.const_value


def _array(value: ir.Value | None) -> AnyArray:
    tensor = _constant(value)
    try:
        # Not left to onnx-ir, of which only the newer versions refuse links.
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).is_symlink():
            raise ValueError(f"{tensor.path} is a link")
        return tensor.numpy()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--implicit: the data of {tensor.name!r} cannot be read: {error}; put the real file, "
            "no link to it, beside the model"
        ) from error


def _drop_unused(graph: ir.Graph) -> None:
    """Remove the Q/DQ nodes, and constants that nothing reads any more."""
    for op in ("DequantizeLinear", "QuantizeLinear"):
        unused = [
            node
            for node in graph
            if node.op_type == op
            and not any(value.uses() or value.is_graph_output() for value in node.outputs)
        ]
        graph.remove(unused, safe=True)
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del graph.initializers[name]


def _locations(graph: ir.Graph, besides: Path) -> Collection[Path]:
    """The files of the external constants, but for those in one folder."""
    tensors = (value.const_value for value in graph.initializers.values())
    return {
        Path(tensor.location)
        for tensor in tensors
        if isinstance(tensor, ir.ExternalTensor) and Path(tensor.base_dir) != besides
    }


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
