"""Per-channel maps in front of Q in the form that TensorRT 8.6 can build."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qvd_trt.calibrators.arrays import Float32Array
from qvd_trt.export.passes.layer_edits import constant_array, replace_constant


class MultiplyThenAdd(ir.passes.InPlacePass):
    """``Sub, Mul, Q`` of a channels-first tensor as ``Mul, Add, Q``; a lone Mul as Div.

    To TensorRT 8.6 a Mul by ``[C, 1, 1]`` is a scale layer, which it merges into the Q behind it;
    the merged layer has C scales and one shift, and the build fails on an assertion
    (``mergeScales``). Seen not to fail: an Add behind the Mul, and a Div, which is no scale layer.
    A lone Sub becomes an Add by analogy.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before_quantize = [
            node
            for node in model.graph
            if node.op_type in ("Mul", "Sub") and len(node.inputs) == 2 and _feeds_quantize(node)
        ]
        for node in before_quantize:
            if node.op_type == "Mul" and _is_per_channel(node.inputs[0]):
                first, second = node.inputs
                node.replace_input_with(0, second)
                node.replace_input_with(1, first)
        maps = [node for node in before_quantize if _is_per_channel(node.inputs[1])]
        for node in maps:
            _rewrite(node)
        return ir.passes.PassResult(model, bool(maps))


def _is_per_channel(operand: ir.Value | None) -> bool:
    """Whether this is a constant ``[C, 1, ...]``, with or without ones in front."""
    if operand is None or operand.const_value is None or operand.shape is None:
        return False
    extents = operand.shape.numpy()
    return len(extents) > 1 and extents[-1] == 1 and sum(extent > 1 for extent in extents) == 1


def _feeds_quantize(node: ir.Node) -> bool:
    return any(reader.op_type == "QuantizeLinear" for reader in node.outputs[0].consumers())


def _feeds_one_node(node: ir.Node) -> bool:
    output = node.outputs[0]
    return len(output.consumers()) == 1 and not output.is_graph_output()


def _rewrite(node: ir.Node) -> None:
    value = node.inputs[0]
    assert value is not None
    before = value.producer()
    if node.op_type == "Sub":
        node.op_type = "Add"
        _set_operand(node, -_operand(node))
    elif (
        before is not None
        and before.op_type == "Sub"
        and _is_per_channel(before.inputs[1])
        and _feeds_one_node(before)
    ):
        shift, factor = _operand(before), _operand(node)
        before.op_type, node.op_type = "Mul", "Add"
        _set_operand(before, factor)
        _set_operand(node, -shift * factor)
    else:
        node.op_type = "Div"
        _set_operand(node, np.float32(1) / _operand(node))


def _operand(node: ir.Node) -> Float32Array:
    value = node.inputs[1]
    assert value is not None
    return constant_array(value).astype(np.float32)


def _set_operand(node: ir.Node, array: Float32Array) -> None:
    replace_constant(node, 1, f"{node.name}/operand", array.astype(np.float32))
