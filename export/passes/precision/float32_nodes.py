"""Which nodes of a float32 graph must stay in float32 when the rest is lowered to 16 bits."""

from __future__ import annotations

from collections.abc import Iterable, Set

import numpy as np
import onnx_ir as ir

from qvd_trt.export.graph.values import all_inputs, input_dependence, stored_value
from qvd_trt.export.passes.opset.schema import (
    STATED_OUTPUT,
    Dtypes,
    is_tied,
    parameter,
    schema_of,
    type_name,
)
from qvd_trt.export.passes.precision.large_values import LAYOUT, around_large
from qvd_trt.export.passes.precision.quantized_groups import (
    LAYERS,
    has_float32_scale,
    layers_behind,
    quantized_groups,
)

_FLOAT = ir.DataType.FLOAT
_NORMAL_RANGE = {
    ir.DataType.FLOAT16: (2.0**-14, 65504.0),
    ir.DataType.BFLOAT16: (2.0**-126, 255.0 * 2.0**120),
}
"""Least and greatest normal number."""
_MEANS = ("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2")
_AFTER_MEAN = ("Add", "Sqrt", "Reciprocal", "Mul", "Div", "Pow")


def float32_nodes(
    graph: ir.Graph,
    dtypes: Dtypes,
    low: ir.DataType,
    opset: int,
    generic: Set[tuple[str, str]] = frozenset(),
    large: Set[str] = frozenset(),
    *,
    float32_scales: bool,
) -> dict[ir.Node, str]:
    """Find the nodes that stay in float32, each with the reason.

    Args:
        graph: A graph without subgraphs.
        dtypes: Element type of every value.
        low: FLOAT16 or BFLOAT16.
        opset: Opset of the default domain.
        generic: (domain, operator) of foreign nodes that take ``low`` as well.
        large: Names of tensors that ``low`` cannot hold.
        float32_scales: Whether Q/DQ and the layers between two DQ stay in float32.
    """
    kept: dict[ir.Node, str] = {}

    def keep(nodes: Iterable[ir.Node], reason: str) -> None:
        for node in nodes:
            kept.setdefault(node, reason)

    keep(_angle_paths(graph, dtypes), "angle of Sin or Cos")
    keep(_shape_arithmetic(graph, dtypes), "computed from extents")
    keep(_mean_squares(graph), "mean of squares")
    keep(_out_of_range(graph, dtypes, low), "constant out of range")
    keep(_untyped(graph, dtypes, low, opset, generic), "no such type for the operator")
    keep(around_large(graph, large), "measured values out of range")
    groups = quantized_groups(graph)
    if float32_scales:
        keep(set().union(*groups), "float32 scales")
    elif low == ir.DataType.FLOAT16:
        # A Cast between DQ and its layer would cost the INT8 kernel: all of a group or nothing.
        for group in groups:
            if any(map(has_float32_scale, group)):
                keep(group | layers_behind(group), "scale that fp16 cannot hold")
            elif not group.isdisjoint(kept):
                keep(group, "measured values out of range")
    return kept


def always_float32(graph: ir.Graph, dtypes: Dtypes) -> set[ir.Node]:
    """Find the nodes that stay in float32 by what they compute, in either 16-bit type."""
    return _angle_paths(graph, dtypes) | _shape_arithmetic(graph, dtypes) | _mean_squares(graph)


def out_of_range(tensor: ir.TensorProtocol, low: ir.DataType) -> bool:
    """Whether a finite value becomes infinite in ``low``, or a nonzero scalar subnormal or zero."""
    array = tensor.numpy()
    if not array.size:
        return False
    largest = max(float(array.max()), -float(array.min()))
    if not np.isfinite(largest):
        largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
    least, greatest = _NORMAL_RANGE[low]
    return largest > greatest or (array.size == 1 and 0.0 < largest < least)


def _angle_paths(graph: ir.Graph, dtypes: Dtypes) -> set[ir.Node]:
    """Find Sin, Cos and what leads to them, back to the first layer with weights."""
    found: set[ir.Node] = set()
    stack = [node for node in graph if node.op_type in ("Sin", "Cos") and not node.domain]
    while stack:
        node = stack.pop()
        if node in found or _is_weighted_layer(node):
            continue
        found.add(node)
        stack.extend(
            producer
            for value in node.inputs
            if value is not None
            and dtypes[value] == _FLOAT
            and (producer := value.producer()) is not None
        )
    return found


