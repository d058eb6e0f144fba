"""The nodes around tensors that fp16 cannot hold."""

from __future__ import annotations

from collections.abc import Set

import onnx_ir as ir

LAYOUT = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten")
_SAME_VALUES = frozenset(
    (
        *LAYOUT,
        *("Concat", "Slice", "Split", "Gather", "GatherElements", "GatherND", "Expand", "Tile"),
        *("Pad", "Where", "Abs", "Neg", "Relu", "LeakyRelu", "PRelu", "Clip", "Max", "Min"),
        *("Resize", "DepthToSpace", "SpaceToDepth", "MaxPool", "AveragePool", "GlobalMaxPool"),
        *("GlobalAveragePool", "ReduceMax", "ReduceMin", "ReduceMean", "Gelu", "Dropout", "Sum"),
        *("ScatterND", "ScatterElements", "Compress", "TopK", "Mean", "HardSwish", "Swish"),
    )
)
"""Operators whose results may be as large as what they read, and are not measured."""

_BEFORE_QUANTIZE = frozenset(("Sub", "Mul", "Div", "Add", "Clip", "Pad", *LAYOUT))
"""What the plan puts between an activation and its QuantizeLinear, and layout."""


def around_large(graph: ir.Graph, names: Set[str]) -> set[ir.Node]:
    """Find what writes or reads these tensors, or hands their values on.

    Args:
        graph: The graph, its nodes in topological order.
        names: Tensors beyond the range of the type.
    """
    if not names:
        return set()
    mapped = _mapped_activations(graph)
    large: set[ir.Value] = {value for value in graph.inputs if value.name in names}
    found: set[ir.Node] = set()
    for node in graph:
        reads = any(value in large for value in node.inputs if value is not None)
        writes = any(output.name in names for output in node.outputs)
        if not reads and not writes:
            continue
        found.add(node)
        large.update(output for output in node.outputs if output.name in names)
        if reads and (node in mapped or (node.op_type in _SAME_VALUES and not node.domain)):
            large.update(node.outputs)
        if reads and node.op_type == "Mul" and _gates(node, large):
            large.update(node.outputs)
    return found


def _gates(node: ir.Node, large: Set[ir.Value]) -> bool:
    """Whether a product of large values with Sigmoid, Softmax...: it is as large, not measured."""
    return any(
        value is not None
        and value not in large
        and (producer := value.producer()) is not None
        and producer.op_type in ("Sigmoid", "HardSigmoid", "Tanh", "Erf", "Softmax")
        for value in node.inputs
    )


def _mapped_activations(graph: ir.Graph) -> set[ir.Node]:
    """Find the arithmetic with constants that leads to a QuantizeLinear alone."""
    found: set[ir.Node] = set()
    for node in reversed(list(graph)):
        users = node.outputs[0].consumers() if node.outputs else ()
        only = bool(users) and all(u.op_type == "QuantizeLinear" or u in found for u in users)
        if only and node.op_type in _BEFORE_QUANTIZE:
            found.add(node)
    return found
