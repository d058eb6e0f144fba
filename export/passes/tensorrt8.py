"""What TensorRT 8.6 misreads or cannot build, rewritten for ``trt8`` alone (docs/tensorrt8.md)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qvd_trt.export.arrays import Float32Array
from qvd_trt.export.graph.values import constant_array, stored_value
from qvd_trt.export.passes.edits import add_initializer, replace_constant

_LAST_EXTENT = (("start", 2), ("end", 3), ("axis", 0))
_TO_THE_LAST = np.iinfo(np.int64).max
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_BEFORE_WEIGHTS = ("QuantizeLinear", "DequantizeLinear")


def tensorrt8_passes() -> list[ir.passes.InPlacePass]:
    """All of them, in the order in which they run."""
    return [MultiplyThenAdd(), NormalizeWithoutPlugin(), WholeShapes(), StateKernelShapes()]


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
            _multiply_first(node)
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


def _multiply_first(node: ir.Node) -> None:
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


class NormalizeWithoutPlugin(ir.passes.InPlacePass):
    """Rewrite InstanceNormalization of ``[N, G, L]`` with ones and zeros, which GroupNorm is.

    TensorRT 8.6's parser makes it a plugin that needs cuDNN; LayerNormalization over the last axis
    is the same function and a layer of its own. Its scale must have L elements, which only the
    running graph knows, so it is expanded from a one. The graph has opset 17, the first with that
    operator.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [node for node in model.graph if _is_group_norm(node)]
        for node in found:
            _as_layer_norm(model.graph, node)
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


def _as_layer_norm(graph: ir.Graph, node: ir.Node) -> None:
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


class WholeShapes(ir.passes.InPlacePass):
    """Cut what a Shape node leaves out with a Slice behind it.

    TensorRT 8.6 reads the two attributes (opset 15) without a word as if they were not there, and
    takes the whole shape.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [
            node
            for node in model.graph
            if node.op_type == "Shape" and {"start", "end"} & set(node.attributes)
        ]
        for node in nodes:
            _cut(model.graph, node)
        return ir.passes.PassResult(model, bool(nodes))


def _cut(graph: ir.Graph, node: ir.Node) -> None:
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", _TO_THE_LAST)
    whole = ir.node("Shape", [node.inputs[0]], name=f"{node.name}/whole")
    whole.outputs[0].name = f"{node.name}/whole"
    whole.outputs[0].dtype = ir.DataType.INT64
    bounds = [
        add_initializer(graph, f"{node.name}/{name}", np.array([value], np.int64))
        for name, value in (("start", start), ("end", end), ("axis", 0))
    ]
    cut = ir.node("Slice", [whole.outputs[0], *bounds], name=node.name)
    output = cut.outputs[0]
    output.shape, output.type = node.outputs[0].shape, node.outputs[0].type
    ir.convenience.replace_nodes_and_values(
        graph, node, [node], [whole, cut], [node.outputs[0]], [output]
    )


class StateKernelShapes(ir.passes.InPlacePass):
    """Write the optional attribute ``kernel_shape`` of every convolution with constant weights.

    TensorRT 8.6 infers it from plain weights, but refuses the node when they come out of a
    DequantizeLinear: "The input tensor shape misaligns with the input kernel shape".
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            if node.op_type in _CONVOLUTIONS and "kernel_shape" not in node.attributes:
                weights = stored_value(node.inputs[1], _BEFORE_WEIGHTS)
                if weights is not None and weights.const_value is not None:
                    extents = weights.const_value.shape.numpy()[2:]
                    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", extents)
                    modified = True
        return ir.passes.PassResult(model, modified)
