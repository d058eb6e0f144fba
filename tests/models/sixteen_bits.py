"""Float32 files as converters and torch write them in fp16 or bf16."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, FP16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16


def in_16_bits(
    model: onnx.ModelProto, kind: int, *, islands: Collection[str] = (), interface: bool = True
) -> onnx.ModelProto:
    """All floats of a float32 model in another type.

    Args:
        model: Its nodes have one output and no subgraphs.
        kind: FP16 or BF16.
        islands: Operators that stay float32, between Casts.
        interface: Whether graph inputs and outputs change too; else they are cast.
    """
    low = onnx.ModelProto()
    low.CopyFrom(model)
    graph = low.graph
    del graph.value_info[:]
    nodes = list(graph.node)
    kept = {name for node in nodes if node.op_type in islands for name in node.input[1:]}
    for value in graph.initializer:
        if value.data_type == FLOAT and value.name not in kept:
            value.CopyFrom(_converted(value, kind))
    del graph.node[:]
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = kind
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == FLOAT:
                attribute.t.CopyFrom(_converted(attribute.t, kind))
        if node.op_type not in islands:
            graph.node.append(node)
            continue
        (source, *_), (output,) = node.input, node.output
        node.input[0], node.output[0] = f"{output}/wide_in", f"{output}/wide"
        graph.node.append(helper.make_node("Cast", [source], [node.input[0]], to=FLOAT))
        graph.node.append(node)
        graph.node.append(helper.make_node("Cast", [node.output[0]], [output], to=kind))
    for values, outward in ((graph.input, False), (graph.output, True)):
        for value in values:
            if value.type.tensor_type.elem_type != FLOAT:
                continue
            if interface:
                value.type.tensor_type.elem_type = kind
            else:
                _cast_at_border(graph, value.name, kind, outward=outward)
    return low


def rounded_weights(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """The float32 model with the weights that :func:`in_16_bits` gives it."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    for value in rounded.graph.initializer:
        if value.data_type == FLOAT:
            array = numpy_helper.to_array(_converted(value, kind)).astype(np.float32)
            value.CopyFrom(numpy_helper.from_array(array, value.name))
    return rounded


def _converted(tensor: onnx.TensorProto, kind: int) -> onnx.TensorProto:
    array = numpy_helper.to_array(tensor)
    low = array.astype(helper.tensor_dtype_to_np_dtype(kind))
    return helper.make_tensor(tensor.name, kind, array.shape, low.tobytes(), raw=True)


def _cast_at_border(graph: onnx.GraphProto, name: str, kind: int, *, outward: bool) -> None:
    inner = f"{name}/low"
    for node in graph.node:
        names = node.output if outward else node.input
        names[:] = [inner if other == name else other for other in names]
    if outward:
        graph.node.append(helper.make_node("Cast", [inner], [name], to=FLOAT))
    else:
        graph.node.insert(0, helper.make_node("Cast", [name], [inner], to=kind))
