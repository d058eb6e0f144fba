"""Which layers of the ONNX file run in INT8 in the engine, and why the others may not."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from qvd_trt.export.plan.site_types import MIN_CHANNELS, MIN_ROWS_PER_CALL
from qvd_trt.tools.engine.engine_layers import EngineLayer
from qvd_trt.tools.engine.onnx_file import OnnxFile, WeightLayer, weight_layers

Runs = Literal["int8", "float", "unknown"]

READS_CODEBOOK = "its input is the HTDQ codebook's, which is float by design"
NO_RANGE = "quantized in the file, but --implicit gives ranges to plain convolutions alone"
FASTER = "the float kernel was faster"
_FLOATS = ("Half", "BFloat16", "Float")


@dataclass(frozen=True, slots=True)
class NodePrecision:
    """How one Conv, ConvTranspose, MatMul or Gemm with constant weights runs.

    Attributes:
        name: The ONNX node.
        op: Its operator.
        runs: ``int8``, ``float``, or ``unknown`` where the engine does not tell.
        quantized: Whether the file has Q/DQ on both of its operands.
        layer: The engine layer that multiplies, or None where none names the node.
        reason: Why it does not run in INT8; None where it does.
    """

    name: str
    op: str
    runs: Runs
    quantized: bool
    layer: str | None
    reason: str | None


def node_precisions(
    model: OnnxFile,
    layers: Sequence[EngineLayer],
    compute_capabilities: Sequence[str] = (),
    ranges: Container[str] | None = None,
) -> Iterator[NodePrecision]:
    """Yield one entry for every layer with constant weights, in the order of the graph.

    Args:
        model: The QDQ file.
        layers: Those of the engine.
        compute_capabilities: GPU generations of a TensorRT-RTX engine.
        ranges: The nodes that had a range, where the engine was built without the file's Q/DQ.
    """
    by_node: dict[str, list[EngineLayer]] = defaultdict(list)
    for layer in layers:
        for name in layer.onnx_nodes:
            by_node[name].append(layer)
    opaque = next((layer for layer in layers if layer.is_opaque), None)
    for node in weight_layers(model):
        found = [layer for layer in by_node[node.name] if not layer.is_copy]
        listed = [layer for layer in found if not layer.is_opaque]
        int8 = next((layer for layer in listed if layer.is_int8_product), None)
        if int8 is not None:
            yield _entry(node, "int8", int8, None)
        elif not node.is_quantized:
            yield _entry(node, "float", _multiplier(listed), _unquantized(node))
        elif ranges is not None and node.name not in ranges:
            yield _entry(node, "float", _multiplier(listed), NO_RANGE)
        elif not listed:
            block = next((layer for layer in found), opaque)
            yield _entry(node, "unknown", block, _unlisted(block))
        else:
            multiplier = _multiplier(listed) or listed[0]
            turing = "7.5" in compute_capabilities
            kept = FASTER if ranges is not None else _cause(node, multiplier, turing)
            yield _entry(node, "float", multiplier, _lost(multiplier, kept))


def _entry(
    node: WeightLayer, runs: Runs, layer: EngineLayer | None, reason: str | None
) -> NodePrecision:
    return NodePrecision(
        node.name, node.op, runs, node.is_quantized, layer.name if layer else None, reason
    )


def _unquantized(node: WeightLayer) -> str:
    if node.reads_codebook:
        return READS_CODEBOOK
    return f"not quantized in the file (no DequantizeLinear on {node.unquantized})"


def _multiplier(layers: Sequence[EngineLayer]) -> EngineLayer | None:
    """The layer that most likely multiplies, of those that name a node."""
    products = [layer for layer in layers if layer.is_product]
    return next(iter(products or layers), None)


def _unlisted(block: EngineLayer | None) -> str:
    if block is None:
        return "quantized in the file; no layer of the engine names it"
    return (
        f"quantized in the file; it lies in the fused block {block.name}, whose kernels "
        "TensorRT does not list"
    )


def _lost(layer: EngineLayer, cause: str) -> str:
    reads = next((name for name in _FLOATS if name in layer.inputs), None)
    how = f"in {reads}" if reads else "in float"
    return f"quantized in the file, but the engine runs it {how}: {cause}"


def _cause(node: WeightLayer, layer: EngineLayer, turing: bool) -> str:
    if node.trap is not None:
        return node.trap
    if turing and node.op == "Conv":
        return "SM75 is among the GPUs of the engine and has no INT8 convolution"
    if node.op == "ConvTranspose":
        return "TensorRT has hardly any INT8 kernels for ConvTranspose"
    if node.channels is not None and node.channels < MIN_CHANNELS:
        return f"it has {node.channels} channels, and INT8 pays from {MIN_CHANNELS} on"
    rows = math.prod(layer.input_shape[:-1])
    if node.op in ("MatMul", "Gemm") and layer.input_shape and rows < MIN_ROWS_PER_CALL:
        return f"it multiplies {rows} rows (GEMV-shaped), where the float kernel is as fast"
    if not layer.is_product:
        return f"it is fused into {layer.name} ({layer.kind}), which multiplies floats"
    return f"its Q/DQ nodes were not fused, or {FASTER}"
