"""Shape nodes without ``start`` and ``end``, for TensorRT 8.6."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from qvd_trt.export.passes.layer_edits import add_initializer

_TO_THE_LAST = np.iinfo(np.int64).max


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
