"""GroupNorm's InstanceNormalization as LayerNormalization, for TensorRT 8.6."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qvd_trt.export.passes.layer_edits import add_initializer, constant_array

_FIRST_OPSET = 17
"""The first with LayerNormalization."""
_LAST_EXTENT = (("start", 2), ("end", 3), ("axis", 0))


class NormalizeWithoutPlugin(ir.passes.InPlacePass):
    """Rewrite InstanceNormalization of ``[N, G, L]`` with ones and zeros, which GroupNorm is.

    TensorRT 8.6's parser makes it a plugin that needs cuDNN; LayerNormalization over the last axis
    is the same function and a layer of its own. Its scale must have L elements, which only the
    running graph knows, so it is expanded from a one. Below opset 17 there is no
    LayerNormalization, and the graph is left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if model.opset_imports.get("", 0) < _FIRST_OPSET:
            return ir.passes.PassResult(model, False)
        found = [node for node in model.graph if _is_group_norm(node)]
        for node in found:
            _rewrite(model.graph, node)
        return ir.passes.PassResult(model, bool(found))


def _is_group_norm(node: ir.Node) -> bool:
    if node.op_type != "InstanceNormalization" or node.domain not in ("", "ai.onnx"):
        return False
    x, scale, bias = node.inputs
    assert x is not None
    if x.shape is None or len(x.shape) != 3 or scale is None or bias is None:
        return False
    if scale.const_value is None or bias.const_value is None:
        return False
    return bool(np.all(constant_array(scale) == 1) and not np.any(constant_array(bias)))


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    assert x.dtype is not None
    added: list[ir.Node] = []

    def op(name: str, inputs: list[ir.Value], dtype: ir.DataType) -> ir.Value:
        new = ir.node(name, inputs, name=f"{node.name}/{name}")
        new.outputs[0].name, new.outputs[0].dtype = new.name, dtype
        added.append(new)
        return new.outputs[0]

    def constant(name: str, value: int, dtype: ir.DataType) -> ir.Value:
        return add_initializer(graph, f"{node.name}/{name}", np.array([value], dtype.numpy()))

    whole = op("Shape", [x], ir.DataType.INT64)
    bounds = [constant(*bound, ir.DataType.INT64) for bound in _LAST_EXTENT]
    length = op("Slice", [whole, *bounds], ir.DataType.INT64)
    scale = op("Expand", [constant("one", 1, x.dtype), length], x.dtype)
    norm = ir.node(
        "LayerNormalization",
        [x, scale],
        attributes={"axis": -1, "epsilon": node.attributes.get_float("epsilon", 1e-5)},
        name=node.name,
    )
    output = norm.outputs[0]
    output.shape, output.type = node.outputs[0].shape, node.outputs[0].type
    constants = node.inputs[1:]
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [*added, norm], [node.outputs[0]], [output]
    )
    for value in constants:
        if value is not None and value.name and not value.uses():
            graph.initializers.pop(value.name, None)
