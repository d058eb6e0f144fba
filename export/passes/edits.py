"""Edits of one layer's constants; whatever is shared with other nodes is copied first."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qvd_trt.export.arrays import AnyArray, Float32Array
from qvd_trt.export.graph.values import constant_array, is_weight, static_shape
from qvd_trt.export.plan.fold_math import canonical_weight, restored_weight
from qvd_trt.export.plan.site_types import Layer, LayerOp


def add_initializer(graph: ir.Graph, stem: str, array: AnyArray) -> ir.Value:
    """Register a new constant under ``stem``, or ``stem_2``... when that name is taken."""
    return add_tensor(graph, stem, ir.tensor(np.asarray(array, order="C")))  # a scalar stays 0-d


def add_tensor(graph: ir.Graph, stem: str, tensor: ir.TensorProtocol) -> ir.Value:
    """As :func:`add_initializer`, of a tensor that may be read lazily."""
    name, count = stem, 1
    while name in graph.initializers:
        count += 1
        name = f"{stem}_{count}"
    tensor.name = name
    value = ir.Value(
        name=name,
        const_value=tensor,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
    )
    graph.register_initializer(value)
    return value


def new_cast(value: ir.Value, dtype: ir.DataType, name: str, node_name: str) -> ir.Value:
    """The value in another type, by a Cast that is yet to be put into the graph."""
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=node_name)
    result = node.outputs[0]
    result.name, result.shape, result.type = name, value.shape, ir.TensorType(dtype)
    return result


def replace_constant(node: ir.Node, index: int, stem: str, array: AnyArray) -> None:
    """Give one input of a node a constant of its own; drop the old one when nobody reads it."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    old = node.inputs[index]
    new = add_initializer(graph, stem, array)
    node.replace_input_with(index, new)
    if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
        del graph.initializers[old.name or ""]


def read_weight(node: ir.Node, layer: Layer) -> Float32Array:
    """The layer's present weight as ``[N, C / groups, taps]`` float32."""
    weight = node.inputs[1]
    assert weight is not None
    return canonical_weight(layer, constant_array(weight))


def write_weight(node: ir.Node, layer: Layer, canonical: Float32Array) -> None:
    """Give the layer a float weight of its own, named after the old one."""
    weight = node.inputs[1]
    assert weight is not None
    array = restored_weight(layer, canonical, static_shape(weight))
    replace_constant(node, 1, f"{weight.name}/qvd", array)


def add_to_bias(node: ir.Node, layer: Layer, vector: Float32Array) -> None:
    """Add ``[N]`` to the layer's output channels: to its bias, or to a new one."""
    if layer.op is LayerOp.MATMUL:
        _add_after_matmul(node, vector)
        return
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        node.resize_inputs(3)
        replace_constant(node, 2, f"{layer.name}/qvd/bias", vector)
    elif is_weight(bias):
        summed = constant_array(bias).astype(np.float32) + vector
        replace_constant(node, 2, f"{bias.name}/qvd", summed)
    else:
        raise ValueError(f"the bias of {layer.name!r} is computed, not constant")


def _add_after_matmul(node: ir.Node, vector: Float32Array) -> None:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    output = node.outputs[0]
    consumers = list(output.uses())
    if len(consumers) == 1 and not output.is_graph_output():
        consumer, index = consumers[0]
        other = consumer.inputs[1 - index] if consumer.op_type == "Add" else None
        if other is not None and is_weight(other):
            bias = constant_array(other)
            if bias.ndim and bias.size == bias.shape[-1] == len(vector):
                replace_constant(consumer, 1 - index, f"{other.name}/qvd", bias + vector)
                return
    bias_value = add_initializer(graph, f"{node.name}/qvd/bias", vector)
    add = ir.node("Add", [output, bias_value], name=f"{node.name}/qvd/add_bias")
    take_over_name(output, add.outputs[0])
    output.replace_all_uses_with(add.outputs[0], replace_graph_outputs=True)
    add.replace_input_with(0, output)
    graph.insert_after(node, add)


def take_over_name(old: ir.Value, new: ir.Value) -> None:
    """Let ``new`` carry the tensor name that readers know, ``old`` a derived one."""
    new.name, new.shape, new.type = old.name, old.shape, old.type
    old.name = f"{old.name}/qvd/before_bias"
