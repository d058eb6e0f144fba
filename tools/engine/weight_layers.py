"""The layers with constant weights in an ONNX file, and how the file quantizes each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qvd_trt.tools.engine.onnx_file import OnnxFile, node_name

WEIGHT_OPS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})

_TRANSPARENT = frozenset(
    {"Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Constant"}
)
_HTDQ_OUTPUT = "/qvd/htdq"
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, slots=True)
class WeightLayer:
    """A Conv, ConvTranspose, MatMul or Gemm whose second operand is constant.

    Attributes:
        name: The node.
        op: Its operator.
        unquantized: The operand without a DequantizeLinear (``input X`` or ``weight X``), or None
            where both have one.
        reads_codebook: Whether its input is an HTDQ codebook's, which is float by design.
        trap: A known mistake in its Q/DQ pair that makes TensorRT run it in float, or None.
        channels: Smaller one of input and output channels of a convolution (a group's, where
            there are groups); None where the file does not tell.
    """

    name: str
    op: str
    unquantized: str | None
    reads_codebook: bool
    trap: str | None
    channels: int | None

    @property
    def is_quantized(self) -> bool:
        """Whether the file asks for INT8."""
        return self.unquantized is None


def weight_layers(model: OnnxFile) -> Iterator[WeightLayer]:
    """Yield them in the order of the graph."""
    producers = {output: node for node in model.graph.node for output in node.output}
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in WEIGHT_OPS or node.domain or len(node.input) < 2:
            continue
        constant = [_origin(name, producers, dims) for name in node.input[:2]]
        if constant[1] is not None:
            data, weight = node.input[:2]
        elif node.op_type == "MatMul" and constant[0] is not None:
            weight, data = node.input[:2]
        else:
            continue
        shape = dims.get(_origin(weight, producers, dims) or "", ())
        yield WeightLayer(
            name=node_name(node),
            op=node.op_type,
            unquantized=_unquantized(data, weight, producers),
            reads_codebook=_reads_codebook(data, producers),
            trap=_trap(node, data, weight, producers, dims),
            channels=min(shape[:2]) if "Conv" in node.op_type and len(shape) > 2 else None,
        )


def _origin(
    name: str, producers: Mapping[str, Any], dims: Mapping[str, tuple[int, ...]]
) -> str | None:
    """The initializer or Constant that a tensor is made of, or None where there is none."""
    while name not in dims:
        node = producers.get(name)
        if node is None or node.op_type not in _TRANSPARENT | _QDQ:
            return None
        if node.op_type == "Constant":
            return name
        name = node.input[0]
    return name


def _source(name: str, producers: Mapping[str, Any]) -> tuple[str, Any | None]:
    """The tensor before casts and changes of shape, and the node that makes it."""
    node = producers.get(name)
    while node is not None and node.op_type in _TRANSPARENT and node.input:
        name = node.input[0]
        node = producers.get(name)
    return name, node


def _dequantizer(name: str, producers: Mapping[str, Any]) -> Any | None:
    """The DequantizeLinear that a tensor comes from."""
    _, node = _source(name, producers)
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _reads_codebook(data: str, producers: Mapping[str, Any]) -> bool:
    """An inlined HTDQ node leaves only the name of its output."""
    name, node = _source(data, producers)
    return name.endswith(_HTDQ_OUTPUT) or (node is not None and node.op_type == "HTDQ")


def _unquantized(data: str, weight: str, producers: Mapping[str, Any]) -> str | None:
    if _dequantizer(data, producers) is None:
        return f"input {data}"
    if _dequantizer(weight, producers) is None:
        return f"weight {weight}"
    return None


def _trap(
    node: Any,
    data: str,
    weight: str,
    producers: Mapping[str, Any],
    dims: Mapping[str, tuple[int, ...]],
) -> str | None:
    of_data, of_weight = _dequantizer(data, producers), _dequantizer(weight, producers)
    if of_data is None or of_weight is None:
        return None
    if "Conv" in node.op_type and dims.get(of_data.input[1], ()):
        return "its activation scale has shape [1], which counts as per axis; it must be a scalar"
    axis, wanted = _attribute(of_weight, "axis", 1), _weight_axis(node)
    if axis < 0:
        axis += len(dims.get(_origin(weight, producers, dims) or "", ()))
    direct = producers.get(weight) is of_weight
    if direct and dims.get(of_weight.input[1], ()) not in ((), (1,)) and axis != wanted:
        return f"its weight scales lie along axis {axis} instead of {wanted}"
    return None


def _weight_axis(node: Any) -> int:
    """The axis of the output channels."""
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and _attribute(node, "transB", 0) else 1


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)