def _is_weighted_layer(node: ir.Node) -> bool:
    """Accept Conv and Gemm always; MatMul when an operand is a weight, perhaps behind Q/DQ."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return True
    through = ("QuantizeLinear", "DequantizeLinear", *LAYOUT)
    return node.op_type == "MatMul" and any(stored_value(v, through) for v in node.inputs)


def _shape_arithmetic(graph: ir.Graph, dtypes: Dtypes) -> set[ir.Node]:
    """Find what turns extents into floats and computes with them: fp16 skips integers over 2048."""
    dependence = input_dependence(graph)
    from_extents: set[ir.Value] = set()
    found: set[ir.Node] = set()
    for node in graph:
        sources = [value for value in all_inputs(node) if value in from_extents]
        if any(dependence[output] for output in node.outputs) or _is_weighted_layer(node):
            continue
        if node.op_type in ("Shape", "Size") or sources:
            from_extents.update(o for o in node.outputs if dtypes[o] != _FLOAT)
        if any(dtypes[value] == _FLOAT for value in sources) or (
            sources and node.op_type in ("Cast", "Range") and dtypes[node.outputs[0]] == _FLOAT
        ):
            found.add(node)
            if node.op_type not in ("Sin", "Cos"):
                from_extents.update(node.outputs)
    return found


def _mean_squares(graph: ir.Graph) -> set[ir.Node]:
    """Find RMSNorm written out: the square, its mean, and the few nodes up to the reciprocal root.

    The square of an activation above 255 is infinite in fp16.
    """
    found: set[ir.Node] = set()
    for node in graph:
        if node.op_type not in _MEANS or node.inputs[0] is None:
            continue
        square = node.inputs[0].producer()
        if node.op_type in ("ReduceMean", "ReduceSum"):
            if square is None or not _is_square(square):
                continue
            found.add(square)
        found.add(node)
        current = node.outputs[0]
        while len(users := current.consumers()) == 1 and _goes_on(users[0], current):
            found.add(users[0])
            current = users[0].outputs[0]
    return found


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    if node.op_type != "Pow" or node.inputs[1] is None:
        return False
    exponent = ir.convenience.get_const_tensor(node.inputs[1])
    return exponent is not None and bool(np.all(exponent.numpy() == 2))


def _goes_on(node: ir.Node, current: ir.Value) -> bool:
    """Whether a node still works on the mean: its other operand is a constant."""
    others = [value for value in node.inputs if value is not None and value is not current]
    return node.op_type in _AFTER_MEAN and all(
        ir.convenience.get_const_tensor(value) is not None for value in others
    )


def _out_of_range(graph: ir.Graph, dtypes: Dtypes, low: ir.DataType) -> set[ir.Node]:
    """Find readers of constants that ``low`` cannot hold."""
    found: set[ir.Node] = set()
    constants = [
        *graph.initializers.values(),
        *(node.outputs[0] for node in graph if node.op_type == "Constant"),
    ]
    for value in constants:
        if dtypes[value] != _FLOAT or value.is_graph_input():
            continue
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            continue
        if out_of_range(tensor, low):
            found.update(value.consumers())
        elif _is_subnormal(tensor, low):
            found.update(user for user in value.consumers() if user.op_type in LAYERS)
    return found


def _is_subnormal(tensor: ir.TensorProtocol, low: ir.DataType) -> bool:
    """Whether a matrix or kernel has only zeros and numbers that lose bits in ``low``."""
    if len(tensor.shape) < 2 or tensor.size == 0:
        return False
    least, _ = _NORMAL_RANGE[low]
    return 0.0 < float(np.abs(tensor.numpy()).max()) < least


def _untyped(
    graph: ir.Graph,
    dtypes: Dtypes,
    low: ir.DataType,
    opset: int,
    generic: Set[tuple[str, str]],
) -> set[ir.Node]:
    """Find nodes whose type variable does not include ``low``, and unknown foreign nodes."""
    found: set[ir.Node] = set()
    for node in graph:
        schema = schema_of(node, opset)
        if schema is None:
            if (node.domain, node.op_type) not in generic:
                found.add(node)
            continue
        stated = node.outputs[:1] if node.op_type in STATED_OUTPUT else ()
        for values, formals in ((node.inputs, schema.inputs), (stated, schema.outputs)):
            for index, value in enumerate(values):
                formal = parameter(formals, index)
                if value is None or formal is None or dtypes[value] != _FLOAT:
                    continue
                if is_tied(formal) and type_name(low) not in formal.types:
                    found.add(node)
    return found
