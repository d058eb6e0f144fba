"""Q, DQ and the layers between them: what must have one type so that the INT8 kernel is found."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx_ir as ir

from qvd_trt.export.passes.precision.large_values import LAYOUT
from qvd_trt.export.plan.scale_math import holds_scale
from qvd_trt.export.targets import ScaleType

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_QDQ = ("QuantizeLinear", "DequantizeLinear")


def quantized_groups(graph: ir.Graph) -> list[set[ir.Node]]:
    """Group Q, DQ, the layers whose operands both come from DQ, and layout nodes between.

    Nodes are of one group when they share a Q or DQ: layers that read one quantized tensor are.
    """
    group_of: dict[ir.Node, set[ir.Node]] = {}

    def join(nodes: set[ir.Node]) -> None:
        merged = set(nodes)
        for node in nodes:
            merged |= group_of.get(node, set())
        for node in merged:
            group_of[node] = merged

    for node in graph:
        if node.op_type in _QDQ:
            source = node.inputs[0].producer() if node.inputs[0] is not None else None
            join({node, source} if source is not None and source.op_type in _QDQ else {node})
        elif node.op_type in LAYERS:
            between = [_to_dequantize(value) for value in node.inputs[:2]]
            if all(path is not None for path in between):
                join({node}.union(*(path for path in between if path is not None)))
    groups: list[set[ir.Node]] = []
    for group in group_of.values():
        if not any(group is known for known in groups):
            groups.append(group)
    return groups


def layers_behind(group: Set[ir.Node]) -> set[ir.Node]:
    """Find the layers that read what a group gives, those with a float input among them."""
    found: set[ir.Node] = set()
    stack = [user for node in group for user in node.outputs[0].consumers()]
    while stack:
        node = stack.pop()
        if node.op_type in LAYERS:
            found.add(node)
        elif node.op_type in LAYOUT and node not in found:
            found.add(node)
            stack.extend(node.outputs[0].consumers())
    return found


def has_float32_scale(node: ir.Node) -> bool:
    """Whether a Q or DQ has a scale that was left in float32 because fp16 cannot hold it."""
    if node.op_type not in _QDQ or node.inputs[1] is None:
        return False
    tensor = ir.convenience.get_const_tensor(node.inputs[1])
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return False
    return not holds_scale(np.asarray(tensor.numpy(), np.float32), ScaleType.FLOAT16)


def _to_dequantize(value: ir.Value | None) -> set[ir.Node] | None:
    """List the DQ and the layout nodes from it to this operand, None when it comes from no DQ."""
    path: set[ir.Node] = set()
    while value is not None and (producer := value.producer()) is not None:
        path.add(producer)
        if producer.op_type == "DequantizeLinear":
            return path
        if producer.op_type not in LAYOUT:
            return None
        value = producer.inputs[0]
    return None
