"""Where a graph has 16-bit floats, and how a constant or a node of them becomes float32."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from qvd_trt.export.graph.values import bodies, constant_values, has_subgraph
from qvd_trt.export.passes.opset.schema import DTYPE_ATTRIBUTES
from qvd_trt.export.stored_weights import WidenedTensor

LOW_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_FLOAT = ir.DataType.FLOAT


def widen_constant(value: ir.Value) -> None:
    """Make a 16-bit initializer a float32 one, in place."""
    tensor = value.const_value
    assert tensor is not None
    value.const_value = WidenedTensor(tensor, value.name or "")
    value.type = ir.TensorType(_FLOAT)


def widen_attributes(node: ir.Node) -> None:
    """Make a node that states a 16-bit type state float32."""
    if node.domain:
        return
    name = DTYPE_ATTRIBUTES.get(node.op_type)
    low = {int(dtype) for dtype in LOW_TYPES}
    if name is not None and node.attributes.get_int(name, 0) in low:
        node.attributes[name] = ir.AttrInt64(name, int(_FLOAT))
    stated = node.attributes.get("value")
    if (
        node.op_type in ("Constant", "ConstantOfShape")
        and stated is not None
        and (tensor := stated.as_tensor()).dtype in LOW_TYPES
    ):
        node.attributes["value"] = ir.AttrTensor("value", WidenedTensor(tensor, tensor.name or ""))


def is_low_precision(model: ir.Model) -> bool:
    """Whether any tensor of the main graph is a 16-bit float."""
    return _at_border(model, LOW_TYPES) or computes_in_16_bits(model)


def computes_in_16_bits(model: ir.Model) -> bool:
    """Whether any tensor of the main graph but its inputs and outputs is a 16-bit float."""
    return _inside(model, LOW_TYPES)


def has_bfloat16(model: ir.Model, *, interface: bool) -> bool:
    """Whether a tensor of the main graph, or of its inputs and outputs alone, is bfloat16."""
    bfloat16 = (ir.DataType.BFLOAT16,)
    return _at_border(model, bfloat16) or (not interface and _inside(model, bfloat16))


def _at_border(model: ir.Model, types: Collection[ir.DataType]) -> bool:
    return any(value.dtype in types for value in (*model.graph.inputs, *model.graph.outputs))


def _inside(model: ir.Model, types: Collection[ir.DataType]) -> bool:
    """Constants that are stored in these types and widened by a Cast do not count: no rounding."""
    stored = constant_values(model.graph)
    for _, body in bodies(model.graph):
        stored = constant_values(body, stored)
    nodes = [node for node in model.graph if not stored.issuperset(node.outputs)]
    values = [output for node in nodes for output in node.outputs if not output.is_graph_output()]
    values += [
        value
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if node.op_type != "Cast" and not stored.issuperset(node.outputs)
        for value in node.inputs
        if value in stored
    ]
    numbers = {int(dtype) for dtype in types}
    return any(value.dtype in types for value in values) or any(
        node.op_type == "Cast"
        and node.attributes.get_int("to", 0) in numbers
        and not node.outputs[0].is_graph_output()
        for node in nodes
    )


def has_subgraphs(model: ir.Model) -> bool:
    """Whether a node of the main graph has a body of its own."""
    return any(map(has_subgraph, model.graph))
