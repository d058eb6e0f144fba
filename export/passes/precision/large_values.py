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

GATES = ("Sigmoid", "HardSigmoid", "Softmax", "Tanh", "Erf")
"""Operators whose results have magnitude 1 at most."""

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
    large = {value for value in graph.inputs if value.name in names}
    large |= {output for node in graph for output in node.outputs if output.name in names}
    _add_before_bias(graph, large)
    found: set[ir.Node] = set()
    for node in graph:
        reads = any(value in large for value in node.inputs if value is not None)
        if not reads and large.isdisjoint(node.outputs):
            continue
        found.add(node)
        hands_on = node in mapped or node.op_type in _SAME_VALUES or _gates(node, large)
        if reads and hands_on and not node.domain:
            large.update(node.outputs)
    return found


def _add_before_bias(graph: ir.Graph, large: set[ir.Value]) -> None:
    """Add what only a constant is added to: a bias, perhaps one that the plan put there."""
    for node in reversed(list(graph)):
        if node.op_type not in ("Add", "Sub") or node.outputs[0] not in large:
            continue
        computed = [v for v in node.inputs if v is not None and not _is_constant(v)]
        if len(computed) == 1 and len(computed[0].uses()) == 1:
            large.add(computed[0])


def _is_constant(value: ir.Value) -> bool:
    return not value.is_graph_input() and ir.convenience.get_const_tensor(value) is not None


def _gates(node: ir.Node, large: Set[ir.Value]) -> bool:
    """Whether large values are multiplied with Sigmoid, Softmax...: as large, and not measured."""
    return node.op_type == "Mul" and any(
        value is not None
        and value not in large
        and (producer := value.producer()) is not None
        and producer.op_type in GATES
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
